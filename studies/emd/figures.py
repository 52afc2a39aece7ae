"""The figure of the study: modes found in one dimension, a ring, and digits by their class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.evaluation.figures import COLOURS
from probgen.views.axes import dress, name_axes
from studies.emd import mixture, ring


def panels(
    settings: mixture.Settings,
    students: Mapping[str, np.ndarray],
    rings: Mapping[str, np.ndarray],
    pictures: Mapping[str, np.ndarray],
) -> Any:
    """Densities of students beside the teacher's; draws on the ring; pictures, a column a class.

    Args:
        students: draws [n] by name, of the mixture of `settings`.
        rings: draws [n, 2] by name.
        pictures: digits [10, 64] in [-1, 1] by name, one of each class.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.3), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.0, 0.85))
    _densities(top.subplots(1, 1), settings, students)
    left, right = bottom.subfigures(1, 2, width_ratios=(1.0, 1.15))
    _rings(left.subplots(1, len(rings)), rings)
    _pictures(right.subplots(1, 1), pictures)
    return figure


def _densities(axes: Any, settings: mixture.Settings, students: Mapping[str, np.ndarray]) -> None:
    dress(axes)
    grid = np.linspace(-2.6, 2.6, 521)
    axes.fill_between(grid, mixture.density(settings, grid), color=COLOURS["muted"], alpha=0.25,
                      linewidth=0, label="teacher")  # fmt: skip
    bins = np.linspace(-2.6, 2.6, 105)
    for (name, x), hue in zip(students.items(), ("orange", "blue", "green"), strict=False):
        counts, _ = np.histogram(x, bins, density=True)
        counts = counts * np.mean((x > bins[0]) & (x < bins[-1]))
        axes.stairs(counts, bins, color=COLOURS[hue], linewidth=1.6, label=name)
    axes.set_ylim(0.0, 1.25 * mixture.density(settings, grid).max())
    axes.legend(frameon=False, fontsize=8.5, loc="upper right")
    name_axes(axes, "x", "density, from the left mode alone")


def _rings(all_axes: Any, rings: Mapping[str, np.ndarray]) -> None:
    for axes, (name, x) in zip(np.atleast_1d(all_axes), rings.items(), strict=True):
        axes.plot(*x[:1500].T, ".", markersize=1.2, color=COLOURS["blue"])
        axes.plot(*ring.centres().T, "o", markersize=11, mfc="none", color=COLOURS["muted"])
        axes.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), xticks=[], yticks=[], aspect="equal")
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_title(name, fontsize=8.5, color=COLOURS["ink"])


def _pictures(axes: Any, rows: Mapping[str, np.ndarray]) -> None:
    """Rows of ten pictures under each other, named at the left."""
    tall = [
        np.concatenate([np.pad(p, 1, constant_values=-0.6) for p in x.reshape(-1, 8, 8)], 1)
        for x in rows.values()
    ]
    axes.imshow(-np.concatenate(tall), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_yticks([10 * i + 4.5 for i in range(len(rows))], list(rows))
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=8, colors=COLOURS["muted"])
    for side in axes.spines.values():
        side.set_visible(False)


def one_of_each(x: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """[10, 64], the first of draws [n, 64] of each class that was asked for."""
    return np.stack([x[int(np.argmax(asked == c))] for c in range(10)])
