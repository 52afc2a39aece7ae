"""The layers of a flow, which differ in what the numbers of a value's map are computed from.

    Coupling              y_moved = map(x_moved; net(x_kept)),  y_kept = x_kept
    MaskedAutoregressive  y_i = map(x_i; net(x_1 ... x_{i-1}))

The Jacobians are triangular, so that log |det| is a sum over values. A layer goes from data to
noise by `apply`, back by `invert`; both give log |det| of the direction in which they go, [*batch].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np

from probgen import nets, ops
from probgen.errors import DeclarationError
from probgen.language.declared import declaration
from probgen.language.kinds import AnyNet, not_empty
from probgen.models.flow.conditioners import conditioner, numbers
from probgen.models.flow.maps import Affine, ElementMap
from probgen.models.flow.masks import checkerboard, halved

Array = Any
Shape = tuple[int, ...]
Net = Callable[[Any], Callable[..., Array]]  # a declaration -> the function, with its parameters
Mask = Literal["halves", "parity", "checkerboard"]


@declaration
class Layer:
    """Base of the layers."""

    def check(self, shape: Shape) -> None:
        """Refuses a shape of data that it cannot transform."""

    def apply(self, x: Array, i: int, shape: Shape, net: Net, *more: Array) -> tuple[Array, Array]:
        """(y, log |det dy/dx|) of the i-th layer; `more`: what its net reads besides."""
        raise NotImplementedError  # abstract: both layers below define it

    def invert(self, y: Array, i: int, shape: Shape, net: Net, *more: Array) -> tuple[Array, Array]:
        """(x, log |det dx/dy|), the inverse of `apply`."""
        raise NotImplementedError  # abstract: both layers below define it


@declaration
class Coupling(Layer):
    """Moves one part of a datum by numbers that a net computes from the other.

    Both directions cost one call of the net.

    Args:
        net: its hidden layers as you declare them, such as nets.MLP((64, 64)), or for images
            nets.Sequential((nets.Conv(32), "relu", nets.Conv(1))). Size and initial scale (zero, so
            that the layer starts as the identity) of its output are set here: the `out` of an
            MLP, or the number of channels of the last layer of a Sequential. A net without `out`
            must give map.count numbers for each value, on its last axis.
        map: how values move, `Affine()` (RealNVP) or `Spline()` (neural spline flow).
        masks: how a datum is parted, taken in turn, each by two layers that move one part each:
            "halves" of the last axis (of an image's channels), "parity" (its even and odd
            places), or "checkerboard" (of an image's pixels, which costs the map of all values).
            None: "halves" and "parity" for vectors, "checkerboard" for images, and "halves" too
            where they have several channels.

    Sources: Dinh, Sohl-Dickstein & Bengio 2017, arXiv:1605.08803 (couplings, checkerboard and
    channel masks); Durkan et al. 2019, arXiv:1906.04032 (splines).
    """

    net: AnyNet = nets.MLP((64, 64))
    map: ElementMap = Affine()
    masks: Annotated[tuple[Mask, ...], not_empty] | None = None

    def check(self, shape: Shape) -> None:
        size, wanted = shape[-1], self._masks(shape)
        if math.prod(shape) < 2 or (size < 2 and set(wanted) != {"checkerboard"}):
            raise DeclarationError(
                f"Coupling: got data of shape {shape} for the masks {wanted}, expected at least "
                "two values to part on the last axis; use MaskedAutoregressive() for a single "
                'number, or masks=("checkerboard",) for images of one channel.'
            )
        if "checkerboard" in wanted and (len(shape) != 3 or math.prod(shape[:2]) < 2):
            raise DeclarationError(
                f"Coupling: got the mask 'checkerboard' for data of shape {shape}, expected images "
                '(h, w, c) of at least two pixels; use masks=("halves", "parity") for vectors.'
            )
        conditioner(self.net, shape, self.map.count)

    def _masks(self, shape: Shape) -> tuple[Mask, ...]:
        if self.masks is not None:
            return self.masks
        if len(shape) == 3:
            return ("checkerboard", "halves") if shape[-1] > 1 else ("checkerboard",)
        return ("halves", "parity") if shape[-1] > 2 else ("halves",)

    def apply(self, x: Array, i: int, shape: Shape, net: Net, *more: Array) -> tuple[Array, Array]:
        return self._moved(self.map.apply, x, i, shape, net, more)

    def invert(self, y: Array, i: int, shape: Shape, net: Net, *more: Array) -> tuple[Array, Array]:
        return self._moved(self.map.invert, y, i, shape, net, more)

    def _moved(
        self, way: Callable, x: Array, i: int, shape: Shape, net: Net, more: tuple
    ) -> tuple[Array, Array]:
        masks, side = self._masks(shape), i % 2
        mask, axes = masks[(i // 2) % len(masks)], tuple(range(-len(shape), 0))
        if mask == "checkerboard":
            is_kept = ops.asarray_like(checkerboard(shape, side), x)
            y, slope = way(x, self._raw(x * is_kept, shape, net, more))
            return ops.where(is_kept > 0, x, y), ops.sum(slope * (1.0 - is_kept), axis=axes)
        kept, moved, join = halved(x, mask, side)
        y, slope = way(moved, self._raw(kept, (*shape[:-1], moved.shape[-1]), net, more))
        return join(kept, y), ops.sum(slope, axis=axes)

    def _raw(self, given: Array, shape: Shape, net: Net, more: tuple) -> Array:
        """Raw numbers of the map for a part of that shape."""
        in_ndim = (len(shape), *(1 for _ in more)) if more else len(shape)
        declared = conditioner(self.net, shape, self.map.count, in_ndim)
        return numbers(net(declared)(given, *more), shape, self.map.count)


@declaration
class MaskedAutoregressive(Layer):
    """Moves each value by numbers that a masked net (MADE) computes from the values before it.

    Layers take the values in order and in reverse, in turn; an image's pixels are taken in the
    order in which they lie. One direction is a single call of the net; **the other is sequential in
    the dimension**, d calls one after another for data of d numbers.

    Args:
        net: `nets.MADE(hidden)`; its `out` and its order are set here.
        map: how values move, `Affine()` (MAF) or `Spline()`.
        fast: the direction of the single call: "density" (a masked autoregressive flow, for models
            that are fitted to data, whose draws are slow), or "draws" (an inverse autoregressive
            flow, for guides: the density of its own draws is known without inverting, that
            of other values is slow).

    Sources: Papamakarios, Pavlakou & Murray 2017, arXiv:1705.07057; Kingma et al. 2016,
    arXiv:1606.04934 ("draws"); Germain et al. 2015, arXiv:1502.03509 (the net).
    """

    net: nets.MADE = nets.MADE((64, 64))
    map: ElementMap = Affine()
    fast: Literal["density", "draws"] = "density"

    def apply(self, x: Array, i: int, shape: Shape, net: Net, *more: Array) -> tuple[Array, Array]:
        way = self._at_once if self.fast == "density" else self._in_turn
        return self._flat(way, x, i, shape, net, more)

    def invert(self, y: Array, i: int, shape: Shape, net: Net, *more: Array) -> tuple[Array, Array]:
        way = self._in_turn if self.fast == "density" else self._at_once
        return self._flat(way, y, i, shape, net, more)

    def _flat(
        self, way: Callable, x: Array, i: int, shape: Shape, net: Net, more: tuple
    ) -> tuple[Array, Array]:
        """One way over the values as a vector."""
        lead, d, is_reversed = x.shape[: x.ndim - len(shape)], math.prod(shape), i % 2 == 1
        made = dataclasses.replace(self.net, out=self.map.count, reverse=is_reversed, out_scale=0.0)
        order = range(d)[::-1] if is_reversed else range(d)
        call = net(made)
        y, slope = way(ops.reshape(x, (*lead, d)), order, lambda v: call(v, *more))
        return ops.reshape(y, x.shape), ops.sum(slope, axis=-1)

    def _at_once(self, x: Array, order: range, call: Callable) -> tuple[Array, Array]:
        return self.map.apply(x, call(x))

    def _in_turn(self, y: Array, order: range, call: Callable) -> tuple[Array, Array]:
        """x_i = map^-1(y_i; net(x)), where the net's numbers for i read what has been found."""
        turns, places = (
            ops.asarray_like(np.asarray(v, float), y) for v in (order, range(len(order)))
        )

        def step(found: tuple, turn: Array) -> tuple[tuple, None]:
            value, slope = self.map.invert(y, call(found[0]))
            is_next = places == turn
            return (ops.where(is_next, value, found[0]), ops.where(is_next, slope, found[1])), None

        # The first outside of the loop, where nets get their parameters on a first run.
        found, _ = step((ops.zeros_like(y), ops.zeros_like(y)), turns[0])
        return ops.scan(step, found, turns[1:])[0] if len(order) > 1 else found
