"""The parts of an evaluation page, each a list of blocks made from a `GatheredTables`.

Likelihoods with their errors, the verdict, AUROCs and ROC curves, histograms, the strangest and the
most ordinary pictures. A page of its own is `page`; the demo puts the same parts on its page.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probgen.evaluation import figures
from probgen.evaluation.detection import Estimate, auroc_figure, histogram_figure, roc_figure
from probgen.evaluation.detection.records import counted, with_limits
from probgen.evaluation.page.blocks import Block, Figure, Folded, ImageRows, Paragraph, Row, Table
from probgen.evaluation.page.drawing import figure_svg
from probgen.evaluation.page.gathered import GatheredTables
from probgen.evaluation.page.record import Record
from probgen.evaluation.page.text import MINUS, number, with_error
from probgen.evaluation.page.verdict import SetVerdict, join, limits, summary
from probgen.language.declared import checked
from probgen.language.kinds import Many
from probgen.records.evaluation import Evaluation

NBSP = "\N{NO-BREAK SPACE}"
KEPT = 50_000  # scores in the JSON file at most
WAYS = {True: "larger = stranger", False: "larger = likelier"}


@checked
def likelihood_blocks(gathered: GatheredTables) -> list[Block]:
    """Mean of every likelihood on every set with its errors and limits; the tables' warnings.

    All with the sign of log p, whatever the measure's own.
    """
    rows: list[list[str | float]] = []
    units = gathered.own.units
    constants = {m: " + constant" * ("constant" in units[m]) for m in gathered.likelihoods}
    for data_set, table in gathered.tables.items():
        for measure in gathered.likelihoods:
            (mean, error), noise = table.mean(measure), table.mc_error(measure)
            rows.append(
                [
                    data_set,
                    gathered.labels[measure].removeprefix(MINUS) + constants[measure],
                    with_error(_way(table, measure) * mean, error),
                    number(noise, 3) if noise is not None else "none known",
                    _limit(table, measure),
                    _bare(table, measure),
                    counted(table.num_data, gathered.distinct(data_set)),
                ]
            )
    header = ["data", "measure", "mean ± s.e., nats", "of it Monte Carlo"]
    header += ["true mean, 95 %", "bound only", "n"]
    text = (
        "log p(x) in nats per datum, constants included; larger is likelier. ± is the standard "
        "error of the mean over data; the "
        "part of it that more particles would remove is beside it, where it can be told. An "
        "estimate of log p from weights is a lower bound in expectation, its mean the mean of a "
        "bound: in 95 % of cases the true mean over these data is beyond the limit that is shown, "
        "whatever the tail of the weights. Bound only: data whose weights may have too heavy a "
        "tail for an interval about their estimate."
    )
    if any(constants.values()):
        text += (
            " With + constant log p is known up to one number for all data: differences are in "
            "nats, and the size says nothing."
        )
    if any(gathered.distinct(k) < t.num_data for k, t in gathered.tables.items()):
        text += " ± takes all data for independent: of sets with copies it is too small."
    summaries = {"summaries": {k: t.summary() for k, t in gathered.tables.items()}}
    blocks: list[Block] = []
    if rows:
        blocks += [Paragraph(text, small=True), Table(header, rows, name="likelihoods")]
    else:
        blocks.append(Paragraph("No measure here is an estimate of log p(x)."))
    return [*blocks, Record(summaries), *warning_blocks(gathered)]


def _limit(table: Evaluation, measure: str) -> str:
    """What the true mean is beyond."""
    limit = table.mean_limit(measure)
    if limit is None:
        return "–"
    way = _way(table, measure)
    is_below = (table.bound(measure) == "lower") == (way > 0)
    return f"{'>' if is_below else '<'}{NBSP}{number(way * limit, 2)}"


def _way(table: Evaluation, measure: str) -> float:
    """What turns a measure of likelihood into log p: -1 of one that is minus it."""
    return -1.0 if table.larger_is_stranger[measure] else 1.0


def _bare(table: Evaluation, measure: str) -> str:
    """For how many data the estimate is a bound, with no interval about it."""
    if not table.bound(measure):
        return "–"
    count = table.bound_only(measure)
    return f"{f'**{count:,}**' if count else '0'} of {table.num_data:,}"


def warning_blocks(gathered: GatheredTables) -> list[Block]:
    """What the measures say against themselves; the same sentence on several sets only once."""
    said: dict[tuple[str, str], list[str]] = {}
    for data_set, table in gathered.tables.items():
        for measure, texts in table.warnings.items():
            for text in texts:
                said.setdefault((measure, text), []).append(data_set)
    texts = [f"{gathered.labels[m]} of {join(sets)}: {text}" for (m, text), sets in said.items()]
    out: list[Block] = []
    if len(texts) == 1:
        out = [Paragraph(f"**Warning.** {texts[0]}")]
    elif texts:
        of = join(list(dict.fromkeys(gathered.labels[m] for m, _ in said)))
        out = [Folded(f"**{len(texts)} warnings** about {of}", texts)]
    return [*out, Record({"warnings": {k: t.warnings for k, t in gathered.tables.items()}})]


def measure_blocks(gathered: GatheredTables) -> list[Block]:
    """Every measure: its full name and direction; of those that are no likelihoods, whose means
    stand with their errors in a table of their own, the mean on each set."""
    units, ways = gathered.own.units, gathered.own.larger_is_stranger
    names: list[list[str | float]] = [
        [gathered.labels[m], m, units[m], WAYS[ways[m]]] for m in gathered.measures
    ]
    means: list[list[str | float]] = [
        [gathered.labels[m], *(_strangeness(t, m) for t in gathered.tables.values())]
        for m in gathered.measures
        if m not in gathered.likelihoods
    ]
    blocks: list[Block] = [
        Table(["measure", "in full", "unit", "direction"], names, name="measures")
    ]
    if means:
        caption = (
            "Means ± standard error over data, in the measure's unit, all with the sign by which "
            "larger is stranger."
        )
        blocks.append(Table(["measure", *gathered.tables], means, name="means", caption=caption))
    return blocks


def _strangeness(table: Evaluation, measure: str) -> str:
    mean, error = table.mean(measure)
    return with_error(mean if table.larger_is_stranger[measure] else -mean, error)


@checked
def verdict_blocks(gathered: GatheredTables, found: Sequence[SetVerdict]) -> list[Block]:
    """The verdict in words, and what it does not say."""
    assert gathered.detection is not None  # `page` asks
    overall = summary(found)
    how, *rest = limits(gathered.detection, name=gathered.name)
    record = {
        "verdict": [
            {"data_set": v.data_set, "readings": v.readings, "winner": v.winner, "text": v.text}
            for v in found
        ],
        "overall": overall,
    }
    return [
        *(Paragraph(text) for text in overall),
        Paragraph(how, small=True),
        *(Paragraph(v.text) for v in found),
        *(Paragraph(text, small=True) for text in rest),
        Record(record),
    ]


@checked
def detection_blocks(gathered: GatheredTables, *, seed: int = 0) -> list[Block]:
    """AUROCs as a table and as dots with intervals; ROC curves with bands."""
    table = gathered.detection
    assert table is not None  # `page` asks
    rows: list[list[str | float]] = []
    for measure in table.measures:
        cells = []
        for data_set in table.data_sets:
            value, limits_of = _in_two(table.cell(measure, data_set).auroc)
            mark = table.mark(measure, data_set).strip()
            cells.append(
                f"{f'**{value}**' if mark == '*' else value}{mark and NBSP + mark} {limits_of}"
            )
        rows.append([measure, *cells])
    level = f"{100 * table.level:g} %"
    notes = f"AUROC with its {level} interval (DeLong); the other set is positive."
    if any(v.winner for v in table.verdicts):
        notes += " * significantly better than every other measure on that set."
    if any(len(v.tied) > 1 for v in table.verdicts):
        notes += " ~ no winner there: the highest, and those not significantly lower."
    sets = ", ".join(table.data_sets)
    return [
        Paragraph(notes, small=True),
        Table(["measure", *table.data_sets], rows, name="auroc"),
        Figure(
            figure_svg(auroc_figure(table)),
            f"AUROC with {level} intervals. Left of the dashed line a measure has the order the "
            "wrong way round.",
            f"AUROC of each measure on {sets}.",
        ),
        Figure(
            figure_svg(
                roc_figure(
                    gathered.scores(),
                    level=table.level,
                    seed=seed,
                    num_distinct=gathered.all_distinct,
                )
            ),
            f"ROC curves with {level} bootstrap bands, pointwise. On the dotted diagonal a "
            "measure is no better than a coin.",
            f"ROC curves of {', '.join(table.measures)} on {sets}.",
        ),
        Record({"detection": table.to_dict()}),
    ]


def _in_two(estimate: Estimate) -> tuple[str, str]:
    """An AUROC and its interval, each of which stays on one line."""
    value, _, interval = with_limits(estimate).partition(" ")
    return value, interval.replace(" ", NBSP)


@checked
def histogram_blocks(
    gathered: GatheredTables, measures: Sequence[str] | None = None
) -> list[Block]:
    """The spread of each measure in and out of distribution, in the measure's own sign."""
    blocks: list[Block] = []
    units, ways = gathered.own.units, gathered.own.larger_is_stranger
    for measure in gathered.measures if measures is None else measures:
        label, unit = gathered.labels[measure], units[measure]
        values = {k: np.asarray(t[measure]["estimate"].values) for k, t in gathered.tables.items()}
        own, others = values[gathered.name], {k: values[k] for k in gathered.others}
        if others:
            drawn = histogram_figure(
                own, others, name=label, unit=unit, larger_is_stranger=ways[measure]
            )
            caption = f"Spread of {label}: filled, {gathered.name}; the line, each other set."
        else:
            axis = f"{label}, {unit} ({WAYS[ways[measure]]})"
            drawn = figures.histogram(own, x_label=axis, y_label=f"{gathered.name}: how many")
            caption = f"Spread of {label} over data; the line is the mean."
        blocks.append(
            Figure(figure_svg(drawn), caption, f"Histograms of {label} on each data set.")
        )
    size = sum(t.num_data for t in gathered.tables.values()) * len(gathered.measures)
    if size <= KEPT:
        scores = {
            m: {k: t[m]["estimate"].values for k, t in gathered.tables.items()}
            for m in gathered.measures
        }
        blocks.append(Record({"estimates": scores}))
    return blocks


@checked
def image_blocks(
    gathered: GatheredTables, measures: Sequence[str] | None = None, *, columns: Many = 8
) -> list[Block]:
    """For each measure, the most ordinary and the strangest pictures of each set.

    Args:
        measures: the first two by default.
        columns: pictures in a row; fewer where a set is smaller than twice that.
    """
    sets = {k: np.asarray(v) for k, v in gathered.images.items()}
    if not sets:
        return []
    count = min(columns, max(1, min(map(len, sets.values())) // 2))
    ink = all(v.shape[3] == 1 and np.isin(v, (0, 1)).all() for v in sets.values())
    frame = 0.2 if ink else 0.5  # or a white picture on white paper is not seen
    blocks: list[Block] = []
    for measure in gathered.measures[:2] if measures is None else measures:
        rows = []
        for name, pictures in sets.items():
            order = np.argsort(gathered.tables[name].strangeness(measure), kind="stable")
            for label, chosen in ((name, order[:count]), ("", order[::-1][:count])):
                edge = ((0, 0), (1, 1), (1, 1), (0, 0))
                rows.append(Row(label, np.pad(pictures[chosen], edge, constant_values=frame)))
        label = gathered.labels[measure]
        blocks.append(
            ImageRows(
                rows,
                f"By {label}: of each set the {count} most ordinary above, beginning with the most "
                "ordinary, and the strangest below, beginning with the strangest.",
                f"The most ordinary and the strangest pictures of each set by {label}.",
                ink=ink,
            )
        )
    return blocks
