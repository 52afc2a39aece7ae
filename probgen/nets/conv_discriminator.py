"""A discriminator of images that may be told the step of a diffusion."""

from __future__ import annotations

import math
from typing import Annotated, Any

from probgen.errors import ShapeError
from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import Positive, Width, Widths, between
from probgen.nets.base import Array, Key, Params, Shape, check_last, numbered
from probgen.nets.latent_blocks import ROOT_TWO, SMALL
from probgen.nets.latent_denoiser import parted
from probgen.nets.layers import Conv, Dense
from probgen.nets.resampling import halve
from probgen.nets.time import TimeEmbedding


@declaration
class ConvDiscriminator:
    """(images [n, h, w, c] ..., t [n] or none) -> [n], a logit each.

        x = conv 1x1 of the images, side by side on their channels
        x = (skip(x) + conv(act(conv(act(x)) + dense(time)))) / sqrt 2      a block for each of
                                                    `channels`; all but the first halve the sides
        w . sum_pixels act(conv(x, minibatch deviation)) + b

    A last input after t, the context [n, m, c] of a condition, joins the embedding of the time by a
    dense layer of its m c numbers. With act = leaky ReLU of slope `slope`. The blocks' last
    convolutions start near 0.

    Attributes:
        channels: of the blocks; CIFAR-10: (128, 256, 512, 512).
        time_dim, time_width: sinusoids of t, and width of the two dense layers after them.
        group: data among which the deviation is taken that tells the discriminator how alike they
            are; must divide the batch. 1 is none.
        slope: of the leaky ReLU.

    Raises:
        ShapeError: sides that cannot be halved so often; a batch that `group` does not divide.

    Source: Xiao, Kreis & Vahdat 2022, arXiv:2112.07804, appendix C; Karras et al. 2020,
    arXiv:1912.04958 (the deviation).
    """

    channels: Widths = (32, 64, 64)
    time_dim: Annotated[int, between(2, 10**6)] = 128
    time_width: Width = 256
    group: Width = 4
    slope: Positive = 0.2

    def _blocks(self) -> list[tuple[str, int]]:
        return [(numbered("block", i, len(self.channels)), c) for i, c in enumerate(self.channels)]

    def init(self, key: Key, *shapes: Shape) -> Params:
        self.out_shape(*shapes)
        images = [s for s in shapes if len(s) == 3]
        h, w, c = *images[0][:2], sum(s[2] for s in images)
        first, last = self.channels[0], self.channels[-1]
        params: dict = {"stem": Conv(first, 1).init(key, (h, w, c))}
        if len(images) < len(shapes):
            params["time0"] = Dense(self.time_width, init_scale=2.0).init(key, (self.time_dim,))
            params["time1"] = Dense(self.time_width, init_scale=2.0).init(key, (self.time_width,))
        if len(shapes[-1]) == 2:
            flat = (math.prod(shapes[-1]),)
            params["context"] = Dense(self.time_width).init(key, flat)
        c = first
        for name, out in self._blocks():
            block = {
                "conv0": Conv(out, init_scale=2.0).init(key, (h, w, c)),
                "conv1": Conv(out, init_scale=SMALL).init(key, (h, w, out)),
                "skip": Conv(out, 1, bias=False).init(key, (h, w, c)),
            }
            if "time0" in params:
                block["time"] = Dense(out).init(key, (self.time_width,))
            params[name], c = block, out
        params["conv"] = Conv(last, init_scale=2.0).init(key, (h, w, c + (self.group > 1)))
        params["out"] = Dense(1).init(key, (last,))
        return params

    def apply(self, params: Params, *inputs: Array) -> Array:
        act = lambda x: ops.leaky_relu(x, self.slope)  # noqa: E731
        images, emb = self._embedded(params, inputs, act)
        x = ops.concatenate(images, axis=-1) if len(images) > 1 else images[0]
        check_last(self, x, params["stem"]["weight"].shape[2], 3)
        x = Conv(self.channels[0], 1).apply(params["stem"], x)
        for i, (name, out) in enumerate(self._blocks()):
            moved = halve if i else (lambda x: x)
            block = params[name]
            h = Conv(out).apply(block["conv0"], act(x))
            if emb is not None:
                h = h + Dense(out).apply(block["time"], emb)[..., None, None, :]
            h = Conv(out).apply(block["conv1"], moved(act(h)))
            x = (Conv(out, 1, bias=False).apply(block["skip"], moved(x)) + h) / ROOT_TWO
        if self.group > 1:
            x = ops.concatenate([x, minibatch_deviation(x, self.group)], axis=-1)
        h = act(Conv(self.channels[-1]).apply(params["conv"], x))
        return Dense(1).apply(params["out"], ops.sum(h, axis=(-3, -2)))[..., 0]

    def _embedded(self, params: Params, inputs: tuple[Array, ...], act: Any) -> tuple[Any, Any]:
        """(the images, the embedding of time and context [n, time_width]; None without a time)."""
        if "time0" not in params:
            return inputs, None
        images, t, context = parted(inputs, inputs[0].ndim - 3)
        emb = TimeEmbedding(self.time_dim).apply({}, t)
        for name in ("time0", "time1"):
            emb = act(Dense(self.time_width).apply(params[name], emb))
        for tokens in context:
            flat = ops.reshape(tokens, (*tokens.shape[:-2], math.prod(tokens.shape[-2:])))
            emb = emb + Dense(self.time_width).apply(params["context"], flat)
        return images, emb

    def out_shape(self, *shapes: Shape) -> Shape:
        images = [s for s in shapes if len(s) == 3]
        factor = 2 ** (len(self.channels) - 1)
        is_right = (
            images
            and all(len(s) == 3 and s[:2] == images[0][:2] for s in images)
            and shapes[: len(images)] == tuple(images)
            and [len(s) for s in shapes[len(images) :]] in ([], [0], [0, 2])
            and not (images[0][0] % factor or images[0][1] % factor)
        )
        if not is_right:
            raise ShapeError(
                f"ConvDiscriminator.init: got event shapes {shapes}, expected images (h, w, c) of "
                f"the same sides, which {factor} divides for {len(self.channels)} blocks, and at "
                "most a time, (), after them, and a context (m, c) after that; use fewer channels, "
                "or pad the images."
            )
        return ()


def minibatch_deviation(x: Array, group: int) -> Array:
    """[n, h, w, 1] the standard deviation over groups of data, averaged over pixels and channels.

    Data i, i + n / group, i + 2 n / group, ... are a group.

    Raises:
        ShapeError: `group` does not divide n.
    """
    n, h, w, c = x.shape
    if n % group:
        raise ShapeError(
            f"minibatch_deviation: got a batch of {n}, expected a multiple of the group, {group}; "
            "take such a batch_size, or another group of the discriminator."
        )
    rows = ops.reshape(x, (group, n // group, math.prod((h, w, c))))
    centred = rows - ops.mean(rows, axis=0, keepdims=True)
    deviation = ops.sqrt(ops.mean(centred * centred, axis=0) + 1e-8)
    each = ops.broadcast_to(ops.mean(deviation, axis=-1), (group, n // group))
    return ops.broadcast_to(ops.reshape(each, (n, 1, 1, 1)), (n, h, w, 1))
