"""What a diffusion is conditioned on, as tokens that its denoiser reads: classes and vectors.

A condition net is a net from one input to a context [..., m, d], with two further methods:

    null(params) -> [m, d]        the context of no condition, for classifier-free guidance
    check_values(array) -> None   refuses values that it has no context for, before they are used

Both may be left out: without `null` there is no unconditional branch to drop to or to guide away
from. Its `in_ndim`, the number of axes of one datum's input, tells a condition that all data share
from one with a row for each.

Source: Ho & Salimans 2022, arXiv:2207.12598 (the null condition).
"""

from __future__ import annotations

import math

import numpy as np

from probgen.errors import DataError, ShapeError
from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import NonNegative, Width, Widths
from probgen.nets.base import Array, Key, Params, Shape, draw_weight, one_shape
from probgen.nets.layers import Dense, Embedding


def check_numbered(values: np.ndarray, last: int, who: str, what: str, cure: str) -> None:
    """Refuses rows that are numbered 0 ... last otherwise.

    Raises:
        DataError: fractions or texts, or a number outside.
    """
    if values.dtype.kind not in "iu":
        got = f"of type {values.dtype}, expected whole numbers,"
    elif values.size and not (values.min() >= 0 and values.max() <= last):
        got = f"from {values.min()} to {values.max()}, expected"
    else:
        return
    raise DataError(f"{who}: got {what} {got} 0 ... {last}; {cure}.")


@declaration
class ClassEmbedding:
    """A class 0 ... num_classes - 1 [...] -> its learned tokens [..., num_tokens, dim].

    The table has one row more, that of no class.

    Attributes:
        num_classes: how many there are.
        dim: size of a token.
        num_tokens: tokens of a class.
        init_scale: variance of the table's first values.

    Raises:
        DataError: classes that are no whole numbers, or outside 0 ... num_classes - 1.
    """

    num_classes: Width
    dim: Width
    num_tokens: Width = 1
    init_scale: NonNegative = 1.0

    @property
    def in_ndim(self) -> int:
        return 0

    def _embedding(self) -> Embedding:
        return Embedding(self.num_classes + 1, self.num_tokens * self.dim, self.init_scale)

    def init(self, key: Key, *shapes: Shape) -> Params:
        one_shape(self, shapes, 0)
        return self._embedding().init(key, *shapes)

    def apply(self, params: Params, idx: Array) -> Array:
        return self._tokens(self._embedding().apply(params, idx))

    def null(self, params: Params) -> Array:
        """[num_tokens, dim] of no class."""
        return self._tokens(params["table"][self.num_classes])

    def _tokens(self, rows: Array) -> Array:
        return ops.reshape(rows, (*rows.shape[:-1], self.num_tokens, self.dim))

    def check_values(self, values: np.ndarray) -> None:
        """Refuses what is no class."""
        last = self.num_classes - 1
        check_numbered(values, last, "ClassEmbedding", "classes", "count them from 0")

    def out_shape(self, *shapes: Shape) -> Shape:
        return (self.num_tokens, self.dim)


@declaration
class ContextEmbedding:
    """A vector [..., k] or tokens [..., m, k] -> tokens [..., m, dim], m = 1 for a vector.

    Attributes:
        shape: of one datum's input, (k,) or (m, k).
        dim: size of a token, by an affine map; None leaves them as they are.

    The null tokens are learned, and start as standard normal numbers.

    Raises:
        DataError: values that are NaN or infinite.
        ShapeError: a declared shape of more axes; a condition of another shape.
    """

    shape: Widths
    dim: Width | None = None

    def __post_init__(self) -> None:
        if len(self.shape) > 2:
            raise ShapeError(
                f"ContextEmbedding: got shape={self.shape}, expected that of a vector (k,) or of "
                "tokens (m, k); lay other arrays out as tokens."
            )

    @property
    def in_ndim(self) -> int:
        return len(self.shape)

    def init(self, key: Key, *shapes: Shape) -> Params:
        if one_shape(self, shapes) != self.shape:
            raise ShapeError(
                f"ContextEmbedding: got a condition of shape {tuple(shapes[0])}, expected "
                f"{self.shape} as declared."
            )
        params = {"null": draw_weight(key, self.out_shape(), 1, 1.0)}
        if self.dim is not None:
            params["dense"] = Dense(self.dim).init(key, self.shape[-1:])
        return params

    def apply(self, params: Params, x: Array) -> Array:
        if tuple(x.shape[x.ndim - len(self.shape) :]) != self.shape:
            raise ShapeError(
                f"ContextEmbedding: got a condition of shape {tuple(x.shape)}, expected "
                f"{self.shape} for each datum, as declared."
            )
        lead = x.shape[: x.ndim - len(self.shape)]
        tokens = ops.reshape(x, (*lead, math.prod(self.shape[:-1]), self.shape[-1]))
        return tokens if self.dim is None else Dense(self.dim).apply(params["dense"], tokens)

    def null(self, params: Params) -> Array:
        """[m, dim] of no condition."""
        return params["null"]

    def check_values(self, values: np.ndarray) -> None:
        """Refuses NaN and infinity."""
        if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
            raise DataError(
                f"ContextEmbedding: got values of type {values.dtype}, some of them NaN or "
                "infinite or no numbers, expected finite numbers."
            )

    def out_shape(self, *shapes: Shape) -> Shape:
        return (math.prod(self.shape[:-1]), self.dim or self.shape[-1])
