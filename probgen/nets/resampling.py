"""Images halved and doubled through the filter [1, 3, 3, 1], so that nothing aliases.

Source: Zhang 2019, arXiv:1904.11486; Karras et al. 2020, arXiv:1912.04958 (the filter).
"""

from __future__ import annotations

from probgen.errors import ShapeError
from probgen.language import ops
from probgen.nets.base import Array


def halve(x: Array) -> Array:
    """[..., h, w, c] -> [..., h/2, w/2, c]: (1, 3, 3, 1) / 8 along both sides, zeros outside.

    Raises:
        ShapeError: an odd side.
    """
    for axis in (-3, -2):
        size = x.shape[axis]
        if size % 2:
            raise ShapeError(
                f"halve: got images of shape {tuple(x.shape)}, expected even sides; pad them, or "
                "halve them less often."
            )
        padded = ops.pad(x, [(1, 1) if i - x.ndim == axis else (0, 0) for i in range(x.ndim)])
        parts = [padded[_along(axis, slice(k, size + k, 2))] for k in range(4)]
        x = (parts[0] + 3.0 * parts[1] + 3.0 * parts[2] + parts[3]) / 8.0
    return x


def double(x: Array) -> Array:
    """[..., h, w, c] -> [..., 2h, 2w, c]: (1, 3, 3, 1) / 4 on zero-stuffed images, zeros outside.

    Its adjoint, divided by 4, is `halve`.
    """
    for axis in (-3, -2):
        size, shape = x.shape[axis], list(x.shape)
        padded = ops.pad(x, [(1, 1) if i - x.ndim == axis else (0, 0) for i in range(x.ndim)])
        before, after = (padded[_along(axis, slice(k, size + k))] for k in (0, 2))
        pair = ops.stack([(before + 3.0 * x) / 4.0, (3.0 * x + after) / 4.0], axis=axis)
        shape[axis] = 2 * size
        x = ops.reshape(pair, shape)
    return x


def _along(axis: int, cut: slice) -> tuple:
    """An index that cuts one of the last three axes."""
    return (..., *(cut if i == axis else slice(None) for i in (-3, -2, -1)))
