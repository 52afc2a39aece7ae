"""A convolution as slices and matrix products, in three orders, for `convolve.py` to choose from.

Layouts are [n, h, w, cin] and [kh, kw, cin, cout]; the formula is that of `probgen.ops.conv`. Plain
array operations: every transformation of JAX goes through, forward mode and second derivatives
included, and none falls to a slow path inside `lax.scan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

Array = Any


def conv_by_slices(x: Array, weight: Array, stride: int, pads: tuple[int, int]) -> Array:
    """Shifts, then the product: every pixel's kh kw neighbours side by side, times the weight."""
    kh, kw, cin, cout = weight.shape
    x = padded(x, pads)
    ho, wo = ((size - k) // stride + 1 for size, k in zip(x.shape[1:3], (kh, kw), strict=True))
    last_h, last_w = stride * (ho - 1) + 1, stride * (wo - 1) + 1
    patches = [
        x[:, i : i + last_h : stride, j : j + last_w : stride] for i in range(kh) for j in range(kw)
    ]
    return jnp.concatenate(patches, -1) @ weight.reshape(kh * kw * cin, cout)


def conv_by_products(x: Array, weight: Array, pads: tuple[int, int]) -> Array:
    """The product, then shifts, at stride 1: kh kw results a pixel, and their shifted sum.

    It moves fewer numbers where the output has fewer channels than the input.
    """
    kh, kw, cin, cout = weight.shape
    x = padded(x, pads)
    ho, wo = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    z = x @ weight.transpose(2, 0, 1, 3).reshape(cin, kh * kw * cout)
    rows = total([z[:, i : i + ho, :, i * kw * cout : (i + 1) * kw * cout] for i in range(kh)])
    return total([rows[:, :, j : j + wo, j * cout : (j + 1) * cout] for j in range(kw)])


def conv_by_windows(x: Array, weight: Array, pads: tuple[int, int]) -> Array:
    """One output pixel at a time, at stride 1, for a kernel almost as large as the image.

    Such are gradients of weights: the kernel is the output's gradient, the outputs few, and `cin`
    are the images. Those may lie on several devices: their axis keeps to itself, for one that is
    merged with others is gathered by each device first.
    """
    kh, kw, _, cout = weight.shape
    x = padded(x, pads)
    n, ho, wo = len(x), x.shape[1] - kh + 1, x.shape[2] - kw + 1
    windows = [x[:, i : i + kh, j : j + kw] for i in range(ho) for j in range(wo)]
    y = jnp.tensordot(jnp.stack(windows, 1), weight, 3)
    return y.reshape(n, ho, wo, cout)


def padded(x: Array, pads: Sequence[int]) -> Array:
    """With so many zeros on the sides; with fewer than none, cut."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(p, p, 0) for p in (0, *pads, 0)])


def total(terms: Sequence[Array]) -> Array:
    """The sum of arrays of one shape, as one expression for XLA to fuse."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
