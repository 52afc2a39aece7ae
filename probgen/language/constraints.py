"""Supports by word, as `dist.Transformed`, `dist.Density` and `dist.ImproperUniform` name them.

    real  positive  unit_interval  (low, high)      numbers, each by itself; a bound may be infinite
    simplex  ordered_vector                         vectors
    corr_cholesky                                   factors of correlation matrices
    lower_cholesky  positive_definite               factors of covariance matrices, and those

The words are Pyro's and NumPyro's own, and each has a map from the real line, the libraries' or,
for the last two, ours (`matrices.py`): `BijectTo("ordered_vector")` is that map as a part of
`dist.Transformed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import Rule

Array = Any


class Constraint(NamedTuple):
    """A support.

    Attributes:
        word: its name in both libraries; for a pair of bounds "interval", or with one of them
            infinite "greater_than" or "less_than".
        event_ndim: how many axes one value of it has.
        low, high: bounds of its numbers, None where it is no interval.
        inside: [..., *axes] -> [...], true inside and for NaN; None where it is not looked at.
        middle: an array -> one of the same shape and type that lies inside.
    """

    word: str
    event_ndim: int
    low: float | None
    high: float | None
    inside: Callable[[Array], Array] | None
    middle: Callable[[Array], Array]

    @property
    def bounds(self) -> tuple[float, ...]:
        """What both libraries make it with: the bounds that a word does not say."""
        both = {"low": self.low, "high": self.high}
        of_word = {"interval": ("low", "high"), "greater_than": ("low",), "less_than": ("high",)}
        return tuple(float(both[name]) for name in of_word.get(self.word, ()))  # type: ignore[arg-type]

    @property
    def words(self) -> str:
        """As messages show it."""
        if self.word == "unit_interval" or self.bounds:
            return f"[{self.low:g}, {self.high:g}]"
        return self.word


def _is_simplex(x: Array) -> Array:
    return ops.all(~(x < 0), axis=-1) & ~(ops.abs(ops.sum(x, axis=-1) - 1.0) > 1e-5)


def _is_lower_cholesky(x: Array) -> Array:
    above = ops.any(ops.abs(x - ops.tril(x)) > 0, axis=(-2, -1))
    return ops.all(~(ops.diagonal(x) <= 0), axis=-1) & ~above


def _is_positive_definite(x: Array) -> Array:
    turned = ops.transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))
    size = ops.max(ops.abs(x), axis=(-2, -1), keepdims=True)
    is_skew = ops.any(ops.abs(x - turned) > 1e-5 * size, axis=(-2, -1))
    has_none = ops.isnan(ops.sum(ops.cholesky(x), axis=(-2, -1)))
    return ~(has_none & ~ops.isnan(ops.sum(x, axis=(-2, -1)))) & ~is_skew


def _identity(x: Array) -> Array:
    return 0.0 * x + ops.eye_like(x.shape[-1], x)


CONSTRAINTS: dict[str, Constraint] = {
    c.word: c
    for c in (
        Constraint("real", 0, -math.inf, math.inf, None, ops.zeros_like),
        Constraint("positive", 0, 0.0, math.inf, lambda x: ~(x <= 0), ops.ones_like),
        Constraint(
            "unit_interval", 0, 0.0, 1.0,
            lambda x: ~((x < 0) | (x > 1)), lambda x: 0.5 * ops.ones_like(x),
        ),
        Constraint(
            "simplex", 1, None, None, _is_simplex, lambda x: ops.ones_like(x) / x.shape[-1]
        ),
        Constraint(
            "ordered_vector", 1, None, None,
            lambda x: ops.all(~(x[..., 1:] <= x[..., :-1]), axis=-1),
            lambda x: ops.zeros_like(x) + ops.arange_like(x.shape[-1], x),
        ),
        Constraint("corr_cholesky", 2, None, None, None, _identity),
        Constraint("lower_cholesky", 2, None, None, _is_lower_cholesky, _identity),
        Constraint("positive_definite", 2, None, None, _is_positive_definite, _identity),
    )
}  # fmt: skip


def is_support(value: Any) -> bool:
    """Whether a value names a support: one of the words, or a pair of increasing numbers."""
    if isinstance(value, str):
        return value in CONSTRAINTS
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    return is_pair and all(isinstance(v, int | float) for v in value) and value[0] < value[1]


SUPPORT_RULE = Rule(
    f"one of {', '.join(CONSTRAINTS)}, or a pair (low, high) of numbers, low below high",
    is_support,
    alone=True,
)
SupportWord = Annotated[Any, SUPPORT_RULE]


def constraint(support: Any) -> Constraint:
    """The support of that name."""
    if isinstance(support, str):
        return CONSTRAINTS[support]
    low, high = map(float, support)
    if math.isinf(low) and math.isinf(high):
        return CONSTRAINTS["real"]
    if math.isinf(high):
        return Constraint(
            "greater_than", 0, low, high, lambda x: ~(x < low), lambda x: low + ops.ones_like(x)
        )
    if math.isinf(low):
        return Constraint(
            "less_than", 0, low, high, lambda x: ~(x > high), lambda x: high - ops.ones_like(x)
        )
    return Constraint(
        "interval", 0, low, high, lambda x: ~((x < low) | (x > high)),
        lambda x: 0.5 * (low + high) * ops.ones_like(x),
    )  # fmt: skip


def guard(support: Constraint, x: Array, event_ndim: int) -> tuple[Array | None, Array]:
    """([*batch] inside or None where all is, values with those outside moved inside).

    A density is asked at the second, so that its derivative outside is zero and not NaN.
    """
    if support.inside is None:
        return None, x
    ok = support.inside(x)
    wide = ok[(..., *(None,) * support.event_ndim)]
    safe = ops.where(wide, x, ops.stop_gradient(support.middle(x)))
    more = event_ndim - support.event_ndim
    return (ops.all(ok, axis=tuple(range(-more, 0))) if more else ok), safe


@declaration
class BijectTo:
    """The map from the real line onto a support, for `dist.Transformed`.

    `dist.Transformed(dist.Normal(0, 1).expand([3]).to_event(1), dist.BijectTo("ordered_vector"))`
    is a distribution of increasing triples. A simplex of k numbers is made of k - 1, a factor
    of a k x k correlation matrix of k (k - 1) / 2, a k x k covariance matrix, or its lower factor,
    of k (k + 1) / 2.

    Args:
        support: one of the words above, or a pair (low, high).
    """

    support: SupportWord
