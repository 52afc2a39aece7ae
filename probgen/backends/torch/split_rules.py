"""Rules by which operators work on the parts of what is split; see `split.py`.

A rule takes an operator's arguments, some of which are `Split`, and gives its result, made of parts
alone; or `NotImplemented`, where parts do not do, and the operator is done on the whole. With w
processes, i the axis of the rows:

    elementwise        rows of all arguments                        -> rows
    along other axes   rows                                         -> rows
    sum, mean over i   rows                                         -> a sum's terms
    A B                rows of A, or columns of B                   -> rows, or columns
                       columns of A and rows of B                   -> a sum's terms
    linear             a sum's terms                                -> a sum's terms
"""

from __future__ import annotations

import math
from typing import Any

import torch

from probgen.backends.torch.split import (
    POINTWISE,
    Split,
    World,
    argument,
    out_of,
    parts_of,
    rows_of,
    rule,
    splits_in,
)

aten = torch.ops.aten
# ---- elementwise ---------------------------------------------------------------------------------

_LINEAR = {
    aten.neg.default, aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar,
    aten.clone.default,
}  # fmt: skip
_ADDS = {aten.add.Tensor, aten.sub.Tensor}


@rule(POINTWISE)
def elementwise(func: Any, args: tuple, kwargs: dict) -> Any:
    """Of the arguments' rows; of what is linear, of a sum's terms."""
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
    splits = splits_in(tensors)
    world = splits[0].world
    if any(s.axis is None for s in splits):
        return _of_terms(func, args, kwargs, splits, world)
    axes = {s.axis - s.ndim for s in splits}
    if len(axes) != 1:
        return NotImplemented
    axis, size = axes.pop(), splits[0].shape[splits[0].axis]
    is_written = func._schema.is_mutable
    if is_written and not isinstance(args[0], Split):
        return NotImplemented
    ndim = max(t.ndim for t in tensors)

    def part(x: Any) -> Any:
        if isinstance(x, Split):
            return x.local
        long = isinstance(x, torch.Tensor) and x.ndim >= -axis and x.shape[axis] == size
        return world.part(x, x.ndim + axis) if long and size > 1 else x

    out = func(*map(part, args), **{k: part(v) for k, v in kwargs.items()})
    return args[0] if is_written else out_of(out, ndim + axis, world)


def _of_terms(func: Any, args: tuple, kwargs: dict, splits: list[Split], world: World) -> Any:
    """Of a sum's terms: where the sum may as well be taken after."""
    is_first = isinstance(args[0], Split) or func is aten.mul.Tensor
    linear = func in _LINEAR and is_first and len(splits) == 1
    if not linear and not _adds(func, args, splits):
        return NotImplemented

    def term(a: Any) -> Any:
        if isinstance(a, Split):
            return a.local
        return a if linear else a / world.size  # each process adds its share

    return Split(func(*map(term, args), **kwargs), None, world)


def _adds(func: Any, args: tuple, splits: list[Split]) -> bool:
    """Whether sums are added to each other, or to what is the same in every process."""
    known = all(s.axis is None and s.is_floating_point() for s in splits)
    return (
        func in _ADDS
        and known
        and len({s.shape for s in splits}) == 1
        and all(not isinstance(a, torch.Tensor) or a.is_floating_point() for a in args)
    )


rule("softplus_backward", "gelu_backward", "elu_backward", "leaky_relu_backward")(elementwise)
rule("masked_fill", "log_sigmoid_backward", "copy_", "hardtanh_backward")(elementwise)
rule("where", "clamp", "fill", "nan_to_num")(elementwise)


@rule("binary_cross_entropy_with_logits", "mse_loss", "smooth_l1_loss")
def each_loss(func: Any, args: tuple, kwargs: dict) -> Any:
    """Elementwise where nothing is averaged."""
    told = argument(func, args, kwargs, "reduction")
    return elementwise(func, args, kwargs) if told == 0 else NotImplemented


_FILLED = {aten.zeros_like.default, aten.ones_like.default, aten.full_like.default}


@rule("detach", "alias", "_to_copy", "zeros_like", "ones_like", "full_like", "empty_like",
       "lift_fresh", "fill_", "zero_", "contiguous", "log_sigmoid_forward")  # fmt: skip
def same_form(func: Any, args: tuple, kwargs: dict) -> Any:
    """What has the form of its one tensor."""
    x, *rest = args
    if not isinstance(x, Split):
        return NotImplemented
    if x.axis is None and func not in (aten.detach.default, aten.alias.default):
        return func(x.local, *rest, **kwargs) if func in _FILLED else NotImplemented
    out = func(x.local, *rest, **kwargs)
    return x if func._schema.is_mutable else out_of(out, x.axis, x.world)


@rule("new_zeros", "new_ones", "new_full", "new_empty")
def new(func: Any, args: tuple, kwargs: dict) -> Any:
    """A plain tensor of the size that is asked for."""
    return func(args[0].local, *args[1:], **kwargs)


# ---- along axes ----------------------------------------------------------------------------------


def _axes(dims: Any, ndim: int) -> list[int]:
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        return [*range(ndim)]
    return [d % max(ndim, 1) for d in (dims if isinstance(dims, list | tuple) else [dims])]


@rule("sum", "mean", "amax", "amin", "logsumexp", "any", "all", "var.correction", "prod.dim_int",
       "argmax", "argmin", "max.dim", "min.dim", "linalg_vector_norm", "std.correction",
       "norm.ScalarOpt_dim")  # fmt: skip
def reduce(func: Any, args: tuple, kwargs: dict) -> Any:
    """Over other axes than the rows': rows; sum and mean over them too: a sum's terms."""
    x, world = args[0], args[0].world
    packet = func.overloadpacket
    if x.axis is None:
        if packet is aten.sum:
            return Split(func(x.local, *args[1:], **kwargs), None, world)
        return NotImplemented
    dims = _axes(argument(func, args, kwargs, "dim"), x.ndim)
    if x.axis in dims:
        if packet is aten.sum:
            out = func(x.local, *args[1:], **kwargs)
        elif packet is aten.mean:
            out = func(x.local, *args[1:], **kwargs) / world.size
        else:
            return NotImplemented
        if not out.is_floating_point() and out.dtype is torch.bool:
            return NotImplemented
        return Split(out, None, world)
    out = func(x.local, *args[1:], **kwargs)
    gone = 0 if argument(func, args, kwargs, "keepdim") else sum(d < x.axis for d in dims)
    return out_of(out, x.axis - gone, world)


@rule("cumsum", "cumprod", "_softmax", "_log_softmax", "sort", "logcumsumexp", "flip")
def along(func: Any, args: tuple, kwargs: dict) -> Any:
    """What works along one axis and keeps it."""
    x = args[0]
    dims = argument(func, args, kwargs, "dim", argument(func, args, kwargs, "dims", -1))
    if x.axis is None or x.axis in _axes(dims, x.ndim):
        return NotImplemented
    return out_of(func(x.local, *args[1:], **kwargs), x.axis, x.world)


@rule("_softmax_backward_data", "_log_softmax_backward_data")
def softmax_backward(func: Any, args: tuple, kwargs: dict) -> Any:
    """As the softmax along that axis."""
    grad, out, dim, kind = args
    axis = rows_of(grad, out)
    if axis is None or axis == dim % out.ndim:
        return NotImplemented
    world = splits_in(args)[0].world
    parts = parts_of((grad, out), axis, world)
    return Split(func(*parts, dim, kind), axis, world)


@rule("tril", "triu", "linalg_cholesky_ex", "linalg_inv_ex", "linalg_solve_triangular",
       "_linalg_slogdet", "_linalg_eigh", "diag_embed")  # fmt: skip
def batched(func: Any, args: tuple, kwargs: dict) -> Any:
    """Of matrices, the last two axes, beside the rows."""
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    axis = rows_of(*tensors)
    ndim = 2 - (func.overloadpacket is aten.diag_embed)
    if axis is None or len({t.ndim for t in tensors}) != 1 or axis >= tensors[0].ndim - ndim:
        return NotImplemented
    world = splits_in(tensors)[0].world
    parts = [parts_of([a], axis, world)[0] if isinstance(a, torch.Tensor) else a for a in args]
    return out_of(func(*parts, **kwargs), axis, world)


# ---- forms ---------------------------------------------------------------------------------------


@rule("view", "_unsafe_view", "reshape")
def view(func: Any, args: tuple, kwargs: dict) -> Any:
    """Axes put together or taken apart, as long as rows stay together."""
    x, size = args[0], [*args[1]]
    if not isinstance(x, Split) or len(args) != 2:
        return NotImplemented
    if x.axis is None:
        return Split(func(x.local, size), None, x.world)
    if -1 in size:
        known = math.prod(s for s in size if s != -1)
        size[size.index(-1)] = math.prod(x.shape) // max(known, 1)
    # So many numbers of axes in front, each of which has all the rows.
    world, before = x.world, math.prod(x.shape[: x.axis]) * x.world.outer
    rows = x.shape[x.axis] // world.outer
    axis, place = 0, 1
    while axis < len(size) and place * size[axis] <= before:
        place, axis = place * size[axis], axis + 1
    if axis == len(size) or before % place or size[axis] % (before // place):
        return NotImplemented
    outer = before // place
    new = size[axis] // outer
    if new % world.size or (new % rows and rows % new):
        return NotImplemented
    size[axis] //= world.size
    return Split(x.local.reshape(size), axis, world._replace(outer=outer))


@rule("permute", "transpose.int", "t", "unsqueeze", "squeeze.dim", "squeeze.dims")
def turned(func: Any, args: tuple, kwargs: dict) -> Any:
    """Axes in another order, more or fewer of length one."""
    x, ndim = args[0], args[0].ndim
    axis = x.axis
    packet = func.overloadpacket
    if axis is None:
        pass
    elif packet is aten.permute:
        axis = [d % ndim for d in args[1]].index(axis)
    elif packet is aten.unsqueeze:
        axis += args[1] % (ndim + 1) <= axis
    elif packet is aten.squeeze:
        gone = [d for d in _axes(args[1], ndim) if x.shape[d] == 1]
        if axis in _axes(args[1], ndim):
            return NotImplemented
        axis -= sum(d < axis for d in gone)
    else:
        a, c = (0, ndim - 1) if packet is aten.t else (args[1] % ndim, args[2] % ndim)
        axis = {a: c, c: a}.get(axis, axis)
    return Split(func(x.local, *args[1:], **kwargs), axis, x.world)


@rule("expand")
def expand(func: Any, args: tuple, kwargs: dict) -> Any:
    """Further axes in front, or longer ones beside the rows."""
    x, size = args[0], [*args[1]]
    if x.axis is None:
        return Split(func(x.local, size, **kwargs), None, x.world)
    axis = len(size) - x.ndim + x.axis
    size[axis] = -1
    return Split(func(x.local, size, **kwargs), axis, x.world)


@rule("select.int", "slice.Tensor", "unbind", "split.Tensor", "split_with_sizes", "diagonal")
def piece(func: Any, args: tuple, kwargs: dict) -> Any:
    """Pieces along another axis than the rows'."""
    x, packet = args[0], func.overloadpacket
    if packet is aten.diagonal:
        return batched(func, args, kwargs) if x.axis is not None else NotImplemented
    dim = argument(func, args, kwargs, "dim") % x.ndim
    if x.axis is None:
        return out_of(func(x.local, *args[1:], **kwargs), None, x.world)
    if x.axis == dim:
        return NotImplemented
    gone = packet in (aten.select, aten.unbind) and dim < x.axis
    return out_of(func(x.local, *args[1:], **kwargs), x.axis - gone, x.world)


@rule("select_backward", "slice_backward")
def piece_backward(func: Any, args: tuple, kwargs: dict) -> Any:
    """The piece among zeros."""
    grad, sizes, dim, *rest = args
    dim, axis = dim % len(sizes), grad.axis
    if axis is not None:
        axis += func.overloadpacket is aten.select_backward and dim <= axis
        if axis == dim:
            return NotImplemented
        sizes = [n // grad.world.size if i == axis else n for i, n in enumerate(sizes)]
    return Split(func(grad.local, sizes, dim, *rest), axis, grad.world)


@rule("cat", "stack")
def put_together(func: Any, args: tuple, kwargs: dict) -> Any:
    """Side by side along another axis than the rows'."""
    tensors = [t for t in args[0] if t.ndim > 1 or t.numel() or func is aten.stack.default]
    axis, is_stack = rows_of(*tensors), func is aten.stack.default
    if all(isinstance(t, Split) and t.axis is None for t in tensors):
        return Split(func([t.local for t in tensors], *args[1:]), None, tensors[0].world)
    if axis is None or len({t.ndim for t in tensors}) != 1:
        return NotImplemented
    dim = argument(func, args, kwargs, "dim") or 0
    dim %= tensors[0].ndim + is_stack
    if not is_stack and dim == axis:
        return NotImplemented
    world = splits_in(tensors)[0].world
    out = func(parts_of(tensors, axis, world), dim)
    return Split(out, axis + (is_stack and dim <= axis), world)


@rule("constant_pad_nd")
def padded(func: Any, args: tuple, kwargs: dict) -> Any:
    """Beside the rows."""
    x, pad = args[0], args[1]
    if x.axis is None or x.axis >= x.ndim - len(pad) // 2:
        return NotImplemented
    return Split(func(x.local, *args[1:], **kwargs), x.axis, x.world)
