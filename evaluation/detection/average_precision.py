"""The interval of an average precision: a two-sample jackknife on the logit scale.

A percentile bootstrap of an average precision covers 88 to 93 % at a nominal 95: the measure is
nonlinear at its first ranks, and a resample ties data that were distinct. Here each datum is left
out in turn, at the same prevalence, and the spread of what is left is the variance:

    Var = sum over both sets of (n - 1)^2 / (d - 1) mean (A_-i - mean A_-i)^2
    limits = expit(logit A -+ t sqrt(Var) / (A (1 - A))),   Student's law with min(d, d') - 1

with d of a set's n data distinct. All A_-i come from two cumulative sums over tie groups, so that
the interval of 10,000 data takes milliseconds.

Sources: Efron & Stein 1981, Annals of Statistics 9:586 (the jackknife's variance); Boyd, Eng & Page
2013, ECML PKDD, section 4 (limits on the logit scale).
"""

from __future__ import annotations

import numpy as np

from probgen.evaluation.detection.counts import Metric, counts
from probgen.evaluation.detection.scores import Scores


def average_precision_interval(
    scores: Scores, metric: Metric, level: float
) -> tuple[float, float, float]:
    """(value, lower, upper) of the average precision of a population with this prevalence.

    Normal laws, AUROC .5, .76 and .96, positives and negatives of 10 to 500 at prevalences 1/11,
    1/2 and 10/11, 600 data sets each: with the widening of `intervals` for sets that are all but
    apart, coverage is .93 to .96 for a coin, .94 to .99 for the others, at nominal .95.
    """
    from scipy.special import expit, logit
    from scipy.stats import t

    positive, negative = counts(scores)[::-1]
    sizes = scores.sizes[::-1]
    if metric.positive == "in":
        positive, negative, sizes = negative[::-1], positive[::-1], scores.sizes
    value, *rest = delete_one(positive, negative)
    variance = sum(
        _variance(each, size, distinct)
        for each, size, distinct in zip(rest, (positive, negative), sizes, strict=True)
    )
    if not 0 < value < 1:
        return value, value, value
    reach = t.isf((1 - level) / 2, max(min(sizes) - 1, 1))
    half = reach * np.sqrt(variance) / (value * (1 - value))
    return value, float(expit(logit(value) - half)), float(expit(logit(value) + half))


def delete_one(positive: np.ndarray, negative: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The average precision, and what it is without one positive or negative of each group.

    The weights of those that stay are raised, so that the prevalence stays too.

    Args:
        positive, negative: [u] counts in tie groups, the most positive first; at least 2 in all.

    Returns:
        the value; [u] values without a positive of that group; [u] without a negative of it.
    """
    hits, false = np.cumsum(positive, dtype=np.float64), np.cumsum(negative, dtype=np.float64)
    num, other = hits[-1], false[-1]

    def summed(above: np.ndarray, from_here: np.ndarray) -> np.ndarray:
        """[u] precisions summed over all positives, if groups from g on lose what g loses."""
        first = np.cumsum(positive * above) - positive * above
        return first + np.cumsum((positive * from_here)[::-1])[::-1]

    value = float((positive * _precision(hits, false)).sum() / num)
    more = num / (num - 1)
    after = _precision(more * (hits - 1), false)
    without_positive = (summed(_precision(more * hits, false), after) - after) / (num - 1)
    more = other / (other - 1)
    after = _precision(hits, more * (false - 1))
    without_negative = summed(_precision(hits, more * false), after) / num
    return value, without_positive, without_negative


def _precision(hits: np.ndarray, false: np.ndarray) -> np.ndarray:
    hits, false = np.maximum(hits, 0.0), np.maximum(false, 0.0)
    named = hits + false
    return np.divide(hits, named, out=np.zeros_like(named), where=named > 0)


def _variance(without: np.ndarray, count: np.ndarray, distinct: int) -> float:
    if distinct < 2:
        return np.inf
    total = count.sum()
    centre = (count * without).sum() / total
    return float(
        (total - 1) ** 2 / (distinct - 1) * (count * (without - centre) ** 2).sum() / total
    )
