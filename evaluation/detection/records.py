"""How well one measure tells one data set from the training distribution: all numbers, with limits.

A `Detection` is what a cell of a table holds. AUROC has DeLong's interval on the logit scale,
average precision the jackknife's, FPR a stratified bootstrap. Average precision and FPR are given
with either class as positive, and average precision beside its baseline, that class's prevalence.

Of sets with fewer than `MIN_DATA` distinct data the intervals are honest and wide, but nothing is
claimed in words: `is_small`. Copies among the data are known where the data are at hand, and count
once (`distinct_in`, `distinct_out`); of scores alone a note says when few of them differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, overload

import numpy as np

from probgen.errors import DataError
from probgen.evaluation.detection.counts import Metric
from probgen.evaluation.detection.delong import delong
from probgen.evaluation.detection.intervals import Estimate, bootstrap_intervals
from probgen.evaluation.detection.scores import Scores, as_scores
from probgen.language.declared import checked
from probgen.language.kinds import OpenShare, Resamples, Text

MIN_DATA = 10  # distinct data in either set, below which no verdict is spoken
ESTIMATES = ("auroc", "aupr_ood", "aupr_in", "fpr_ood", "fpr_in")


@dataclasses.dataclass(frozen=True, repr=False)
class Detection:
    """One measure on one pair of sets; the suffix `_ood` or `_in` is the positive class."""

    measure: str
    data_set: str
    auroc: Estimate
    aupr_ood: Estimate
    aupr_in: Estimate
    fpr_ood: Estimate  # false positive rate at the true positive rate `tpr`
    fpr_in: Estimate
    tpr: float
    num_in: int
    num_out: int
    larger_is_stranger: bool  # how the caller's own scores ran
    level: float
    method: str
    distinct_in: int  # how many of the data count: those that differ from each other, where known
    distinct_out: int
    notes: tuple[str, ...] = ()  # what the scores themselves give cause to doubt

    @property
    def is_small(self) -> bool:
        """Fewer than `MIN_DATA` distinct data in either set: too few for a verdict in words."""
        return min(self.distinct_in, self.distinct_out) < MIN_DATA

    @property
    def prevalence_ood(self) -> float:
        """What average precision is to a blind guess, OOD positive."""
        return self.num_out / (self.num_in + self.num_out)

    @property
    def prevalence_in(self) -> float:
        """What average precision is to a blind guess, in-distribution positive."""
        return self.num_in / (self.num_in + self.num_out)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and text, ready for JSON."""
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        found = {k: v.to_dict() if k in ESTIMATES else v for k, v in fields.items()}
        found["notes"] = list(self.notes)
        return found | {"prevalence_ood": self.prevalence_ood, "prevalence_in": self.prevalence_in}

    def __repr__(self) -> str:
        rate = f"{100 * self.tpr:g}"
        rows = [
            ("AUROC", self.auroc, ""),
            ("AUPR, ood positive", self.aupr_ood, f"baseline {shown(self.prevalence_ood)}"),
            ("AUPR, in positive", self.aupr_in, f"baseline {shown(self.prevalence_in)}"),
            (f"FPR at {rate} % TPR, ood positive", self.fpr_ood, ""),
            (f"FPR at {rate} % TPR, in positive", self.fpr_in, ""),
        ]
        way = "larger" if self.larger_is_stranger else "smaller"
        sizes = counted(self.num_in, self.distinct_in), counted(self.num_out, self.distinct_out)
        head = f"{self.measure} on {self.data_set}: n = {sizes[0]} in, {sizes[1]} out"
        lines = [f"{head}; {way} = stranger; {100 * self.level:g} % intervals"]
        lines += [f"  {name:<32} {with_limits(each)}  {note}".rstrip() for name, each, note in rows]
        notes = [f"  note: {each}" for each in self.notes]
        return "\n".join([*lines, f"  {self.method}", *notes])


@overload
def detection(
    in_scores: Any,
    out_scores: Mapping[str, Any],
    *,
    name: str = ...,
    larger_is_stranger: bool = ...,
    tpr: float = ...,
    level: float = ...,
    num_resamples: int = ...,
    seed: int = ...,
) -> dict[str, Detection]: ...
@overload
def detection(
    in_scores: Any,
    out_scores: Any,
    *,
    name: str = ...,
    larger_is_stranger: bool = ...,
    tpr: float = ...,
    level: float = ...,
    num_resamples: int = ...,
    seed: int = ...,
) -> Detection: ...
@checked
def detection(
    in_scores: Any,
    out_scores: Any,
    *,
    name: Text = "scores",
    larger_is_stranger: bool = True,
    tpr: OpenShare = 0.95,
    level: OpenShare = 0.95,
    num_resamples: Resamples = 2000,
    seed: int = 0,
) -> Any:
    """Everything about one measure's power to detect one data set, or each of several.

    Args:
        in_scores: [n] scores of held-out data of the training distribution, not of training data.
        out_scores: [m] scores of the other data, or a mapping from set names to such scores.
        name: the measure's name.
        larger_is_stranger: False for a measure that is larger on familiar data.
        tpr: the true positive rate at which the false positive rate is read.
        num_resamples: of the bootstrap behind FPR; `seed` is its.

    Returns:
        a `Detection`; for a mapping a dict of them, under the names of the sets.

    Raises:
        ShapeError, DataError: see `as_scores`; scores that are all equal; an empty mapping.
        DeclarationError: tpr or level outside (0, 1), fewer than 100 resamples.
        MissingSeed: a seed that is none.
    """
    sets = out_scores if isinstance(out_scores, Mapping) else {"ood": out_scores}
    if not sets:
        raise DataError(
            f"{name}: got no out-of-distribution data set, expected at least one; pass "
            "{'letters': scores_of_letters}."
        )
    found = {}
    for data_set, values in sets.items():
        scores = as_scores(
            in_scores, values, larger_is_stranger=larger_is_stranger, name=f"{name} on {data_set}"
        )
        found[data_set] = detect(
            scores, name, data_set, tpr=tpr, level=level, num_resamples=num_resamples, seed=seed
        )
    return found if isinstance(out_scores, Mapping) else found["ood"]


def detect(
    scores: Scores,
    measure: str,
    data_set: str,
    *,
    tpr: float,
    level: float,
    num_resamples: int,
    seed: int,
) -> Detection:
    """A `Detection` from scores that are checked already; see `detection`."""
    aupr_ood, aupr_in, fpr_ood, fpr_in = bootstrap_intervals(
        scores,
        [
            Metric("aupr", "ood"),
            Metric("aupr", "in"),
            Metric("fpr", "ood", tpr),
            Metric("fpr", "in", tpr),
        ],
        level=level,
        num_resamples=num_resamples,
        seed=seed,
    )
    placed = delong(scores.inside, scores.outside, distinct=scores.distinct)
    lower, upper = placed.interval(level=level)
    return Detection(
        measure=measure,
        data_set=data_set,
        auroc=Estimate(float(placed.auroc), float(lower), float(upper)),
        aupr_ood=aupr_ood,
        aupr_in=aupr_in,
        fpr_ood=fpr_ood,
        fpr_in=fpr_in,
        tpr=tpr,
        num_in=placed.num_in,
        num_out=placed.num_out,
        larger_is_stranger=scores.sign > 0,
        level=level,
        method=f"AUROC: DeLong, AUPR: jackknife, both on the logit scale with Student's law; FPR: "
        f"stratified percentile bootstrap, {num_resamples} resamples, seed {seed}",
        distinct_in=scores.sizes[0],
        distinct_out=scores.sizes[1],
        notes=_notes(scores),
    )


def _notes(scores: Scores) -> tuple[str, ...]:
    """Sets of which fewer than half the scores that may differ do: copies look like that."""
    sides = (
        (scores.inside, scores.sizes[0], "in-distribution"),
        (scores.outside, scores.sizes[1], "out-of-distribution"),
    )
    found = []
    for values, size, which in sides:
        count = len(np.unique(values))
        if 2 * count < size:
            found.append(
                f"only {count} distinct score{'s' * (count > 1)} among {len(values)} {which} data: "
                "if they are copies of each other, the intervals claim too much"
            )
    return tuple(found)


def counted(size: int, distinct: int) -> str:
    """`60`, or `60 (2 distinct)` where some data are copies of others."""
    return f"{size:,}" if size == distinct else f"{size:,} ({distinct:,} distinct)"


def shown(value: float) -> str:
    """Three decimals in five characters; 1.000 and 0.000 only for what is exactly that.

    Example:
        >>> [shown(each) for each in (0.98765, 0.9999, 1.0, 0.0001)]
        ['0.988', '>.999', '1.000', '<.001']
    """
    if 0.9995 <= value < 1:
        return ">.999"
    return "<.001" if 0 < value < 0.0005 else f"{value:.3f}"


def with_limits(estimate: Estimate) -> str:
    """`0.936 [0.912, 0.955]`."""
    return f"{shown(estimate.value)} [{shown(estimate.lower)}, {shown(estimate.upper)}]"
