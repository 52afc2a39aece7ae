"""An energy learned by kept and by fresh chains: the acceptance checks of its reproduction.

    make reproduce NAME=ebm                          everything (not the studies whose names end so)
    make reproduce NAME=ebm ARGS="-k digits"         the digits alone; "-k 'not digits'", the plane
    FIGURES=docs/figures make reproduce NAME=ebm     and draws the page's figure

Three seeds at full length on JAX, a shorter run on torch. The laws of the learner are in
`tests/inference/test_maximum_likelihood.py`.
"""

import functools
import os
from pathlib import Path

import numpy as np
import pytest

from probgen.errors import DivergedError
from studies.ebm import digits
from studies.ebm.figures import both
from studies.ebm.study import Settings, run, table

pytestmark = pytest.mark.slow
SEEDS = (0, 1, 2)
COLD = 0.25


@functools.cache
def runs(settings: Settings):
    pytest.importorskip("jax")
    found = [run(settings, seed, "jax") for seed in SEEDS]
    print(f"\n{table([found])}")
    return found


@functools.cache
def digit_runs(settings: digits.Settings):
    pytest.importorskip("jax")
    found = [digits.run(settings, seed, "jax") for seed in SEEDS]
    print(f"\n{digits.table([found])}")
    return found


def mean(found, what) -> float:
    return float(np.mean([what(r) for r in found]))


def converged(found):
    """3 of 3: the guard had nothing to say, and energies of data and samples are close."""
    assert not [event for r in found for event in r.events]
    assert all(abs(r.gap) < 0.5 for r in found)


def test_kept_chains_learn_the_density():
    """Within 0.2 nats of the truth on held-out data; long chains' samples are good; T is 1."""
    found = runs(Settings())
    converged(found)
    assert mean(found, lambda r: r.log_true - r.log_p) < 0.2
    assert mean(found, lambda r: r.good) > 0.94 and all(r.covered == 8 for r in found)
    assert abs(mean(found, lambda r: r.slope) - 1.0) < 0.15


def test_chains_of_which_none_starts_anew_lose_the_weights_of_the_modes():
    """Their energy is right within modes and not between them, which samples do not show."""
    stale, kept = runs(Settings(refresh=0.01)), runs(Settings())
    assert mean(stale, lambda r: r.log_p) < mean(kept, lambda r: r.log_p) - 0.05
    assert abs(mean(stale, lambda r: r.good) - mean(kept, lambda r: r.good)) < 0.02


def test_fresh_chains_do_as_well_where_the_base_covers_the_data():
    found, kept = runs(Settings(chains="fresh")), runs(Settings())
    converged(found)
    assert abs(mean(found, lambda r: r.log_p) - mean(kept, lambda r: r.log_p)) < 0.2


def test_chains_that_are_too_short_diverge_and_are_told_so():
    """Three steps from the base: no chain follows the energy down, and the guard ends the fit."""
    pytest.importorskip("jax")
    with pytest.raises(DivergedError, match="more steps of the chain"):
        run(Settings(chains="fresh", num_steps=3), 0, "jax")


def test_a_temperature_is_learned_into_the_energy():
    """log p is T times the data's: samples at T are good, the density itself is not."""
    found = runs(Settings(temperature=COLD))
    converged(found)
    assert abs(mean(found, lambda r: r.slope) / COLD - 1.0) < 0.15
    assert mean(found, lambda r: r.good) > 0.94
    assert mean(found, lambda r: r.log_true - r.log_p) > 0.4


def test_a_penalty_flattens_the_energy_and_holds_the_weights_of_the_modes():
    found, free = runs(Settings(penalty=0.02)), runs(Settings())
    converged(found)
    assert mean(found, lambda r: r.slope) < mean(free, lambda r: r.slope)
    assert mean(found, lambda r: r.kl) < mean(free, lambda r: r.kl)


def test_digits_are_learned_and_letters_are_strange():
    """Nats within 6 of ten Gaussians, samples that a classifier is sure of, some overfitting."""
    found = digit_runs(digits.Settings())
    assert not [event for r in found for event in r.events]
    assert mean(found, lambda r: r.mixture - r.log_likelihood) < 6.0
    assert mean(found, lambda r: r.good) > 0.7 * mean(found, lambda r: r.good_data)
    assert mean(found, lambda r: r.classes) >= 8
    assert mean(found, lambda r: r.auroc["letters"]) > 0.95
    assert mean(found, lambda r: r.auroc["textures"]) > 0.95
    assert 0 < mean(found, lambda r: r.overfit.nats) < 5


def test_digits_by_fresh_chains_have_samples_and_no_density():
    """Chains of 25 steps from the base lose nats by the dozen; samples do not show it."""
    found, kept = digit_runs(digits.Settings(chains="fresh")), digit_runs(digits.Settings())
    assert mean(found, lambda r: r.log_likelihood) < mean(kept, lambda r: r.log_likelihood) - 5.0
    assert mean(found, lambda r: r.good) > mean(kept, lambda r: r.good)


def test_the_figure_of_the_page(tmp_path):
    kept, stale, cold = (
        runs(s)[0] for s in (Settings(), Settings(refresh=0.01), Settings(temperature=COLD))
    )
    drawn = both(
        kept, stale, cold, digit_runs(digits.Settings())[0], "jax", steps=(1, 5, 25, 100, 300, 1000)
    )
    folder = Path(os.environ.get("FIGURES", tmp_path))
    drawn.savefig(folder / "ebm.png", dpi=100)
    assert (folder / "ebm.png").stat().st_size < 200_000


def test_on_torch_at_a_third_of_the_length():
    """Not at the truth yet: JAX is .33 to .66 nats below it at that length, the base 2.05."""
    pytest.importorskip("torch")
    found = run(Settings(num_updates=1000, num_held_out=1000, long=300), 0, "torch")
    print(f"\n{table([[found]])}")
    assert found.log_true - found.log_p < 0.8 and found.covered == 8
