"""Figures of calibration: each takes a result and gives a matplotlib `Figure` of nobody's state.

The results (`SBC`, `VSBC`, `Geweke`, `PredictiveCheck`) draw themselves with them, by `plot()`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from probgen.errors import UnknownName
from probgen.evaluation.calibration.uniformity import ecdf_difference, envelope
from probgen.evaluation.figures import COLOURS, dress, name_axes
from probgen.language.dist import did_you_mean

MOST = 12  # panels of one figure
PANEL = (3.1, 2.4)


def _chosen(known: tuple[str, ...], names: tuple[str, ...] | None, worst: np.ndarray) -> list[str]:
    """The names asked for, or those with the smallest `worst`, in their own order."""
    if names is None:
        first = set(np.argsort(worst, kind="stable")[:MOST].tolist())
        return [n for i, n in enumerate(known) if i in first]
    for name in names:
        if name not in known:
            raise UnknownName(
                f"plot: got the quantity {name!r}, expected some of {list(known)}"
                f"{did_you_mean(name, known)}."
            )
    return list(names)


def _panels(count: int) -> tuple[Any, list[Any]]:
    """(figure, one pair of axes for each of `count` panels), at most three in a row."""
    from matplotlib.figure import Figure

    columns = 2 if count == 4 else min(3, count)
    rows = math.ceil(count / columns)
    size = (max(PANEL[0] * columns, 4.2), PANEL[1] * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        dress(axes)
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, list(grid[:count])


def _legend(figure: Any, axes: Any) -> None:
    """One legend below all panels."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9,
        labelcolor=COLOURS["ink"],
    )  # fmt: skip


def ecdf_figure(result: Any, names: tuple[str, ...] | None = None) -> Any:
    """Ranks' distribution function minus the uniform one, with the band of right methods.

    Above zero on the left and below on the right: ranks at both ends, draws too narrow. The other
    way round: too wide. On one side throughout: shifted.
    """
    chosen = _chosen(result.names, names, result.adjusted)
    band = envelope(result.num_simulations, result.num_draws, seed=result.seed)
    figure, panels = _panels(len(chosen))
    x = np.concatenate([[0.0], band.points, [1.0]])

    def pad(v):
        return np.concatenate([[0.0], v, [0.0]])

    for axes, name in zip(panels, chosen, strict=True):
        j = result.names.index(name)
        rejected = result.adjusted[j] <= result.alpha
        axes.fill_between(
            x, pad(band.lower - band.points), pad(band.upper - band.points), step="mid",
            color=COLOURS["line"], label=f"{band.prob:.0%} of right methods",
        )  # fmt: skip
        axes.axhline(0, color=COLOURS["muted"], linewidth=0.7)
        y = pad(ecdf_difference(result.ranks[:, j], result.num_draws, band))
        axes.step(
            x, y, where="mid", linewidth=1.7, label="this method",
            color=COLOURS["orange" if rejected else "blue"],
        )  # fmt: skip
        told = (
            f"rejected, p {result.adjusted[j]:.2g}" if rejected else f"p {result.adjusted[j]:.2g}"
        )
        name_axes(axes, "rank / draws", f"{name}  ({told})")
        axes.set_xlim(0, 1)
    panels[0].set_ylabel("ECDF - uniform", fontsize=9.5, color=COLOURS["muted"])
    _legend(figure, panels[0])
    return figure


def symmetry_figure(result: Any, names: tuple[str, ...] | None = None) -> Any:
    """Histogram of the probabilities, with its mirror image as an outline."""
    chosen = _chosen(result.names, names, result.adjusted)
    figure, panels = _panels(len(chosen))
    bins = np.linspace(0, 1, 21)
    for axes, name in zip(panels, chosen, strict=True):
        j = result.names.index(name)
        p = result.probabilities[:, j]
        axes.hist(p, bins=bins, color=COLOURS["blue"], rwidth=0.92, label="p")
        axes.hist(
            1 - p, bins=bins, histtype="step", color=COLOURS["orange"], linewidth=1.6, label="1 - p"
        )
        axes.axhline(len(p) / 20, color=COLOURS["muted"], linewidth=0.9, linestyle="--")
        name_axes(axes, "p = P(draw < truth)", f"{name}  (symmetric: p {result.adjusted[j]:.2g})")
    panels[0].set_ylabel("simulations", fontsize=9.5, color=COLOURS["muted"])
    _legend(figure, panels[0])
    return figure


def geweke_figure(result: Any, names: tuple[str, ...] | None = None) -> Any:
    """Quantiles of each function in the two simulators against each other."""
    chosen = _chosen(result.names, names, -np.abs(result.z))
    figure, panels = _panels(len(chosen))
    levels = np.linspace(0.005, 0.995, 100)
    for axes, name in zip(panels, chosen, strict=True):
        j = result.names.index(name)
        bad = abs(result.z[j]) >= result.limit
        x = np.quantile(result.marginal[..., j], levels)
        y = np.quantile(result.successive[..., j], levels)
        ends = [min(x[0], y[0]), max(x[-1], y[-1])]
        axes.plot(ends, ends, color=COLOURS["muted"], linewidth=0.9, label="equal laws")
        axes.plot(
            x, y, linestyle="", marker="o", markersize=3.2, label="quantiles 0.5 % to 99.5 %",
            color=COLOURS["orange" if bad else "blue"],
        )  # fmt: skip
        name_axes(axes, "from prior and model", f"{name}  (z {result.z[j]:+.1f})")
    panels[0].set_ylabel("through the kernel", fontsize=9.5, color=COLOURS["muted"])
    _legend(figure, panels[0])
    return figure


def predictive_figure(result: Any, names: tuple[str, ...] | None = None) -> Any:
    """Histogram of each statistic over replicated data, with the observed value."""
    extreme = np.minimum(result.p_values, 1 - result.p_values)
    chosen = _chosen(result.names, names, extreme)
    figure, panels = _panels(len(chosen))
    for axes, name in zip(panels, chosen, strict=True):
        j = result.names.index(name)
        replicated = result.replicated[..., j].ravel()
        observed = result.observed[..., j].ravel()
        if np.ptp(observed) == 0:
            axes.hist(
                replicated, bins=30, color=COLOURS["blue"], rwidth=0.92, label="replicated data"
            )
            axes.axvline(observed[0], color=COLOURS["orange"], linewidth=1.9, label="observed data")
            label = "value of the statistic"
        else:  # a discrepancy that depends on the draw is compared draw by draw
            axes.hist(
                replicated - observed, bins=30, color=COLOURS["blue"], rwidth=0.92,
                label="replicated minus observed",
            )  # fmt: skip
            axes.axvline(0, color=COLOURS["orange"], linewidth=1.9, label="no difference")
            label = "difference of the discrepancies"
        name_axes(axes, label, f"{name}  (p {result.p_values[j]:.3f})")
    panels[0].set_ylabel("draws", fontsize=9.5, color=COLOURS["muted"])
    _legend(figure, panels[0])
    return figure
