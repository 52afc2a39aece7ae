"""Denoising diffusion held against what is known: the acceptance checks of its reproduction.

    make reproduce NAME=diffusion                      everything
    make reproduce NAME=diffusion ARGS="-k gaussians"  a part: gaussians, digits or pictures
    FIGURES=docs/figures make reproduce NAME=diffusion and draws the page's figures

Three seeds at full length on JAX, and on torch one at a quarter of it. The laws of losses, samplers
and likelihoods are in `tests/inference`.
"""

import dataclasses
import functools
import os
from pathlib import Path

import numpy as np
import pytest

from probgen.backends import load
from studies.diffusion import pictures
from studies.diffusion.figures import pictures as picture_figure
from studies.diffusion.figures import whole
from studies.diffusion.study import Settings, run, table

SEEDS = (0, 1, 2)
FULL = Settings()


@functools.cache
def runs(data: str):
    pytest.importorskip("jax")
    found = [run(FULL, data, seed, "jax") for seed in SEEDS]
    print(f"\n{data}, JAX, seeds {SEEDS}\n{table(found)}")
    return found


def mean(found, name, what) -> float:
    return float(np.mean([np.ravel(getattr(r.quality[name], what))[0] for r in found]))


@pytest.mark.slow
def test_gaussians_are_there_and_the_flow_is_below_their_density():
    """Modes have their samples; the flow is a density, so that minus `flow` is a KL."""
    found = runs("gaussians")
    assert mean(found, "chain, 1,000", "modes") > 22
    for r in found:
        assert r.flow_error < 0.05
        assert r.flow[0] < 3 * r.flow[1] and r.bound[0] < 3 * r.bound[1]


@pytest.mark.slow
def test_digits_are_digits_in_few_steps_too():
    found = runs("digits")
    assert mean(found, "chain, 1,000", "modes") > 7
    for name in ("DDIM, 50", "DPM-Solver++, 50"):
        assert mean(found, name, "good") > mean(found, "chain, 10", "good") - 0.1
    for r in found:
        assert r.bound[0] < r.flow[0] + 3 * np.hypot(r.bound[1], r.flow[1])
        assert r.seconds["DDIM, 50"] < r.seconds["chain, 1,000"]


@pytest.mark.slow
@pytest.mark.parametrize("data", ["gaussians", "digits"])
def test_torch_at_a_quarter_of_the_length(data):
    pytest.importorskip("torch")
    shorter = dataclasses.replace(
        FULL,
        num_updates=FULL.num_updates // 4,
        digit_updates=400,
        num_samples=400,
        num_held_out=100,
    )
    print(f"\n{data}, torch\n{table([run(shorter, data, 0, 'torch')])}")


@pytest.mark.slow
def test_the_figure_of_the_page(tmp_path):
    drawn = whole(runs("gaussians")[0].fitted, runs("digits")[0].fitted, "jax")
    folder = Path(os.environ.get("FIGURES", tmp_path))
    drawn.savefig(folder / "diffusion.png", dpi=100)
    assert (folder / "diffusion.png").stat().st_size < 300_000


def test_pictures_run_at_reduced_length(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setitem(pictures.NUM_TRAIN, "pictograms", 300)
    monkeypatch.setitem(pictures.NUM_HELD_OUT, "pictograms", 100)
    monkeypatch.setattr(pictures, "sets", pictures.sets.__wrapped__)
    found = pictures.run(
        pictures.Settings.quick(), "pictograms", 0, load("torch", "cpu", compile="live")
    )
    assert found.x.shape == (100, 16, 16, 3) and found.judge > 0.9
    assert "| pictograms, seed 0 |" in pictures.table([found])


@functools.cache
def picture_runs(data: str):
    pytest.importorskip("jax")
    found = [pictures.run(pictures.Settings(), data, seed, "jax") for seed in SEEDS]
    print(f"\n{pictures.table(found)}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("data", ["mnist5k", "pictograms"])
def test_pictures_are_of_the_class_that_was_asked_for(data):
    found = picture_runs(data)
    assert np.mean([r.right[0] for r in found]) > 0.6


@pytest.mark.slow
def test_pictures_figure_of_the_page(tmp_path):
    folder = Path(os.environ.get("FIGURES", tmp_path))
    drawn = picture_figure([picture_runs(data)[0] for data in ("mnist5k", "pictograms")])
    drawn.savefig(folder / "diffusion_pictures.png", dpi=100)
    assert (folder / "diffusion_pictures.png").stat().st_size < 300_000
