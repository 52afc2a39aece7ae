"""Losses of two players, and penalties on the discriminator's slope.

With logits r of real and f of generated data, [n] each, and means over them:

    name              discriminator                               generator
    non_saturating    softplus(-r) + softplus(f)                  softplus(-f)
    wasserstein       f - r                                       -f
    hinge             relu(1 - r) + relu(1 + f)                   -f
    least_squares     (r - 1)^2 / 2 + f^2 / 2                     (f - 1)^2 / 2

Sources: Goodfellow et al. 2014, arXiv:1406.2661; Arjovsky, Chintala & Bottou 2017,
arXiv:1701.07875; Lim & Ye 2017, arXiv:1705.02894; Mao et al. 2017, arXiv:1611.04076.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from probgen.language import ops

Array = Any
LossName = Literal["non_saturating", "wasserstein", "hinge", "least_squares"]


class Losses(NamedTuple):
    """The two losses, and where the discriminator's has all but nothing left to learn.

    Attributes:
        discriminator: (r, f) -> a scalar.
        generator: f -> a scalar.
        won: a discriminator's mean loss below which it tells all data apart; None where it has no
            lower bound.
    """

    discriminator: Callable[[Array, Array], Array]
    generator: Callable[[Array], Array]
    won: float | None


LOSSES: dict[str, Losses] = {
    "non_saturating": Losses(
        lambda r, f: ops.mean(ops.softplus(-r)) + ops.mean(ops.softplus(f)),
        lambda f: ops.mean(ops.softplus(-f)),
        0.02,
    ),
    "wasserstein": Losses(
        lambda r, f: ops.mean(f) - ops.mean(r), lambda f: -ops.mean(f), None
    ),
    "hinge": Losses(
        lambda r, f: ops.mean(ops.relu(1.0 - r)) + ops.mean(ops.relu(1.0 + f)),
        lambda f: -ops.mean(f),
        0.02,
    ),
    "least_squares": Losses(
        lambda r, f: 0.5 * ops.mean((r - 1.0) ** 2) + 0.5 * ops.mean(f * f),
        lambda f: 0.5 * ops.mean((f - 1.0) ** 2),
        0.01,
    ),
}  # fmt: skip


def squared_slope(grad: Callable, judge: Callable[[Array], Array], x: Array) -> Array:
    """[n] |d judge / dx|^2 of each datum's own logit, summed over all its dimensions.

    Args:
        grad: a backend's.
        judge: x -> logits [n], all else held.
    """
    slope = grad(lambda x: ops.sum(judge(x)))(x)
    axes = tuple(range(1, slope.ndim))
    return ops.sum(slope * slope, axis=axes) if axes else slope * slope


def off_unit_slope(
    grad: Callable, judge: Callable[[Array], Array], real: Array, fake: Array, share: Array
) -> Array:
    """Mean (|slope| - 1)^2 at share real + (1 - share) fake; share [n], uniform.

    Source: Gulrajani et al. 2017, arXiv:1704.00028, equation 3.
    """
    share = ops.reshape(share, (-1, *([1] * (real.ndim - 1))))
    between = share * real + (1.0 - share) * fake
    # The root of exactly 0, of a discriminator that is flat, has no derivative.
    length = ops.sqrt(squared_slope(grad, judge, between) + 1e-12)
    return ops.mean((length - 1.0) ** 2)
