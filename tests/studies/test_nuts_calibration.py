"""Our own NUTS and HMC draw from the posterior, over whole priors: ranks of simulated truths.

    make reproduce NAME=nuts_calibration                            all, both backends, a table
    make reproduce NAME=nuts_calibration ARGS="-k 'jax and doses'"  one case
    FIGURES=docs/figures make reproduce NAME=nuts_calibration       and draws the page's figure

A right kernel fails somewhere with probability 0.01, over all cases, quantities and both backends.
"""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from probgen.evaluation.calibration.ranked import CORRELATED
from studies.posteriors.calibration import CASES, calibrated, figure


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Prints the rows of the tests that ran, and draws them."""
    found, rows = {}, []
    yield found, rows
    head = "case | backend | quantities | smallest p, Holm | most thinned autocorrelation | CPU s"
    print(f"\n\n| {head} |", "| --- " * 6 + "|", *rows, sep="\n")
    folder = Path(os.environ.get("FIGURES", tmp_path_factory.mktemp("figures")))
    if found:
        figure(found).savefig(folder / "nuts_calibration.png", dpi=100)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ranks_of_simulated_truths_are_uniform(backend_name, name, results):
    began = time.process_time()
    result = calibrated(name, backend_name)
    seconds = time.process_time() - began
    lag = np.nanmax(result.autocorrelation)
    worst = int(np.argmin(result.adjusted))
    found, rows = results
    found[name, backend_name] = result
    rows.append(
        f"| {name} | {backend_name} | {len(result.names)} | {result.adjusted[worst]:.3f} "
        f"({result.names[worst]}) | {lag:+.3f} | {seconds:.0f} |"
    )
    print("\n" + rows[-1])
    assert lag < CORRELATED  # else a rejection would say little
    still = {n for n, share in zip(result.names, result.still, strict=True) if share > 0}
    assert still <= set(CASES[name].certain)
    assert result.accepted, result
