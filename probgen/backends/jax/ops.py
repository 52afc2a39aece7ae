"""`probgen.ops` on JAX: the same names in jax.numpy, and a convolution by platform.

Everything runs under jit, vmap, grad and scan. Documentation of each function is in
`probgen/language/ops.py`. XLA's own convolution has slow gradients on a CPU, so that there it is
`convolve.py`'s; on an accelerator it is `lax.conv_general_dilated`.
"""

# ruff: noqa: D103 - one text documents both backends, in probgen/language/ops.py.

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.special
import numpy as np
from jax import lax

from probgen.backends.jax.conv import total
from probgen.backends.jax.convolve import LAYOUT, convolve, convolve_transposed
from probgen.backends.jax.devices import placing
from probgen.backends.jax.odes import solve_ode as solve_ode

Array = Any
Axis = int | tuple[int, ...] | None


# ---- conversion ----------------------------------------------------------------------------------


def asarray(value: Any, like: Array | None = None) -> Array:
    """A JAX array; floats that were not one take the dtype of `like`. Numbers stay weakly typed."""
    if isinstance(value, jax.Array):
        return value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind == "f" and like is not None:
        is_float = jnp.issubdtype(like.dtype, jnp.floating)
        return jnp.asarray(value, like.dtype if is_float else None)
    return _held(value, None)


def _held(value: Any, dtype: Any) -> Array:
    """numpy is cast by numpy: taken in as it is, JAX compiles a program for each of its shapes."""
    if type(value) is not np.ndarray:
        return jnp.asarray(value) if dtype is None else jnp.asarray(value).astype(dtype)
    kind = jax.dtypes.canonicalize_dtype(value.dtype if dtype is None else dtype)
    return jnp.asarray(value.astype(kind, copy=False), kind)


def _pull(*values: Any) -> list[Any]:
    """All as JAX arrays, after the first of them that is one already."""
    like = next((v for v in values if isinstance(v, jax.Array)), None)
    return [asarray(v, like) for v in values]


def _floating(x: Any) -> Array:
    x = asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.result_type(float))


def asarray_like(value: Any, like: Array) -> Array:
    return _held(value, like.dtype)


def cast(x: Any, dtype: str) -> Array:
    return asarray(x).astype(jax.dtypes.canonicalize_dtype(dtype))


# ---- elementwise ---------------------------------------------------------------------------------


def _elementwise(fn: Callable, pull: Callable = _floating) -> Callable[[Any], Array]:
    return lambda x: fn(pull(x))


exp = _elementwise(jnp.exp)
expm1 = _elementwise(jnp.expm1)
log = _elementwise(jnp.log)
log1p = _elementwise(jnp.log1p)
sqrt = _elementwise(jnp.sqrt)
sin = _elementwise(jnp.sin)
cos = _elementwise(jnp.cos)
tanh = _elementwise(jnp.tanh)
sigmoid = _elementwise(jax.nn.sigmoid)
log_sigmoid = _elementwise(jax.nn.log_sigmoid)
logit = _elementwise(jax.scipy.special.logit)
softplus = _elementwise(jax.nn.softplus)
relu = _elementwise(jax.nn.relu)
silu = _elementwise(jax.nn.silu)
gelu = _elementwise(lambda x: jax.nn.gelu(x, approximate=False))
elu = _elementwise(jax.nn.elu)
erf = _elementwise(jax.scipy.special.erf)
lgamma = _elementwise(jax.scipy.special.gammaln)
erfc = _elementwise(jax.scipy.special.erfc)
i0e = _elementwise(jax.scipy.special.i0e)
square = _elementwise(jnp.square, asarray)
abs = _elementwise(jnp.abs, asarray)
sign = _elementwise(jnp.sign, asarray)
floor = _elementwise(lambda x: jnp.floor(x).astype(x.dtype), asarray)
round = _elementwise(lambda x: jnp.round(x).astype(x.dtype), asarray)
isfinite = _elementwise(jnp.isfinite, asarray)
isnan = _elementwise(jnp.isnan, asarray)
zeros_like = _elementwise(jnp.zeros_like, asarray)
ones_like = _elementwise(jnp.ones_like, asarray)
stop_gradient = _elementwise(lax.stop_gradient, asarray)


def leaky_relu(x: Any, slope: float = 0.01) -> Array:
    return jax.nn.leaky_relu(_floating(x), slope)


def where(condition: Any, x: Any, y: Any) -> Array:
    x, y, condition = _pull(x, y, condition)
    return jnp.where(condition.astype(bool), x, y)


def maximum(x: Any, y: Any) -> Array:
    return jnp.maximum(*_pull(x, y))


def minimum(x: Any, y: Any) -> Array:
    return jnp.minimum(*_pull(x, y))


def clip(x: Any, low: Any = None, high: Any = None) -> Array:
    x = asarray(x) if low is None else maximum(x, low)
    return x if high is None else minimum(x, high)


# ---- reductions ----------------------------------------------------------------------------------


def _reduction(fn: Callable, pull: Callable = asarray) -> Callable[..., Array]:
    def reduce(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
        return fn(pull(x), axis=axis, keepdims=keepdims)

    return reduce


sum = _reduction(jnp.sum)
mean = _reduction(jnp.mean)
prod = _reduction(jnp.prod)
max = _reduction(jnp.max)
min = _reduction(jnp.min)
any = _reduction(jnp.any)
all = _reduction(jnp.all)
logsumexp = _reduction(jax.scipy.special.logsumexp, _floating)


def var(x: Any, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Array:
    return jnp.var(asarray(x), axis=axis, ddof=ddof, keepdims=keepdims)


def std(x: Any, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Array:
    return jnp.sqrt(var(x, axis, ddof, keepdims))


def softmax(x: Any, axis: int = -1) -> Array:
    return jax.nn.softmax(_floating(x), axis)


def log_softmax(x: Any, axis: int = -1) -> Array:
    return jax.nn.log_softmax(_floating(x), axis)


def cumsum(x: Any, axis: int) -> Array:
    return jnp.cumsum(asarray(x), axis)


def argmax(x: Any, axis: int | None = None) -> Array:
    return jnp.argmax(asarray(x), axis)


# ---- shape ---------------------------------------------------------------------------------------


def concatenate(arrays: Sequence[Any], axis: int = 0) -> Array:
    return jnp.concatenate(_pull(*arrays), axis)


def stack(arrays: Sequence[Any], axis: int = 0) -> Array:
    return jnp.stack(_pull(*arrays), axis)


def reshape(x: Any, shape: int | Sequence[int]) -> Array:
    return jnp.reshape(asarray(x), shape)


def transpose(x: Any, axes: Sequence[int] | None = None) -> Array:
    return jnp.transpose(asarray(x), axes)


def broadcast_to(x: Any, shape: Sequence[int]) -> Array:
    return jnp.broadcast_to(asarray(x), tuple(shape))


def expand_dims(x: Any, axis: int) -> Array:
    return jnp.expand_dims(asarray(x), axis)


def squeeze(x: Any, axis: Axis = None) -> Array:
    return jnp.squeeze(asarray(x), axis)


def pad(x: Any, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Array:
    return jnp.pad(asarray(x), tuple(widths), constant_values=value)


def flip(x: Any, axis: Axis = None) -> Array:
    return jnp.flip(asarray(x), axis)


# ---- arrays made after another one's kind --------------------------------------------------------


def full_like(x: Any, value: Any) -> Array:
    return jnp.full_like(asarray(x), value)


def arange_like(n: int, like: Array) -> Array:
    return jnp.arange(n, dtype=like.dtype)


def eye_like(n: int, like: Array) -> Array:
    return jnp.eye(n, dtype=like.dtype)


def one_hot(idx: Any, n: int, like: Array | None = None) -> Array:
    dtype = jnp.result_type(float) if like is None else like.dtype
    return (asarray(idx)[..., None] == jnp.arange(n)).astype(dtype)


# ---- indices and matrices ------------------------------------------------------------------------


def take(table: Any, idx: Any, axis: int = 0) -> Array:
    return jnp.take(asarray(table), asarray(idx), axis=axis, mode="fill")


def take_along_axis(x: Any, idx: Any, axis: int) -> Array:
    return jnp.take_along_axis(asarray(x), asarray(idx), axis)


def put(x: Any, idx: Any, rows: Any) -> Array:
    x, rows = _pull(x, rows)
    return x.at[asarray(idx)].set(rows)


def matmul(a: Any, b: Any) -> Array:
    return jnp.matmul(*_pull(a, b))


def einsum(subscripts: str, *operands: Any) -> Array:
    return jnp.einsum(subscripts, *_pull(*operands))


def tril(x: Any, k: int = 0) -> Array:
    return jnp.tril(asarray(x), k)


def diagonal(x: Any) -> Array:
    return jnp.diagonal(asarray(x), axis1=-2, axis2=-1)


def cholesky(x: Any) -> Array:
    # Only the lower triangle is read, as by numpy and torch; JAX would average with the upper one.
    return lax.linalg.cholesky(_floating(x), symmetrize_input=False)


def slogdet(x: Any) -> tuple[Array, Array]:
    sign, log_det = jnp.linalg.slogdet(_floating(x))
    return sign, log_det


def solve_triangular(a: Any, b: Any, lower: bool = True) -> Array:
    a, b = _pull(a, b)
    if b.ndim == 1:
        return solve_triangular(a, b[:, None], lower)[..., 0]
    if a.ndim == 2 and b.ndim > 2:  # [*batch, n, k] -> [n, *batch, k]: one solve
        columns = jnp.moveaxis(b, -2, 0)
        flat = columns.reshape(b.shape[-2], -1)
        x = lax.linalg.triangular_solve(a, flat, left_side=True, lower=lower)
        return jnp.moveaxis(x.reshape(columns.shape), 0, -2)
    batch = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a = jnp.broadcast_to(a, batch + a.shape[-2:])
    b = jnp.broadcast_to(b, batch + b.shape[-2:])
    return lax.linalg.triangular_solve(a, b, left_side=True, lower=lower)


def scan(step: Callable, carry: Any, xs: Any, length: int) -> tuple[Any, Any]:
    return lax.scan(step, carry, xs, length=length)


grad = jax.grad


# ---- images, channel-last ------------------------------------------------------------------------


def _on_cpu() -> bool:
    """Whether the trace at hand is for the CPU; either form of a convolution is right anywhere."""
    device = jax.config.jax_default_device
    return (getattr(device, "platform", device) or jax.default_backend()) == "cpu"


def _padding(weight: Array, padding: int | None) -> tuple[int, int]:
    if padding is not None:
        return padding, padding
    return (weight.shape[0] - 1) // 2, (weight.shape[1] - 1) // 2


def _in_a_row(fn: Callable[[Array], Array], x: Array) -> Array:
    """`fn`, of [n, h, w, c], on images [..., h, w, c].

    Data that lie on several devices come first, which are the last axis of those before: behind
    another they could not stay apart, and each device would compute with all of them.
    """
    lead = x.shape[:-3]
    if len(lead) == 1:
        return fn(x)
    at = len(lead) - 1 if lead and placing.get().num_devices > 1 else 0
    x = jnp.moveaxis(x, at, 0)
    y = fn(x.reshape(-1, *x.shape[-3:]))
    return jnp.moveaxis(y.reshape(*x.shape[:-3], *y.shape[1:]), 0, at)


def conv(x: Any, weight: Any, stride: int = 1, padding: int | None = None) -> Array:
    x, weight = _pull(x, weight)
    pads = _padding(weight, padding)
    if _on_cpu():
        return _in_a_row(lambda v: convolve(v, weight, stride, pads), x)
    options = {"padding": [(p, p) for p in pads], "dimension_numbers": LAYOUT}
    return _in_a_row(lambda v: lax.conv_general_dilated(v, weight, (stride,) * 2, **options), x)


def conv_transpose(x: Any, weight: Any, stride: int = 1, padding: int | None = None) -> Array:
    x, weight = _pull(x, weight)
    pads = _padding(weight, padding)
    if _on_cpu():
        return _in_a_row(lambda v: convolve_transposed(v, weight, stride, pads), x)
    sides = [(k - 1 - p, k - 1 - p) for k, p in zip(weight.shape[:2], pads, strict=True)]
    options = {"padding": sides, "lhs_dilation": (stride,) * 2, "dimension_numbers": LAYOUT}
    turned = weight[::-1, ::-1]
    return _in_a_row(lambda v: lax.conv_general_dilated(v, turned, (1, 1), **options), x)


def upsample_nearest(x: Any, factor: int = 2) -> Array:
    *lead, h, w, c = x.shape
    blocks = jnp.broadcast_to(x[..., :, None, :, None, :], (*lead, h, factor, w, factor, c))
    return blocks.reshape(*lead, h * factor, w * factor, c)


def avg_pool(x: Any, window: int = 2, stride: int | None = None) -> Array:
    step = stride or window
    ho, wo = ((size - window) // step + 1 for size in x.shape[-3:-1])
    last_h, last_w = step * (ho - 1) + 1, step * (wo - 1) + 1
    shifted = [
        x[..., i : i + last_h : step, j : j + last_w : step, :]
        for i in range(window)
        for j in range(window)
    ]
    return total(shifted) / (window * window)


def group_norm(
    x: Any, num_groups: int, epsilon: float, scale: Any = None, offset: Any = None
) -> Array:
    *lead, channels = x.shape
    groups = (num_groups, channels // num_groups)

    def mean(y: Array) -> Array:
        # Over pixels, then over a group's channels, whose numbers do not lie side by side.
        of_channel = jnp.mean(jnp.reshape(y, x.shape), axis=-2, keepdims=True)
        of_group = jnp.reshape(of_channel, (*lead[:-1], 1, *groups))
        return jnp.mean(of_group, axis=-1, keepdims=True)

    each = jnp.reshape(x, (*lead, *groups))
    centred = each - mean(each)
    normal = centred * (1.0 / jnp.sqrt(mean(centred * centred) + epsilon))
    normal = jnp.reshape(normal, x.shape)
    return normal if scale is None else normal * scale + offset
