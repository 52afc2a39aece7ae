"""A verdict in plain words, of the numbers in a `DetectionTable` and of nothing else.

What may be said of a measure on a set follows from its AUROC's interval alone:

    lies above 1/2    "tells them apart"
    lies below 1/2    "finds them MORE ordinary than the model's own data": the order is inverted
    holds 1/2         "is not shown to tell them apart", which is not to say that they are alike

A measure is called the best of a set only where the table's verdict names a winner, which takes a
significant paired test against every other measure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from probgen.evaluation.detection import Detection, DetectionTable
from probgen.evaluation.detection.records import shown

DETECTS, INVERTS, UNCLEAR = "tells apart", "inverts", "not shown"


def reading(cell: Detection) -> str:
    """What the interval of one AUROC allows to be said: DETECTS, INVERTS or UNCLEAR."""
    if cell.auroc.lower > 0.5:
        return DETECTS
    return INVERTS if cell.auroc.upper < 0.5 else UNCLEAR


@dataclasses.dataclass(frozen=True)
class SetVerdict:
    """What is said of one data set: who tells it apart, who inverts, and the sentences."""

    data_set: str
    readings: dict[str, str]  # measure -> DETECTS, INVERTS or UNCLEAR
    winner: str | None
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


def verdicts(table: DetectionTable, *, name: str = "the model's own data") -> list[SetVerdict]:
    """One verdict for each data set of the table; `name` is of the in-distribution data."""
    return [_of_set(table, each, name) for each in table.data_sets]


def _of_set(table: DetectionTable, data_set: str, name: str) -> SetVerdict:
    cells = {m: table.cell(m, data_set) for m in table.measures}
    readings = {m: reading(cell) for m, cell in cells.items()}
    groups = {
        kind: [m for m in table.measures if readings[m] == kind]
        for kind in (DETECTS, INVERTS, UNCLEAR)
    }
    for kind, sign in ((DETECTS, -1), (INVERTS, 1)):
        groups[kind].sort(key=lambda m: sign * cells[m].auroc.value)

    def listed(kind: str) -> str:
        return join([f"{m} ({_interval(cells[m])})" for m in groups[kind]])

    first = next(iter(cells.values()))
    sizes = f"{first.num_out:,} against {first.num_in:,} {name}"
    sentences = []
    if groups[DETECTS]:
        verb = "tells" if len(groups[DETECTS]) == 1 else "tell"
        sentences.append(f"**{data_set}** ({sizes}): {listed(DETECTS)} {verb} them apart.")
    else:
        sentences.append(
            f"**{data_set}** ({sizes}): no measure is shown to tell them apart; no interval lies "
            "above 0.5."
        )
    if groups[INVERTS]:
        verb = "finds" if len(groups[INVERTS]) == 1 else "find"
        sentences.append(
            f"{sentence_case(listed(INVERTS))} {verb} these data MORE ordinary than the model's "
            "own: the interval lies wholly below 0.5."
        )
    if groups[UNCLEAR]:
        verb = "is" if len(groups[UNCLEAR]) == 1 else "are"
        unclear = sentence_case(listed(UNCLEAR))
        sentences.append(f"{unclear} {verb} not shown to tell them apart: the interval holds 0.5.")
    winner = table.verdict(data_set).winner
    sentences += _best(table, data_set, groups[DETECTS])
    return SetVerdict(data_set, readings, winner, tuple(sentences))


def _best(table: DetectionTable, data_set: str, detecting: Sequence[str]) -> list[str]:
    """Who is best, where that is shown; that it is not, where several come into question."""
    verdict = table.verdict(data_set)
    if len(table.measures) < 2 or not verdict.beats_chance:
        return []
    if verdict.winner is not None:
        return [f"{sentence_case(verdict.winner)} is significantly the best here."]
    tied = [m for m in detecting if m in verdict.tied]
    if len(tied) < 2:
        return ["None is shown to be the best."]
    return [f"Which of {join(tied)} is the best cannot be told."]


def summary(found: Sequence[SetVerdict]) -> list[str]:
    """One sentence a measure, over all sets: on which it works, inverts, or shows nothing."""
    out = []
    for measure in found[0].readings:
        parts = []
        for kind, words in (
            (DETECTS, "tells apart"),
            (INVERTS, "inverts on"),
            (UNCLEAR, "is not shown to tell apart"),
        ):
            sets = [each.data_set for each in found if each.readings[measure] == kind]
            if sets:
                all_of_them = len(sets) == len(found) and len(sets) > 1
                which = f"all {len(sets)} sets" if all_of_them else join(sets)
                parts.append(f"{words} {which}")
        out.append(f"**{sentence_case(measure)}** {'; '.join(parts)}.")
    return out


def limits(table: DetectionTable, *, name: str = "the model's own data") -> list[str]:
    """What the numbers do not show: said on every page, whatever they are."""
    count = len(table.detections)
    miss = (1 - table.level) * count
    level = f"{100 * table.level:g} %"
    several = (
        f" Each of the {count} intervals is for itself: were they independent, {miss:.1f} of them "
        "would miss by chance, so mind the one that only just clears 0.5."
        if count > 1
        else ""
    )
    out = [
        "In brackets: AUROC and its interval. AUROC is the chance that a datum drawn from the "
        f"other set has a stranger score than one of {name}; 0.5 is a coin. Intervals: DeLong's, "
        f"{level}, over other data of the same sets.{several}",
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


def _interval(cell: Detection) -> str:
    value, lower, upper = (shown(each) for each in cell.auroc)
    return f"{value}, {lower} to {upper}"


def sentence_case(text: str) -> str:
    """The first letter as at the start of a sentence; a formula stays as it is.

    Example:
        >>> sentence_case("regret"), sentence_case("ELBO"), sentence_case("−log p")
        ('Regret', 'ELBO', '−log p')
    """
    return text[:1].upper() + text[1:]


def join(words: Sequence[str]) -> str:
    """Words as a list in a sentence.

    Example:
        >>> join(["a"]), join(["a", "b"]), join(["a", "b", "c"])
        ('a', 'a and b', 'a, b and c')
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
