"""A verdict in plain words, of the numbers in a `DetectionTable` and of nothing else.

What may be said of a measure on a set follows from the tests of its AUROC against 1/2, which are
corrected for the number of AUROCs in the table and for both directions:

    above 1/2    "better than chance", which may be by little: the share of the set that is ranked
                 more ordinary than the median datum of the model's own stands beside it
    below 1/2    "finds them MORE ordinary than the model's own data": the order is inverted
    neither      "is not shown to be better than chance", which is not to say that they are alike

In a table with one AUROC that is whether its interval holds 1/2; of many, the interval of some will
clear 1/2 by chance, and a claim takes more.

Of a set with fewer than `MIN_DATA` distinct data, or against as few, only that is said. Copies
among the data count once: `report` is told, or sees in the pictures, how many differ.

Numbers are left to the table: each stands there once, and as a dot in the figure. A measure is
called the best of a set only where the table's verdict names a winner, which takes a
significant paired test against every other measure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated

from probgen.evaluation.detection import DetectionTable
from probgen.evaluation.detection.records import MIN_DATA
from probgen.language.declared import checked
from probgen.language.kinds import Share, Text, not_empty

DETECTS, INVERTS, UNCLEAR, TOO_FEW = "better than chance", "inverts", "not shown", "too few data"


def reading(table: DetectionTable, measure: str, data_set: str) -> str:
    """What the tests of one AUROC allow to be said: DETECTS, INVERTS or UNCLEAR; or TOO_FEW."""
    if table.cell(measure, data_set).is_small:
        return TOO_FEW
    test = table.chance_test(measure, data_set)
    if test.p_above_holm <= table.alpha:
        return DETECTS
    return INVERTS if test.p_below_holm <= table.alpha else UNCLEAR


@dataclasses.dataclass(frozen=True)
class SetVerdict:
    """What is said of one data set: who is better than chance, who inverts, and the sentences."""

    data_set: str
    readings: dict[str, str]  # measure -> DETECTS, INVERTS, UNCLEAR or TOO_FEW
    winner: str | None
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


@checked
def verdicts(
    table: DetectionTable,
    *,
    name: Text = "the model's own data",
    ordinary: Mapping[tuple[str, str], Share] | None = None,
) -> list[SetVerdict]:
    """One verdict for each data set of the table.

    Args:
        name: of the in-distribution data.
        ordinary: {(measure, data set): the share of that set which the measure ranks more ordinary
            than the median in-distribution datum}, where it is known (`GatheredTables.ordinary`).
    """
    return [_of_set(table, each, name, ordinary or {}) for each in table.data_sets]


def _of_set(
    table: DetectionTable, data_set: str, name: str, ordinary: Mapping[tuple[str, str], float]
) -> SetVerdict:
    cells = {m: table.cell(m, data_set) for m in table.measures}
    readings = {m: reading(table, m, data_set) for m in table.measures}
    groups = {
        kind: [m for m in table.measures if readings[m] == kind]
        for kind in (DETECTS, INVERTS, UNCLEAR, TOO_FEW)
    }
    for kind, sign in ((DETECTS, -1), (INVERTS, 1)):
        groups[kind].sort(key=lambda m: sign * cells[m].auroc.value)

    first = next(iter(cells.values()))
    sizes = (
        f"{_counted(first.num_out, first.distinct_out)} against "
        f"{_counted(first.num_in, first.distinct_in)} {name}"
    )
    sentences = []
    if groups[TOO_FEW]:
        return SetVerdict(data_set, readings, None, (
            f"**{data_set}** ({sizes}): too few data to say what is better than chance; it takes "
            f"{MIN_DATA} distinct ones on either side.",
        ))  # fmt: skip
    if groups[DETECTS]:
        verb = "is" if len(groups[DETECTS]) == 1 else "are"
        sentences.append(
            f"**{data_set}** ({sizes}): {join(groups[DETECTS])} {verb} better than chance."
        )
        first_of = (groups[DETECTS][0], data_set)
        if first_of in ordinary:
            sentences.append(
                f"{first_of[0]} ranks {100 * ordinary[first_of]:.0f} % of them more ordinary than "
                f"the median of {name}."
            )
    else:
        sentences.append(
            f"**{data_set}** ({sizes}): no measure is shown to be better than chance; no AUROC "
            "is significantly above 0.5."
        )
    if groups[INVERTS]:
        sentences.append(
            f"To {join(groups[INVERTS])} these data are MORE ordinary than the model's own: the "
            "AUROC is significantly below 0.5."
        )
    clear = [m for m in groups[UNCLEAR] if not cells[m].auroc.lower <= 0.5 <= cells[m].auroc.upper]
    for names, why in (
        ([m for m in groups[UNCLEAR] if m not in clear], "the interval holds 0.5"),
        (clear, f"of {len(table.detections)} intervals, so much may clear 0.5 by chance"),
    ):
        if names:
            sentences.append(f"Not shown to be better than chance ({why}): {join(names)}.")
    winner = table.verdict(data_set).winner
    sentences += _best(table, data_set, groups[DETECTS])
    return SetVerdict(data_set, readings, winner, tuple(sentences))


def _best(table: DetectionTable, data_set: str, detecting: Sequence[str]) -> list[str]:
    """Who is best, where that is shown; that it is not, where several come into question."""
    verdict = table.verdict(data_set)
    if len(table.measures) < 2 or not verdict.beats_chance:
        return []
    if verdict.winner is not None:
        return [f"The best here, significantly: {verdict.winner}."]
    tied = [m for m in detecting if m in verdict.tied]
    if len(tied) < 2:
        return ["None is shown to be the best."]
    return [f"Which of {join(tied)} is the best cannot be told."]


@checked
def summary(found: Annotated[Sequence[SetVerdict], not_empty]) -> list[str]:
    """One sentence a measure, over all sets: on which it works, inverts, or shows nothing."""
    out = []
    for measure in found[0].readings:
        parts = []
        for kind, of_some, of_all in (
            (
                DETECTS,
                "is better than chance on {}",
                "is better than chance on each of the {} sets",
            ),
            (INVERTS, "inverts on {}", "inverts on each of the {} sets"),
            (
                UNCLEAR,
                "is not shown to be better than chance on {}",
                "is shown to be better than chance on none of {} sets",
            ),
            (TOO_FEW, "has too few data of {}", "has too few data of each of the {} sets"),
        ):
            sets = [each.data_set for each in found if each.readings[measure] == kind]
            if len(sets) == len(found) > 1:
                parts.append(of_all.format(len(sets)))
            elif sets:
                parts.append(of_some.format(join(sets, "or" if kind == UNCLEAR else "and")))
        out.append(f"**{measure}** {'; '.join(parts)}.")
    return out


@checked
def limits(table: DetectionTable, *, name: Text = "the model's own data") -> list[str]:
    """What the numbers do not show: said on every page, whatever they are."""
    count = len(table.detections)
    miss = (1 - table.level) * count
    level = f"{100 * table.level:g} %"
    several = (
        f" Each of the {count} intervals is for itself: were they independent, {miss:.1f} of them "
        "would miss by chance. So what is said of a measure does not rest on them, but on "
        f"one-sided tests against 0.5 (DeLong's, on the same scale), Holm's correction over all "
        f"{count} AUROCs and both directions, at {table.alpha:g}."
        if count > 1
        else ""
    )
    copies = ""
    if any(d.num_in > d.distinct_in or d.num_out > d.distinct_out for d in table.detections):
        copies = (
            " Data that are equal to others of their set weigh in an AUROC as often as they occur, "
            "and count once in its interval and in every test."
        )
    out = [
        "AUROC is the chance that a datum drawn from the other set has a stranger score than one "
        f"of {name}; 0.5 is a coin. The numbers stand in the table of AUROCs, with intervals: "
        f"DeLong's, {level}, over other data of the same sets.{copies}{several}",
    ]
    if len(table.measures) > 1:
        out.append(
            "**The best** is named by DeLong's paired test against every other measure, Holm's "
            f"correction over all {len(table.comparisons)} comparisons of the table, "
            f"at {table.alpha:g}."
        )
    out.append(
        f"**Not shown**: that {name} were held out from training (it is taken for granted); how "
        "another training run of the model would do; what happens on sets that are not here; a "
        "threshold for a single datum. A measure, or a setting of it, that is chosen because it "
        "does well on these sets owes its number in part to the choice: confirm it on others."
    )
    return out


def _counted(size: int, distinct: int) -> str:
    return f"{size:,}" if size == distinct else f"{size:,} data, {distinct:,} distinct,"


def join(words: Sequence[str], last: str = "and") -> str:
    """Words as a list in a sentence.

    Example:
        >>> join(["a"]), join(["a", "b"], "or"), join(["a", "b", "c"])
        ('a', 'a or b', 'a, b and c')
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"
