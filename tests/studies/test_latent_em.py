"""EM without an encoder, held against what is known: the acceptance checks of its reproduction.

    make reproduce NAME=latent_em                          everything
    make reproduce NAME=latent_em ARGS="-k mixture"        a part: factors, mixture or decoder
    FIGURES=docs/figures make reproduce NAME=latent_em     and draws the page's figure

Three seeds at full length on JAX, and on torch what is shorter; a seed is a split of the digits and
a start. The laws of the learner are in `tests/inference/test_em.py`.
"""

import dataclasses
import functools
import os
from pathlib import Path

import numpy as np
import pytest

from studies.latent_em.decoder import NUMBERS, decoder
from studies.latent_em.figures import six_panels
from studies.latent_em.study import OF_FACTORS, OF_MIXTURE, Settings, factors, mixture, table

pytestmark = pytest.mark.slow
SEEDS = (0, 1, 2)
FULL = Settings()


@functools.cache
def factor_runs():
    pytest.importorskip("jax")
    found = [factors(FULL, seed, "jax") for seed in SEEDS]
    print(f"\n{table({'chains a datum': found}, OF_FACTORS)}")
    return found


@functools.cache
def mixture_runs(backend: str, covariance: str):
    pytest.importorskip(backend)
    found = [mixture(FULL, seed, backend, covariance) for seed in SEEDS]
    print(f"\n{table({f'{covariance} on {backend}': found}, OF_MIXTURE)}")
    return found


@functools.cache
def decoder_runs():
    pytest.importorskip("jax")
    found = {way: [decoder(FULL, way, s, "jax") for s in SEEDS] for way in ("chains", "vae")}
    print(f"\n{table(found, NUMBERS)}")
    return found


def mean(found, name) -> float:
    return float(np.mean([getattr(r, name) for r in found]))


def test_factors_reach_the_maximum_in_closed_form():
    """To a hundredth of a nat per datum, covariance to 5 %, noise to 2 %."""
    found = factor_runs()
    assert mean(found, "best") - mean(found, "log_p") < 0.01
    assert mean(found, "off") < 0.05
    assert abs(mean(found, "noise") / mean(found, "best_noise") - 1) < 0.02


def test_factors_on_torch_at_a_fifth_of_the_length():
    pytest.importorskip("torch")
    found = factors(dataclasses.replace(FULL, factor_steps=300), 0, "torch")
    print(f"\n{table({'torch, 300 steps': [found]}, OF_FACTORS)}")
    assert found.best - found.log_p < 0.5


@pytest.mark.parametrize(
    ("backend", "covariance"), [("torch", "full"), ("jax", "full"), ("jax", "diagonal")]
)
def test_a_mixture_is_scikit_learns_and_its_likelihood_never_falls(backend, covariance):
    """Three starts, each to 1e-3 nats; no step loses more than rounding."""
    for r in mixture_runs(backend, covariance):
        assert abs(r.log_p - r.theirs) < 1e-3 and abs(r.held_out - r.theirs_held_out) < 1e-3
        assert r.largest_fall < 1e-5 and r.curve[-1] > r.curve[0] + 1


def test_a_decoder_without_an_encoder_is_likelier_than_a_vaes():
    found = decoder_runs()
    assert mean(found["chains"], "log_p") > mean(found["vae"], "log_p")
    assert mean(found["chains"], "reconstruction") > mean(found["vae"], "reconstruction")
    assert abs(mean(found["vae"], "log_p") - mean(found["vae"], "bound")) < 0.2
    assert all(abs(mean(runs, "more_levels")) < 0.3 for runs in found.values())


def test_the_figure_of_the_page(tmp_path):
    ways = {way: runs[0] for way, runs in decoder_runs().items()}
    drawn = six_panels(factor_runs()[0], mixture_runs("torch", "full"), ways, 0)
    folder = Path(os.environ.get("FIGURES", tmp_path))
    drawn.savefig(folder / "latent_em.png", dpi=100)
    assert (folder / "latent_em.png").stat().st_size < 200_000
