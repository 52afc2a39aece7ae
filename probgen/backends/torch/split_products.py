"""Rules of `split.py` for products, layers and rows that are taken by number."""

from __future__ import annotations

from typing import Any

import torch

from probgen.backends.torch.split import (
    Split,
    out_of,
    parts_of,
    rows_of,
    rule,
    splits_in,
)

aten = torch.ops.aten

# ---- rows by number ------------------------------------------------------------------------------


@rule("index_select", "gather", "embedding", "index.Tensor")
def taken(func: Any, args: tuple, kwargs: dict) -> Any:
    """Rows of a plain table by numbers that are split; or of rows, along another axis."""
    packet = func.overloadpacket
    if packet is aten.index:
        return _indexed(func, args)
    table, index = (args[0], args[1]) if packet is aten.embedding else (args[0], args[2])
    dim = 0 if packet is aten.embedding else args[1] % max(table.ndim, 1)
    world = splits_in((table, index))[0].world
    if any(s.axis is None for s in splits_in((table, index))):
        return NotImplemented
    if packet is aten.gather:
        axis = rows_of(table, index)
        if axis is None or axis == dim or table.shape[axis] != index.shape[axis]:
            return NotImplemented
        table, index = parts_of((table, index), axis, world)
        return Split(func(table, dim, index, *args[3:], **kwargs), axis, world)
    if isinstance(table, Split):
        if isinstance(index, Split) or table.axis == dim or packet is aten.embedding:
            return NotImplemented
        return Split(func(table.local, dim, index), table.axis, world)
    if packet is aten.embedding:
        return Split(func(table, index.local, *args[2:]), index.axis, world)
    return Split(func(table, dim, index.local), dim, world)


def _indexed(func: Any, args: tuple) -> Any:
    table, indices = args[0], [*args[1]]
    used = [i for i, each in enumerate(indices) if each is not None]
    if len(used) != 1 or indices[used[0]].dtype in (torch.bool, torch.uint8):
        return NotImplemented
    (at,) = used
    index = indices[at]
    world = splits_in((table, index))[0].world
    if isinstance(table, Split):
        if isinstance(index, Split) or table.axis is None or table.axis == at:
            return NotImplemented
        axis = table.axis + (index.ndim - 1 if at < table.axis else 0)
        return Split(func(table.local, indices), axis, world)
    if index.axis is None:
        return NotImplemented
    indices[at] = index.local
    return Split(func(table, indices), at + index.axis, world)


@rule("scatter_add", "embedding_dense_backward")
def added(func: Any, args: tuple, kwargs: dict) -> Any:
    """Gradients of `gather` and `embedding`."""
    if func is aten.embedding_dense_backward.default:
        grad, index, *rest = args
        axis = rows_of(grad, index)
        if axis is None or axis >= index.ndim:
            return NotImplemented
        world = splits_in((grad, index))[0].world
        return Split(func(*parts_of((grad, index), axis, world), *rest), None, world)
    x, dim, index, source = args
    axis = rows_of(x, index, source)
    if axis is None or axis == dim % x.ndim:
        return NotImplemented
    world = splits_in((x, index, source))[0].world
    x, index, source = parts_of((x, index, source), axis, world)
    return Split(func(x, dim, index, source), axis, world)


# ---- products ------------------------------------------------------------------------------------


# Of each argument's axes; over j is summed.
_LETTERS = {
    aten.mm.default: ("ij", "jk"), aten.bmm.default: ("bij", "bjk"), aten.mv.default: ("ij", "j"),
    aten.dot.default: ("j", "j"),
}  # fmt: skip


@rule("mm.default", "bmm.default", "mv.default", "dot.default")
def product(func: Any, args: tuple, kwargs: dict) -> Any:
    """Rows of the first, columns of the second, or the axis over which is summed."""
    a, c = args
    world = splits_in(args)[0].world
    if any(s.axis is None for s in splits_in(args)):
        return NotImplemented
    left, right = _LETTERS[func]
    letters = {t[s.axis or 0] for s, t in ((a, left), (c, right)) if isinstance(s, Split)}
    if len(letters) != 1:
        return NotImplemented
    (letter,) = letters

    def part(x: Any, own: str) -> Any:
        if isinstance(x, Split):
            return x.local
        return world.part(x, own.index(letter)) if letter in own else x

    out = func(part(a, left), part(c, right))
    kept = "".join(n for n in dict.fromkeys(left + right) if n != "j")
    return Split(out, None if letter == "j" else kept.index(letter), world)


@rule("addmm")
def affine(func: Any, args: tuple, kwargs: dict) -> Any:
    """b + A W with rows of A."""
    bias, a, c = args
    rows = isinstance(a, Split) and a.axis == 0 and not isinstance(c, Split)
    if not rows or isinstance(bias, Split) or (bias.ndim == 2 and bias.shape[0] != 1):
        return NotImplemented
    return Split(func(bias, a.local, c, **kwargs), 0, a.world)


# ---- layers, row by row --------------------------------------------------------------------------


@rule("convolution", "avg_pool2d", "max_pool2d_with_indices", "upsample_nearest2d",
       "native_layer_norm", "_adaptive_avg_pool2d", "im2col", "col2im")  # fmt: skip
def layer(func: Any, args: tuple, kwargs: dict) -> Any:
    """Of images, or rows, on axis 0."""
    x, *rest = args
    if not isinstance(x, Split) or x.axis != 0 or splits_in(rest):
        return NotImplemented
    if func is aten.native_layer_norm.default and x.ndim == len(rest[0]):
        return NotImplemented
    return out_of(func(x.local, *rest, **kwargs), 0, x.world)


@rule("avg_pool2d_backward", "upsample_nearest2d_backward", "max_pool2d_with_indices_backward")
def layer_backward(func: Any, args: tuple, kwargs: dict) -> Any:
    """The gradient of a layer without parameters."""
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    if rows_of(*tensors) != 0:
        return NotImplemented
    world = splits_in(tensors)[0].world
    is_up = func.overloadpacket is aten.upsample_nearest2d_backward

    def part(a: Any) -> Any:
        if isinstance(a, torch.Tensor):
            return parts_of([a], 0, world)[0]
        sized = is_up and isinstance(a, list | tuple) and len(a) == 4
        return [a[0] // world.size, *a[1:]] if sized else a

    return Split(func(*map(part, args), **kwargs), 0, world)


@rule("convolution_backward", "native_layer_norm_backward", "native_group_norm_backward")
def weights_backward(func: Any, args: tuple, kwargs: dict) -> Any:
    """Gradients of a layer: rows for its input, a sum's terms for its weights."""
    packet = func.overloadpacket
    ours = {aten.convolution_backward: (0, 1), aten.native_layer_norm_backward: (0, 1, 3, 4),
            aten.native_group_norm_backward: (0, 1, 2, 3)}[packet]  # fmt: skip
    given = [*args]
    if rows_of(*(given[i] for i in ours)) != 0:
        return NotImplemented
    if splits_in([a for i, a in enumerate(given) if i not in ours]):
        return NotImplemented
    world = splits_in(given)[0].world
    for i in ours:
        given[i] = parts_of([given[i]], 0, world)[0]
    if packet is aten.native_group_norm_backward:
        given[5] //= world.size
    out = func(*given, **kwargs)
    places = (0, None, None)
    return tuple(x if x is None else Split(x, p, world) for x, p in zip(out, places, strict=True))


@rule("native_group_norm")
def group_norm(func: Any, args: tuple, kwargs: dict) -> Any:
    """Of images on axis 0, whose number it is told."""
    x, weight, bias, number, *rest = args
    if not isinstance(x, Split) or x.axis != 0 or splits_in((weight, bias)):
        return NotImplemented
    return out_of(func(x.local, weight, bias, number // x.world.size, *rest), 0, x.world)
