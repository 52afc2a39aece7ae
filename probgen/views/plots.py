"""What results look like: a fit's curves, a table's histograms, samples as pictures or points.

`history.plot()`, `fitted.plot()`, `table.plot()` and `samples.plot()` call these; in a notebook the
last line of a cell shows the same.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probgen.errors import UnknownName
from probgen.language.wording import did_you_mean
from probgen.records.evaluation import Evaluation
from probgen.records.history import History
from probgen.views.axes import dress, name_axes, smooth
from probgen.views.palette import COLOURS

PANEL, MOST = (3.4, 2.5), 6
SHOWN = 64  # pictures of a grid
CYCLE = ("blue", "orange", "green", "plum", "ink", "muted")


def _panels(count: int) -> tuple[Any, list[Any]]:
    """(figure, one pair of axes a panel), at most three in a row."""
    from matplotlib.figure import Figure

    columns = min(3, count)
    rows = math.ceil(count / columns)
    size = (max(PANEL[0] * columns, 4.2), PANEL[1] * rows + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in grid:
        dress(axes)
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, grid[:count]


def _chosen(names: Sequence[str] | str | None, known: Sequence[str], usual: list[str]) -> list[str]:
    asked = [names] if isinstance(names, str) else names
    for name in asked or ():
        if name not in known:
            raise UnknownName(
                f"plot: got {name!r}, expected some of {sorted(known)}{did_you_mean(name, known)}."
            )
    return list(asked or usual)[:MOST] if asked is None else list(asked)


def plot_history(history: History, names: Sequence[str] | str | None = None) -> Any:
    """A panel a metric: means of windows of steps, pale every step; points are held-out data.

    Args:
        names: metrics, one or more; None takes the bound, the loss and the parts of the bound.

    Raises:
        UnknownName: no metric of that name.
    """
    scalars = [n for n in history if history[n].ndim == 1]
    first = [n for n in ("elbo", "loss", "log_prob", "kl") if n in scalars]
    rest = [n for n in scalars if n not in first and "/" not in n]
    chosen = _chosen(names, list(history), [*first, *rest])
    figure, panels = _panels(max(1, len(chosen)))
    for axes, name in zip(panels, chosen, strict=False):
        values = np.asarray(history[name], np.float64)
        values = values.reshape(len(values), -1).sum(-1)
        steps, means = smooth(values, max(1, len(values) // 100))
        axes.plot(values, color=COLOURS["blue"], linewidth=0.8, alpha=0.25)
        axes.plot(steps, means, color=COLOURS["blue"], linewidth=1.8, label="training")
        if name in history.validation:
            held = history.validation[name]
            at = history.validation_steps[-len(held) :]
            axes.plot(at, held, "o-", color=COLOURS["orange"], markersize=3.6, label="held out")
            axes.legend(frameon=False, fontsize=8.5, labelcolor=COLOURS["ink"])
        low, high = np.nanquantile(values[len(values) // 10 :], [0.0, 1.0])
        room = 0.05 * (high - low) or 1.0
        axes.set_ylim(low - room, high + room)  # the first steps would press all else together
        name_axes(axes, "step", name)
    return figure


def plot_evaluation(table: Evaluation, names: Sequence[str] | str | None = None) -> Any:
    """A histogram a measure: its estimates over the data, with a line at their mean.

    Raises:
        UnknownName: no measure of that name.
    """
    chosen = _chosen(names, table.names, list(table.names))
    figure, panels = _panels(max(1, len(chosen)))
    for axes, name in zip(panels, chosen, strict=False):
        values = np.asarray(table[name]["estimate"].values, np.float64)
        values = values[np.isfinite(values)]
        axes.hist(
            values, bins=min(40, max(5, len(values) // 5)), color=COLOURS["blue"], rwidth=0.92
        )
        axes.axvline(values.mean(), color=COLOURS["orange"], linewidth=1.6)
        axes.grid(False, axis="x")
        name_axes(axes, table[name].attrs.get("unit", ""), f"{name}: data by value")
    return figure


def plot_samples(
    samples: Mapping[str, np.ndarray], names: Sequence[str] | str | None = None
) -> Any:
    """Pictures [n, h, w, 1 or 3] as a grid, pairs [n, 2] as points, numbers as histograms.

    Args:
        names: sites; None takes pictures and what else is small enough to be seen.

    Raises:
        UnknownName: no site of that name.
    """
    seen = [n for n, v in samples.items() if _is_pictures(v) or np.prod(v.shape[1:]) <= MOST]
    chosen = _chosen(names, list(samples), seen or list(samples))
    figure, panels = _panels(max(1, len(chosen)))
    for axes, name in zip(panels, chosen, strict=False):
        value = np.asarray(samples[name], np.float64)
        flat = value.reshape(len(value), -1)
        if _is_pictures(value):
            axes.imshow(_grid(value), cmap="gray_r", vmin=0.0, vmax=1.0, interpolation="nearest")
            axes.set_axis_off()
            name_axes(axes, "", f"{name}: {min(SHOWN, len(value))} of {len(value)}")
        elif flat.shape[1] == 2:
            axes.plot(*flat.T, ".", color=COLOURS["blue"], markersize=2.5, alpha=0.6)
            name_axes(axes, f"{name}[0]", f"{name}[1]")
        else:
            for i, column in enumerate(flat.T[:MOST]):
                label = f"{name}[{i}]" if flat.shape[1] > 1 else name
                bins, colour = min(40, max(8, len(column) // 10)), COLOURS[CYCLE[i % len(CYCLE)]]
                axes.hist(column, bins, histtype="step", linewidth=1.4, label=label, color=colour)
            if flat.shape[1] > 1:
                axes.legend(frameon=False, fontsize=8)
            name_axes(axes, "value", f"{name}: {len(value)} draws")
    return figure


def _is_pictures(value: np.ndarray) -> bool:
    return value.ndim == 4 and value.shape[-1] in (1, 3) and min(value.shape[1:3]) > 1


def _grid(pictures: np.ndarray) -> np.ndarray:
    """[n, h, w, c] as one picture of a square of them, on white."""
    shown = np.clip(pictures[:SHOWN], 0.0, 1.0)
    side = math.ceil(math.sqrt(len(shown)))
    _, h, w, c = shown.shape
    out = np.zeros((side * (h + 1), side * (w + 1), c)) + (0.0 if c == 1 else 1.0)
    for i, picture in enumerate(shown):
        row, column = divmod(i, side)
        out[row * (h + 1) : row * (h + 1) + h, column * (w + 1) : column * (w + 1) + w] = picture
    return out[..., 0] if c == 1 else out


def as_html(shown: Any) -> str:
    """What a notebook shows: the printed text, and the picture below it."""
    text = f"<pre>{html.escape(repr(shown))}</pre>"
    out = io.StringIO()
    shown.plot().savefig(out, format="svg", metadata={"Date": None})
    return text + out.getvalue()[out.getvalue().index("<svg") :]
