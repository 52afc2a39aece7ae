"""Convolutional encoder, decoder and energy: strided stacks between an image and an array.

Images are channel-last [..., h, w, c]. Kernel k and stride s go with (k - s) / 2 zeros on each
side, so that a layer divides (encoder) or multiplies (decoder) the sides by exactly s.
"""

from __future__ import annotations

import math
from typing import Any

from probgen.language import ops
from probgen.language.declared import declaration, require
from probgen.language.kinds import Width, Widths
from probgen.nets.base import (
    Activation,
    Array,
    EventAxes,
    Heads,
    Key,
    Params,
    Shape,
    activation,
    numbered,
    one_shape,
    scale_before,
)
from probgen.nets.layers import Conv, ConvTranspose
from probgen.nets.mlp import MLP, event_shape
from probgen.nets.norms import SpectralNorm


@declaration
class ConvEncoder:
    """Strided convolutions, flattened, then an MLP: [..., h, w, c] -> [..., *out].

    Parameters are {"conv0", "conv1", ..., "head": those of the MLP}.

    Attributes:
        channels: output channels of the convolutions.
        out, heads, hidden: of the MLP that follows.
        kernel, stride: of every convolution.
        activation: its name.
        spectral: divide every weight by its largest singular value; see `SpectralNorm`.
    """

    channels: Widths = (32, 64)
    out: Width | tuple[Width, ...] = 16
    heads: Heads = None
    hidden: tuple[Width, ...] = ()
    kernel: Width = 4
    stride: Width = 2
    activation: Activation = "relu"
    spectral: bool = False

    def _convs(self) -> list[tuple[str, Any]]:
        scale, padding = scale_before(self.activation), max((self.kernel - self.stride + 1) // 2, 0)
        layers = [
            Conv(c, self.kernel, self.stride, padding, init_scale=scale) for c in self.channels
        ]
        return [
            (numbered("conv", i, len(layers)), SpectralNorm(v) if self.spectral else v)
            for i, v in enumerate(layers)
        ]

    def _head(self) -> MLP:
        return MLP(
            self.hidden,
            self.out,
            self.heads,
            self.activation,
            in_ndim=1,
            spectral=self.spectral,
        )

    def init(self, key: Key, *shapes: Shape) -> Params:
        shape = one_shape(self, shapes, 3)
        params = {}
        for name, layer in self._convs():
            params[name] = layer.init(key, shape)
            shape = layer.out_shape(shape)
        return params | {"head": self._head().init(key, (math.prod(shape),))}

    def apply(self, params: Params, x: Array) -> Any:
        act = activation(self.activation)
        lead = len(x.shape) - 3
        for name, layer in self._convs():
            x = act(layer.apply(params[name], x))
        flat = ops.reshape(x, (*x.shape[:lead], math.prod(x.shape[lead:])))
        return self._head().apply(params["head"], flat)

    def out_shape(self, *shapes: Shape) -> Shape:
        return event_shape(self.out)


@declaration
class ConvDecoder:
    """An MLP to a small map, then transposed convolutions: [..., *event] -> [..., h, w, c].

    There are as many transposed convolutions as `channels`; the map at the start has channels[0]
    channels and sides h / stride^len(channels), w / stride^len(channels). Parameters are
    {"stem": those of the MLP, "conv0", "conv1", ...}.

    Attributes:
        channels: channels of the maps, the start first; the last convolution gives those of `out`.
        out: (h, w, c).
        kernel, stride: of every transposed convolution; kernel - stride must be even.
        hidden: widths of dense layers before the map.
        heads: None, or names: the output is then a dict of arrays, each of shape `out`.
        activation: its name.
        in_ndim: number of input axes of an event, as in `MLP`.

    Raises:
        DeclarationError: when declared, if stride^len(channels) does not divide the sides of `out`.
    """

    channels: Widths = (64, 32)
    out: tuple[Width, Width, Width] = (28, 28, 1)
    kernel: Width = 4
    stride: Width = 2
    hidden: tuple[Width, ...] = ()
    heads: Heads = None
    activation: Activation = "relu"
    in_ndim: EventAxes = None

    def __post_init__(self) -> None:
        factor = self.stride ** len(self.channels)
        require(
            not (self.out[0] % factor or self.out[1] % factor), self,
            f"(h, w, c) with sides that {factor} divides, stride^layers; use fewer channels "
            "(layers), another stride, or pad the images",
            "out", "channels", "stride",
        )  # fmt: skip
        require(
            self.kernel >= self.stride and (self.kernel - self.stride) % 2 == 0, self,
            "a kernel that is larger by an even number, to multiply the sides exactly; take "
            f"kernel={self.stride + 2}",
            "kernel", "stride",
        )  # fmt: skip

    def _start(self) -> Shape:
        factor = self.stride ** len(self.channels)
        return self.out[0] // factor, self.out[1] // factor, self.channels[0]

    def _stem(self) -> MLP:
        scale = scale_before(self.activation)
        return MLP(
            self.hidden,
            self._start(),
            activation=self.activation,
            in_ndim=self.in_ndim,
            out_scale=scale,
        )

    def _convs(self) -> list[tuple[str, ConvTranspose]]:
        padding = (self.kernel - self.stride) // 2
        last = self.out[2] * (1 if self.heads is None else len(self.heads))
        outs = [*self.channels[1:], last]
        scales = [scale_before(self.activation)] * (len(outs) - 1) + [1.0]
        return [
            (
                numbered("conv", i, len(outs)),
                ConvTranspose(c, self.kernel, self.stride, padding, init_scale=scale),
            )
            for i, (c, scale) in enumerate(zip(outs, scales, strict=True))
        ]

    def init(self, key: Key, *shapes: Shape) -> Params:
        params = {"stem": self._stem().init(key, *shapes)}
        shape = self._start()
        for name, layer in self._convs():
            params[name] = layer.init(key, shape)
            shape = layer.out_shape(shape)
        return params

    def apply(self, params: Params, *inputs: Array) -> Any:
        act = activation(self.activation)
        x = self._stem().apply(params["stem"], *inputs)
        for name, layer in self._convs():
            x = layer.apply(params[name], act(x))
        if self.heads is None:
            return x
        c = self.out[2]
        return {name: x[..., i * c : (i + 1) * c] for i, name in enumerate(self.heads)}

    def out_shape(self, *shapes: Shape) -> Shape:
        return tuple(self.out)


@declaration
class ConvEnergy:
    """A number per image: [..., h, w, c] -> [...], minus a log density up to a constant.

    Attributes:
        channels: output channels of the strided convolutions.
        hidden: widths of dense layers after them.
        kernel, stride: of every convolution.
        activation: its name; a smooth one gives Langevin dynamics a continuous score.
        spectral: divide every weight by its largest singular value; see `SpectralNorm`.
    """

    channels: Widths = (32, 64)
    hidden: tuple[Width, ...] = ()
    kernel: Width = 4
    stride: Width = 2
    activation: Activation = "silu"
    spectral: bool = False

    def _net(self) -> ConvEncoder:
        return ConvEncoder(
            self.channels,
            (),
            None,
            self.hidden,
            self.kernel,
            self.stride,
            self.activation,
            self.spectral,
        )

    def init(self, key: Key, *shapes: Shape) -> Params:
        return self._net().init(key, *shapes)

    def apply(self, params: Params, x: Array) -> Array:
        return self._net().apply(params, x)

    def out_shape(self, *shapes: Shape) -> Shape:
        return ()
