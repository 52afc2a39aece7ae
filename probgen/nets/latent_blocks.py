"""What a latent steers in a network of images: group norms whose scale and shift are made of it."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from probgen.language.declared import declaration
from probgen.language.kinds import NonNegative, Positive, Width
from probgen.nets.base import Activation, Array, Key, Params, Shape, activation, scale_before
from probgen.nets.layers import Conv, Dense
from probgen.nets.norms import GroupNorm, groups_for
from probgen.nets.resampling import double, halve

ROOT_TWO = math.sqrt(2.0)
RESAMPLE = {"none": lambda x: x, "down": halve, "up": double}
SMALL = 1e-10  # `init_scale` of layers that start near 0 and not at it


@declaration
class LatentGroupNorm:
    """(x [..., h, w, c], w [..., m]) -> s(w) normal(x) + b(w): a group norm steered by w.

    (s, b) is a linear map of w whose bias starts at (1, 0). Without w it is a `GroupNorm`.

    Attributes:
        num_groups: the largest common divisor with the channels is taken.
        epsilon: added to the variance.

    Source: Xiao, Kreis & Vahdat 2022, arXiv:2112.07804, appendix C.
    """

    num_groups: Width = 32
    epsilon: Positive = 1e-6

    def _norm(self, channels: int) -> GroupNorm:
        # At most c / 4 groups, so that none has fewer than four channels.
        groups = min(max(channels // 4, 1), self.num_groups)
        return GroupNorm(groups_for(channels, groups), self.epsilon)

    def init(self, key: Key, *shapes: Shape) -> Params:
        channels = shapes[0][-1]
        plain = self._norm(channels).init(key, shapes[0])
        if len(shapes) == 1:
            return plain
        style = Dense(2 * channels).init(key, shapes[1])
        bias = np.concatenate([plain["scale"], plain["offset"]])
        return {"style": {**style, "bias": bias}}

    def apply(self, params: Params, x: Array, w: Array | None = None) -> Array:
        channels = x.shape[-1]
        if w is None:
            return self._norm(channels).apply(params, x)
        style = Dense(2 * channels).apply(params["style"], w)[..., None, None, :]
        normal = self._norm(channels).normal(x)
        return style[..., :channels] * normal + style[..., channels:]

    def out_shape(self, *shapes: Shape) -> Shape:
        return tuple(shapes[0])


@declaration
class LatentBlock:
    """(x [..., h, w, c], time [..., e], w [..., m] or none) -> [..., h', w', out].

        h = conv(resample(act(norm(x, w)))) + dense(act(time))
        (skip(resample(x)) + conv(act(norm(h, w)))) / sqrt 2

    skip is the identity, or a 1 x 1 convolution where channels or sides change. The last
    convolution starts near 0.

    Attributes:
        out: output channels.
        resample: "none", "down" (halved) or "up" (doubled).
        num_groups: of the norms.
        activation: its name.
        out_scale: `init_scale` of the last convolution.

    Source: Song et al. 2021, arXiv:2011.13456, appendix H (NCSN++); Brock, Donahue & Simonyan 2019,
    arXiv:1809.11096.
    """

    out: Width
    resample: Literal["none", "down", "up"] = "none"
    num_groups: Width = 32
    activation: Activation = "silu"
    out_scale: NonNegative = SMALL

    def _skips(self, channels: int) -> bool:
        return channels != self.out or self.resample != "none"

    def init(self, key: Key, *shapes: Shape) -> Params:
        x, time, *w = shapes
        norm, scale = LatentGroupNorm(self.num_groups), scale_before(self.activation)
        inner = (*x[:2], self.out)
        params = {
            "norm0": norm.init(key, x, *w),
            "conv0": Conv(self.out).init(key, x),
            "time": Dense(self.out).init(key, time),
            "norm1": norm.init(key, inner, *w),
            "conv1": Conv(self.out, init_scale=self.out_scale * scale).init(key, inner),
        }
        if self._skips(x[2]):
            params["skip"] = Conv(self.out, 1).init(key, x)
        return params

    def apply(self, params: Params, x: Array, time: Array, w: Array | None = None) -> Array:
        act, norm = activation(self.activation), LatentGroupNorm(self.num_groups)
        moved = RESAMPLE[self.resample]
        h = moved(act(norm.apply(params["norm0"], x, w)))
        h = Conv(self.out).apply(params["conv0"], h)
        h = h + Dense(self.out).apply(params["time"], act(time))[..., None, None, :]
        h = Conv(self.out).apply(params["conv1"], act(norm.apply(params["norm1"], h, w)))
        x = moved(x)
        if "skip" in params:
            x = Conv(self.out, 1).apply(params["skip"], x)
        return (x + h) / ROOT_TWO

    def out_shape(self, *shapes: Shape) -> Shape:
        h, w, _ = shapes[0]
        if self.resample == "down":
            return h // 2, w // 2, self.out
        return (2 * h, 2 * w, self.out) if self.resample == "up" else (h, w, self.out)
