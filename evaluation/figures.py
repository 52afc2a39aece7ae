"""Figures that people look at: learning curves, bars. Each takes numbers and gives a figure.

Every function returns a matplotlib `Figure` that belongs to nobody's global state: show it in a
notebook, save it, or put it on a page with `report.drawing.figure_svg`. Sizes are for a phone's
width, 4.2 x 2.8 inches, so that text stays readable there; a page sets two side by side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probgen.errors import ShapeError
from probgen.inference.likelihood.bracket import Bracket
from probgen.views.axes import canvas, dress, name_axes, smooth
from probgen.views.palette import COLOURS

__all__ = [
    "COLOURS",
    "Curve",
    "bars",
    "bracket",
    "canvas",
    "curves",
    "dress",
    "histogram",
    "name_axes",
    "overlaid",
    "smooth",
]


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line: x, y [n], its name, its colour's name in the palette, and its manner."""

    x: np.ndarray
    y: np.ndarray
    name: str
    colour: str = "blue"
    points: bool = False
    faint: bool = False


def curves(
    lines: Sequence[Curve], *, x_label: str, y_label: str, bottom: float | None = None
) -> Any:
    """Lines over a common axis, named at a legend inside the axes.

    Args:
        bottom: where the vertical axis starts; a learning curve's first steps would otherwise
            press all that matters against the upper edge.
    """
    figure, axes = canvas()
    for line in lines:
        axes.plot(
            line.x, line.y,
            color=COLOURS[line.colour],
            linewidth=0.9 if line.faint else 1.9,
            alpha=0.28 if line.faint else 1.0,
            marker="o" if line.points else None, markersize=3.6,
            label=None if line.faint else line.name,
        )  # fmt: skip
    if bottom is not None:
        axes.set_ylim(bottom=bottom)
    axes.margins(x=0.02)
    name_axes(axes, x_label, y_label)
    if sum(not line.faint for line in lines) > 1:
        axes.legend(frameon=False, fontsize=9.5, labelcolor=COLOURS["ink"], loc="best")
    return figure


def bars(
    values: np.ndarray,
    names: Sequence[str],
    *,
    x_label: str,
    y_label: str,
    strong: np.ndarray | None = None,
) -> Any:
    """Vertical bars; where `strong` [n] is False they are pale.

    Raises:
        ShapeError: names or `strong` of another length.
    """
    values = np.asarray(values, np.float64)
    chosen = np.ones(len(values), bool) if strong is None else np.asarray(strong)
    if len(names) != len(values) or chosen.shape != values.shape:
        raise ShapeError(
            f"bars: got {values.shape} values, {len(names)} names and {chosen.shape} flags, "
            "expected [n] of each."
        )
    figure, axes = canvas()
    colours = [COLOURS["blue"] if on else COLOURS["line"] for on in chosen]
    axes.bar(np.arange(len(values)), values, color=colours, width=0.72)
    axes.set_xticks(np.arange(len(values)), names)
    axes.grid(False, axis="x")
    name_axes(axes, x_label, y_label)
    return figure


def histogram(values: np.ndarray, *, x_label: str, y_label: str, num_bins: int = 30) -> Any:
    """How often each value occurs, with a line at the mean."""
    figure, axes = canvas()
    axes.hist(values, bins=num_bins, color=COLOURS["blue"], rwidth=0.92)
    axes.axvline(float(np.mean(values)), color=COLOURS["orange"], linewidth=1.6)
    axes.grid(False, axis="x")
    name_axes(axes, x_label, y_label)
    return figure


def overlaid(
    sets: Mapping[str, np.ndarray], *, x_label: str, y_label: str, num_bins: int = 40
) -> Any:
    """How two sets of values are spread, over common bins: the first filled, the second a line.

    Dashed lines are their means; the bins cover the middle 99.8 % of all values.
    """
    everything = np.concatenate(list(sets.values()))
    low, high = (float(v) for v in np.quantile(everything, [0.001, 0.999]))
    edges = np.linspace(low, high, num_bins + 1)
    figure, axes = canvas()
    for (name, values), hue, filled in zip(
        sets.items(), ("blue", "orange"), (True, False), strict=True
    ):
        shares = 100 * np.histogram(values, edges)[0] / len(values)
        axes.stairs(
            shares, edges, fill=filled, color=COLOURS[hue], alpha=0.45 if filled else 1.0,
            linewidth=1.4, label=name,
        )  # fmt: skip
        axes.axvline(float(values.mean()), color=COLOURS[hue], linewidth=1.2, linestyle="--")
    name_axes(axes, x_label, y_label)
    axes.legend(frameon=False, fontsize=9.5, labelcolor=COLOURS["ink"], loc="best")
    return figure


def bracket(found: Bracket, exact: np.ndarray | None = None) -> Any:
    """Forward and reverse estimates of each datum, and what they hold of all data together.

    Nats from the middle of each pair (or from `exact`, [n] log p(x) where it is known), in the
    order of the gaps. A pair is what one run happened to give, no interval: those that cross are of
    another colour. The band holds the mean over data with 95 % (`Bracket.interval`).

    Raises:
        ShapeError: `exact` of another length.
    """
    middle = 0.5 * (found.forward + found.reverse)
    origin = middle if exact is None else np.asarray(exact, np.float64)
    if origin.shape != middle.shape:
        raise ShapeError(
            f"bracket: got exact values of shape {origin.shape}, expected {middle.shape}, one for "
            "each simulated datum."
        )
    order = np.argsort(found.gap, kind="stable")
    low, high = (x[order] - origin[order] for x in (found.forward, found.reverse))
    place, crossed = np.arange(len(order)), found.gap[order] < 0
    figure, axes = canvas((4.2, 3.4))
    band = [x - float(origin.mean()) for x in found.interval()]
    axes.axhspan(*band, color=COLOURS["line"], alpha=0.6, linewidth=0, label="the mean, 95 %")
    axes.axhline(0.0, color=COLOURS["muted"], linewidth=0.8)
    for chosen, colour, name in (
        (~crossed, "blue", "one run's pair"),
        (crossed, "orange", "one that crosses"),
    ):
        if chosen.any():
            axes.vlines(
                place[chosen],
                low[chosen],
                high[chosen],
                color=COLOURS[colour],
                linewidth=1.4,
                label=name,
            )
    axes.plot(place, low, "^", color=COLOURS["ink"], markersize=3, label="forward")
    axes.plot(place, high, "v", color=COLOURS["ink"], markersize=3, label="reverse")
    from_what = "the middle of its pair" if exact is None else "the exact log p(x)"
    name_axes(axes, "simulated datum, by its gap", f"nats from {from_what}; no pair is an interval")
    figure.legend(
        frameon=False, fontsize=8, labelcolor=COLOURS["ink"], loc="outside lower center", ncols=3
    )
    return figure
