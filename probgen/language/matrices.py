"""The maps from the real line onto lower Cholesky factors and onto positive definite matrices.

    u [n (n + 1) / 2] -> L:   L_ij = u_k below the diagonal, row by row,  L_ii = e^{u_d}
                         A = L L^T

    log |dL/du| = sum_i log L_ii
    log |dA/dL| = n log 2 + sum_i (n + 1 - i) log L_ii     over the lower triangles, i = 1 ... n

Pyro has none of them, NumPyro has the same; written once with `ops`, with the methods of both
libraries' transforms.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from probgen.errors import ShapeError
from probgen.language import ops

Array = Any
WORDS = ("lower_cholesky", "positive_definite")


def size_of(count: int) -> int:
    """n of n (n + 1) / 2 numbers.

    Raises:
        ShapeError: no n has so many.
    """
    n = round((math.sqrt(1 + 8 * count) - 1) / 2)
    if n < 1 or n * (n + 1) // 2 != count:
        raise ShapeError(
            f"dist.BijectTo: got {count} numbers for a lower triangle, expected n (n + 1) / 2 of "
            "them: 1, 3, 6, 10 ...; declare the base with .expand([n * (n + 1) // 2])."
        )
    return n


@dataclasses.dataclass(frozen=True)
class OntoMatrix:
    """One of the two maps; `word` is its support."""

    word: str

    def __call__(self, u: Array) -> Array:
        n = size_of(u.shape[-1])
        below = n * (n - 1) // 2
        place = np.zeros((n, n), np.int32)
        place[np.tril_indices(n, -1)] = np.arange(below)
        place[np.diag_indices(n)] = below + np.arange(n)
        spread = ops.take(u, place.reshape(-1), axis=-1)
        spread = ops.reshape(spread, (*u.shape[:-1], n, n))
        eye = ops.eye_like(n, u)
        # The exponential only of the diagonal, so that no other overflows into its gradient.
        factor = ops.tril(spread, -1) + eye * ops.exp(eye * spread)
        return factor if self.word == "lower_cholesky" else ops.matmul(factor, _swapped(factor))

    def inv(self, y: Array) -> Array:
        """u of a value."""
        factor = y if self.word == "lower_cholesky" else ops.cholesky(y)
        n = factor.shape[-1]
        rows, columns = np.tril_indices(n, -1)
        flat = ops.reshape(factor, (*factor.shape[:-2], n * n))
        below = ops.take(flat, (rows * n + columns).astype(np.int32), axis=-1)
        return ops.concatenate([below, ops.log(ops.diagonal(factor))], axis=-1)

    def log_abs_det_jacobian(self, u: Array, y: Array) -> Array:
        """[*batch] over the lower triangles."""
        n = size_of(u.shape[-1])
        logs = u[..., -n:]
        if self.word == "lower_cholesky":
            return ops.sum(logs, axis=-1)
        weight = ops.asarray_like(np.arange(n + 1, 1, -1.0), u)
        return n * math.log(2.0) + ops.sum(weight * logs, axis=-1)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        n = size_of(shape[-1])
        return (*shape[:-1], n, n)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        n = shape[-1]
        return (*shape[:-2], n * (n + 1) // 2)


def _swapped(x: Array) -> Array:
    return ops.transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))
