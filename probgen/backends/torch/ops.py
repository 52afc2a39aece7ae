"""`probgen.ops` on torch: the same names, numpy's axes and NaN, in torch's functions.

Everything may be written down as a graph (`record.py`), under torch.func and vmap: no `.item()`, no
`if` on a value, nothing in place. Documentation of each function is in `probgen/language/ops.py`.
Images are channel-last at the interface; a permuted view of one is what torch calls channels-last
memory, so nothing is copied.
"""

# ruff: noqa: D103 - one text documents both backends, in probgen/language/ops.py.

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from probgen.backends.torch.calculus import value_and_grad
from probgen.backends.torch.odes import solve_ode as solve_ode
from probgen.backends.torch.scans import scan as scan

Array = Any
Axis = int | tuple[int, ...] | None

_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}


# ---- conversion ----------------------------------------------------------------------------------


def asarray(value: Any, like: torch.Tensor | None = None) -> Array:
    """A tensor; floats that were not tensors take the dtype of `like`, or torch's default."""
    if not isinstance(value, np.ndarray | np.generic | bool | int | float | list | tuple):
        return value  # a tensor, or a tracer's stand-in for one
    if isinstance(value, list | tuple) and _holds_tensor(value):
        return torch.stack([asarray(item, like) for item in value])
    number = np.asarray(value)
    dtype = None
    if number.dtype.kind == "f":
        is_float = like is not None and like.dtype.is_floating_point
        dtype = like.dtype if like is not None and is_float else torch.get_default_dtype()
    device = None if like is None else like.device
    if isinstance(value, bool | int | float) and like is not None:
        # new_full stays a node of a traced graph; a constant tensor would be copied to the device.
        return like.new_full((), value, dtype=dtype or _DTYPES[number.dtype.name])
    return torch.as_tensor(np.ascontiguousarray(number).reshape(number.shape), dtype=dtype).to(
        device
    )


def _holds_tensor(values: Sequence[Any]) -> bool:
    """Whether a nested list holds a tensor."""
    return next(
        (
            True
            for v in values
            if isinstance(v, torch.Tensor) or (isinstance(v, list | tuple) and _holds_tensor(v))
        ),
        False,
    )


def _pull(*values: Any) -> list[Any]:
    """All as tensors, after the first of them that is one already."""
    like = next((v for v in values if isinstance(v, torch.Tensor)), None)
    return [asarray(v, like) for v in values]


def _floating(x: Any) -> Array:
    x = asarray(x)
    kind = x.dtype
    return x if kind.is_floating_point or kind.is_complex else x.to(torch.get_default_dtype())


def asarray_like(value: Any, like: Array) -> Array:
    return asarray(value, like).to(dtype=like.dtype, device=like.device)


def cast(x: Any, dtype: str) -> Array:
    return asarray(x).to(_DTYPES[dtype])


# ---- elementwise ---------------------------------------------------------------------------------


def _elementwise(fn: Callable, pull: Callable = _floating) -> Callable[[Any], Array]:
    return lambda x: fn(pull(x))


exp = _elementwise(torch.exp)
expm1 = _elementwise(torch.expm1)
log = _elementwise(torch.log)
log1p = _elementwise(torch.log1p)
sqrt = _elementwise(torch.sqrt)
sin = _elementwise(torch.sin)
cos = _elementwise(torch.cos)
tanh = _elementwise(torch.tanh)
sigmoid = _elementwise(torch.sigmoid)
log_sigmoid = _elementwise(F.logsigmoid)
logit = _elementwise(torch.logit)
# Above the threshold torch returns x; its default of 20 is 1e-10 off, which shows in float64.
softplus = _elementwise(lambda x: F.softplus(x, threshold=40.0))
relu = _elementwise(torch.relu)
silu = _elementwise(F.silu)
gelu = _elementwise(F.gelu)
elu = _elementwise(F.elu)
erf = _elementwise(torch.erf)
lgamma = _elementwise(torch.lgamma)
erfc = _elementwise(torch.erfc)
i0e = _elementwise(torch.special.i0e)
square = _elementwise(torch.square, asarray)
abs = _elementwise(torch.abs, asarray)
floor = _elementwise(torch.floor, asarray)
round = _elementwise(torch.round, asarray)
isfinite = _elementwise(torch.isfinite, asarray)
isnan = _elementwise(torch.isnan, asarray)
zeros_like = _elementwise(torch.zeros_like, asarray)
ones_like = _elementwise(torch.ones_like, asarray)
stop_gradient = _elementwise(lambda x: x.detach(), asarray)
# torch.sign(nan) is 0.
sign = _elementwise(lambda x: torch.where(torch.isnan(x), x, torch.sign(x)), asarray)


def leaky_relu(x: Any, slope: float = 0.01) -> Array:
    return F.leaky_relu(_floating(x), slope)


def where(condition: Any, x: Any, y: Any) -> Array:
    x, y, condition = _pull(x, y, condition)
    return torch.where(condition.to(torch.bool), x, y)


def maximum(x: Any, y: Any) -> Array:
    return torch.maximum(*_pull(x, y))


def minimum(x: Any, y: Any) -> Array:
    return torch.minimum(*_pull(x, y))


def clip(x: Any, low: Any = None, high: Any = None) -> Array:
    x = asarray(x) if low is None else maximum(x, low)
    return x if high is None else minimum(x, high)


# ---- reductions ----------------------------------------------------------------------------------


def _reduce(fn: Callable, x: Array, axis: Axis, keepdims: bool) -> Array:
    """fn(x, axes, keepdims) with numpy's axes: to torch an empty tuple means every axis."""
    if axis is None:
        axis = tuple(range(x.ndim))
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if not axes:  # nothing to reduce, or a scalar: reduce a new axis of size one
        return fn(x[..., None], (-1,), False)
    return fn(x, axes, keepdims)


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    return _reduce(torch.sum, asarray(x), axis, keepdims)


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    return _reduce(torch.mean, _floating(x), axis, keepdims)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    return _reduce(torch.amax, asarray(x), axis, keepdims)


def min(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    return _reduce(torch.amin, asarray(x), axis, keepdims)


def any(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    return _reduce(torch.any, asarray(x).to(torch.bool), axis, keepdims)


def all(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    return _reduce(torch.all, asarray(x).to(torch.bool), axis, keepdims)


def logsumexp(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    return _reduce(torch.logsumexp, _floating(x), axis, keepdims)


def prod(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    return _reduce(_prod, asarray(x), axis, keepdims)


def _prod(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    # torch's gradient of prod looks for zeros, which a traced graph cannot. A tree of products
    # takes log2(n) multiplications and its gradient is right at zeros too.
    places = {a % x.ndim for a in axes}
    kept = [a for a in range(x.ndim) if a not in places]
    y = x.permute(*kept, *sorted(places)).reshape(*(x.shape[a] for a in kept), -1)
    if y.shape[-1] == 0:
        y = torch.ones_like(torch.sum(y, -1, keepdim=True))
    while y.shape[-1] > 1:
        half = y.shape[-1] // 2
        pairs = y[..., :half] * y[..., half : 2 * half]
        y = torch.cat([pairs, y[..., 2 * half :]], -1)
    shape = [1 if a in places else x.shape[a] for a in range(x.ndim)]
    return y.reshape(shape) if keepdims else y[..., 0]


def var(x: Any, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Array:
    def fn(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
        return torch.var(x, axes, correction=ddof, keepdim=keepdims)

    return _reduce(fn, _floating(x), axis, keepdims)


def std(x: Any, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Array:
    return torch.sqrt(var(x, axis, ddof, keepdims))


def softmax(x: Any, axis: int = -1) -> Array:
    return torch.softmax(_floating(x), axis)


def log_softmax(x: Any, axis: int = -1) -> Array:
    return torch.log_softmax(_floating(x), axis)


def cumsum(x: Any, axis: int) -> Array:
    return torch.cumsum(asarray(x), axis)


def argmax(x: Any, axis: int | None = None) -> Array:
    return torch.argmax(asarray(x), axis)


# ---- shape ---------------------------------------------------------------------------------------


def concatenate(arrays: Sequence[Any], axis: int = 0) -> Array:
    return torch.cat(_pull(*arrays), axis)


def stack(arrays: Sequence[Any], axis: int = 0) -> Array:
    return torch.stack(_pull(*arrays), axis)


def reshape(x: Any, shape: int | Sequence[int]) -> Array:
    return torch.reshape(asarray(x), (shape,) if isinstance(shape, int) else tuple(shape))


def transpose(x: Any, axes: Sequence[int] | None = None) -> Array:
    x = asarray(x)
    return x.permute(tuple(reversed(range(x.ndim))) if axes is None else tuple(axes))


def broadcast_to(x: Any, shape: Sequence[int]) -> Array:
    return torch.broadcast_to(asarray(x), tuple(shape))


def expand_dims(x: Any, axis: int) -> Array:
    return torch.unsqueeze(asarray(x), axis)


def squeeze(x: Any, axis: Axis = None) -> Array:
    x = asarray(x)
    if axis is None:
        return torch.squeeze(x)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    for a in axes:
        if x.shape[a] != 1:  # torch would return x unchanged
            raise ValueError(f"squeeze: axis {a} of {tuple(x.shape)} has size {x.shape[a]}, not 1")
    return torch.squeeze(x, axes)


def pad(x: Any, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Array:
    last_first = [n for pair in reversed(tuple(widths)) for n in pair]
    return F.pad(asarray(x), last_first, value=value)


def flip(x: Any, axis: Axis = None) -> Array:
    x = asarray(x)
    axes = tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis
    return torch.flip(x, tuple(axes))


# ---- arrays made after another one's kind --------------------------------------------------------


def full_like(x: Any, value: Any) -> Array:
    x = asarray(x)
    if isinstance(value, bool | int | float):
        return torch.full_like(x, value)
    return torch.broadcast_to(asarray_like(value, x), x.shape)


def arange_like(n: int, like: Array) -> Array:
    return torch.arange(n, dtype=like.dtype, device=like.device)


def eye_like(n: int, like: Array) -> Array:
    return torch.eye(n, dtype=like.dtype, device=like.device)


def one_hot(idx: Any, n: int, like: Array | None = None) -> Array:
    # F.one_hot reads the largest index, which a traced graph cannot.
    idx = asarray(idx) if like is None else asarray(idx, like)
    dtype = torch.get_default_dtype() if like is None else like.dtype
    return (idx[..., None] == torch.arange(n, device=idx.device)).to(dtype)


# ---- indices and matrices ------------------------------------------------------------------------


def take(table: Any, idx: Any, axis: int = 0) -> Array:
    table, idx = _pull(table, idx)
    axis = axis % table.ndim
    rows = torch.index_select(table, axis, idx.reshape(-1).to(torch.int64))
    return rows.reshape(*table.shape[:axis], *idx.shape, *table.shape[axis + 1 :])


def take_along_axis(x: Any, idx: Any, axis: int) -> Array:
    x, idx = _pull(x, idx)
    return torch.take_along_dim(x, idx.to(torch.int64), axis)


def put(x: Any, idx: Any, rows: Any) -> Array:
    x, rows = _pull(x, rows)
    return torch.index_copy(x, 0, asarray(idx).to(device=x.device, dtype=torch.int64), rows)


def matmul(a: Any, b: Any) -> Array:
    return torch.matmul(*_pull(a, b))


def einsum(subscripts: str, *operands: Any) -> Array:
    return torch.einsum(subscripts, *_pull(*operands))


def tril(x: Any, k: int = 0) -> Array:
    return torch.tril(asarray(x), k)


def diagonal(x: Any) -> Array:
    return torch.diagonal(asarray(x), dim1=-2, dim2=-1)


def cholesky(x: Any) -> Array:
    # cholesky_ex: the plain one raises on a value, and waits for the device to know it.
    factor, info = torch.linalg.cholesky_ex(_floating(x))
    missing = torch.tril(torch.full_like(factor, math.nan))
    return torch.where((info == 0)[..., None, None], factor, missing)


def slogdet(x: Any) -> tuple[Array, Array]:
    sign, log_det = torch.linalg.slogdet(_floating(x))
    return sign, log_det


def solve_triangular(a: Any, b: Any, lower: bool = True) -> Array:
    a, b = _pull(a, b)
    if b.ndim == 1:
        return solve_triangular(a, b[:, None], lower)[..., 0]
    if a.ndim == 2 and b.ndim > 2:  # [*batch, n, k] -> [n, *batch, k]: one solve
        columns = torch.movedim(b, -2, 0)
        x = torch.linalg.solve_triangular(a, columns.reshape(b.shape[-2], -1), upper=not lower)
        return torch.movedim(x.reshape(columns.shape), 0, -2)
    return torch.linalg.solve_triangular(a, b, upper=not lower)


def grad(fn: Callable) -> Callable:
    both = value_and_grad(fn)
    return lambda x: both(x)[1]


# ---- images, channel-last ------------------------------------------------------------------------


def _padding(weight: Array, padding: int | None) -> tuple[int, int]:
    if padding is not None:
        return padding, padding
    return (weight.shape[0] - 1) // 2, (weight.shape[1] - 1) // 2


def _in_a_row(fn: Callable[[Array], Array], x: Array) -> Array:
    """`fn`, of [n, c, h, w], on images [..., h, w, c]."""
    lead = x.shape[:-3]
    y = fn((x if len(lead) == 1 else x.reshape(-1, *x.shape[-3:])).permute(0, 3, 1, 2))
    y = y.permute(0, 2, 3, 1)
    return y if len(lead) == 1 else y.reshape(*lead, *y.shape[1:])


def _told_apart(kernel: Array) -> Array:
    """A kernel of one outer channel lies in memory as either layout does, and torch's own gradient
    in float64 takes it for the one that it cannot."""
    return kernel.contiguous() if kernel.shape[0] == 1 else kernel


def conv(x: Any, weight: Any, stride: int = 1, padding: int | None = None) -> Array:
    x, weight = _pull(x, weight)
    options = {"stride": stride, "padding": _padding(weight, padding)}
    kernel = _told_apart(weight.permute(3, 2, 0, 1))
    return _in_a_row(lambda v: F.conv2d(v, kernel, **options), x)


def conv_transpose(x: Any, weight: Any, stride: int = 1, padding: int | None = None) -> Array:
    x, weight = _pull(x, weight)
    options = {"stride": stride, "padding": _padding(weight, padding)}
    kernel = _told_apart(weight.permute(2, 3, 0, 1))
    return _in_a_row(lambda v: F.conv_transpose2d(v, kernel, **options), x)


def upsample_nearest(x: Any, factor: int = 2) -> Array:
    *lead, h, w, c = x.shape
    blocks = x[..., :, None, :, None, :].expand(*lead, h, factor, w, factor, c)
    return blocks.reshape(*lead, h * factor, w * factor, c)


def avg_pool(x: Any, window: int = 2, stride: int | None = None) -> Array:
    return _in_a_row(lambda v: F.avg_pool2d(v, window, stride or window), x)


def group_norm(
    x: Any, num_groups: int, epsilon: float, scale: Any = None, offset: Any = None
) -> Array:
    flat = x.reshape(-1, *x.shape[-2:])
    # The kernel's variance, E x^2 - (E x)^2, loses a small one beside a large mean: a group's mean
    # is taken away before, and held, as nothing nor any derivative depends on it.
    of_channel = flat.detach().mean(-2).unflatten(-1, (num_groups, -1))
    common = of_channel.mean(-1, keepdim=True).expand(of_channel.shape).flatten(-2)
    image = (flat - common[:, None, :])[:, :, None, :].permute(0, 3, 1, 2)
    scale, offset = (None if v is None else asarray_like(v, x) for v in (scale, offset))
    # Not by F.group_norm, which asks for the layout in memory, as no vmap allows.
    n, c, h, _ = image.shape
    normal = torch.native_group_norm(image, scale, offset, n, c, h, num_groups, epsilon)[0]
    return normal.permute(0, 2, 3, 1).reshape(x.shape)
