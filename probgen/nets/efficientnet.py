"""EfficientNet-Lite: pictures to the features in front of an ImageNet classifier.

    h = relu6(stem(x));  h = block_k(h);  features = mean over places of relu6(head(h))
    block(h) = project(relu6(depthwise(relu6(expand(h)))))  [+ h where its shape stays]

Each layer is a convolution with a bias, into which the batch norm of the published weights is
folded; padding is TensorFlow's "same", whose odd zero comes after. "Lite" has no squeeze-and-excite
and ReLU6 in place of swish. Weights: `probgen.interop.efficientnet_lite0`.

Source: Tan & Le 2019, arXiv:1905.11946; the Lite variants are those of TensorFlow's TPU models.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from probgen.errors import ShapeError
from probgen.language import ops
from probgen.language.declared import declaration, require
from probgen.language.kinds import Width
from probgen.nets.base import (
    Array,
    Key,
    Params,
    Shape,
    check_last,
    draw_weight,
    one_shape,
    zeros,
)
from probgen.nets.layers import Conv, Dense

# Of each stage: repeats, kernel, stride of its first block, expansion, output channels.
LITE0 = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip


class Block(NamedTuple):
    """One inverted bottleneck of `EfficientNetLite`."""

    kernel: int
    stride: int
    cin: int
    hidden: int
    out: int


@declaration
class EfficientNetLite:
    """Pictures [..., h, w, 3] -> features [..., head]; published: of (255 u - 127) / 128.

    Attributes:
        stages: repeats, kernel, stride, expansion and channels of each stage; the default is Lite0.
        stem, head: channels of the first and of the last layer.

    Raises:
        DeclarationError: a stage that is not five numbers.
    """

    stages: tuple[tuple[Width, ...], ...] = LITE0
    stem: Width = 32
    head: Width = 1280

    def __post_init__(self) -> None:
        fits = bool(self.stages) and all(len(stage) == 5 for stage in self.stages)
        require(fits, self, "stages of five numbers each, at least one", "stages")

    def blocks(self) -> list[Block]:
        """All blocks in order, as "block0", "block1", ... of the parameters."""
        found, cin = [], self.stem
        for repeats, kernel, stride, expansion, out in self.stages:
            for i in range(repeats):
                found.append(Block(kernel, 1 if i else stride, cin, expansion * cin, out))
                cin = out
        return found

    def init(self, key: Key, *shapes: Shape) -> Params:
        self.out_shape(*shapes)
        params = {"stem": Conv(self.stem).init(key, (3, 3, 3))}
        for i, block in enumerate(self.blocks()):
            layers = {}
            if block.hidden != block.cin:
                layers["expand"] = Dense(block.hidden, init_scale=2.0).init(key, (block.cin,))
            k = block.kernel
            weight = draw_weight(key, (k, k, block.hidden), k * k, 2.0)
            layers["depthwise"] = {"weight": weight, "bias": zeros(block.hidden)}
            layers["project"] = Dense(block.out).init(key, (block.hidden,))
            params[f"block{i}"] = layers
        last = self.stages[-1][-1]
        return params | {"head": Dense(self.head, init_scale=2.0).init(key, (last,))}

    def apply(self, params: Params, x: Array) -> Array:
        check_last(self, x, 3, 3)
        lead = tuple(x.shape[:-3])
        y = self._features(params, ops.reshape(x, (math.prod(lead), *x.shape[-3:])))
        return ops.reshape(y, (*lead, *y.shape[1:]))

    def _features(self, params: Params, x: Array) -> Array:
        stem = Conv(self.stem, stride=2, padding=0)
        h = relu6(stem.apply(params["stem"], same(x, 3, 2)))
        for i, block in enumerate(self.blocks()):
            h = _block(block, params[f"block{i}"], h)
        return ops.mean(relu6(_dense(params["head"], h)), axis=(1, 2))

    def out_shape(self, *shapes: Shape) -> Shape:
        h, w, c = one_shape(self, shapes, 3)
        if c != 3:
            raise ShapeError(
                f"EfficientNetLite: got pictures of shape {(h, w, c)}, expected (h, w, 3), colours."
            )
        return (self.head,)


def relu6(x: Array) -> Array:
    """min(max(x, 0), 6)."""
    return ops.clip(x, 0.0, 6.0)


def same(x: Array, kernel: int, stride: int) -> Array:
    """x [n, h, w, c] with zeros around it so that a convolution gives ceil(h / stride) rows."""
    widths = []
    for size in x.shape[1:3]:
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        widths.append((total // 2, total - total // 2))
    return ops.pad(x, [(0, 0), *widths, (0, 0)])


def depthwise(x: Array, weight: Array, stride: int) -> Array:
    """Each channel of x [n, h, w, c] with its own kernel of weight [k, k, c], padded as `same`."""
    k = weight.shape[0]
    padded = same(x, k, stride)
    rows, columns = (math.ceil(size / stride) for size in x.shape[1:3])
    total = None
    for a in range(k):
        for b in range(k):
            window = padded[
                :, a : a + (rows - 1) * stride + 1 : stride,
                b : b + (columns - 1) * stride + 1 : stride,
            ]  # fmt: skip
            term = window * weight[a, b]
            total = term if total is None else total + term
    return total


def _block(block: Block, params: Params, x: Array) -> Array:
    h = relu6(_dense(params["expand"], x)) if "expand" in params else x
    own = params["depthwise"]
    h = relu6(depthwise(h, own["weight"], block.stride) + own["bias"])
    h = _dense(params["project"], h)
    return x + h if block.stride == 1 and block.cin == block.out else h


def _dense(params: Params, x: Array) -> Array:
    return Dense(params["weight"].shape[1]).apply(params, x)
