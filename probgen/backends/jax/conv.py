"""Convolutions for XLA on CPU: slices and matrix products, fast inside `lax.scan`.

XLA's own CPU convolution falls to a slow path inside a loop (jax issue 12868); with its gradients
these forms are x13 to x80 faster there on one core, near the matrix product alone. Layouts are
[n, h, w, cin] and [kh, kw, cin, cout]; formulas are those of `probgen.ops.conv`. Plain array
operations: every transformation of JAX goes through, forward mode and second derivatives included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

Array = Any

# From this ratio of input to output channels on, shifting products is cheaper than shifting inputs;
# of images whose neighbours would fill a cache, from a smaller one on.
_FEW_OUTPUTS = 8  # of a transposed convolution's phases
_FEW, _FEW_OF_LARGE, _LARGE = 4, 3, 150_000  # numbers of one image's neighbours


def conv_by_slices(x: Array, weight: Array, stride: int, pads: tuple[int, int]) -> Array:
    """Convolution as one matrix product, before or after the shifts.

    Before: every pixel's kh kw neighbours side by side, times the weight. After, when the output
    has far fewer channels than the input: the product first, kh kw results a pixel, then their
    shifted sum. Whichever moves fewer numbers; XLA derives gradients of the same two kinds.
    """
    kh, kw, cin, cout = weight.shape
    ho, wo = (
        (size + 2 * p - k) // stride + 1
        for size, p, k in zip(x.shape[1:3], pads, (kh, kw), strict=True)
    )
    x = jnp.pad(x, ((0, 0), (pads[0],) * 2, (pads[1],) * 2, (0, 0)))
    few = _FEW_OF_LARGE if ho * wo * kh * kw * cin > _LARGE else _FEW
    if stride == 1 and few * cout <= cin:
        z = x @ weight.transpose(2, 0, 1, 3).reshape(cin, kh * kw * cout)
        rows = total([z[:, i : i + ho, :, i * kw * cout : (i + 1) * kw * cout] for i in range(kh)])
        return total([rows[:, :, j : j + wo, j * cout : (j + 1) * cout] for j in range(kw)])
    last_h, last_w = stride * (ho - 1) + 1, stride * (wo - 1) + 1
    patches = [
        x[:, i : i + last_h : stride, j : j + last_w : stride] for i in range(kh) for j in range(kw)
    ]
    return jnp.concatenate(patches, -1) @ weight.reshape(kh * kw * cin, cout)


def conv_transpose_by_phases(x: Array, weight: Array, stride: int, pads: tuple[int, int]) -> Array:
    """Transposed convolution by phases: output pixel s i + r sees only the taps a = s q + r.

    So with the kernel padded to m s taps a side, it is an ordinary m x m convolution from cin to
    s s cout channels, whose channels are then laid out as s x s pixels, and the border cut.
    """
    kh, kw, cin, cout = weight.shape
    s, (n, h, w, _) = stride, x.shape
    mh, mw = -(-kh // s), -(-kw // s)
    weight = jnp.pad(weight, ((0, mh * s - kh), (0, mw * s - kw), (0, 0), (0, 0)))
    taps = weight.reshape(mh, s, mw, s, cin, cout).transpose(0, 2, 4, 1, 3, 5)
    channels = s * s * cout
    if _FEW_OUTPUTS * cout <= cin:
        phases = _overlap_add(x, taps.reshape(mh, mw, cin, channels))
    else:
        phases = conv_by_slices(
            x, taps[::-1, ::-1].reshape(mh, mw, cin, channels), 1, (mh - 1, mw - 1)
        )
    hp, wp = h + mh - 1, w + mw - 1
    y = phases.reshape(n, hp, wp, s, s, cout).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(n, hp * s, wp * s, cout)
    ho, wo = (h - 1) * s - 2 * pads[0] + kh, (w - 1) * s - 2 * pads[1] + kw
    return y[:, pads[0] : pads[0] + ho, pads[1] : pads[1] + wo]


def _overlap_add(x: Array, weight: Array) -> Array:
    """y[i + a] += x[i] weight[a]: the product first, then each tap's result to its place."""
    kh, kw, cin, cout = weight.shape
    z = x @ weight.transpose(2, 0, 1, 3).reshape(cin, kh * kw * cout)
    return total(
        [
            jnp.pad(
                z[..., (i * kw + j) * cout : (i * kw + j + 1) * cout],
                ((0, 0), (i, kh - 1 - i), (j, kw - 1 - j), (0, 0)),
            )
            for i in range(kh)
            for j in range(kw)
        ]
    )


def total(terms: Sequence[Array]) -> Array:
    """The sum of arrays of one shape, as one expression for XLA to fuse."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
