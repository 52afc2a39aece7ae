"""Figures of detection: ROC curves with bands, histograms of scores, AUROCs with intervals.

Each takes scores or a table and gives a matplotlib `Figure` that belongs to no global state. Widths
are for a phone (4.2 inches, text of 8 points and more at 360 pixels); several data sets become
small multiples. Measures differ in colour and in line or marker, so that no colour is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.errors import AlgorithmError, DataError
from probgen.evaluation.detection.compare import Distinct, Measures, Ways, checked_measures
from probgen.evaluation.detection.records import shown
from probgen.evaluation.detection.roc import auroc, roc_band, roc_curve
from probgen.evaluation.detection.scores import Scores, as_scores
from probgen.evaluation.detection.tables import DetectionTable
from probgen.evaluation.figures import COLOURS, dress
from probgen.language.declared import checked
from probgen.language.kinds import Many, NonNegative, OpenShare, Resamples

WIDTH = 4.2  # inches
HUES = ("blue", "orange", "green", "plum", "red", "teal")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 1.6, 1.2, 1.6)))
MOST = len(HUES) * len(DASHES)


@checked
def roc_figure(
    measures: Measures,
    *,
    larger_is_stranger: Ways = True,
    num_distinct: Distinct | None = None,
    bands: bool = True,
    level: OpenShare = 0.95,
    num_resamples: Resamples = 1000,
    seed: int = 0,
) -> Any:
    """ROC curves of several measures, one panel for each data set, OOD positive.

    Args:
        measures: {measure: (in_scores, {data set: out_scores})}, at most 24, as for `compare`.
        num_distinct: (in, {data set: out}), as for `compare`: the bands then count these.
        bands: draw the pointwise bootstrap band around each curve.

    Raises: as `compare`; AlgorithmError for more than 24 measures.
    """
    scores = checked_measures(measures, larger_is_stranger, num_distinct)
    _demand_few(len(measures))
    data_sets = list(dict.fromkeys(data_set for _, data_set in scores))
    one = len(data_sets) == 1
    columns = 1 if one else 2
    side = WIDTH / columns
    legend_rows = len(measures) if one else -(-len(measures) // 2)
    rows = -(-len(data_sets) // columns)
    figure, grid = _panels(
        rows, columns, (WIDTH, rows * (side * 0.88 + 0.25) + 0.19 * legend_rows + 0.45)
    )
    lines: dict[str, Any] = {}
    for axes, data_set in zip(grid.flat, data_sets, strict=False):
        axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (2, 3)))
        for index, measure in enumerate(measures):
            lines[measure] = _roc_line(
                axes, scores[measure, data_set], index,
                band=(level, num_resamples, seed) if bands else None,
            )  # fmt: skip
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_title(data_set, fontsize=9.5, color=COLOURS["ink"], loc="left")
    for place, axes in enumerate(grid.flat):
        if place >= len(data_sets):
            axes.set_visible(False)
            continue
        if place + columns >= len(data_sets):  # the lowest of its column
            axes.set_xlabel("false positive rate", fontsize=9, color=COLOURS["muted"])
        if place % columns == 0:
            axes.set_ylabel("true positive rate", fontsize=9, color=COLOURS["muted"])
    names = list(measures)
    if one:
        pairs = (scores[measure, data_sets[0]] for measure in measures)
        areas = (shown(auroc(each.inside, each.outside)) for each in pairs)
        names = [f"{name}, AUROC {area}" for name, area in zip(names, areas, strict=True)]
    said = f"OOD positive; bands: {100 * level:g} %, pointwise" if bands else "OOD positive"
    figure.legend(
        [lines[each] for each in measures], names, title=said, loc="outside lower left",
        ncols=columns, frameon=False, fontsize=9, title_fontsize=9, labelcolor=COLOURS["ink"],
        handlelength=2.6, columnspacing=1.2, borderaxespad=0.2, alignment="left",
    )  # fmt: skip
    return figure


def _roc_line(axes: Any, scores: Scores, index: int, *, band: tuple[float, int, int] | None) -> Any:
    colour = COLOURS[HUES[index % len(HUES)]]
    curve = roc_curve(scores.inside, scores.outside)
    if band is not None:
        level, num_resamples, seed = band
        limits = roc_band(
            scores.inside, scores.outside, level=level, num_resamples=num_resamples, seed=seed,
            distinct=scores.distinct,
        )  # fmt: skip
        axes.fill_between(
            limits.fpr, limits.lower, limits.upper, color=colour, alpha=0.16, linewidth=0
        )
    dash = DASHES[index % len(DASHES) if index < len(HUES) else (index + index // len(HUES)) % 4]
    return axes.plot(curve.fpr, curve.tpr, color=colour, linewidth=1.5, linestyle=dash)[0]


@checked
def histogram_figure(
    in_scores: Any,
    out_scores: Mapping[str, Any],
    *,
    name: str = "score",
    unit: str = "",
    larger_is_stranger: bool = True,
    num_bins: Many = 50,
    reach: NonNegative = 1.5,
) -> Any:
    """How scores are spread, in distribution against each other data set, in the caller's sign.

    All panels share their bins. These cover the middle 99 % of the in-distribution scores and,
    where other data lie further out, up to `reach` times that width more on each side; how much of
    a set lies beyond is written in its panel, so that one far tail does not flatten all the rest.

    Args:
        in_scores: [n] scores of in-distribution data.
        out_scores: {data set: scores [m]}.
        name: of the measure, for the horizontal axis; `unit`, as "nats", goes beside it.
        larger_is_stranger: only said in the label; nothing is turned round.

    Raises:
        ShapeError, DataError: see `as_scores`; no data set; no finite score at all.
    """
    if not out_scores:
        raise DataError(
            "histogram_figure: got no out-of-distribution data set, expected at least one; pass "
            "{'letters': scores_of_letters}."
        )
    sets = {s: as_scores(in_scores, v, name=f"{name} on {s}") for s, v in out_scores.items()}
    inside = next(iter(sets.values())).inside
    edges = shared_edges(
        inside, [each.outside for each in sets.values()], num_bins=num_bins, reach=reach
    )
    figure, grid = _panels(len(sets), 1, (WIDTH, 1.32 * len(sets) + 0.62))
    hue_in, hue_out = COLOURS["blue"], COLOURS["orange"]
    for axes, (data_set, each) in zip(grid.flat, sets.items(), strict=True):
        for values, hue, filled in ((inside, hue_in, True), (each.outside, hue_out, False)):
            heights = np.histogram(values[np.isfinite(values)], edges)[0] / len(values)
            axes.stairs(
                100 * heights, edges, fill=filled, color=hue,
                alpha=0.45 if filled else 1.0, linewidth=1.4,
            )  # fmt: skip
        top = axes.get_ylim()[1]
        axes.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.3 * top))
        axes.set_title(data_set, fontsize=9.5, color=hue_out, loc="left", pad=3)
        spoken = {data_set: (each.outside, hue_out)}
        if axes is grid.flat[0]:  # once is enough
            spoken = {"in": (inside, hue_in), **spoken}
        _say_beyond(axes, spoken, edges)
        axes.set_ylabel("% of set", fontsize=8.5, color=COLOURS["muted"])
        if axes is not grid.flat[-1]:
            axes.tick_params(labelbottom=False)
    way = "larger" if larger_is_stranger else "smaller"
    label = f"{name}, {unit}" if unit else name
    figure.supxlabel(f"{label} ({way} = stranger)", fontsize=9, color=COLOURS["muted"])
    figure.suptitle("filled: in distribution; line: the other set", fontsize=9,
                    color=COLOURS["muted"], x=0.02, ha="left")  # fmt: skip
    return figure


def shared_edges(
    inside: np.ndarray, others: list[np.ndarray], *, num_bins: int = 50, reach: float = 1.5
) -> np.ndarray:
    """Bin edges [num_bins + 1] for one in-distribution set and several others; see the figure.

    Raises:
        DataError: not one finite score in distribution.
    """
    finite = inside[np.isfinite(inside)]
    if finite.size == 0:
        raise DataError(
            "histogram: got only infinite scores in distribution, expected finite ones to draw."
        )
    low, high = np.quantile(finite, [0.005, 0.995])
    tails = [np.quantile(v[np.isfinite(v)], [0.01, 0.99]) for v in others if np.isfinite(v).any()]
    far_low = min([low, *(each[0] for each in tails)])
    far_high = max([high, *(each[1] for each in tails)])
    # In-distribution scores that are all one number have no width to measure others by.
    width = (high - low) or (far_high - far_low) or max(abs(high), 1.0)
    low, high = max(far_low, low - reach * width), min(far_high, high + reach * width)
    margin = 0.02 * ((high - low) or width)
    return np.linspace(low - margin, high + margin, num_bins + 1)


def _say_beyond(axes: Any, sets: dict[str, tuple[np.ndarray, str]], edges: np.ndarray) -> None:
    """Writes at the panel's edges what share of each set lies beyond them and is not drawn."""
    for side, is_right in ((0.01, False), (0.99, True)):
        height = 0.97
        for name, (values, hue) in sets.items():
            share = np.mean(values > edges[-1] if is_right else values < edges[0])
            if share > 0:
                much = f"{100 * share:.0f} %" if share >= 0.01 else "<1 %"
                text = f"{name}: {much} beyond →" if is_right else f"← {name}: {much} beyond"
                axes.text(
                    side, height, text, transform=axes.transAxes, fontsize=8, color=hue,
                    ha="right" if is_right else "left", va="top",
                )  # fmt: skip
                height -= 0.17


@checked
def auroc_figure(table: DetectionTable) -> Any:
    """AUROC of every measure on every data set, dots with intervals, a line at chance.

    A large diamond marks a measure that is significantly better than every other on its data set.
    """
    measures, data_sets = table.measures, table.data_sets
    high = 0.2 * len(measures) + 0.3
    figure, grid = _panels(len(data_sets), 1, (WIDTH, high * len(data_sets) + 0.75))
    for axes, data_set in zip(grid.flat, data_sets, strict=True):
        axes.axvline(0.5, color=COLOURS["ink"], linewidth=1.0, linestyle=(0, (3, 2)))
        for row, measure in enumerate(measures):
            wins = table.verdict(data_set).winner == measure
            colour = COLOURS["orange" if wins else "blue"]
            value, lower, upper = table.cell(measure, data_set).auroc
            axes.plot([lower, upper], [row, row], color=colour, linewidth=2.2, alpha=0.55)
            axes.plot([value], [row], "D" if wins else "o", color=colour,
                      markersize=6.5 if wins else 4.5, clip_on=False)  # fmt: skip
        axes.set_yticks(range(len(measures)), measures, fontsize=8.5)
        axes.tick_params(axis="y", pad=7)  # a dot at 0 hangs over the edge
        axes.set(xlim=(0, 1), ylim=(len(measures) - 0.4, -0.6))
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        axes.set_title(data_set, fontsize=9.5, color=COLOURS["ink"], loc="left", pad=3)
        if axes is not grid.flat[-1]:
            axes.tick_params(labelbottom=False)
    won = any(each.winner for each in table.verdicts)
    text = f"AUROC, OOD positive, {100 * table.level:g} % interval; dashed: chance"
    text += "\ndiamond: significantly better than all others" if won else ""
    figure.supxlabel(text, fontsize=9, color=COLOURS["muted"])
    return figure


def _demand_few(count: int) -> None:
    if count > MOST:
        raise AlgorithmError(
            f"roc_figure: got {count} measures, expected at most {MOST}, more than which no eye "
            "tells apart; draw them in several figures."
        )


def _panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, np.ndarray]:
    """A figure with a grid [rows, columns] of axes in the house's manner."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        dress(axes)
        axes.tick_params(labelsize=8.5)
    return figure, grid
