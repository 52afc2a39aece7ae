"""What importance weights let one say of log p(x): a bound always, an interval where it holds.

    E[mean w] = p(x),  so  E[log mean w] <= log p(x)                       a bound, by Jensen
    P(log p(x) <= log mean w - log(1 / a)) <= a                            by Markov, any tail
    P(log p(x) <= log mean w + log(1 - z s)) <= a                          nearly, any tail

with s the relative standard error of the mean weight: where weights are large and rare, the draws
miss them and the estimate is too low, or hit them and s is large with it, so a limit from below
holds whatever the tail. From above nothing holds that the tail does not allow: log mean w +- 1.96 s
covers log p(x) in 95 % of cases at a tail index k below a limit that grows to 1/2 with the number
of draws, in 60 % at k = 0.8, and in a quarter of those whose k-hat looks best, since these are the
ones that missed the tail. So one k-hat is not believed alone: it is read with its own error and
with those of all data of the table, and where k may be above the limit there is no interval.

None of this sees a mode that no draw has visited: the bound stays one, the interval does not.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import scipy  # its `stats`, half a second of every start, come when first asked for

from probgen.inference.likelihood.psis import MIN_WEIGHTS, PRIOR_SHAPE, PRIOR_WEIGHTS, tail_length

LEVEL = 0.95
Z_ONE, Z_TWO = 1.6448536269514722, 1.959963984540054  # one-sided and two-sided, of LEVEL
ROUNDING = 1e-4  # nats: a smaller error is that of float32 weights, which are then equal
MIN_EXCEEDANCES = 700  # over all data: the set's tail index is then known to +- 0.05
Values = dict[str, np.ndarray]


class Weighted:
    """What a measure made of importance weights does once all data are in: see `settle`."""

    num_particles: int
    of_bound: ClassVar[str] = "lower"  # what the estimate is in expectation: "lower", "upper", ""

    def settle(self, values: Values) -> Values:
        """Takes away the standard errors with which no interval holds (NaN)."""
        return settle(values, self.num_particles)

    def warnings(self, values: Values) -> list[str]:
        """Says for how many data there is no interval, and what holds for them."""
        return bound_warning(values, self.of_bound)


def error_of_mean(values: np.ndarray) -> np.ndarray:
    """[...] such that the mean of each row of [..., K] +- 1.96 of it covers in 95 % of cases.

        s / sqrt(K) t(f) / 1.96,     f = min(K - 1, 2 K / (kurtosis - 1))

    The variance s^2 of K values is itself known only as well as one of f + 1 normal values, and a
    few large ones make that few. Without it 95 % are 91 % at a tail index of 0.4 and K = 100.
    """
    off = values - values.mean(axis=-1, keepdims=True)
    num, square = values.shape[-1], (off**2).mean(axis=-1)
    safe = np.where(square > 0, square, 1.0)
    excess = (off**4).mean(axis=-1) / safe**2 - 1.0
    freedom = np.minimum(num - 1.0, 2.0 * num / np.maximum(excess, 1e-12))
    quantile = scipy.stats.t.ppf(0.5 + LEVEL / 2, np.maximum(freedom, 1.0))
    return np.sqrt(square / (num - 1)) * quantile / Z_TWO


def lower_limit(error: Any, num_weights: int | None = None) -> np.ndarray:
    """log p(x) - log mean w is above this in 95 % of cases: log max(0.05, 1 - 1.645 error).

    Args:
        error: relative standard error of the mean weight, by `error_of_mean`; or the plain one over
            few weights with `num_weights`, for Student's quantile in place of 1.645.
    """
    z = Z_ONE if num_weights is None else scipy.stats.t.ppf(LEVEL, num_weights - 1)
    return np.log(np.maximum(1.0 - LEVEL, 1.0 - z * np.asarray(error, np.float64)))


def as_upper(values: Values) -> Values:
    """The same of -log p(x): the estimate negated, an "upper_bound" in place of the lower one."""
    rest = {k: v for k, v in values.items() if k != "lower_bound"}
    return {**rest, "estimate": -values["estimate"], "upper_bound": -values["lower_bound"]}


def interval_limit(num_weights: int) -> float:
    """The tail index up to which an interval from S weights holds: 1/2 - 3 / sqrt(S).

    Found by simulation on generalised Pareto, lognormal and Gaussian ratio weights: 93 to 97 % of
    intervals hold below it. At 1/2 the variance ends.
    """
    return 0.5 - 3.0 / math.sqrt(num_weights)


def has_interval(khat: np.ndarray, num_weights: int) -> np.ndarray:
    """[n] whether estimate +- 1.96 standard errors is an interval, for the k-hats of a table.

    Never with fewer than 25 weights, nor where all k-hats together rest on fewer than 700
    exceedances (8 data of 1,000 weights each, 35 of 100), nor where most of the data fail: then
    those that pass are more likely lucky than light. A k-hat that is NaN has no tail to judge.
    """
    khat = np.asarray(khat, np.float64)
    if num_weights < MIN_WEIGHTS:
        return np.zeros(khat.shape, bool)
    fitted = ~np.isnan(khat)
    out = ~fitted
    if int(fitted.sum()) * tail_length(num_weights) >= MIN_EXCEEDANCES:
        light = tail_limits(khat[fitted], num_weights) <= interval_limit(num_weights)
        out[fitted] = light & (light.mean() >= 0.5)
    return out


def tail_limits(khat: np.ndarray, num_weights: int) -> np.ndarray:
    """[n] what each datum's tail index is below, in 95 % of cases, given the k-hats of a set.

    Without the fit's prior a k-hat of M exceedances has the standard error (1 + k) / sqrt(M): 0.14
    of 1,000 weights. Each is drawn towards the set's mean by as much as the spread of the set is
    that error (empirical Bayes: k ~ N(m, t^2), t^2 = 0 unless it is told from 0), so that a set of
    heavy tails has no light ones by luck. One that stands two of its errors above a limit is
    believed whatever the others say.
    """
    count, size = tail_length(num_weights), len(khat)
    raw = ((count + PRIOR_WEIGHTS) * khat - PRIOR_WEIGHTS * PRIOR_SHAPE) / count
    seen = np.clip(raw, -1.0, 1.5)  # +inf, too
    centre = seen.mean()
    own = (1.0 + max(centre, 0.0)) ** 2 / count
    between = float(seen.var(ddof=1)) - own if size > 1 else 0.0
    if between < Z_ONE * own * math.sqrt(2.0 / max(size - 1, 1)):
        between = 0.0
    share = between / (between + own)
    error = math.sqrt(share * own + (1.0 - share) ** 2 * (own + between) / size)
    mean = centre + share * (seen - centre)
    return np.maximum(mean + Z_ONE * error, raw - 2.0 * math.sqrt(own))


def settle(values: Values, num_weights: int) -> Values:
    """`values` of all data, their "standard_error" NaN where no interval holds with it."""
    if "standard_error" not in values:
        return values
    error = values["standard_error"]
    kept = has_interval(values["khat"], num_weights) | (error < ROUNDING)
    return {**values, "standard_error": np.where(kept, error, np.nan)}


def bound_warning(values: Values, of_bound: str) -> list[str]:
    """One sentence where some data have no interval: how many, what holds, and the way out."""
    if "standard_error" not in values:
        return []
    bare = np.isnan(values["standard_error"])
    if not bare.any():
        return []
    count = int(bare.sum())
    many = f"{count} of {len(bare)} data ({count / len(bare):.0%})"
    why = "the draws are too few for the tail of their weights (k-hat, read with its error and the "
    why += "others')"
    if not of_bound:
        return [f"no interval for {many}: {why}; use more particles, or a better guide."]
    return [
        f"a bound only, without standard error, for {many}: {why}, so the estimate is likely too "
        f"{'low' if of_bound == 'lower' else 'high'}; {of_bound}_bound holds in 95 % of cases. "
        "More particles or AIS(start='guide') come closer, and bdmc says how close on simulated "
        "data."
    ]
