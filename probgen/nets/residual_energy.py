"""A residual energy of images: 3 x 3 convolutions, no statistics of data in it but at its start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from probgen.errors import DeclarationError
from probgen.language import ops
from probgen.language.declared import declaration, require
from probgen.language.kinds import Axes, Positive, Widths
from probgen.nets.base import (
    Activation,
    Array,
    Key,
    Params,
    Shape,
    activation,
    numbered,
    one_shape,
    scale_before,
)
from probgen.nets.layers import Conv, Dense
from probgen.nets.weight_norm import WeightNorm
from probgen.trees import tree_map


@declaration
class ResidualEnergy:
    """A number per image [..., h, w, c] -> [...]: convolutions with skips, a sum over space.

        x = conv(x)
        x = act(halve(conv(act(conv(x))) + skip(x)))        a block for each of `channels`
        E = w . sum_{pixels} x + b

    skip is the identity, or a 1 x 1 convolution where the channels change; halve, the mean of 2 x 2
    pixels, is in the blocks that `halved` names. The sum makes the energy grow with the picture.

    Attributes:
        channels: of the blocks; of the first convolution, the first of them.
        halved: places of the blocks that halve both sides; None is every second, from the first on.
        activation: its name; "lipswish", x sigmoid(x) / 1.1, has slopes of at most one.
        weight_norm: length and direction of the convolutions' weights apart (`WeightNorm`), started
            from the first batch so that what leaves a convolution has the standard deviation
            `start_scale`.
        start_scale: small, so that the energy starts flat.

    Raises (when bound): DeclarationError: sides that cannot be halved so often.

    Source: Xiao et al. 2021, arXiv:2010.00654, appendix (for 28 x 28: channels 64, 64, 128, 128).
    """

    channels: Widths = (64, 64, 128, 128)
    halved: tuple[Axes, ...] | None = None
    activation: Activation = "lipswish"
    weight_norm: bool = True
    start_scale: Positive = 0.2

    def __post_init__(self) -> None:
        places = range(len(self.channels))
        fits = all(i in places for i in self.halved or ())
        require(fits, self, f"places of blocks, from 0 to {len(self.channels) - 1}", "halved")

    @property
    def wants_data(self) -> bool:
        return self.weight_norm

    def _halves(self, block: int) -> bool:
        return block % 2 == 0 if self.halved is None else block in self.halved

    def _run(self, take: Callable, x: Any, halve: Callable, act: Callable, add: Callable) -> Any:
        """The blocks on x, each layer by take(name, layer, x)."""
        scale = scale_before(self.activation)

        def conv(name: str, width: int, x: Any, init_scale: float = 1.0, kernel: int = 3) -> Any:
            layer: Any = Conv(width, kernel, init_scale=init_scale)
            if self.weight_norm:
                layer = WeightNorm(layer, self.start_scale)
            return take(name, layer, x)

        x, width = conv("stem", self.channels[0], x), self.channels[0]
        for i, out in enumerate(self.channels):
            block = numbered("block", i, len(self.channels))
            h = conv(f"{block}_conv0", out, x)
            h = conv(f"{block}_conv1", out, act(h), scale)
            h = add(h, x if out == width else conv(f"{block}_skip", out, x, kernel=1))
            x, width = act(halve(h) if self._halves(i) else h), out
        return x

    def init(self, key: Key, *shapes: Shape, data: Sequence[Array] | None = None) -> Params:
        params: dict[str, Any] = {}

        def take(name: str, layer: Any, shape: Shape) -> Shape:
            params[name] = layer.init(key, shape)
            return layer.out_shape(shape)

        shape = self._run(
            take, one_shape(self, shapes, 3), _half_of, lambda s: s, lambda s, other: s
        )
        params["out"] = Dense(1).init(key, shape[-1:])
        if data is None or not self.weight_norm:
            return params

        def start(name: str, layer: Any, x: Array) -> Array:
            params[name] = layer.started(params[name], x)
            return layer.apply(tree_map(lambda v: ops.asarray_like(v, x), params[name]), x)

        self._run(start, data[0], _half, activation(self.activation), lambda h, skip: h + skip)
        return params

    def apply(self, params: Params, x: Array) -> Array:
        def take(name: str, layer: Any, x: Array) -> Array:
            return layer.apply(params[name], x)

        act = activation(self.activation)
        h = self._run(take, x, _half, act, lambda h, skip: h + skip)
        return Dense(1).apply(params["out"], ops.sum(h, axis=(-3, -2)))[..., 0]

    def out_shape(self, *shapes: Shape) -> Shape:
        return ()


def _half_of(shape: Shape) -> Shape:
    h, w, c = shape
    if h % 2 or w % 2:
        raise DeclarationError(
            f"ResidualEnergy: got maps of {h} x {w} pixels to halve, expected even sides; halve "
            "fewer blocks (halved=...), or pad the pictures."
        )
    return h // 2, w // 2, c


def _half(x: Array) -> Array:
    *lead, h, w, c = x.shape
    blocks = ops.reshape(x, (*lead, h // 2, 2, w // 2, 2, c))
    return ops.mean(blocks, axis=(-4, -2))
