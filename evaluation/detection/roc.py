"""ROC and precision-recall curves and their summaries; curves and areas are scikit-learn's.

A datum is called positive when its score reaches a threshold. With `positive="ood"` that is
"strange enough": TPR is the share of out-of-distribution data called so, FPR the share of
in-distribution data. With `positive="in"` both classes and the direction change places. AUROC is
the same number either way; average precision and FPR at 95 % TPR are not, so each table says which.
No intervals here, but for the band around a curve: see `delong` and `intervals`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import numpy as np

from probgen.evaluation.detection.counts import (
    Metric,
    auroc_of_counts,
    counts,
    resampled_counts,
)
from probgen.evaluation.detection.scores import (
    Distinct,
    PositiveClass,
    Scores,
    as_scores,
    demand_spread,
    one_way_slack,
)
from probgen.language.declared import checked
from probgen.language.kinds import OpenShare, Resamples, between


@dataclasses.dataclass(frozen=True)
class RocCurve:
    """Points of a ROC curve, from (0, 0) to (1, 1).

    thresholds are in the caller's own scores; the first, which no datum reaches, is infinite.
    """

    fpr: np.ndarray  # [p] nondecreasing
    tpr: np.ndarray  # [p] nondecreasing
    thresholds: np.ndarray  # [p]
    positive: PositiveClass
    num_in: int
    num_out: int


@dataclasses.dataclass(frozen=True)
class PrCurve:
    """Points of a precision-recall curve; `prevalence` is the precision of a blind guess."""

    precision: np.ndarray  # [p + 1], the last is 1 by convention, at recall 0
    recall: np.ndarray  # [p + 1] nonincreasing, the last is 0
    thresholds: np.ndarray  # [p] in the caller's own scores
    positive: PositiveClass
    prevalence: float
    num_in: int
    num_out: int


@dataclasses.dataclass(frozen=True)
class RocBand:
    """Pointwise limits of the true positive rate on a grid of false positive rates."""

    fpr: np.ndarray  # [grid]
    lower: np.ndarray  # [grid]
    upper: np.ndarray  # [grid]
    level: float


@checked
def roc_curve(
    in_scores: Any,
    out_scores: Any,
    *,
    larger_is_stranger: bool = True,
    positive: PositiveClass = "ood",
) -> RocCurve:
    """The ROC curve; constant, tied and infinite scores are allowed.

    Args:
        in_scores: [n] scores of in-distribution data.
        out_scores: [m] scores of out-of-distribution data.
        larger_is_stranger: False for a measure that is larger on familiar data.
        positive: which class a detection is.

    Raises:
        ShapeError, DataError: see `as_scores`.
        DeclarationError: an unknown positive class.
    """
    from sklearn import metrics

    scores = as_scores(in_scores, out_scores, larger_is_stranger=larger_is_stranger)
    labels, ranks, values = _ranked(scores, positive)
    fpr, tpr, steps = metrics.roc_curve(labels, ranks)
    turn = scores.sign * (1.0 if positive == "ood" else -1.0)
    inner = turn * values[steps[1:].astype(int)]
    thresholds = np.concatenate([[turn * np.inf], inner])
    return RocCurve(fpr, tpr, thresholds, positive, len(scores.inside), len(scores.outside))


@checked
def pr_curve(
    in_scores: Any,
    out_scores: Any,
    *,
    larger_is_stranger: bool = True,
    positive: PositiveClass = "ood",
) -> PrCurve:
    """The precision-recall curve; arguments and errors as for `roc_curve`."""
    from sklearn import metrics

    scores = as_scores(in_scores, out_scores, larger_is_stranger=larger_is_stranger)
    labels, ranks, values = _ranked(scores, positive)
    precision, recall, steps = metrics.precision_recall_curve(labels, ranks)
    turn = scores.sign * (1.0 if positive == "ood" else -1.0)
    return PrCurve(
        precision, recall, turn * values[steps.astype(int)], positive, float(labels.mean()),
        len(scores.inside), len(scores.outside),
    )  # fmt: skip


@checked
def auroc(in_scores: Any, out_scores: Any, *, larger_is_stranger: bool = True) -> float:
    """P(s_out > s_in) + P(s_out = s_in) / 2: 1 tells the sets apart, 1/2 is a coin, 0 is reversed.

    Raises:
        ShapeError, DataError: see `as_scores`.
    """
    from sklearn import metrics

    scores = as_scores(in_scores, out_scores, larger_is_stranger=larger_is_stranger)
    labels, ranks, _ = _ranked(scores, "ood")
    return float(metrics.roc_auc_score(labels, ranks))


@checked
def average_precision(
    in_scores: Any,
    out_scores: Any,
    *,
    larger_is_stranger: bool = True,
    positive: PositiveClass = "ood",
) -> float:
    """Area under precision and recall as a step sum: sum_t (R_t - R_{t-1}) P_t.

    A blind guess gets the prevalence of the positive class, so sets of other sizes give other
    numbers: compare average precisions only at equal n.

    Raises:
        ShapeError, DataError: see `as_scores`.
        DeclarationError: an unknown positive class.
    """
    from sklearn import metrics

    scores = as_scores(in_scores, out_scores, larger_is_stranger=larger_is_stranger)
    labels, ranks, _ = _ranked(scores, positive)
    return float(metrics.average_precision_score(labels, ranks))


@checked
def fpr_at_tpr(
    in_scores: Any,
    out_scores: Any,
    *,
    tpr: OpenShare = 0.95,
    larger_is_stranger: bool = True,
    positive: PositiveClass = "ood",
) -> float:
    """False positive rate at the largest threshold t with TPR(score >= t) >= tpr.

    Nothing is interpolated: t is a score that occurs among the positives, and ties with it are
    called positive. Published codes differ here in class, rate and interpolation; say which.

    Raises:
        ShapeError, DataError: see `as_scores`.
        DeclarationError: tpr outside (0, 1), or an unknown positive class.
    """
    scores = as_scores(in_scores, out_scores, larger_is_stranger=larger_is_stranger)
    return float(Metric("fpr", positive, tpr).of_counts(*counts(scores)))


@checked
def roc_band(
    in_scores: Any,
    out_scores: Any,
    *,
    larger_is_stranger: bool = True,
    level: OpenShare = 0.95,
    num_grid: Annotated[int, between(2, 10**6)] = 101,
    num_resamples: Resamples = 2000,
    seed: int = 0,
    distinct: Distinct = None,
) -> RocBand:
    """Pointwise percentile band around the ROC curve ("ood" positive), by stratified bootstrap.

    Where the sets are apart (AUROC 0 or 1) every resample gives the same curve, and the band says
    instead what min(n, m) independent pairs that all went one way allow: (1 - level)^(1/min(n, m)).
    `distinct` as for `delong`.

    Raises:
        ShapeError, DataError: see `as_scores`; scores that are all equal.
        DeclarationError: level outside (0, 1), or too few resamples.
    """
    scores = as_scores(
        in_scores, out_scores, larger_is_stranger=larger_is_stranger, distinct=distinct
    )
    demand_spread(scores.inside, scores.outside, scores.name)
    grid = np.linspace(0.0, 1.0, num_grid)
    chunks = resampled_counts(scores, num_resamples=num_resamples, seed=seed)
    drawn = np.concatenate([_tpr_on_grid(*chunk, grid) for chunk in chunks])
    lower, upper = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    area = auroc_of_counts(*counts(scores)[::-1])
    slack = one_way_slack(level, scores.sizes)
    if area == 1:
        lower[:-1] = 1 - slack  # the corner (1, 1) holds for every curve
    elif area == 0:
        upper[:-1] = slack
    return RocBand(grid, lower, upper, level)


def _tpr_on_grid(in_counts: np.ndarray, out_counts: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """[*batch, grid] height of a curve: its highest point on a vertical, the chord over a tie
    group; of counts [*batch, u]."""
    false, hits = (
        np.insert(np.cumsum(c, axis=-1), 0, 0, axis=-1) / c.sum(axis=-1, keepdims=True)
        for c in (in_counts, out_counts)
    )
    left = np.apply_along_axis(np.searchsorted, -1, false, grid, "right") - 1
    right = np.minimum(left + 1, false.shape[-1] - 1)
    at, tpr = (np.take_along_axis(v, left, axis=-1) for v in (false, hits))
    run = np.take_along_axis(false, right, axis=-1) - at
    rise = np.take_along_axis(hits, right, axis=-1) - tpr
    share = np.where(run > 0, (grid - at) / np.where(run > 0, run, 1.0), 0.0)
    return tpr + share * rise


def _ranked(scores: Scores, positive: PositiveClass) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and dense ranks [n + m] for scikit-learn, which takes no infinite score; values [u].

    Ranks count from 0 upwards in the direction of the positive class, and values[rank] is the score
    there, in the same direction.
    """
    turn = 1.0 if positive == "ood" else -1.0
    pooled = turn * np.concatenate([scores.inside, scores.outside])
    values, ranks = np.unique(pooled, return_inverse=True)
    is_out = np.repeat([False, True], [len(scores.inside), len(scores.outside)])
    return (is_out if positive == "ood" else ~is_out), ranks, values
