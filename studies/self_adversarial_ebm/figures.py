"""The figure of the study: two laws of one energy, its chains, its energies, and digits."""

from __future__ import annotations

from typing import Any

import numpy as np

import probgen as pg
from probgen.backends import load
from probgen.evaluation.figures import COLOURS, dress, name_axes, smooth
from studies.ebm.figures import grid
from studies.self_adversarial_ebm import digits
from studies.self_adversarial_ebm.study import TRUTH, Run, Settings
from studies.self_adversarial_ebm.training import energies

EDGE = 3.5
STEPS = (1, 5, 10, 20, 100, 1000)  # after which chains are shown
NUM_SHOWN = 1000


def whole(
    found: Run, settings: Settings, side: np.ndarray, q: np.ndarray,
    pictures: list[digits.Run], backend: str = "jax",
) -> Any:  # fmt: skip
    """`q` [n, n] is the map's density where both coordinates run along `side` [n]; `pictures` are
    of training on digits without noise and, where that went through, with all of it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 8.6), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(1.2, 1.6, 1.35))
    _laws(top.subplots(1, 4), found, settings, side, q, backend)
    quiet, noisy = (
        pg.generate(
            found.trained, NUM_SHOWN, method=settings.sampler(noise, max(STEPS)), seed=0,
            chunk_size=NUM_SHOWN, return_chain=True, backend=load(backend, "cpu"),
        ).chain["x"]
        for noise in (0.0, settings.full_noise)
    )  # fmt: skip
    for row, chain, name in zip(
        middle.subplots(2, len(STEPS)), (quiet, noisy), ("no noise", "full noise"), strict=True
    ):
        for axes, k in zip(row, STEPS, strict=True):
            _cloud(axes, chain[k - 1], f"{name}, {k:,} step" + "s" * (k > 1))
    left, right, last = bottom.subfigures(1, 3, width_ratios=(1.0, 1.0, 1.4))
    _training(left.subplots(), found)
    _along(right.subplots(), found, (quiet, noisy), backend)
    sets = [("held out", digits.sets(digits.Settings(), pictures[0].seed)[1]["held out"])]
    sets += [("full noise" if r.noise else "no noise", r.samples) for r in pictures]
    for axes, (name, x) in zip(np.atleast_1d(last.subplots(1, len(sets))), sets, strict=True):
        grid(axes, np.clip(x[:40], -1.0, 1.0).reshape(10, 4, 8, 8), name)
    return figure


def _laws(
    panels: Any, found: Run, settings: Settings, side: np.ndarray, q: np.ndarray, backend: str
) -> None:
    """Data, samples of the map, q where it is no larger than the data's density is, and p."""
    b, points = load(backend, "cpu"), np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    p = np.exp(-energies(found.trained, points.astype(np.float32), b).astype(np.float64))
    draws = pg.generate(
        found.trained, 2 * NUM_SHOWN, method=settings.sampler(0.0), seed=0,
        chunk_size=2 * NUM_SHOWN, backend=b,
    )["x"]  # fmt: skip
    _cloud(panels[0], TRUTH.sample(2 * NUM_SHOWN, seed=0), "data")
    _cloud(panels[1], draws, "samples, $G(z)$")
    peak = float(np.exp(TRUTH.log_prob(points)).max())
    densities = (q, "density $q$ of $G(z)$", peak), (p.reshape(q.shape), "nominal $e^{-E}/Z$", None)
    for axes, (density, title, top) in zip(panels[2:], densities, strict=True):
        axes.pcolormesh(side, side, density, cmap="Blues", vmin=0, vmax=top, rasterized=True)
        _frame(axes, title)


def _cloud(axes: Any, x: np.ndarray, title: str) -> None:
    axes.scatter(*x.T, s=1.2, color=COLOURS["blue"], linewidths=0)
    _frame(axes, title)


def _frame(axes: Any, title: str) -> None:
    axes.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), xticks=[], yticks=[], aspect="equal")
    axes.set_title(title, fontsize=9, color=COLOURS["ink"])


def _training(axes: Any, found: Run) -> None:
    """Mean energies of data and of samples over updates."""
    dress(axes)
    history = found.trained.history
    for name, key, hue in (
        ("data", "energy_data", "blue"),
        ("samples", "energy_samples", "orange"),
    ):
        values = history[key]
        axes.plot(*smooth(values, max(1, len(values) // 100)), color=COLOURS[hue], label=name)
    axes.legend(frameon=False, fontsize=8)
    name_axes(axes, "update", "mean energy in training (nats)")


def _along(axes: Any, found: Run, chains: tuple[np.ndarray, ...], backend: str) -> None:
    """Mean energy along chains, from their first step on, and that of data."""
    b = load(backend, "cpu")
    dress(axes)
    for chain, name, hue in zip(
        chains, ("no noise", "full noise"), ("blue", "orange"), strict=True
    ):
        mean = energies(found.trained, chain, b).mean(-1)
        axes.plot(np.arange(1, len(mean) + 1), mean, color=COLOURS[hue], label=name)
    data = energies(found.trained, TRUTH.sample(5000, seed=0), b).mean()
    axes.axhline(data, color=COLOURS["muted"], linestyle="--", linewidth=1.0, label="data")
    axes.set_xscale("log")
    axes.legend(frameon=False, fontsize=8)
    name_axes(axes, "step of the chain", "mean energy along chains (nats)")
