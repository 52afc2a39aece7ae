"""The truncated normal distribution, written once with `ops`: N(loc, scale^2) on [low, high].

Far in a tail neither the normal distribution function nor its inverse is of use in float32. With
Mills' ratio R(a) = (1 - Phi(a)) / phi(a) and bounds 0 <= a < b in units of the scale

    P(a < Z < b) = phi(a) [R(a) - R(b) exp(-(b - a)(b + a)/2)]

loses nothing however far out a lies. An interval of negative bounds is mirrored; one that holds 0
is the sum of its two sides.
"""

from __future__ import annotations

import math
from typing import Any

from probgen.language import ops

Array = Any
HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
FAR = 4.0  # from where R is its continued fraction
LEVELS = 24
FARTHEST = 1e18  # stands for an infinite bound; its square is finite in float32
NEWTON = 8


def log_mills(a: Array) -> Array:
    """log R(a) for a >= 0: by the error function, far out by R = 1/(a + 1/(a + 2/(a + ...
    (Laplace's continued fraction)."""
    far = ops.maximum(a, FAR + 0.0 * a)
    fraction = far
    for k in range(LEVELS, 0, -1):
        fraction = far + k / fraction
    near = ops.minimum(a, FAR + 0.0 * a)
    direct = ops.log(0.5 * ops.erfc(near * 0.5**0.5)) + 0.5 * near * near + HALF_LOG_2PI
    return ops.where(a < FAR, direct, -ops.log(fraction))


def _fall(a: Array, x: Array) -> Array:
    """-log P(Z > x) + log P(Z > a) for 0 <= a <= x."""
    return 0.5 * (x - a) * (x + a) + log_mills(a) - log_mills(x)


def _log_one_side(a: Array, b: Array) -> Array:
    """log P(a < Z < b) + a^2/2 for 0 <= a <= b; -inf where they are equal."""
    fall = _fall(a, b)
    some = fall > 0
    share = ops.log(-ops.expm1(-ops.where(some, fall, 1.0 + 0.0 * fall)))
    return ops.where(some, log_mills(a) - HALF_LOG_2PI + share, -math.inf)


def _sides(loc: Array, scale: Array, low: Array, high: Array) -> tuple[Array, Array, Array, Array]:
    """Bounds (a, b) right and (c, d) left of the mean, in units of the scale, all >= 0."""
    a, b = _bound(low, loc, scale), _bound(high, loc, scale)
    zero = 0.0 * (a + b)
    return ops.maximum(a, zero), ops.maximum(b, zero), ops.maximum(-b, zero), ops.maximum(-a, zero)


def _bound(x: Array, loc: Array, scale: Array) -> Array:
    is_infinite = ops.abs(x) == math.inf  # its derivative would be infinite too, times zero
    z = (ops.where(is_infinite, loc, x) - loc) / scale
    return ops.clip(ops.where(is_infinite, FARTHEST * ops.sign(x), z), -FARTHEST, FARTHEST)


def log_prob(x: Array, loc: Array, scale: Array, low: Array, high: Array) -> Array:
    """Log density at a point of [low, high], nats."""
    a, b, c, d = _sides(loc, scale, low, high)
    z = (x - loc) / scale
    start = a + c  # where the interval begins, seen from the mean; 0 if it holds the mean
    sides = ops.stack([_log_one_side(a, b), _log_one_side(c, d)])
    size = ops.abs(z)
    return (
        -0.5 * (size - start) * (size + start) - HALF_LOG_2PI - ops.log(scale)
        - ops.logsumexp(sides, axis=0)
    )  # fmt: skip


def quantile(u: Array, loc: Array, scale: Array, low: Array, high: Array) -> Array:
    """The value below which a share u of the mass lies; never outside [low, high].

    The fall of the survival function is convex, and sqrt(a^2 + 2 E) lies right of its root:
    Newton's steps from there come down to it.
    """
    a, b, c, d = _sides(loc, scale, low, high)
    right, left = _log_one_side(a, b), _log_one_side(c, d)
    below = 1.0 / (1.0 + ops.exp(ops.clip(right - left, -80.0, 80.0)))  # the mean
    is_right = u >= below
    tiny = 1e-30 + 0.0 * below
    v = ops.where(
        is_right,
        (u - below) / ops.maximum(1.0 - below, tiny),
        (below - u) / ops.maximum(below, tiny),
    )
    near, end = ops.where(is_right, a, c), ops.where(is_right, b, d)
    wanted = -ops.log1p(v * ops.expm1(-_fall(near, end)))
    z = ops.sqrt(near * near + 2.0 * wanted)
    for _ in range(NEWTON):
        z = ops.clip(z - (_fall(near, z) - wanted) * ops.exp(log_mills(z)), near, end)
    return ops.clip(loc + scale * ops.where(is_right, z, -z), low, high)
