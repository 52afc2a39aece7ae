"""Sums of log factorials that lose nothing to cancelling, written once with `ops`.

    S(x) = log x! - x log x + x          = log(2 pi x)/2 + 1/(12 x) - ...
    D(x, m) = x log(x/m) + m - x         the deviance, by a series where x is near m

A Poisson mass is -S(x) - D(x, m); see `probgen.language.densities`. Gradients are those of the
functions, and are finite wherever the functions are.

Source: Loader 2000, "Fast and accurate computation of binomial probabilities".
"""

from __future__ import annotations

import math
from typing import Any

from probgen.language import ops

Array = Any
HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
NEAR = 0.3  # where D is a series in v^2
TERMS = {True: 13, False: 7}  # of the series, in float64 and in float32
LARGE = 16.0  # from where S is its asymptotic series


def xlogy(x: Array, y: Array) -> Array:
    """x log y, 0 where x is 0, also for y = 0; gradients likewise."""
    return ops.where(x == 0, 0.0 * y, x * ops.log(ops.where(x == 0, 1.0, y)))


def log_stirling(x: Array) -> Array:
    """S(x) = log x! - x log x + x for x >= 0; 0 at 0."""
    small = ops.minimum(x, LARGE)
    inv = 1.0 / ops.maximum(x, LARGE)
    sq = inv * inv
    series = inv * (1 / 12 - sq * (1 / 360 - sq * (1 / 1260 - sq * (1 / 1680 - sq / 1188))))
    large = HALF_LOG_2PI - 0.5 * ops.log(inv) + series
    return ops.where(x < LARGE, ops.lgamma(small + 1.0) - xlogy(small, small) + small, large)


def deviance(x: Array, m: Array) -> Array:
    """D(x, m) = x log(x/m) + m - x for x, m >= 0; at x = 0 it is m, at m = 0 < x infinite."""
    total = x + m
    v = (x - m) / ops.where(total > 0, total, 1.0)
    sq, terms = v * v, TERMS["64" in str(v.dtype)]
    tail = sq * (1.0 / (2 * terms + 1))
    for j in range(terms - 1, 0, -1):
        tail = (tail + 1.0 / (2 * j + 1)) * sq
    near = (x - m) * v + 2.0 * x * v * tail
    # -x log(m/x) and not x log(x/m), whose derivative by m overflows for m below 1e-19
    is_zero = x == 0
    safe_x = ops.where(is_zero, 1.0, x)
    far = m - x - x * ops.log(ops.where(is_zero, 1.0, m) / safe_x)
    return ops.where(ops.abs(v) < NEAR, near, far)


def log_rising(y: Array, h: Array) -> Array:
    """log Gamma(y + h) - log Gamma(y) - h log y, small for large y."""
    return (
        log_stirling(y + h) - log_stirling(y) + (y + h - 1.0) * ops.log1p(h / y) - h
    )  # fmt: skip


def log_binomial(x: Array, n: Array, p: Array, q: Array) -> Array:
    """log of n! / (x! (n - x)!) p^x q^(n - x), for real x and n too."""
    return (
        log_stirling(n) - log_stirling(x) - log_stirling(n - x)
        - deviance(x, n * p) - deviance(n - x, n * q)
    )  # fmt: skip


def log1p_square(z: Array) -> Array:
    """log(1 + z^2) where z^2 may overflow."""
    large = ops.abs(z) > 1e6
    return ops.where(
        large,
        2.0 * ops.log(ops.where(large, ops.abs(z), 1.0)),
        ops.log1p(ops.square(ops.where(large, 0.0, z))),
    )


def at_edge(power: Array, there: Array) -> Array:
    """A density ~ t^(power - 1) at t = 0: what it is there (power 1), infinite, or zero."""
    infinite = math.inf + 0.0 * power
    return ops.where(power == 1, there, ops.where(power < 1, infinite, -infinite))
