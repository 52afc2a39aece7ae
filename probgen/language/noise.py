"""Distributions as functions of standard normal noise, written once with `ops`.

    x = T(eps; arguments),  eps ~ N(0, 1),  so that  F(T(eps)) = Phi(eps)

with F the distribution function (a HalfNormal is |eps| scale, where both signs of eps give one x).
A site that is one is drawn so on both backends: its draws have the gradients of its arguments, one
key a datum is enough, and it may live in the noise space of tilted models. The tails are those of
log Phi, so that nothing is lost at eps = -5 or 5 in single precision.

`dist.Transformed` is a function of its base's noise; multivariate normals are done by the backends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from probgen.language import ops, truncated

Array = Any
LOG_2 = math.log(2.0)


class FromNoise(NamedTuple):
    """x = value(eps, *arguments), one number of noise for each of x; `names`: the arguments, as
    both libraries' classes call them."""

    names: tuple[str, ...]
    value: Callable[..., Array]


class NoiseMap(NamedTuple):
    """A distribution's value as a function of noise.

    shape: of the noise of one event; the whole noise is [*batch, *shape].
    value: noise -> [*batch, *event].
    """

    shape: tuple[int, ...]
    value: Callable[[Array], Array]


def share_below(eps: Array) -> Array:
    """Phi(eps)."""
    return 0.5 * ops.erfc(-math.sqrt(0.5) * eps)


def log_above(eps: Array) -> Array:
    """log P(Z > eps), right in both tails."""
    far = ops.log(0.5 * ops.erfc(math.sqrt(0.5) * ops.abs(eps)))  # log P(Z > |eps|)
    return ops.where(eps > 0, far, ops.log1p(-ops.exp(far)))


def _laplace(eps: Array, loc: Array, scale: Array) -> Array:
    size = -(LOG_2 + ops.log(0.5 * ops.erfc(math.sqrt(0.5) * ops.abs(eps))))
    return loc + scale * ops.where(eps > 0, size, -size)


def _kumaraswamy(eps: Array, a: Array, b: Array) -> Array:
    return ops.exp(ops.log(-ops.expm1(log_above(eps) / b)) / a)


def _truncated(eps: Array, loc: Array, scale: Array, low: Array, high: Array) -> Array:
    return truncated.quantile(share_below(eps), loc, scale, low, high)


_LOC_SCALE = ("loc", "scale")
TABLE: dict[str, FromNoise] = {
    "Exponential": FromNoise(("rate",), lambda eps, rate: -log_above(eps) / rate),
    "Gumbel": FromNoise(
        _LOC_SCALE, lambda eps, loc, scale: loc - scale * ops.log(-log_above(-eps))
    ),
    "HalfNormal": FromNoise(("scale",), lambda eps, scale: scale * ops.abs(eps)),
    "Kumaraswamy": FromNoise(("concentration1", "concentration0"), _kumaraswamy),
    "Laplace": FromNoise(_LOC_SCALE, _laplace),
    "LogNormal": FromNoise(_LOC_SCALE, lambda eps, loc, scale: ops.exp(loc + scale * eps)),
    "Logistic": FromNoise(
        _LOC_SCALE, lambda eps, loc, scale: loc + scale * (log_above(-eps) - log_above(eps))
    ),
    "Normal": FromNoise(_LOC_SCALE, lambda eps, loc, scale: loc + scale * eps),
    "Pareto": FromNoise(
        ("scale", "alpha"), lambda eps, scale, alpha: scale * ops.exp(-log_above(eps) / alpha)
    ),
    "TruncatedNormal": FromNoise(("loc", "scale", "low", "high"), _truncated),
    "Uniform": FromNoise(
        ("low", "high"), lambda eps, low, high: low + (high - low) * share_below(eps)
    ),
    "Weibull": FromNoise(
        ("scale", "concentration"),
        lambda eps, scale, k: scale * ops.exp(ops.log(-log_above(eps)) / k),
    ),
}  # fmt: skip
