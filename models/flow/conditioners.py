"""A coupling's net as its user declares it, with the output that the map needs."""

from __future__ import annotations

import dataclasses
from typing import Any

from probgen import nets, ops
from probgen.errors import ShapeError

Array = Any
Shape = tuple[int, ...]


def conditioner(net: Any, shape: Shape, count: int, in_ndim: Any = None) -> Any:
    """`net` with `count` numbers for each value of a part of that shape, zero at first.

    Args:
        net: as it was declared; one without `out` stays as it is.
        shape: of the part that moves.
        count: numbers a value.
        in_ndim: for an MLP that does not say it, the number of axes of each of its inputs.
    """
    channels = count * shape[-1]
    if isinstance(net, nets.MLP):
        out, ndims = (*shape[:-1], channels), in_ndim if net.in_ndim is None else net.in_ndim
        return dataclasses.replace(net, out=out, heads=None, out_scale=0.0, in_ndim=ndims)
    if isinstance(net, nets.Sequential):
        last = conditioner(net.layers[-1], shape, count)
        return dataclasses.replace(net, layers=(*net.layers[:-1], last))
    if isinstance(net, nets.Dense | nets.Conv):
        return dataclasses.replace(net, out=channels, init_scale=0.0)
    return dataclasses.replace(net, out=channels) if hasattr(net, "out") else net


def numbers(output: Any, shape: Shape, count: int) -> Array:
    """The net's output as the map takes it, [..., *shape[:-1], count, shape[-1]].

    Raises:
        ShapeError: it is no array with `count` numbers for each value.
    """
    got, wanted = tuple(getattr(output, "shape", ())), (*shape[:-1], count * shape[-1])
    if got[len(got) - len(wanted) :] != wanted:
        what, form = got or type(output).__name__, ", ".join(map(str, wanted))
        raise ShapeError(
            f"Coupling: the net gives {what}, expected [..., {form}], {count} "
            f"numbers for each value of a part of shape {shape}; give a net whose `out` can be set "
            "(MLP, or a Sequential that ends with Dense or Conv), convolutions that keep an "
            "image's sides, or a net of your own with this output."
        )
    return ops.reshape(output, (*got[:-1], count, shape[-1]))
