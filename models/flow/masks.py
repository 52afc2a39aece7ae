"""A datum in two parts: along its last axis by slices (no gather, whose gradient scatters), or the
pixels of an image as the fields of a checkerboard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from probgen import ops

Array = Any


def halved(x: Array, mask: str, side: int) -> tuple[Array, Array, Callable]:
    """(kept, moved, (kept, moved) -> x) of "halves" or "parity"; `side` says which part moves."""
    if mask == "halves":
        k = (x.shape[-1] + 1) // 2
        parts, joined = (x[..., :k], x[..., k:]), _side_by_side
    else:
        parts, joined = (x[..., ::2], x[..., 1::2]), _interleaved
    if side == 0:
        return *parts, joined
    return parts[1], parts[0], lambda kept, moved: joined(moved, kept)


def _side_by_side(a: Array, b: Array) -> Array:
    return ops.concatenate([a, b], axis=-1)


def _interleaved(a: Array, b: Array) -> Array:
    """a0 b0 a1 b1 ...; a may have one more."""
    n = b.shape[-1]
    pairs = ops.reshape(ops.stack([a[..., :n], b], axis=-1), (*b.shape[:-1], 2 * n))
    return pairs if a.shape[-1] == n else ops.concatenate([pairs, a[..., n:]], axis=-1)


def checkerboard(shape: tuple[int, ...], side: int) -> np.ndarray:
    """[h, w, 1] ones where (row + column) is odd by `side`."""
    rows, columns = np.indices(shape[:2])
    return (((rows + columns) % 2 == side) * 1.0)[..., None]
