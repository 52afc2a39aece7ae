"""One step size of all chains, learned in warm-up from their mean acceptance: dual averaging.

    log e_m = mu - sqrt(m) H_m / gamma,     H_m = (1 - w) H_{m-1} + w (goal - rate_m),

with w = 1 / (m + 10), mu = log 10, gamma = 0.05 and m the step. e is a factor on the sizes that the
user gave; what is kept after warm-up is the average of log e with weights m^-3/4.

Source: Hoffman & Gelman 2014, arXiv:1111.4246, section 3.2.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

Array = Any
SHRINK = math.log(10.0)  # the iterates are drawn to ten times the size that they start from


class Learned(NamedTuple):
    """The log factor in use and its average, the mean error so far, steps taken; each []."""

    log_factor: Array
    averaged: Array
    error: Array
    count: Array


def unlearned(ops: Any, like: Array) -> Learned:
    """Before the first step: a factor of one."""
    zero = 0.0 * ops.sum(ops.zeros_like(like))
    return Learned(zero, zero, zero, zero)


def learned(ops: Any, size: Learned, rate: Array, *, goal: float, num_warmup: int) -> Learned:
    """After a step with that mean acceptance; past warm-up nothing changes but the count."""
    m = size.count + 1.0
    error = size.error + (goal - rate - size.error) / (m + 10.0)
    log_factor = SHRINK - error * m**0.5 / 0.05
    weight = m**-0.75
    averaged = weight * log_factor + (1.0 - weight) * size.averaged
    is_warm, is_last = size.count < num_warmup, m >= num_warmup
    new = (ops.where(is_last, averaged, log_factor), averaged, error)
    kept = [ops.where(is_warm, a, c) for a, c in zip(new, size[:3], strict=True)]
    return Learned(kept[0], kept[1], kept[2], m)
