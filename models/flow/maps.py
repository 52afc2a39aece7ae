"""Increasing maps of one number, which the layers of a flow apply to each value of a datum.

    affine    y = x exp(s) + t
    spline    a rational function on each of K bins of [-B, B], the identity outside

A map's numbers come raw from a net, as its second axis from the right, [..., count, n] for n
values; raw numbers that are all zero are the identity, with which a flow starts. `apply` and
`invert` are both in closed form, and give log |dy/dx| of the direction in which they go.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from probgen import ops
from probgen.language.declared import declaration, require
from probgen.language.kinds import OpenShare, Positive, between

Array = Any


@declaration
class ElementMap:
    """Base of the maps: of their numbers a map takes `count` for each value."""

    @property
    def count(self) -> int:
        """How many numbers a map has."""
        raise NotImplementedError  # abstract: every map below defines it

    def apply(self, x: Array, raw: Array) -> tuple[Array, Array]:
        """(y, log dy/dx), both [..., n], of x [..., n] and raw [..., count, n]."""
        raise NotImplementedError  # abstract: every map below defines it

    def invert(self, y: Array, raw: Array) -> tuple[Array, Array]:
        """(x, log dx/dy) of y: the inverse of `apply`."""
        raise NotImplementedError  # abstract: every map below defines it


@declaration
class Affine(ElementMap):
    """y = x exp(s) + t, with s = r / (1 + |r| / limit) for the raw number r.

    Args:
        max_log_scale: the limit of |s|: a net that runs away in one step of a fit would otherwise
            overflow, layer by layer.

    Source: Dinh, Sohl-Dickstein & Bengio 2017, arXiv:1605.08803, equation 4.
    """

    max_log_scale: Positive = 5.0

    @property
    def count(self) -> int:
        return 2

    def _numbers(self, raw: Array) -> tuple[Array, Array]:
        r = raw[..., 0, :]
        return r / (1.0 + ops.abs(r) * (1.0 / self.max_log_scale)), raw[..., 1, :]

    def apply(self, x: Array, raw: Array) -> tuple[Array, Array]:
        s, t = self._numbers(raw)
        return x * ops.exp(s) + t, s

    def invert(self, y: Array, raw: Array) -> tuple[Array, Array]:
        s, t = self._numbers(raw)
        return (y - t) * ops.exp(-s), -s


@declaration
class Spline(ElementMap):
    """An increasing rational-quadratic spline on [-bound, bound], the identity outside.

    Between two knots, with slope s = h / w of the bin, derivatives d0 and d1 at its ends and
    u = (x - x0) / w, v = u (1 - u):

        y = y0 + h (s u^2 + d0 v) / (s + (d0 + d1 - 2 s) v)

    The derivative is 1 at both outer knots, so that y is once continuously differentiable on all
    of the real line; widths and heights are softmaxes, inner derivatives softplus, each from its
    floor on. What lies outside the bound is not moved: bring data to a scale of about one, as
    `Flow(standardize=True)` does.

    Args:
        num_bins: K.
        bound: B.
        min_size: least width and height of a bin, as a share of 2 B.
        min_derivative: least derivative at an inner knot, below 1, the identity's.

    Source: Durkan, Bekasov, Murray & Papamakarios 2019, arXiv:1906.04032, equations 4 to 8.
    """

    num_bins: Annotated[int, between(2, 10**4)] = 8
    bound: Positive = 5.0
    min_size: OpenShare = 1e-3
    min_derivative: OpenShare = 1e-3

    def __post_init__(self) -> None:
        fits = self.min_size * self.num_bins < 1.0
        require(fits, self, "bins whose least sizes leave room: num_bins min_size < 1",
                "num_bins", "min_size")  # fmt: skip

    @property
    def count(self) -> int:
        return 3 * self.num_bins - 1

    def apply(self, x: Array, raw: Array) -> tuple[Array, Array]:
        is_inside, safe = self._inside(x)
        x0, w, y0, h, d0, d1 = self._bin(safe, raw, by_width=True)
        s, u = h / w, (safe - x0) / w
        v = u * (1.0 - u)
        below = s + (d0 + d1 - 2.0 * s) * v
        y = y0 + h * (s * u * u + d0 * v) / below
        slope = _log_slope(s, u, v, d0, d1, below)
        return ops.where(is_inside, y, x), ops.where(is_inside, slope, 0.0)

    def invert(self, y: Array, raw: Array) -> tuple[Array, Array]:
        is_inside, safe = self._inside(y)
        x0, w, y0, h, d0, d1 = self._bin(safe, raw, by_width=False)
        s, rise = h / w, safe - y0
        bend = rise * (d0 + d1 - 2.0 * s)
        # a u^2 + b u + c = 0, and of its roots the one that does not cancel
        a, b, c = h * (s - d0) + bend, h * d0 - bend, -s * rise
        root = ops.sqrt(ops.maximum(b * b - 4.0 * a * c, 1e-20))
        u = 2.0 * c / (-b - root)
        v = u * (1.0 - u)
        slope = _log_slope(s, u, v, d0, d1, s + (d0 + d1 - 2.0 * s) * v)
        return ops.where(is_inside, x0 + w * u, y), ops.where(is_inside, -slope, 0.0)

    def _inside(self, x: Array) -> tuple[Array, Array]:
        is_inside = ops.abs(x) <= self.bound
        return is_inside, ops.where(is_inside, x, 0.0)

    def _bin(self, x: Array, raw: Array, by_width: bool) -> tuple[Array, ...]:
        """(x0, w, y0, h, d0, d1), [..., n] each, of the bin of x among widths, or among heights."""
        k = self.num_bins
        lead, n = tuple(raw.shape[:-2]), raw.shape[-1]
        sizes = ops.softmax(ops.reshape(raw[..., : 2 * k, :], (*lead, 2, k, n)), axis=-2)
        sizes = (self.min_size + (1.0 - self.min_size * k) * sizes) * (2.0 * self.bound)
        widths, heights = sizes[..., 0, :, :], sizes[..., 1, :, :]
        # Which bin it is has no derivative, so the knots need none.
        knots = ops.cumsum(ops.stop_gradient(widths if by_width else heights), axis=-2) - self.bound
        is_right = x[..., None, :] >= knots[..., :-1, :]  # [..., k - 1, n] of each inner knot
        first = ops.ones_like(is_right[..., :1, :])
        starts = ops.concatenate([first, is_right], axis=-2)
        is_left = ops.concatenate([is_right, ~first], axis=-2)  # of the bins left of x
        here = starts & ~is_left
        inner = raw[..., 2 * k :, :]
        end = ops.zeros_like(inner[..., :1, :])  # the identity's derivative at the outer knots
        d0, d1 = (
            self._derivative(_picked(here, ops.concatenate(parts, axis=-2)))
            for parts in ([end, inner], [inner, end])
        )
        x0, y0 = (_picked(is_left, each) - self.bound for each in (widths, heights))
        return x0, _picked(here, widths), y0, _picked(here, heights), d0, d1

    def _derivative(self, raw: Array) -> Array:
        """1 where raw is 0."""
        return self.min_derivative + ops.softplus(
            raw + math.log(math.expm1(1 - self.min_derivative))
        )


def _picked(where: Array, values: Array) -> Array:
    """Sum of those [..., k, n] that are picked, [..., n]: of one, or of all before it."""
    return ops.sum(ops.where(where, values, 0.0), axis=-2)


def _log_slope(s: Array, u: Array, v: Array, d0: Array, d1: Array, below: Array) -> Array:
    rise = d1 * u * u + 2.0 * s * v + d0 * (1.0 - u) * (1.0 - u)
    return 2.0 * (ops.log(s) - ops.log(below)) + ops.log(rise)
