"""The generator of a denoising diffusion GAN for images: a U-Net that a latent steers.

z, brought to unit length, becomes w by dense layers, and w the scale and shift of every group norm
(`LatentGroupNorm`). Down: at each level blocks, then a block that halves, and the image itself,
halved and convolved, joins. A middle of block, attention, block. Up: blocks joined with what the
way down left, then a block that doubles. Every sum of two paths is divided by sqrt 2. Left out of
the paper's: dropout, which it sets to zero, and the Fourier features that NCSN++ has for sigma.

Source: Xiao, Kreis & Vahdat 2022, arXiv:2112.07804, appendix C; Song et al. 2021, arXiv:2011.13456.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

from probgen.errors import ShapeError
from probgen.language import ops
from probgen.language.declared import declaration, require
from probgen.language.kinds import Size, Width, Widths, between
from probgen.nets.base import (
    Activation,
    Array,
    Key,
    Params,
    Shape,
    activation,
    check_last,
    numbered,
)
from probgen.nets.latent_blocks import ROOT_TWO, SMALL, LatentBlock
from probgen.nets.latent_denoiser import parted, pixel_norm
from probgen.nets.layers import Conv, Dense
from probgen.nets.norms import GroupNorm, groups_for
from probgen.nets.resampling import halve
from probgen.nets.time import TimeEmbedding
from probgen.nets.unet import AttentionBlock


@declaration
class LatentUNet:
    """G(x_t [..., h, w, c], z [..., L], t [...]) -> [..., h, w, c]; without a latent, G(x_t, t).

    A last input after t, the context [..., m, c] of a condition, joins the embedding of the time by
    a dense layer of its m c numbers. The last convolution starts near 0, so that the untrained
    output is nearly 0.

    Attributes:
        channels: one number a level, the finest first; CIFAR-10: (128, 256, 256, 256).
        num_blocks: residual blocks a level.
        attention_levels: levels (0 is the finest) with attention; the middle always has it.
        latent_width: of w.
        latent_layers: dense layers from z to w after the first.
        num_heads: of attention.
        num_groups: of group norms, at most, and none with fewer than four channels.
        activation: its name.
        is_bounded: a tanh at the end, for data in [-1, 1].
        has_pyramid: the image joins at every level.

    Raises:
        ShapeError: at `init`, if 2^(levels - 1) does not divide the sides of the image.
    """

    channels: Widths = (32, 64)
    num_blocks: Annotated[int, between(1, 1000)] = 1
    attention_levels: tuple[Size, ...] = ()
    latent_width: Width = 256
    latent_layers: Size = 4
    num_heads: Width = 1
    num_groups: Width = 32
    activation: Activation = "silu"
    is_bounded: bool = True
    has_pyramid: bool = True

    def __post_init__(self) -> None:
        last = len(self.channels) - 1
        fits = all(level <= last for level in self.attention_levels)
        require(fits, self, f"levels among 0 ... {last}", "attention_levels", "channels")

    # One plan serves init and apply: (name, layer, kind), in order of execution.
    def _plan(self) -> Iterator[tuple[str, Any, str]]:
        deepest = len(self.channels) - 1
        yield "in", Conv(self.channels[0]), "plain save"
        for level, c in enumerate(self.channels):
            attends = level in self.attention_levels
            for i in range(self.num_blocks):
                yield f"down{level}_block{i}", self._block(c), "block" if attends else "block save"
                if attends:
                    yield f"down{level}_attention{i}", self._attention(), "attend save"
            if level < deepest:
                kind = "block" if self.has_pyramid else "block save"
                yield f"down{level}_down", self._block(c, "down"), kind
                if self.has_pyramid:
                    yield f"down{level}_image", Conv(c), "pyramid save"
        c = self.channels[-1]
        yield "middle_block0", self._block(c), "block"
        yield "middle_attention", self._attention(), "attend"
        yield "middle_block1", self._block(c), "block"
        for level in range(deepest, -1, -1):
            c = self.channels[level]
            for i in range(self.num_blocks + 1):
                yield f"up{level}_block{i}", self._block(c), "block join"
            if level in self.attention_levels:
                yield f"up{level}_attention", self._attention(), "attend"
            if level:
                yield f"up{level}_up", self._block(c, "up"), "block"

    def _block(self, channels: int, resample: Any = "none") -> LatentBlock:
        return LatentBlock(channels, resample, self.num_groups, self.activation)

    def _attention(self) -> AttentionBlock:
        return AttentionBlock(self.num_heads, self.num_groups)

    def _time(self) -> TimeEmbedding:
        return TimeEmbedding(self.channels[0], 4 * self.channels[0])

    def _style_layers(self) -> list[str]:
        total = self.latent_layers + 1
        return [numbered("layer", i, total) for i in range(total)]

    def _norm(self, channels: int) -> GroupNorm:
        return GroupNorm(groups_for(channels, self.num_groups))

    def init(self, key: Key, *shapes: Shape) -> Params:
        self.out_shape(*shapes)
        context = [s for s in shapes[-1:] if len(s) == 2]
        image, *latent = shapes[: len(shapes) - len(context) - 1]
        time = self._time()
        params: dict[str, Any] = {"time": time.init(key, ())}
        emb = time.out_shape(())
        for tokens in context:
            params["context"] = Dense(emb[0]).init(key, (math.prod(tokens),))
        w: tuple[Any, ...] = ()
        if latent:
            size, layers = latent[0], {}
            for name in self._style_layers():
                layers[name] = Dense(self.latent_width).init(key, size)
                size = (self.latent_width,)
            params["latent"], w = layers, (size,)
        saved: list[Shape] = []
        x = pyramid = tuple(image)
        for name, layer, kind in self._plan():
            if "join" in kind:
                x = (*x[:2], x[2] + saved.pop()[2])
            if "pyramid" in kind:
                pyramid = (pyramid[0] // 2, pyramid[1] // 2, pyramid[2])
                params[name] = layer.init(key, pyramid)
                pyramid = x
            else:
                extra = (emb, *w) if "block" in kind else ()
                params[name] = layer.init(key, x, *extra)
                x = layer.out_shape(x, *extra) if "attend" not in kind else x
            if "save" in kind:
                saved.append(x)
        params["norm"] = self._norm(x[2]).init(key, x)
        params["out"] = Conv(image[2], init_scale=SMALL).init(key, x)
        return params

    def apply(self, params: Params, x: Array, *rest: Array) -> Array:
        check_last(self, x, params["in"]["weight"].shape[2], 3)
        latent, t, context = parted(rest, x.ndim - 3)
        act, channels = activation(self.activation), x.shape[-1]
        lead = tuple(x.shape[:-3])
        emb = self._time().apply(params["time"], ops.broadcast_to(ops.asarray_like(t, x), lead))
        for tokens in context:
            flat = ops.reshape(tokens, (*tokens.shape[:-2], math.prod(tokens.shape[-2:])))
            emb = emb + Dense(emb.shape[-1]).apply(params["context"], flat)
        w: tuple[Array, ...] = ()
        if latent:
            h = pixel_norm(latent[0])
            for name in self._style_layers():
                h = act(Dense(self.latent_width).apply(params["latent"][name], h))
            w = (h,)
        saved: list[Array] = []
        pyramid = x
        for name, layer, kind in self._plan():
            if "join" in kind:
                x = ops.concatenate([x, saved.pop()], axis=-1)
            if "pyramid" in kind:
                x = pyramid = (x + layer.apply(params[name], halve(pyramid))) / ROOT_TWO
            elif "attend" in kind:
                x = layer.apply(params[name], x) / ROOT_TWO
            else:
                x = layer.apply(params[name], x, *((emb, *w) if "block" in kind else ()))
            if "save" in kind:
                saved.append(x)
        x = act(self._norm(x.shape[-1]).apply(params["norm"], x))
        y = Conv(channels).apply(params["out"], x)
        return ops.tanh(y) if self.is_bounded else y

    def out_shape(self, *shapes: Shape) -> Shape:
        factor = 2 ** (len(self.channels) - 1)
        is_right = [len(s) for s in shapes] in (
            [3, 0],
            [3, 1, 0],
            [3, 0, 2],
            [3, 1, 0, 2],
        ) and not (shapes[0][0] % factor or shapes[0][1] % factor)
        if not is_right:
            raise ShapeError(
                f"LatentUNet.init: got event shapes {shapes}, expected (h, w, c), perhaps a latent "
                f"(L,), (), and perhaps a context (m, c), with {factor} dividing h and w for "
                f"{len(self.channels)} levels; pad the images or use fewer levels."
            )
        return tuple(shapes[0])
