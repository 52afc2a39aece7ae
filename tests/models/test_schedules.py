"""Noise schedules: diffusers' names mean diffusers' numbers, and no beta leaves (0, 1)."""

import logging
import math

import numpy as np
import pytest

import probgen as pg
from probgen import nets
from probgen.errors import DeclarationError
from probgen.inference import Denoising
from probgen.models import Diffusion, NoiseSchedule


def bar(s):
    return math.cos(math.pi / 2 * (s + 0.008) / 1.008) ** 2


# (name, T, start, end): the first, second and last beta, worked out by hand from the definitions.
KNOWN = {
    ("linear", 1000, 1e-4, 2e-2): (1e-4, 1e-4 + 0.0199 / 999, 2e-2),
    ("linear", 4, 0.1, 0.5): (0.1, 0.1 + 0.4 / 3, 0.5),
    ("linear", 50, 1e-4, 2e-2): (1e-4, 1e-4 + 0.0199 / 49, 2e-2),
    ("linear", 1, 1e-4, 2e-2): (1e-4, None, 1e-4),
    ("scaled_linear", 5, 0.01, 0.25): (0.01, 0.04, 0.25),
    ("scaled_linear", 1000, 0.00085, 0.012): (
        0.00085, (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) / 999) ** 2, 0.012,
    ),
    ("sigmoid", 3, 0.1, 0.5): (0.1 + 0.4 * 0.0024726232, 0.3, 0.5 - 0.4 * 0.0024726232),
    ("squaredcos_cap_v2", 1000, 1e-4, 2e-2): (
        1.0 - bar(0.001) / bar(0.0), 1.0 - bar(0.002) / bar(0.001), 0.999,
    ),
    ("squaredcos_cap_v2", 2, 1e-4, 2e-2): (1.0 - bar(0.5) / bar(0.0), 0.999, 0.999),
}  # fmt: skip


@pytest.mark.parametrize("case", KNOWN, ids=lambda case: f"{case[0]}-{case[1]}")
def test_a_name_means_the_same_numbers_for_every_length(case):
    name, num, start, end = case
    betas = NoiseSchedule(num, name, start, end).betas()
    assert betas.shape == (num,) and betas.dtype == np.float64
    found = (betas[0], betas[1] if num > 1 else None, betas[-1])
    for got, want in zip(found, KNOWN[case], strict=True):
        assert got is want or abs(got / want - 1.0) < 1e-4, (found, KNOWN[case])


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2"])
@pytest.mark.parametrize("num", [1, 2, 7, 1000])
def test_every_schedule_is_one(name, num):
    """Betas in (0, 1), so alpha_bar falls and stays above 0."""
    schedule = NoiseSchedule(num, name, 1e-3, 0.1)
    betas, left = schedule.betas(), schedule.alphas_bar()
    assert ((betas > 0) & (betas < 1)).all() and (np.diff(left) < 0).all() and (left > 0).all()


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "sigmoid"])
def test_a_rescaled_chain_adds_as_much_noise(name):
    """sum of betas, which is about -log alpha_bar, is that of a thousand steps."""
    whole = NoiseSchedule(1000, name).betas().sum()
    for num in (50, 200, 4000):
        short = NoiseSchedule.rescaled(num, name).betas()
        assert len(short) == num and abs(short.sum() / whole - 1.0) < 0.05
    cosine = NoiseSchedule.rescaled(3, "squaredcos_cap_v2")
    assert cosine == NoiseSchedule(3, "squaredcos_cap_v2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"num_train_timesteps": 2.5}, "num_train_timesteps"),
        ({"beta_start": -0.1}, "beta_start"),
        ({"beta_start": 0.0}, "beta_start"),
        ({"beta_end": 1.0}, "beta_end"),
        ({"beta_end": float("nan")}, "beta_end"),
        ({"beta_schedule": "cosine"}, "beta_schedule"),
        ({"beta_end": 0.9}, "alpha_bar ends at"),
    ],
)
def test_what_is_no_schedule_is_refused(options, words):
    with pytest.raises(DeclarationError, match=f"NoiseSchedule.*{words}"):
        NoiseSchedule(**options)


def test_a_chain_too_short_to_be_rescaled_is_refused():
    with pytest.raises(DeclarationError, match="largest beta would be 2.*more than 20 steps"):
        NoiseSchedule.rescaled(10)


def test_a_chain_that_ends_far_from_noise_is_said(backend_name, caplog):
    """A thousand steps' betas over fifty leave 60 % of the data: the log says so at once."""
    x = np.zeros((4, 2), np.float32)
    for schedule, said in ((NoiseSchedule(50), True), (NoiseSchedule.rescaled(50), False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="probgen"):
            model = Diffusion(nets.MLPDenoiser(out=2, hidden=(4,)), (2,), schedule)
            pg.fit(
                model, x, Denoising(), num_steps=1, batch_size=4, seed=0, backend=backend_name,
                progress_bar=False,
            )  # fmt: skip
        assert ("is left" in caplog.text) is said
