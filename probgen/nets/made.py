"""The masked autoencoder: a perceptron whose i-th outputs read only the inputs before the i-th."""

from __future__ import annotations

import functools
import itertools

import numpy as np

from probgen.errors import ShapeError
from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import NonNegative, Width
from probgen.nets.base import (
    Activation,
    Array,
    Key,
    Params,
    Shape,
    activation,
    check_last,
    draw_weight,
    numbered,
    scale_before,
    zeros,
)


@declaration
class MADE:
    """[..., d] (and contexts [..., c]) -> [..., out, d]: those of i read x_1 ... x_{i-1} alone.

    Every unit has a degree, how many inputs it may have seen, and a weight is there where the
    degrees allow it: from inputs and units to units of at least their degree, and on to the
    outputs of inputs that come later. Degrees of hidden units are 1 ... d - 1 in turn. The first
    outputs are constants; where there are contexts, which every unit reads, degrees start at 0 and
    the first outputs are functions of the contexts.

    Attributes:
        hidden: widths of the hidden layers; () is one masked affine map.
        out: numbers for each input.
        activation: its name.
        reverse: the order of the inputs: i reads those after it.
        out_scale: `init_scale` of the last layer. Weights start as normal with the variance that
            the number of inputs under the mask gives.

    Source: Germain, Gregor, Murray & Larochelle 2015, arXiv:1502.03509, section 4.
    """

    hidden: tuple[Width, ...] = (64, 64)
    out: Width = 1
    activation: Activation = "relu"
    reverse: bool = False
    out_scale: NonNegative = 1.0

    in_ndim = 1  # every input is a vector

    def _layers(self, d: int, num_contexts: int) -> list[tuple[str, np.ndarray, float]]:
        """(name, mask [in, out], init scale) of each layer."""
        scale = scale_before(self.activation)
        names = [numbered("layer", i, len(self.hidden)) for i in range(len(self.hidden))]
        scales = [scale] * len(names) + [self.out_scale]
        made = masks(d, self.hidden, self.out, self.reverse, 0 if num_contexts else 1)
        return list(zip([*names, "out"], made, scales, strict=True))

    def init(self, key: Key, *shapes: Shape) -> Params:
        if not shapes or any(len(s) != 1 for s in shapes) or shapes[0][0] < 1:
            raise ShapeError(
                f"MADE.init: got inputs of shapes {[*shapes]}, expected a vector [d] and contexts "
                "[c]; flatten images first."
            )
        params: Params = {}
        for name, mask, scale in self._layers(shapes[0][0], len(shapes) - 1):
            weight = draw_weight(key, mask.shape, 1, scale)
            seen = np.maximum(mask.sum(0), 1.0)
            params[name] = {
                "weight": (weight * mask / np.sqrt(seen)).astype(np.float32),
                "bias": zeros(mask.shape[1]),
            }
        first = next(iter(params.values()))["bias"].shape[0]
        for name, (c,) in zip(self._contexts(len(shapes) - 1), shapes[1:], strict=True):
            params[name] = {"weight": draw_weight(key, (c, first), c, 1.0)}
        return params

    def _contexts(self, count: int) -> list[str]:
        return [numbered("context", i, count) for i in range(count)]

    def apply(self, params: Params, x: Array, *contexts: Array) -> Array:
        d = params["out"]["bias"].shape[0] // self.out
        check_last(self, x, d)
        act, h = activation(self.activation), x
        for i, (name, mask, _) in enumerate(self._layers(d, len(contexts))):
            layer = params[name]
            h = (h if i == 0 else act(h)) @ (layer["weight"] * ops.asarray_like(mask, h))
            h = h + layer["bias"]
            for each, context in zip(self._contexts(len(contexts)), contexts, strict=True):
                h = h + context @ params[each]["weight"] if i == 0 else h
        return ops.reshape(h, (*h.shape[:-1], self.out, d))

    def out_shape(self, *shapes: Shape) -> Shape:
        return (self.out, *shapes[0])


@functools.lru_cache(maxsize=256)
def masks(
    d: int, hidden: tuple[int, ...], out: int, reverse: bool, lowest: int
) -> tuple[np.ndarray, ...]:
    """[in, out] ones and zeros of each layer; an output is (number, input), inputs fastest."""
    order = np.arange(1, d + 1)
    order = order[::-1] if reverse else order
    degrees = [order, *(lowest + np.arange(n) % max(d - lowest, 1) for n in hidden)]
    inner = [a[:, None] <= b for a, b in itertools.pairwise(degrees)]
    last = degrees[-1][:, None] < np.tile(order, out)
    return tuple(mask.astype(np.float32) for mask in (*inner, last))
