"""DeLong's variance of the AUROC, its interval, and the paired test between two measures.

With n in-distribution and m out-of-distribution scores, each datum has a placement among the other
class, read off midranks (pooled minus within-class), so that a tie counts one half:

    V_out[i] = (r_i - r_i^out) / n           share of the in data below out datum i
    V_in[j]  = 1 - (r_j - r_j^in) / m        share of the out data above in datum j
    AUROC    = mean V_out = mean V_in,   Var = var(V_out) / m + var(V_in) / n

The covariance of two AUROCs on the same data is the same expression with covariances, which makes
the paired test. Placements are kept as win counts, half-integers that float64 holds exactly:
measures that order the data alike differ by exactly nothing, and not by rounding.

Variances of few data are known badly, so every law here is Student's with k - 1 degrees of freedom,
k = min(n, m), fewer than Welch's, which the smaller set can make far too many by chance; and no
interval claims more than k independent pairs that all went one way. Data that are told to be copies
of each other (`distinct`) keep their weight in the AUROC and count once in n, m and k: the variance
of a mean over d distinct data is the mean squared deviation / (d - 1).

Source: DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44:837; midranks as in Sun & Xu 2014, IEEE
Signal Processing Letters 21:1389.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from probgen.errors import ShapeError
from probgen.evaluation.detection.scores import (
    Distinct,
    check_distinct,
    demand_pairs,
    demand_spread,
    one_way_slack,
    score_array,
)
from probgen.language.declared import checked
from probgen.language.kinds import OpenShare


class DeLong(NamedTuple):
    """AUROCs of one or many pairs of score sets, with what their variances are made of."""

    out_wins: np.ndarray  # [*batch, m] in data below each out datum, n V_out
    in_wins: np.ndarray  # [*batch, n] out data above each in datum, m V_in
    distinct: tuple[int, int] | None = None  # in and out data that differ; None for all of them

    @property
    def num_in(self) -> int:
        return self.in_wins.shape[-1]

    @property
    def num_out(self) -> int:
        return self.out_wins.shape[-1]

    @property
    def sizes(self) -> tuple[int, int]:
        """How many in and out data count as independent: n and m, or the distinct among them."""
        return self.distinct or (self.num_in, self.num_out)

    @property
    def auroc(self) -> np.ndarray:
        """[*batch] P(s_out > s_in) + P(s_out = s_in) / 2."""
        return self.out_wins.sum(-1) / (self.num_in * self.num_out)

    @property
    def variance(self) -> np.ndarray:
        """[*batch] sampling variance of the AUROC; exactly 0 where it is 0 or 1."""
        return _variance(self.out_wins, self.in_wins, self.sizes)

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
        out, inside = (np.atleast_2d(np.cov(w, ddof=0)) for w in (self.out_wins, self.in_wins))
        size_in, size_out = self.sizes
        if min(size_in, size_out) < 2:
            return np.full_like(out, np.inf)
        out /= (size_out - 1) * self.num_in**2
        return out + inside / ((size_in - 1) * self.num_out**2)

    @checked
    def interval(self, *, level: OpenShare = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Limits [*batch] of the AUROC: Wald's on the logit scale, A' = log A / (1 - A), Student's.

        No lower limit exceeds (1 - level)^(1/k), k = min(n, m): what k independent pairs, all won,
        still allow. It is the limit at AUROC 1, where the variance is 0, and a bound for every
        other: who lost a pair cannot be surer. Upper limits are the mirror image.

        Two normal laws, AUROC .5, .76 and .95, n = m of 2, 3, 5, 10, 50 and n = 200 with m of 2, 3,
        5, 10, 20: coverage is .95 to 1 at nominal .95 (of a normal law .70 to .82 at m = 2).

        Raises:
            DeclarationError: level outside (0, 1).
        """
        from scipy.special import expit, logit

        area = self.auroc
        is_inner = (area > 0) & (area < 1)
        safe = np.where(is_inner, area, 0.5)
        half = _reach(level, self.sizes) * np.sqrt(self.variance) / (safe * (1 - safe))
        lower = np.where(is_inner, expit(logit(safe) - half), area)
        upper = np.where(is_inner, expit(logit(safe) + half), area)
        slack = one_way_slack(level, self.sizes)
        return np.minimum(lower, 1 - slack), np.maximum(upper, slack)


class PairedTest(NamedTuple):
    """DeLong's comparison of two measures on the same data, elementwise over [*batch]."""

    difference: np.ndarray  # AUROC of the first minus AUROC of the second
    standard_error: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    p_value: np.ndarray  # two-sided, of equal AUROCs


@checked
def delong(
    in_scores: Any,
    out_scores: Any,
    *,
    larger_is_stranger: bool = True,
    distinct: Distinct = None,
) -> DeLong:
    """AUROC and DeLong's variance, for one measure or for many at once.

    Args:
        in_scores: [*batch, n] scores of in-distribution data; infinities are allowed.
        out_scores: [*batch, m] scores of out-of-distribution data.
        larger_is_stranger: False for measures that are larger on familiar data.
        distinct: how many of the n and of the m data differ from each other, where some are copies.

    Example:
        >>> table = delong([1.0, 2.0, 3.0, 4.0], [2.5, 3.5, 4.5, 5.5, 6.5])
        >>> print(table.auroc, table.variance.round(4))
        0.85 0.0192

    Raises:
        ShapeError: batches that differ, or no axis at all.
        DataError: fewer than two scores, a NaN, or a row whose scores are all equal.
        AlgorithmError: `distinct` outside 1 ... n and 1 ... m.
        DeclarationError: options of another type.
    """
    from scipy.stats import rankdata

    inside = score_array(in_scores, "scores of the in-distribution data", batched=True)
    outside = score_array(out_scores, "scores of the out-of-distribution data", batched=True)
    if inside.shape[:-1] != outside.shape[:-1]:
        raise ShapeError(
            f"delong: got in_scores of shape {inside.shape} and out_scores of {outside.shape}, "
            "expected [*batch, n] and [*batch, m] with one batch for both."
        )
    demand_spread(inside, outside, "scores")
    sign = 1.0 if larger_is_stranger else -1.0
    num_in, num_out = inside.shape[-1], outside.shape[-1]
    if distinct is not None:
        check_distinct(distinct, (num_in, num_out))
    pooled = rankdata(sign * np.concatenate([inside, outside], axis=-1), axis=-1)
    out_wins = pooled[..., num_in:] - rankdata(sign * outside, axis=-1)
    in_wins = num_out - (pooled[..., :num_in] - rankdata(sign * inside, axis=-1))
    return DeLong(out_wins, in_wins, distinct)


@checked
def delong_test(first: DeLong, second: DeLong, *, level: OpenShare = 0.95) -> PairedTest:
    """Are two AUROCs on the same data equal? Elementwise over [*batch].

    (A - B) / sqrt(var(V_out^A - V_out^B) / m + var(V_in^A - V_in^B) / n) against Student's law; the
    interval of A - B is Wald's. No p-value is smaller than that of a sign test in which k =
    min(n, m) independent pairs all spoke for one side, 2 (1/2)^k.
    Measures that order the data alike get p = 1. Where the variance is 0 the interval reaches
    (1 + |A - B|) (1 - (1 - level)^(1/k)) to both sides instead of pretending to be exact.

    Args:
        first, second: from `delong`, on the same data in the same order:
            `delong_test(delong(in_a, out_a), delong(in_b, out_b))`.

    Raises:
        ShapeError: sets of different length, which cannot be the same data.
        DeclarationError: level outside (0, 1), or something that `delong` did not give.
    """
    sizes = (first.num_in, first.num_out), (second.num_in, second.num_out)
    demand_pairs(*sizes, ("first measure", "second measure"))
    num_in, num_out = sizes[0]
    counted = min(first.sizes[0], second.sizes[0]), min(first.sizes[1], second.sizes[1])
    out_more, in_more = first.out_wins - second.out_wins, first.in_wins - second.in_wins
    difference = out_more.sum(-1) / (num_in * num_out)
    error = np.sqrt(_variance(out_more, in_more, counted))
    is_sure = error == 0
    t = np.abs(difference) / np.where(is_sure, 1.0, error)
    tail = np.where(is_sure, 0.0, 2 * _beyond(t, counted))
    p_value = np.where(difference == 0, 1.0, np.maximum(tail, 2 * 0.5 ** min(counted)))
    wide = (1 + np.abs(difference)) * one_way_slack(level, counted)
    half = np.where(is_sure, wide, _reach(level, counted) * error)
    lower, upper = np.maximum(difference - half, -1.0), np.minimum(difference + half, 1.0)
    return PairedTest(difference, error, lower, upper, np.minimum(p_value, 1.0))


def chance_test(found: DeLong) -> tuple[np.ndarray, np.ndarray]:
    """One-sided p-values of AUROCs against 1/2: that they are not above it, and not below it.

    logit(A) A (1 - A) / sqrt(Var A) against Student's law: that of `DeLong.interval`, so an
    interval of level 1 - 2 p ends at 1/2. As in `delong_test`, no p-value is smaller than that of
    k independent pairs that all spoke for one side, (1/2)^k; it is that of AUROC 0 or 1.

    Args:
        found: from `delong`, [*batch].

    Returns:
        p above, p below: [*batch] each.
    """
    from scipy.special import logit

    area, error = found.auroc, np.sqrt(found.variance)
    is_inner = (area > 0) & (area < 1)
    safe = np.where(is_inner, area, 0.5)
    t = logit(safe) * safe * (1 - safe) / np.where(is_inner, error, 1.0)
    t = np.where(is_inner, t, np.where(area > 0.5, np.inf, -np.inf))
    sizes, least = found.sizes, 0.5 ** min(found.sizes)
    return np.maximum(_beyond(t, sizes), least), np.maximum(_beyond(-t, sizes), least)


def _variance(out_wins: np.ndarray, in_wins: np.ndarray, sizes: tuple[int, int]) -> np.ndarray:
    """[*batch] of the mean of placements, or of their differences; infinite for one datum alone."""

    def of_mean(placed: np.ndarray, size: int) -> np.ndarray:
        return placed.var(-1) / (size - 1) if size > 1 else np.full(placed.shape[:-1], np.inf)

    num_in, num_out = in_wins.shape[-1], out_wins.shape[-1]
    return of_mean(out_wins, sizes[1]) / num_in**2 + of_mean(in_wins, sizes[0]) / num_out**2


def _reach(level: float, sizes: tuple[int, int]) -> float:
    """Student's quantile for a two-sided interval; of one datum alone the variance is infinite."""
    from scipy.stats import t

    return float(t.isf((1 - level) / 2, max(min(sizes) - 1, 1)))


def _beyond(value: np.ndarray, sizes: tuple[int, int]) -> np.ndarray:
    """[*batch] P(T > value) under Student's law."""
    from scipy.stats import t

    return t.sf(value, max(min(sizes) - 1, 1))
