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
from studies.self_adversarial_ebm import digits
from studies.self_adversarial_ebm.figures import whole
from studies.self_adversarial_ebm.study import Settings, density, run, run_by_likelihood, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "systems" / "self_adversarial_ebm.md"
SEEDS = (0, 1, 2)
BY_LIKELIHOOD = Settings(num_updates=600, batch_size=128, learning_rate=3e-3)
SIDE = np.linspace(-5.5, 5.5, 221)  # steps of 0.05


@pytest.mark.filterwarnings("ignore:log_partition")  # so short a fit has its mass far out
def test_the_page_runs_at_reduced_length():
    """The declaration as it stands, of at most 40 lines, with few steps, data and samples; and what
    watches its map."""
    pytest.importorskip("torch")
    program, watching = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.S | re.M)
    assert len(program.splitlines()) <= 40
    few = {
        "num_steps=2000": "num_steps=3, progress_bar=False", "20_000": "256", "(2000, ": "(50, ",
        ", 5000,": ", 50,", "num_steps=20": "num_steps=3", "Quadrature(": "Quadrature(41, ",
        "seed=0": "seed=0, backend=backend",
    }  # fmt: skip
    for long, short in few.items():
        assert long in program
        program, watching = program.replace(long, short), watching.replace(long, short)
    space: dict = {"__name__": "page", "backend": load("torch", "cpu", compile="live")}
    exec(compile(program, str(PAGE), "exec"), space)
    assert "no noise" in space["samples"].note and space["samples"]["x"].shape == (50, 2)
    exec(compile(watching.replace("% 100", "% 3"), str(PAGE), "exec"), space)
    assert 0 < space["watch"].curve[3] < 1


@functools.cache
def quiet(seed: int):
    return run(Settings(), 0.0, seed, "jax", others=True)


@functools.cache
def noisy(noise: float, seed: int):
    """None where the fit left the numbers."""
    return or_none(lambda: run(Settings(), noise, seed, "jax"), f"sigma {noise:.3g}, seed {seed}")


@functools.cache
def on_digits(noise: float, seed: int):
    return or_none(
        lambda: digits.run(digits.Settings(), noise, seed, "jax"),
        f"digits, sigma {noise:.3g}, seed {seed}",
    )


@functools.cache
def trained_density():
    """q on the grid of the sheet's check D, of the first noise-free energy."""
    return density(quiet(SEEDS[0]).generator, SIDE)


def or_none(fit, name):
    try:
        return fit()
    except NonFiniteError as error:
        print(f"\n{name}: {error}")
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


@pytest.mark.slow
def test_self_adversarial_ebm_its_density_integrates_to_one():
    """Check D of the sheet, on trained weights: 1 +- 0.03 over [-5.5, 5.5]^2 by steps of 0.05."""
    pytest.importorskip("jax")
    total = float(trained_density().sum() * (SIDE[1] - SIDE[0]) ** 2)
    print(f"\nq integrates to {total:.4f}")
    assert abs(total - 1.0) <= 0.03


@pytest.mark.slow
def test_self_adversarial_ebm_long_runs_leave_the_data():
    """1,000 further steps of full noise lower HQ: exp(-E) is not the data's law."""
    pytest.importorskip("jax")
    runs = [quiet(seed) for seed in SEEDS]
    long = mean(runs, lambda r: r.others["and long Langevin"].good)
    assert mean(runs, lambda r: r.samples.good) - long >= 0.2


@pytest.mark.slow
def test_self_adversarial_ebm_long_descent_loses_modes_or_not_by_the_first_weights():
    """1,000 further steps without noise: from the net's own weights each mode keeps a minimum, from
    PyTorch's half of the modes run into the others."""
    pytest.importorskip("jax")
    found = [run(Settings(start="uniform"), 0.0, seed, "jax", others=True) for seed in SEEDS]
    print(f"\nfrom uniform weights\n{table(found)}")
    assert all(r.samples.covered == 8 for r in found)
    assert all(r.others["and long descent"].covered <= 6 for r in found)
    assert mean(found, lambda r: r.others["and long descent"].kl - r.samples.kl) >= 0.1
    kept = [quiet(seed).others["and long descent"] for seed in SEEDS]
    assert all(s.covered == 8 and s.kl < 0.01 for s in kept)


@pytest.mark.slow
def test_self_adversarial_ebm_noise_changes_nothing_but_the_worse():
    """A little noise leaves HQ; full noise lowers it, or the fit diverges."""
    pytest.importorskip("jax")
    still = mean([quiet(seed) for seed in SEEDS], lambda r: r.samples.good)
    little = [noisy(0.05, seed) for seed in SEEDS]
    more = [noisy(0.1, seed) for seed in SEEDS]
    print(f"\n{table(little)}\n{table([r for r in more if r])}")
    assert abs(mean(little, lambda r: r.samples.good) - still) < 0.05
    full = [noisy(Settings().full_noise, seed) for seed in SEEDS]
    print(f"\n{table([r for r in full if r])}")
    assert still - mean([r.samples.good if r else 0.0 for r in full], float) >= 0.1


@pytest.mark.slow
def test_self_adversarial_ebm_without_the_penalty():
    """alpha = 0: the penalty flattens E, and is not why q and p differ."""
    pytest.importorskip("jax")
    free = dataclasses.replace(Settings(), penalty=0.0)
    found = [run(free, 0.0, seed, "jax") for seed in SEEDS]
    print(f"\nalpha = 0\n{table(found)}")
    assert mean(found, lambda r: r.log_q - r.log_gibbs) >= 0.3
    assert mean(found, lambda r: r.samples.covered) == 8


@pytest.mark.slow
def test_self_adversarial_ebm_beside_the_map_fitted_by_its_own_likelihood():
    """Its log q is above that of the map trained by chains; its p is no better."""
    pytest.importorskip("jax")
    found = [run_by_likelihood(BY_LIKELIHOOD, seed, "jax") for seed in SEEDS]
    print(f"\n{table(found)}")
    log_q, log_true = (mean(found, lambda r, n=n: getattr(r, n)) for n in ("log_q", "log_true"))
    assert mean([quiet(seed) for seed in SEEDS], lambda r: r.log_q) + 0.2 < log_q < log_true
    assert mean(found, lambda r: r.log_q - r.log_gibbs) > 0.3
    assert mean(found, lambda r: r.samples.covered) == 8


@pytest.mark.slow
def test_self_adversarial_ebm_on_digits():
    """All classes; full noise is further from digits; log q knows digits from what is none."""
    pytest.importorskip("jax")
    still = [on_digits(0.0, seed) for seed in SEEDS]
    full = [r for seed in SEEDS if (r := on_digits(digits.Settings().full_noise, seed))]
    print(f"\n{digits.table(still + full)}")
    assert all(r.least > 0 for r in still) and mean(still, lambda r: r.classes) >= 9
    if full:
        assert mean(full, lambda r: r.frechet) > mean(still, lambda r: r.frechet)
    for r in still:
        assert np.isfinite(r.log_q["held out"]).all() and r.sharpness < 1
        assert r.auroc("permuted") > 0.99 and r.auroc("uniform") > 0.99


@pytest.mark.slow
def test_self_adversarial_ebm_the_figure_of_the_page(tmp_path):
    pytest.importorskip("jax")
    pictures = [on_digits(noise, 0) for noise in (0.0, digits.Settings().full_noise)]
    drawn = whole(quiet(0), Settings(), SIDE, trained_density(), [r for r in pictures if r])
    file = Path(os.environ.get("FIGURES", tmp_path)) / "self_adversarial_ebm.png"
    drawn.savefig(file, dpi=100)
    assert file.stat().st_size < 250_000


@pytest.mark.slow
def test_self_adversarial_ebm_on_torch_at_half_length():
    pytest.importorskip("torch")
    short = dataclasses.replace(Settings(), num_updates=1000, num_held_out=500)
    accept([run(short, 0.0, 0, "torch")])
