"""Intervals for any detection metric, and Holm's correction of many p-values.

Of AUROC and FPR by the bootstrap: both sets are drawn anew with replacement, each to its own size,
and the outer percentiles of the metric are its limits. An average precision has the jackknife's of
`average_precision`, since its percentiles cover too little. Where the sets are apart (AUROC 0 or 1,
FPR 0 or 1) every resample gives the same number, and the bootstrap would claim certainty; near
there it claims hardly less. So every interval reaches as far as k = min(n, m) independent pairs
that all went one way still allow, with q = 1 - (1 - level)^(1/k):

    auroc, fpr   lower <= 1 - q, upper >= q
    aupr         lower <= the average precision with a share q of the negatives above every
                 positive; upper >= that with a share 1 - q there, positives as tied as they are

An interval is stretched, where it must be, to hold its own value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from probgen.errors import DataError
from probgen.evaluation.detection.average_precision import average_precision_interval
from probgen.evaluation.detection.counts import Metric, counts, resampled_counts
from probgen.evaluation.detection.scores import (
    Scores,
    as_scores,
    demand_spread,
    one_way_slack,
)
from probgen.language.declared import checked
from probgen.language.kinds import OpenShare, Resamples


class Estimate(NamedTuple):
    """A number with the limits of its interval."""

    value: float
    lower: float
    upper: float

    def to_dict(self) -> dict[str, float]:
        return {"value": self.value, "lower": self.lower, "upper": self.upper}


@checked
def bootstrap_interval(
    in_scores: Any,
    out_scores: Any,
    *,
    metric: Metric = Metric("auroc"),
    larger_is_stranger: bool = True,
    level: OpenShare = 0.95,
    num_resamples: Resamples = 2000,
    seed: int = 0,
) -> Estimate:
    """A metric with its interval: percentiles of a stratified bootstrap; AUPR by the jackknife.

    Args:
        in_scores: [n] scores of in-distribution data.
        out_scores: [m] scores of out-of-distribution data.
        metric: `Metric("auroc")`, `Metric("aupr", "in")`, `Metric("fpr", "ood", tpr=0.95)`.
        seed: the same seed and data give the same interval.

    Raises:
        ShapeError, DataError: see `as_scores`; scores that are all equal.
        DeclarationError: level outside (0, 1), fewer than 100 resamples, no `Metric`.
        MissingSeed: no seed.
    """
    scores = as_scores(in_scores, out_scores, larger_is_stranger=larger_is_stranger)
    return bootstrap_intervals(
        scores, [metric], level=level, num_resamples=num_resamples, seed=seed
    )[0]


def bootstrap_intervals(
    scores: Scores,
    metrics: Sequence[Metric],
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> list[Estimate]:
    """Several metrics of the same scores with intervals, from one set of resamples."""
    demand_spread(scores.inside, scores.outside, scores.name)
    resampled = [each for each in metrics if each.kind != "aupr"]
    chunks = resampled_counts(scores, num_resamples=num_resamples, seed=seed) if resampled else ()
    drawn = [np.stack([each.of_counts(*chunk) for each in resampled]) for chunk in chunks]
    own, limits = counts(scores), [(1 - level) / 2, (1 + level) / 2]
    by_rank = iter(np.quantile(np.concatenate(drawn, axis=1), limits, axis=1).T if drawn else ())
    found = []
    for each in metrics:
        if each.kind == "aupr":
            value, lower, upper = average_precision_interval(scores, each, level)
        else:
            value, (lower, upper) = float(each.of_counts(*own)), next(by_rank)
        highest, lowest = _least_reach(each, scores, level)
        found.append(
            Estimate(value, float(min(lower, highest, value)), float(max(upper, lowest, value)))
        )
    return found


def _least_reach(metric: Metric, scores: Scores, level: float) -> tuple[float, float]:
    """The highest lower limit and the lowest upper one that may be claimed of a metric."""
    slack = one_way_slack(level, scores.sizes)
    if metric.kind != "aupr":
        return 1 - slack, slack
    hit, other = scores.outside, scores.inside
    if metric.positive == "in":
        hit, other = -scores.inside, -scores.outside
    rank = np.arange(1, len(hit) + 1)
    ties = np.searchsorted(np.sort(-hit), -hit, side="right")  # positives that are at least as high
    return (
        float(np.mean(rank / (rank + slack * len(other)))),
        float(np.mean(ties / (ties + (1 - slack) * len(other)))),
    )


@checked
def holm(p_values: Any) -> np.ndarray:
    """P-values corrected for their number by Holm's step-down method, in the order given.

    With the p-values sorted upwards, adjusted_(i) = max_{j <= i} min(1, (N - j + 1) p_(j)).
    Rejecting where adjusted <= alpha keeps the chance of any false rejection at alpha, whatever the
    dependence between the tests.

    Args:
        p_values: any shape; all of them count as one family.

    Returns:
        the same shape.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
        [0.03, 0.06, 0.06]

    Raises:
        DataError: a p-value that is NaN or outside [0, 1].

    Source: Holm 1979, Scandinavian Journal of Statistics 6:65.
    """
    values = np.asarray(p_values)
    if values.dtype.kind not in "biuf":
        raise DataError(f"holm: got {type(p_values).__name__}, expected numbers from 0 to 1.")
    values = values.astype(np.float64)
    if not np.all((values >= 0) & (values <= 1)):
        bad = values[~((values >= 0) & (values <= 1))].flat[0]
        raise DataError(f"holm: got a p-value of {bad}, expected numbers from 0 to 1.")
    flat = values.ravel()
    order = np.argsort(flat, kind="stable")
    stepped = flat[order] * np.arange(flat.size, 0, -1)
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted.reshape(values.shape)
