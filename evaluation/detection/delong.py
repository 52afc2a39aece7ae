"""DeLong's variance of the AUROC, its interval, and the paired test between two measures.

With n in-distribution and m out-of-distribution scores, each datum has a placement among the other
class, read off midranks (pooled minus within-class), so that a tie counts one half:

    V_out[i] = (r_i - r_i^out) / n           share of the in data below out datum i
    V_in[j]  = 1 - (r_j - r_j^in) / m        share of the out data above in datum j
    AUROC    = mean V_out = mean V_in,   Var = var(V_out) / m + var(V_in) / n

The covariance of two AUROCs on the same data is the same expression with covariances, which makes
the paired test. Placements are kept as win counts, half-integers that float64 holds exactly:
measures that order the data alike differ by exactly nothing, and not by rounding.

Source: DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44:837; midranks as in Sun & Xu 2014, IEEE
Signal Processing Letters 21:1389.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from probgen.errors import ShapeError
from probgen.evaluation.detection.scores import (
    check_share,
    checked,
    demand_pairs,
    demand_spread,
)


class DeLong(NamedTuple):
    """AUROCs of one or many pairs of score sets, with what their variances are made of."""

    out_wins: np.ndarray  # [*batch, m] in data below each out datum, n V_out
    in_wins: np.ndarray  # [*batch, n] out data above each in datum, m V_in

    @property
    def num_in(self) -> int:
        return self.in_wins.shape[-1]

    @property
    def num_out(self) -> int:
        return self.out_wins.shape[-1]

    @property
    def auroc(self) -> np.ndarray:
        """[*batch] P(s_out > s_in) + P(s_out = s_in) / 2."""
        return self.out_wins.sum(-1) / (self.num_in * self.num_out)

    @property
    def variance(self) -> np.ndarray:
        """[*batch] sampling variance of the AUROC; exactly 0 where it is 0 or 1."""
        return _variance(self.out_wins, self.in_wins)

    @property
    def covariance(self) -> np.ndarray:
        """[k, k] covariance of the AUROCs of k measures on the same data.

        Raises:
            ShapeError: not one batch axis, [k].
        """
        if self.out_wins.ndim != 2:
            raise ShapeError(
                f"covariance: got AUROCs of shape {self.auroc.shape}, expected [k], one for each "
                "measure on the same data; stack the measures' scores on one leading axis."
            )
        out = np.atleast_2d(np.cov(self.out_wins)) / (self.num_out * self.num_in**2)
        return out + np.atleast_2d(np.cov(self.in_wins)) / (self.num_in * self.num_out**2)

    def interval(self, *, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Limits [*batch] of the AUROC: Wald's on the logit scale, A' = log A / (1 - A).

        At AUROC 1 the variance is 0, and the lower limit is (1 - level)^(1 / min(n, m)): what that
        many independent pairs, all won, still allow. At AUROC 0 the mirror image.

        Raises:
            AlgorithmError: level outside (0, 1).
        """
        from scipy.special import expit, logit
        from scipy.stats import norm

        check_share(level, "level")
        area = self.auroc
        is_inner = (area > 0) & (area < 1)
        safe = np.where(is_inner, area, 0.5)
        half = norm.isf((1 - level) / 2) * np.sqrt(self.variance) / (safe * (1 - safe))
        slack = _slack(level, self.num_in, self.num_out)
        lower = np.where(is_inner, expit(logit(safe) - half), np.where(area == 1, 1 - slack, 0.0))
        upper = np.where(is_inner, expit(logit(safe) + half), np.where(area == 0, slack, 1.0))
        return lower, upper


class PairedTest(NamedTuple):
    """DeLong's comparison of two measures on the same data, elementwise over [*batch]."""

    difference: np.ndarray  # AUROC of the first minus AUROC of the second
    standard_error: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    p_value: np.ndarray  # two-sided, of equal AUROCs


def delong(in_scores: Any, out_scores: Any, *, larger_is_stranger: bool = True) -> DeLong:
    """AUROC and DeLong's variance, for one measure or for many at once.

    Args:
        in_scores: [*batch, n] scores of in-distribution data; infinities are allowed.
        out_scores: [*batch, m] scores of out-of-distribution data.
        larger_is_stranger: False for measures that are larger on familiar data.

    Example:
        >>> table = delong([1.0, 2.0, 3.0, 4.0], [2.5, 3.5, 4.5, 5.5, 6.5])
        >>> print(table.auroc, table.variance.round(4))
        0.85 0.0192

    Raises:
        ShapeError: batches that differ, or no axis at all.
        DataError: fewer than two scores, a NaN, or a row whose scores are all equal.
    """
    from scipy.stats import rankdata

    inside = checked(in_scores, "scores of the in-distribution data", batched=True)
    outside = checked(out_scores, "scores of the out-of-distribution data", batched=True)
    if inside.shape[:-1] != outside.shape[:-1]:
        raise ShapeError(
            f"delong: got in_scores of shape {inside.shape} and out_scores of {outside.shape}, "
            "expected [*batch, n] and [*batch, m] with one batch for both."
        )
    demand_spread(inside, outside, "scores")
    sign = 1.0 if larger_is_stranger else -1.0
    num_in, num_out = inside.shape[-1], outside.shape[-1]
    pooled = rankdata(sign * np.concatenate([inside, outside], axis=-1), axis=-1)
    out_wins = pooled[..., num_in:] - rankdata(sign * outside, axis=-1)
    in_wins = num_out - (pooled[..., :num_in] - rankdata(sign * inside, axis=-1))
    return DeLong(out_wins, in_wins)


def delong_test(first: DeLong, second: DeLong, *, level: float = 0.95) -> PairedTest:
    """Are two AUROCs on the same data equal? Elementwise over [*batch].

    z = (A - B) / sqrt(var(V_out^A - V_out^B) / m + var(V_in^A - V_in^B) / n), against N(0, 1); the
    interval of A - B is Wald's. The normal law flatters small sets, so no p-value is smaller than
    that of a sign test in which min(n, m) independent pairs all spoke for one side, 2 (1/2)^min.
    Measures that order the data alike get p = 1. Where the variance is 0 the interval reaches
    (1 + |A - B|) (1 - (1 - level)^(1/min)) to both sides instead of pretending to be exact.

    Args:
        first, second: from `delong`, on the same data in the same order.

    Raises:
        ShapeError: sets of different length, which cannot be the same data.
        AlgorithmError: level outside (0, 1).
    """
    from scipy.stats import norm

    check_share(level, "level")
    sizes = (first.num_in, first.num_out), (second.num_in, second.num_out)
    demand_pairs(*sizes, ("first measure", "second measure"))
    num_in, num_out = sizes[0]
    out_more, in_more = first.out_wins - second.out_wins, first.in_wins - second.in_wins
    difference = out_more.sum(-1) / (num_in * num_out)
    error = np.sqrt(_variance(out_more, in_more))
    is_sure = error == 0
    z = np.abs(difference) / np.where(is_sure, 1.0, error)
    normal = np.where(is_sure, 0.0, 2 * norm.sf(z))
    p_value = np.where(difference == 0, 1.0, np.maximum(normal, 2 * 0.5 ** min(sizes[0])))
    wide = (1 + np.abs(difference)) * _slack(level, num_in, num_out)
    half = np.where(is_sure, wide, norm.isf((1 - level) / 2) * error)
    lower, upper = np.maximum(difference - half, -1.0), np.minimum(difference + half, 1.0)
    return PairedTest(difference, error, lower, upper, np.minimum(p_value, 1.0))


def _variance(out_wins: np.ndarray, in_wins: np.ndarray) -> np.ndarray:
    num_in, num_out = in_wins.shape[-1], out_wins.shape[-1]
    out = out_wins.var(-1, ddof=1) / (num_out * num_in**2)
    return out + in_wins.var(-1, ddof=1) / (num_in * num_out**2)


def _slack(level: float, num_in: int, num_out: int) -> float:
    """1 - (1 - level)^(1/k): what k = min(n, m) pairs that all went one way leave open."""
    return 1 - (1 - level) ** (1 / min(num_in, num_out))
