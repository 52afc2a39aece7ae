"""Convolutions on a CPU, each by the route that is fast for its shape, its derivatives too.

At stride 1 XLA's own convolution is up to x5 faster than slices and a matrix product, in loops as
well, as long as its layouts are x [n, h, w, cin], w [kh, kw, cin, cout] and the kernel fits into
the image. The gradients that JAX derives are of other layouts, whose kernel is x10 to x100 slower
inside `lax.scan` (jax issue 12868). But with y = conv(x, w; p) they are, at stride 1,

    g_x = conv(g_y, w turned by half a turn, cin and cout exchanged; k - 1 - p)
    g_w = conv(x, g_y; p), where the images stand for the channels, and cin for the images

so they are written as such, and `conv_p` is closed under derivatives of every order and mode. It is
a primitive since what is mapped is known only once `vmap` has gone through loops and gradients:
mapped images are more images, mapped weights more output channels, and where both are mapped (a
copy of an encoder for each datum) slices are left, for XLA's grouped form is slow.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from probgen.backends.jax.conv import conv_by_products, conv_by_slices, conv_by_windows, padded

Array = Any
Pads = tuple[int, int]

LAYOUT = ("NHWC", "HWIO", "NHWC")


# Where numbers moved decide, not products: outputs so few, or a weight of so few channels in all.
# A large kernel with few output pixels and many channels is as many matrix products.
_FEW_OUTPUTS, _FEW_CHANNELS, _MANY = 4, 64, 32
# Of pairs the ratio of input to output channels, a smaller one where the neighbours of an image
# would fill a cache.
_FEW, _FEW_OF_LARGE, _LARGE = 4, 3, 150_000


def convolve(x: Array, weight: Array, stride: int, pads: Pads) -> Array:
    """Convolution of [n, h, w, cin] with [kh, kw, cin, cout], zeros of `pads` on the sides.

    By slices at other strides, where XLA's gradient is slow, and of single pixels, which are one
    matrix product.
    """
    if stride > 1 or weight.shape[:2] == (1, 1):
        return conv_by_slices(x, weight, stride, pads)
    dtype = jnp.result_type(x, weight)
    return conv_p.bind(x.astype(dtype), weight.astype(dtype), pads=pads)


def convolve_transposed(x: Array, weight: Array, stride: int, pads: Pads) -> Array:
    """Transposed convolution by phases: output pixel s i + r sees only the taps a = s q + r.

    So with the kernel padded to m s taps a side, it is an ordinary m x m convolution from cin to
    s s cout channels, whose channels are then laid out as s x s pixels, and the border cut.
    """
    kh, kw, cin, cout = weight.shape
    s, (n, h, w, _) = stride, x.shape
    mh, mw = -(-kh // s), -(-kw // s)
    weight = jnp.pad(weight, ((0, mh * s - kh), (0, mw * s - kw), (0, 0), (0, 0)))
    taps = weight.reshape(mh, s, mw, s, cin, cout).transpose(0, 2, 4, 1, 3, 5)
    taps = taps[::-1, ::-1].reshape(mh, mw, cin, s * s * cout)
    y = convolve(x, taps, 1, (mh - 1, mw - 1))
    hp, wp = h + mh - 1, w + mw - 1
    y = y.reshape(n, hp, wp, s, s, cout).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(n, hp * s, wp * s, cout)
    ho, wo = (h - 1) * s - 2 * pads[0] + kh, (w - 1) * s - 2 * pads[1] + kw
    return y[:, pads[0] : pads[0] + ho, pads[1] : pads[1] + wo]


# ---- routes --------------------------------------------------------------------------------------


def _route(x: Array, w: Array, *, pads: Pads) -> Array:
    """Of one weight for all images: XLA's own, but for few channels, or few output pixels."""
    outputs, (kh, kw, cin, cout) = math.prod(_out_sides(x.shape, w.shape, pads)), w.shape
    if kh * kw <= outputs and (cout <= _FEW_OUTPUTS or cin * cout <= _FEW_CHANNELS):
        return conv_by_products(x, w, pads)
    if outputs <= _FEW_OUTPUTS < kh * kw and cout >= _MANY:
        return conv_by_windows(x, w, pads)
    if kh * kw <= x.shape[1] * x.shape[2]:
        return _native(x, w, pads)
    # A kernel larger than the image. XLA would swap the two, and then is slow; so they are here.
    q = x.shape[1] + pads[0] - kh, x.shape[2] + pads[1] - kw
    y = _native(w.transpose(3, 0, 1, 2), x.transpose(1, 2, 3, 0), q)
    return y[:, ::-1, ::-1].transpose(3, 1, 2, 0)


def _native(x: Array, w: Array, pads: Pads) -> Array:
    """XLA's own, in the one layout that has a fast kernel; fewer zeros than none are cuts."""
    cuts, zeros = ([f(p, 0) for p in pads] for f in (min, max))
    sides = [(p, p) for p in zeros]
    return lax.conv_general_dilated(padded(x, cuts), w, (1, 1), sides, dimension_numbers=LAYOUT)


def _route_of_pairs(x: Array, w: Array, *, pads: Pads) -> Array:
    """Of a weight for each batch of images: whatever moves the fewest numbers."""
    outputs, (kh, kw, cin, cout) = math.prod(_out_sides(x.shape, w.shape, pads)), w.shape
    if outputs < kh * kw:
        return conv_by_windows(x, w, pads)
    few = _FEW_OF_LARGE if outputs * kh * kw * cin > _LARGE else _FEW
    if few * cout <= cin:
        return conv_by_products(x, w, pads)
    return conv_by_slices(x, w, 1, pads)


# ---- the primitive -------------------------------------------------------------------------------


def _out_sides(x: tuple[int, ...], w: tuple[int, ...], pads: Pads) -> tuple[int, ...]:
    return tuple(size + 2 * p - k + 1 for size, p, k in zip(x[1:3], pads, w[:2], strict=True))


def _of_shape(x: Any, w: Any, *, pads: Pads) -> Any:
    sides = _out_sides(x.shape, w.shape, pads)
    return jax.core.ShapedArray((x.shape[0], *sides, w.shape[3]), x.dtype)


def _image_gradient(ct: Array, x: Any, w: Array, *, pads: Pads) -> Array:
    del x
    pads = w.shape[0] - 1 - pads[0], w.shape[1] - 1 - pads[1]
    return conv_p.bind(ct, w[::-1, ::-1].swapaxes(2, 3), pads=pads)


def _weight_gradient(ct: Array, x: Array, w: Any, *, pads: Pads) -> Array:
    del w
    out = conv_p.bind(x.transpose(3, 1, 2, 0), ct.transpose(1, 2, 0, 3), pads=pads)
    return out.transpose(1, 2, 0, 3)


def _mapped(args: Any, axes: Any, *, pads: Pads) -> tuple[Array, int]:
    (x, w), (at_x, at_w) = args, axes
    if at_w is None:
        x = jnp.moveaxis(x, at_x, 0)
        y = conv_p.bind(lax.collapse(x, 0, 2), w, pads=pads)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    if at_x is None:
        w = jnp.moveaxis(w, at_w, 3)
        y = conv_p.bind(x, lax.collapse(w, 3), pads=pads)
        return y.reshape(*y.shape[:3], *w.shape[3:]), 3
    return jax.vmap(functools.partial(_route_of_pairs, pads=pads), axes)(x, w), 0


conv_p = Primitive("probgen_conv")
conv_p.def_impl(jax.jit(_route, static_argnames="pads"))
conv_p.def_abstract_eval(_of_shape)
ad.defbilinear(conv_p, _image_gradient, _weight_gradient)
batching.primitive_batchers[conv_p] = _mapped
mlir.register_lowering(conv_p, mlir.lower_fun(_route, multiple_results=False))
