"""Pareto smoothing of importance weights, and the shape k-hat of their largest.

The M = ceil(min(0.2 S, 3 sqrt S)) largest of S weights are fitted by a generalised Pareto law over
the next largest, u: exceedances w - u have density (1 + k (w - u) / sigma)^(-1/k - 1) / sigma. A
mean of weights has a variance only if k < 1/2, and a mean at all only if k < 1:

    k < min(1 - 1 / log10 S, 0.7)   a smoothed mean has a small error on average
    k above that                    do not quote a mean without a warning
    k >= 1                          the mean itself cannot be estimated from weights
    k = inf                         so few weights stand above the rest that no law can be fitted

A k-hat has an error of its own, (1 + k) / sqrt(M), and a small one may mean that the tail was
missed: among data of k = 0.8 those below the limit have the worst estimates. So it is no licence
for an interval; `interval` says when there is one, from the k-hats of all data.

Target N(0, 1), proposal N(0, v): k = 1 - v. A wide range of log weights is no fault here; a narrow
one is no proof. M is rounded up, as in the paper's own code; ArviZ rounds down. With tails of one
length the two agree to 1e-6. Where the lengths differ k-hat moves by less than half its error, but
by up to 2 for 26 to 29 weights (five exceedances for six), where the longer tail has the smaller
error, 0.35 for 0.41 over k = 0.1, 0.5 and 0.9. Numpy, float64, all data at once.

Sources: Vehtari, Simpson, Gelman, Yao & Gabry 2024, JMLR 25(72), arXiv:1507.02646; Yao et al. 2018,
arXiv:1802.02538 (for variational guides); Zhang & Stephens 2009, Technometrics 51(3) (the fit).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from probgen.errors import DataError, ShapeError

MIN_WEIGHTS = 25  # below, no k-hat: the tail would have fewer than five weights, or hardly more
MIN_TAIL = 5  # exceedances that a fit needs
PRIOR_SHAPE, PRIOR_WEIGHTS = 0.5, 10  # the fit is drawn to this shape as by so many exceedances
EQUAL = 1e-5  # of max(1, |largest log weight|): apart by no more, weights differ by rounding alone
_BLOCK = 2**22  # numbers that one block of fits may hold


class Smoothed(NamedTuple):
    """log_w: [..., S] smoothed log weights, nats, in the order given; khat: [...] the shape."""

    log_w: np.ndarray
    khat: np.ndarray


def khat(log_w: Any) -> np.ndarray:
    """Pareto shape of the largest weights.

    +inf, the worst there is, where the few weights that stand above the rest do not allow a fit:
    one to four exceed the threshold (a single weight dwarfs equal others, or the rest lie more than
    708 nats below and vanish beside it), or the fit has no finite result.

    NaN, "undefined", where there is nothing to fit: S < 25; weights that are equal up to rounding,
    whose mean is exact; or M + 1 equal largest ones, which no weight exceeds, as a latent with few
    values gives them. It is a diagnostic; an estimate is never NaN for it.

    Args:
        log_w: [..., S] log importance weights, nats; -inf is a weight of zero.

    Returns:
        [...] k-hat, a number or +inf or NaN.

    Raises:
        ShapeError: no axis of weights. DataError: NaN or +inf among them.
    """
    rows, lead = _rows(log_w)
    return _fit_rows(rows, None).reshape(lead)


def psis(log_w: Any) -> Smoothed:
    """Weights whose largest are replaced by quantiles of the fitted law, and k-hat.

    The i-th of the M largest becomes u + the quantile at (i - 1/2) / M, at most the raw maximum.
    Rows whose k-hat is undefined or infinite keep their weights. Args and errors as for `khat`.
    """
    rows, lead = _rows(log_w)
    out = rows.copy()
    shape = _fit_rows(rows, out)
    return Smoothed(out.reshape(*lead, rows.shape[1]), shape.reshape(lead))


def khat_limit(num_weights: int) -> float:
    """Largest k-hat at which a smoothed mean of S weights has a small error on average.

    min(1 - 1 / log10 S, 0.7), the rule of Vehtari et al.: a warning for those above it, and nothing
    that can be said of one datum below it (see `interval.has_interval`). It is not above 0 for
    S <= 10, where no k-hat is defined.
    """
    if num_weights < 2:
        raise DataError(f"khat_limit: got {num_weights} weights, expected at least two.")
    return min(1.0 - 1.0 / math.log10(num_weights), 0.7)


def tail_length(num_weights: int) -> int:
    """M = ceil(min(0.2 S, 3 sqrt S))."""
    return math.ceil(min(0.2 * num_weights, 3.0 * math.sqrt(num_weights)))


def _rows(log_w: Any) -> tuple[np.ndarray, tuple[int, ...]]:
    values = np.asarray(log_w, np.float64)
    if values.ndim == 0 or values.shape[-1] < 1:
        raise ShapeError(
            f"khat: got log weights of shape {values.shape}, expected [..., S] with the S weights "
            "of one datum on the last axis."
        )
    bad = np.isnan(values) | np.isposinf(values)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise DataError(
            f"khat: got {values[first]} at {list(first)} and {int(bad.sum())} such log weights in "
            "all, expected numbers below +inf; look at the densities that made them."
        )
    return values.reshape(-1, values.shape[-1]), values.shape[:-1]


def _fit_rows(rows: np.ndarray, smooth: np.ndarray | None) -> np.ndarray:
    """k-hat of each row; writes smoothed weights into `smooth`, if given."""
    count = rows.shape[1]
    out = np.full(len(rows), np.nan)
    m = tail_length(count)
    if count < MIN_WEIGHTS:
        return out
    top = rows.max(axis=1)
    shift = np.where(np.isfinite(top), top, 0.0)[:, None]
    order = np.argsort(rows, axis=1, kind="stable")[:, -m - 1 :]
    largest = np.take_along_axis(rows, order, axis=1) - shift
    # A threshold of zero weight would be no place to measure from.
    floor = np.maximum(largest[:, :1], math.log(np.finfo(np.float64).tiny))
    base = np.exp(floor)
    exceed = base * np.expm1(np.maximum(largest[:, 1:] - floor, 0.0))
    # Ties with the threshold are no exceedances, so rows may differ in how many they have.
    lengths = (exceed > 0.0).sum(axis=1)
    scale = EQUAL * np.maximum(1.0, np.abs(shift[:, 0]))
    uneven = (lengths > 0) & (rows.min(axis=1) < top - scale)
    out[uneven] = np.inf  # unless a fit says less
    for n in np.unique(lengths[lengths >= MIN_TAIL]):
        chosen = np.flatnonzero(lengths == n)
        block = max(1, _BLOCK // int(n * _grid_size(n)))
        for start in range(0, len(chosen), block):
            index = chosen[start : start + block]
            k, sigma = _generalised_pareto(exceed[index, m - n :])
            fits = np.isfinite(k) & np.isfinite(sigma)
            index, k, sigma = index[fits], k[fits], sigma[fits]
            out[index] = k
            if smooth is not None:
                steps = (np.arange(n) + 0.5) / n
                values = np.log(base[index] + _quantile(steps, k[:, None], sigma[:, None]))
                np.put_along_axis(
                    smooth_rows := smooth[index],
                    order[index, m + 1 - n :],
                    np.minimum(values, 0.0) + shift[index],
                    axis=1,
                )
                smooth[index] = smooth_rows
    return out


def _grid_size(n: int) -> int:
    return 30 + math.isqrt(int(n))


def _generalised_pareto(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(k, sigma) of each row of increasing exceedances [rows, n].

    With theta = -k / sigma the profile log likelihood is n (log(-theta / k) - k - 1), k(theta) =
    mean log(1 - theta x); theta is its mean under that likelihood over a grid of quantiles of a
    prior, and k is drawn towards 1/2 as if by ten more exceedances.
    """
    n = x.shape[1]
    size = _grid_size(n)
    quartile = x[:, int(n / 4 + 0.5) - 1, None]
    grid = 1.0 - np.sqrt(size / (np.arange(1, size + 1) - 0.5))
    # A quartile that is nothing beside the largest gives no finite theta, hence no finite k.
    with np.errstate(all="ignore"):
        theta = grid / (3.0 * quartile) + 1.0 / x[:, -1:]
        k = np.log1p(-theta[:, :, None] * x[:, None, :]).mean(axis=2)
        profile = n * (np.log(-theta / k) - k - 1.0)
        # theta = 0 is the exponential law, the limit of its neighbours on the grid.
        profile = np.where(np.isfinite(profile), profile, -np.inf)
        weight = np.exp(profile - profile.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    weight[weight < 10.0 * np.finfo(np.float64).eps] = 0.0
    weight /= weight.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        best = (theta * weight).sum(axis=1)
        shape = np.log1p(-best[:, None] * x).mean(axis=1)
        sigma = np.where(best == 0.0, x.mean(axis=1), -shape / best)
    return (n * shape + PRIOR_WEIGHTS * PRIOR_SHAPE) / (n + PRIOR_WEIGHTS), sigma


def _quantile(p: np.ndarray, k: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Quantile at p of exceedances: sigma ((1 - p)^-k - 1) / k, -sigma log(1 - p) at k = 0."""
    safe = np.where(k == 0.0, 1.0, k)
    with np.errstate(over="ignore"):  # +inf for a k of some hundred; cut at the largest weight
        power = np.expm1(-safe * np.log1p(-p))
        return sigma * np.where(k == 0.0, -np.log1p(-p), power / safe)
