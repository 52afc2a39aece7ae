"""Time as a vector, for networks that denoise at many noise levels."""

from __future__ import annotations

import math
from typing import Annotated

from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import Positive, Width, between
from probgen.nets.base import Array, Key, Params, Shape, one_shape
from probgen.nets.layers import Dense


@declaration
class TimeEmbedding:
    """Sinusoids of a time, then optionally dense, SiLU, dense: [...] -> [..., dim or hidden].

        [sin(t w_0), sin(t w_1), ..., cos(t w_0), cos(t w_1), ...]
        w_i = max_period^(-i / (dim/2 - freq_shift)),  i = 0 ... dim/2 - 1

    The defaults are those of DDPM and of diffusers' `get_timestep_embedding`. Give t in steps
    (0 ... 999), or multiply a time in [0, 1] by `time_scale`. An odd dim ends in a zero.

    Attributes:
        dim: number of sinusoids.
        hidden: width of the two dense layers after them; None for none.
        max_period: the slowest wave's period over 2 pi.
        freq_shift: 1 as in DDPM; 0 as in diffusers' UNet2DModel.
        flip_sin_to_cos: cosines first, as in diffusers' UNet2DModel.
        time_scale: factor on t.

    Source: Ho, Jain & Abbeel 2020, arXiv:2006.11239, appendix B; Vaswani et al. 2017,
    arXiv:1706.03762, section 3.5.
    """

    dim: Annotated[int, between(2, 10**6)] = 128
    hidden: Width | None = None
    max_period: Positive = 10_000.0
    freq_shift: float = 1.0
    flip_sin_to_cos: bool = False
    time_scale: Positive = 1.0

    def init(self, key: Key, *shapes: Shape) -> Params:
        one_shape(self, shapes, 0)
        if self.hidden is None:
            return {}
        return {
            "layer0": Dense(self.hidden).init(key, (self.dim,)),
            "layer1": Dense(self.hidden).init(key, (self.hidden,)),
        }

    def apply(self, params: Params, t: Array) -> Array:
        waves = self.waves(1.0 * t)
        if self.hidden is None:
            return waves
        h = ops.silu(Dense(self.hidden).apply(params["layer0"], waves))
        return Dense(self.hidden).apply(params["layer1"], h)

    def waves(self, t: Array) -> Array:
        """[..., dim] the sinusoids of a floating-point time [...]."""
        half = self.dim // 2
        rate = -math.log(self.max_period) / max(half - self.freq_shift, 1.0)
        angle = self.time_scale * t[..., None] * ops.exp(ops.arange_like(half, t) * rate)
        parts = [ops.sin(angle), ops.cos(angle)]
        if self.flip_sin_to_cos:
            parts.reverse()
        if self.dim % 2:
            parts.append(ops.zeros_like(t[..., None]))
        return ops.concatenate(parts, axis=-1)

    def out_shape(self, *shapes: Shape) -> Shape:
        one_shape(self, shapes, 0)
        return (self.dim if self.hidden is None else self.hidden,)
