"""A table measures x data sets, with the comparisons behind its marks, as text, pandas and JSON.

`compare` makes it. The mark of a winner is a claim, so it is made only where the data allow it; the
footnotes say in words what every mark means. Numbers: AUROC, OOD positive.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from probgen.errors import AlgorithmError, DataError, UnknownName
from probgen.evaluation.detection.intervals import Estimate
from probgen.evaluation.detection.records import (
    ESTIMATES,
    MIN_DATA,
    Detection,
    counted,
    shown,
    with_limits,
)
from probgen.language.declared import checked

WIDTH = 100  # of the text table; more data sets go into a further block


@dataclasses.dataclass(frozen=True)
class Comparison:
    """DeLong's paired test of two measures on one data set; AUROC of the first minus the second."""

    data_set: str
    first: str
    second: str
    difference: Estimate
    p_value: float
    p_holm: float  # corrected for all comparisons of the table

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"difference": self.difference.to_dict()}


@dataclasses.dataclass(frozen=True)
class ChanceTest:
    """DeLong's one-sided tests of one AUROC against 1/2: is it above, is it below?

    The corrected p-values are for all AUROCs of the table and both directions (Holm, doubled): that
    any AUROC of 1/2 is called above or below has at most the chance at which they are read.
    """

    measure: str
    data_set: str
    p_above: float
    p_above_holm: float
    p_below: float
    p_below_holm: float


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What may be said of one data set.

    winner beats every other measure and chance, both significantly after the table's corrections;
    tied are the best and those that are not significantly worse, empty where there is a winner. Of
    a set with fewer than 10 distinct data on either side nothing is said: no winner, none tied.
    """

    data_set: str
    best: str
    winner: str | None
    tied: tuple[str, ...]
    beats_chance: bool  # some measure's AUROC is significantly above 1/2, after the correction


@dataclasses.dataclass(frozen=True, repr=False)
class DetectionTable:
    """Detections of every measure on every data set, their comparisons and the verdicts."""

    detections: tuple[Detection, ...]  # by measure, then by data set
    comparisons: tuple[Comparison, ...]
    verdicts: tuple[Verdict, ...]
    alpha: float
    chance: tuple[ChanceTest, ...]  # in the order of the detections

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each.measure for each in self.detections))

    @property
    def data_sets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each.data_set for each in self.detections))

    @property
    def level(self) -> float:
        return self.detections[0].level

    def cell(self, measure: str, data_set: str) -> Detection:
        """The detection of one measure on one data set.

        Raises:
            UnknownName: the table has no such measure or data set.
        """
        for each in self.detections:
            if (each.measure, each.data_set) == (measure, data_set):
                return each
        raise UnknownName(
            f"got measure {measure!r} on data set {data_set!r}, expected measures "
            f"{list(self.measures)} and sets {list(self.data_sets)}."
        )

    def chance_test(self, measure: str, data_set: str) -> ChanceTest:
        """Is that AUROC above 1/2, or below it?

        Raises:
            UnknownName: the table has no such measure or data set.
        """
        return self.chance[self.detections.index(self.cell(measure, data_set))]

    def verdict(self, data_set: str) -> Verdict:
        """What may be said of that data set.

        Raises:
            UnknownName: the table has no such data set.
        """
        for each in self.verdicts:
            if each.data_set == data_set:
                return each
        raise UnknownName(f"got {data_set!r}, expected one of the sets {list(self.data_sets)}.")

    def mark(self, measure: str, data_set: str) -> str:
        """`*` for a winner, `~` for one of several best, else a blank."""
        verdict = self.verdict(data_set)
        if verdict.winner == measure:
            return "*"
        return "~" if measure in verdict.tied and len(verdict.tied) > 1 else " "

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, text, lists and dicts, ready for JSON."""
        return {
            "level": self.level,
            "alpha": self.alpha,
            "positive": "ood",
            "detections": [each.to_dict() for each in self.detections],
            "comparisons": [each.to_dict() for each in self.comparisons],
            "chance": [dataclasses.asdict(each) for each in self.chance],
            "verdicts": [
                dataclasses.asdict(each) | {"tied": list(each.tied)} for each in self.verdicts
            ],
        }

    def to_pandas(self) -> Any:
        """A DataFrame with one row for each measure and data set, limits in their own columns."""
        import pandas

        rows = []
        for each in self.detections:
            row: dict[str, Any] = {"measure": each.measure, "data_set": each.data_set}
            for name in ESTIMATES:
                estimate = getattr(each, name)
                row[name] = estimate.value
                row[f"{name}_lower"], row[f"{name}_upper"] = estimate.lower, estimate.upper
            row |= {"prevalence_ood": each.prevalence_ood, "prevalence_in": each.prevalence_in}
            row |= {"tpr": each.tpr, "num_in": each.num_in, "num_out": each.num_out}
            row |= {"distinct_in": each.distinct_in, "distinct_out": each.distinct_out}
            row["larger_is_stranger"] = each.larger_is_stranger
            verdict = self.verdict(each.data_set)
            row["is_winner"] = verdict.winner == each.measure
            row["is_tied"] = each.measure in verdict.tied
            test = self.chance_test(each.measure, each.data_set)
            row |= {"p_above_holm": test.p_above_holm, "p_below_holm": test.p_below_holm}
            rows.append(row)
        return pandas.DataFrame(rows)

    def to_markdown(self) -> str:
        """A Markdown table of AUROCs, winners in bold, with its footnotes."""

        def row(cells: Sequence[str]) -> str:
            return "| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |"

        lines = [row(["AUROC", *map(self._heading, self.data_sets)])]
        lines.append("| --- |" + " --- |" * len(self.data_sets))
        for measure in self.measures:
            cells = []
            for data_set in self.data_sets:
                text = with_limits(self.cell(measure, data_set).auroc)
                mark = self.mark(measure, data_set)
                cells.append(f"**{text}** \\*" if mark == "*" else f"{text} {mark}".rstrip())
            lines.append(row([measure, *cells]))
        return "\n".join([*lines, "", *(f"- {note}" for note in self._notes("\\*"))])

    def __repr__(self) -> str:
        first = max(len(each) for each in (*self.measures, "AUROC")) + 2
        lines: list[str] = []
        for block in self._blocks(WIDTH - first):
            widths = [max(len(self._heading(each)), 22) + 2 for each in block]
            heads = zip(block, widths, strict=True)
            lines.append(
                "AUROC".ljust(first) + "".join(self._heading(s).ljust(w) for s, w in heads)
            )
            for measure in self.measures:
                cells = [
                    f"{with_limits(self.cell(measure, each).auroc)} {self.mark(measure, each)}"
                    for each in block
                ]
                padded = (c.ljust(w) for c, w in zip(cells, widths, strict=True))
                lines.append(measure.ljust(first) + "".join(padded))
            lines = [*map(str.rstrip, lines), ""]
        notes = [textwrap.fill(each, WIDTH, subsequent_indent="  ") for each in self._notes("*")]
        return "\n".join([*lines, *notes])

    def _heading(self, data_set: str) -> str:
        cell = self.cell(self.measures[0], data_set)
        if len(self._sizes()) == 1:
            return data_set
        sizes = counted(cell.num_in, cell.distinct_in), counted(cell.num_out, cell.distinct_out)
        return f"{data_set} ({sizes[0]} in, {sizes[1]} out)"

    def _sizes(self) -> set[tuple[int, int, int, int]]:
        return {(d.num_in, d.distinct_in, d.num_out, d.distinct_out) for d in self.detections}

    def _blocks(self, room: int) -> Iterator[list[str]]:
        block: list[str] = []
        used = 0
        for each in self.data_sets:
            wide = max(len(self._heading(each)), 22) + 2
            if block and used + wide > room:
                yield block
                block, used = [], 0
            block.append(each)
            used += wide
        yield block

    def _notes(self, star: str) -> Iterator[str]:
        level = f"{100 * self.level:g}"
        yield f"{level} % intervals (DeLong, logit scale); OOD positive; 0.5 is chance"
        if len(self._sizes()) == 1:
            sizes = self._sizes().pop()
            n, m = counted(*sizes[:2]), counted(*sizes[2:])
            yield f"n = {n} in distribution, {m} out of it, on every set"
        elif len({(each[0], each[2]) for each in self._sizes()}) > 1:
            yield "sets of unequal size: average precisions are not comparable between them"
        reversed_ = [
            each for each in self.measures
            if not self.cell(each, self.data_sets[0]).larger_is_stranger
        ]  # fmt: skip
        if reversed_:
            yield f"smaller = stranger, turned round here: {', '.join(reversed_)}"
        if self.comparisons:
            yield (
                f"{star} better than every other measure on that set: paired DeLong tests, Holm's "
                f"correction over all {len(self.comparisons)} comparisons, alpha {self.alpha:g}; "
                "and better than chance"
            )
        if any(len(each.tied) > 1 for each in self.verdicts):
            yield "~ no winner on that set: the best, and those not significantly worse"
        if any(d.num_in > d.distinct_in or d.num_out > d.distinct_out for d in self.detections):
            yield "copies among the data count once in intervals and tests"
        small = dict.fromkeys(each.data_set for each in self.detections if each.is_small)
        if small:
            yield f"fewer than {MIN_DATA} distinct data, too few for a verdict: {', '.join(small)}"
        yield from dict.fromkeys(
            f"{each.measure} on {each.data_set}: {note}"
            for each in self.detections
            for note in each.notes
        )
        weak = [
            each.data_set for each in self.verdicts
            if not each.beats_chance and each.data_set not in small
        ]  # fmt: skip
        if weak:
            yield (
                f"no measure is shown to be better than chance on: {', '.join(weak)} (one-sided "
                f"DeLong tests, Holm's correction over all {len(self.chance)} AUROCs and both "
                f"directions, alpha {self.alpha:g})"
            )


@dataclasses.dataclass(frozen=True, repr=False)
class BetweenRuns:
    """AUROC over several runs of training: `mean` and `sd` [measures, sets] between the runs.

    within_lower and within_upper are the means of the runs' own limits, which hold for one trained
    model and know nothing of how another seed would have turned out.
    """

    measures: tuple[str, ...]
    data_sets: tuple[str, ...]
    num_runs: int
    mean: np.ndarray
    sd: np.ndarray
    within_lower: np.ndarray
    within_upper: np.ndarray
    level: float

    def _rows(self) -> Iterator[dict[str, Any]]:
        for i, measure in enumerate(self.measures):
            for j, data_set in enumerate(self.data_sets):
                yield {
                    "measure": measure, "data_set": data_set, "num_runs": self.num_runs,
                    "auroc_mean": float(self.mean[i, j]), "auroc_sd": float(self.sd[i, j]),
                    "within_lower": float(self.within_lower[i, j]),
                    "within_upper": float(self.within_upper[i, j]),
                }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and text, ready for JSON."""
        return {"num_runs": self.num_runs, "level": self.level, "rows": list(self._rows())}

    def to_pandas(self) -> Any:
        """A DataFrame with one row for each measure and data set."""
        import pandas

        return pandas.DataFrame(list(self._rows()))

    def __repr__(self) -> str:
        first, second = (
            max(len(each) for each in (*names, "measure")) + 2
            for names in (self.measures, self.data_sets)
        )
        level = f"{100 * self.level:g}"
        lines = [
            f"{'measure'.ljust(first)}{'set'.ljust(second)}AUROC mean  sd between runs  "
            f"mean {level} % interval within a run"
        ]
        for row in self._rows():
            limits = f"[{shown(row['within_lower'])}, {shown(row['within_upper'])}]"
            lines.append(
                f"{row['measure'].ljust(first)}{row['data_set'].ljust(second)}"
                f"{shown(row['auroc_mean']):<12}{shown(row['auroc_sd']):<17}{limits}"
            )
        return "\n".join([*lines, f"{self.num_runs} runs"])


@checked
def between_runs(tables: Sequence[DetectionTable]) -> BetweenRuns:
    """Mean and sd of AUROC over runs of training, apart from each run's own interval.

    Args:
        tables: one for each trained model (seed), with the same measures and data sets.

    Raises:
        DataError: fewer than two tables, which have no spread.
        AlgorithmError: tables of other measures, sets or levels.
        DeclarationError: something that is no list of tables.
    """
    if len(tables) < 2:
        raise DataError(
            f"between_runs: got {len(tables)} table(s), expected at least 2 runs; train again with "
            "another seed."
        )
    first = tables[0]
    for each in tables[1:]:
        other = (set(each.measures), set(each.data_sets), each.level)
        if other != (set(first.measures), set(first.data_sets), first.level):
            raise AlgorithmError(
                f"between_runs: got measures {list(each.measures)} on {list(each.data_sets)} at "
                f"level {each.level}, expected {list(first.measures)} on {list(first.data_sets)} "
                f"at {first.level} as in the first table; compare like with like."
            )
    values = np.array(
        [
            [[table.cell(m, s).auroc for s in first.data_sets] for m in first.measures]
            for table in tables
        ]
    )  # [runs, measures, sets, (value, lower, upper)]
    mean = values.mean(0)
    return BetweenRuns(
        first.measures, first.data_sets, len(tables), mean[..., 0], values[..., 0].std(0, ddof=1),
        mean[..., 1], mean[..., 2], first.level,
    )  # fmt: skip
