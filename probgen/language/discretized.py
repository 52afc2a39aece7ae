"""The discretised logistic distribution, written once with `ops`; backends wrap it in their class.

A logistic density cut into `num_levels` bins of width d = (high - low) / (num_levels - 1) around
the levels; the outer bins take the tails, so that the probabilities of the levels sum to one:

    P(x) = s((x + d/2 - loc) / scale) - s((x - d/2 - loc) / scale),     s the logistic function

Source: Salimans et al. 2017, arXiv:1701.05517, section 2.1 (one component).
"""

from __future__ import annotations

from typing import Any

from probgen.language import ops

Array = Any


def log_prob(
    value: Array, loc: Array, scale: Array, low: float, high: float, num_levels: int
) -> Array:
    """Log probability of a level, nats.

    With a = (x - d/2 - loc)/scale and b = (x + d/2 - loc)/scale the difference of two sigmoids is
    s(b) s(-a) (1 - exp(a - b)), whose logarithm loses nothing in the tails.
    """
    half = 0.5 * (high - low) / (num_levels - 1)
    above = (value + half - loc) / scale
    below = (value - half - loc) / scale
    inner = (
        ops.log_sigmoid(above)
        + ops.log_sigmoid(-below)
        + ops.log(-ops.expm1(-2.0 * half / scale) + 0.0 * above)
    )
    edge = 0.25 * half
    return ops.where(
        value < low + edge,
        ops.log_sigmoid(above),
        ops.where(value > high - edge, ops.log_sigmoid(-below), inner),
    )


def quantile(u: Array, loc: Array, scale: Array, low: float, high: float, num_levels: int) -> Array:
    """The level drawn by u ~ Uniform(0, 1): the logistic quantile, rounded to a level, clipped."""
    step = (high - low) / (num_levels - 1)
    x = loc + scale * (ops.log(u) - ops.log1p(-u))
    return low + step * ops.clip(ops.round((x - low) / step), 0.0, num_levels - 1.0)


def is_level(value: Array, low: float, high: float, num_levels: int) -> Array:
    """True where a value is one of the levels, up to a thousandth of a step."""
    position = (value - low) / (high - low) * (num_levels - 1)
    near = ops.abs(position - ops.round(position)) < 1e-3
    return near & (position > -0.5) & (position < num_levels - 0.5)
