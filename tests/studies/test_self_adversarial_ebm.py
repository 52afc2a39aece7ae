"""The self-adversarial view of energies: the acceptance checks of its reproduction.

    make reproduce NAME=self_adversarial_ebm                          both backends
    make reproduce NAME=self_adversarial_ebm ARGS="-k 'not torch'"    one of them
    FIGURES=docs/figures make reproduce NAME=self_adversarial_ebm     draws the figure

Three seeds at full length on JAX, a shorter run on torch, whose loops within loops run live. The
laws of the map and its density are in `tests/models/test_gradient_flow.py`.
"""

import dataclasses
import functools
import os
import re
from pathlib import Path

import numpy as np
import pytest

from probgen.backends import load
from probgen.errors import NonFiniteError
from studies.self_adversarial_ebm.study import Settings, figure, run, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "systems" / "self_adversarial_ebm.md"
SEEDS = (0, 1, 2)


@pytest.mark.filterwarnings("ignore:log_partition")  # so short a fit has its mass far out
def test_the_page_runs_at_reduced_length():
    """The declaration as it stands, of at most 40 lines, with few steps, data and samples."""
    pytest.importorskip("torch")
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.S | re.M)
    assert len(program.splitlines()) <= 40
    few = {
        "num_steps=2000": "num_steps=3, progress_bar=False", "20_000": "256", "(2000, ": "(50, ",
        ", 5000,": ", 50,", "num_steps=20": "num_steps=3", "Quadrature(": "Quadrature(41, ",
        "seed=0": "seed=0, backend=backend",
    }  # fmt: skip
    for long, short in few.items():
        assert long in program
        program = program.replace(long, short)
    space: dict = {"__name__": "page", "backend": load("torch", "cpu", compile="live")}
    exec(compile(program, str(PAGE), "exec"), space)
    assert "no noise" in space["samples"].note and space["samples"]["x"].shape == (50, 2)


@functools.cache
def quiet(seed: int):
    return run(Settings(), 0.0, seed, "jax", others=True)


@functools.cache
def noisy(noise: float, seed: int):
    """None where the fit left the numbers."""
    try:
        return run(Settings(), noise, seed, "jax")
    except NonFiniteError as error:
        print(f"\nsigma {noise:.3g}, seed {seed}: {error}")
        return None


def mean(runs, what) -> float:
    return float(np.mean([what(r) for r in runs]))


def accept(runs):
    """Of noise-free runs; means over seeds."""
    print(f"\n{table(runs)}")
    assert mean(runs, lambda r: r.samples.good) >= 0.75
    assert mean(runs, lambda r: r.samples.covered) == 8
    assert mean(runs, lambda r: r.samples.kl) <= 0.05
    assert max(r.sharpness for r in runs) < 0.5
    assert mean(runs, lambda r: r.log_q - r.log_gibbs) >= 0.3
    assert mean(runs, lambda r: abs(r.energy_gap)) <= 0.1


@pytest.mark.slow
def test_self_adversarial_ebm_the_sampler_is_the_model():
    """log q of held-out data is above log p by 0.3 nats, and both are below the truth."""
    pytest.importorskip("jax")
    runs = [quiet(seed) for seed in SEEDS]
    accept(runs)
    assert mean(runs, lambda r: r.log_true - r.log_q) > 0
    if "FIGURES" in os.environ:
        drawn = figure(runs[0], Settings())
        drawn.savefig(Path(os.environ["FIGURES"]) / "self_adversarial_ebm.png", dpi=150)


@pytest.mark.slow
def test_self_adversarial_ebm_long_runs_leave_the_data():
    """1,000 further steps of full noise lower HQ: exp(-E) is not the data's law."""
    pytest.importorskip("jax")
    runs = [quiet(seed) for seed in SEEDS]
    long = mean(runs, lambda r: r.others["and long Langevin"].good)
    assert mean(runs, lambda r: r.samples.good) - long >= 0.2


@pytest.mark.slow
def test_self_adversarial_ebm_noise_changes_nothing_but_the_worse():
    """A little noise leaves HQ; full noise lowers it, or the fit diverges."""
    pytest.importorskip("jax")
    still = mean([quiet(seed) for seed in SEEDS], lambda r: r.samples.good)
    little = [noisy(0.05, seed) for seed in SEEDS]
    print(f"\n{table(little)}\n{table([r for r in [noisy(0.1, 0)] if r])}")
    assert abs(mean(little, lambda r: r.samples.good) - still) < 0.05
    full = [noisy(Settings().full_noise, seed) for seed in SEEDS]
    print(f"\n{table([r for r in full if r])}")
    assert still - mean([r.samples.good if r else 0.0 for r in full], float) >= 0.1


@pytest.mark.slow
def test_self_adversarial_ebm_without_the_penalty():
    """alpha = 0: the penalty flattens E, and is not why q and p differ."""
    pytest.importorskip("jax")
    found = run(dataclasses.replace(Settings(), penalty=0.0), 0.0, 0, "jax")
    print(f"\nalpha = 0\n{table([found])}")
    assert found.log_q - found.log_gibbs >= 0.3 and found.samples.covered == 8


@pytest.mark.slow
def test_self_adversarial_ebm_on_torch_at_half_length():
    pytest.importorskip("torch")
    short = dataclasses.replace(Settings(), num_updates=1000, num_held_out=500)
    accept([run(short, 0.0, 0, "torch")])
