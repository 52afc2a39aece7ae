"""Axes in the house's manner, and means of windows: what every figure is made with.

A figure is a matplotlib `Figure` that belongs to nobody's global state. Sizes are for a phone's
width, 4.2 x 2.8 inches, so that text stays readable there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from probgen.views.palette import COLOURS

SIZE = (4.2, 2.75)


def canvas(size: tuple[float, float] = SIZE) -> tuple[Any, Any]:
    """An empty figure with one pair of axes in the house's manner: (figure, axes)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    dress(axes)
    return figure, axes


def dress(axes: Any) -> None:
    """Gives a pair of axes the house's manner: pale lines, no box, a grid behind."""
    axes.patch.set_visible(False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(COLOURS["line"])
    axes.tick_params(colors=COLOURS["muted"], labelsize=9, length=0)
    axes.grid(True, color=COLOURS["line"], linewidth=0.6)
    axes.set_axisbelow(True)


def name_axes(axes: Any, x: str, y: str) -> None:
    """Writes what the axes are, the vertical one above the figure where it is read first."""
    axes.set_xlabel(x, fontsize=9.5, color=COLOURS["muted"])
    axes.set_title(y, fontsize=10, color=COLOURS["ink"], loc="left", pad=8)


def smooth(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of successive windows: (their middles, counted from 0; the means).

    Example:
        >>> smooth(np.arange(6.0), 2)
        (array([0.5, 2.5, 4.5]), array([0.5, 2.5, 4.5]))
    """
    count = len(values) // window
    if count == 0:
        return np.arange(len(values), dtype=np.float64), np.asarray(values, np.float64)
    means = np.asarray(values[: count * window], np.float64).reshape(count, window).mean(1)
    return (np.arange(count) + 0.5) * window - 0.5, means
