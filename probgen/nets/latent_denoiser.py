"""Nets for vectors of a denoising diffusion GAN: a denoiser with a latent, a discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from probgen.errors import ShapeError
from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import Width, between
from probgen.nets.base import Activation, Array, Key, Params, Shape
from probgen.nets.mlp import MLP
from probgen.nets.time import TimeEmbedding

TimeDim = Annotated[int, between(2, 10**6)]


@declaration
class LatentDenoiser:
    """(x_t [..., d], z [..., L], t [...]) -> [..., d]: an `MLP` of all three, of t by sinusoids.

    Without a latent it is called as (x_t, t). A last input after t, the context [..., m, c] of a
    condition, is read as m c further numbers.

    Attributes:
        out: d.
        hidden: widths of the hidden layers.
        time_dim: number of sinusoids.
        activation: its name.
        is_normed: z / sqrt(mean z^2) in place of z (`pixel_norm`), which leaves of two numbers an
            angle.
    """

    out: Width
    hidden: tuple[Width, ...] = (128, 128, 128)
    time_dim: TimeDim = 16
    activation: Activation = "silu"
    is_normed: bool = False

    def _mlp(self, inputs: Sequence[Shape]) -> MLP:
        ndims = tuple(len(shape) for shape in inputs)
        return MLP(self.hidden, self.out, activation=self.activation, in_ndim=ndims)

    def init(self, key: Key, *shapes: Shape) -> Params:
        given = _with_waves("LatentDenoiser", shapes, self.time_dim)
        return {"mlp": self._mlp(given).init(key, *given)}

    def apply(self, params: Params, x: Array, *rest: Array) -> Array:
        latent, t, context = parted(rest, x.ndim - 1)
        if self.is_normed:
            latent = [pixel_norm(z) for z in latent]
        inputs = (x, *latent, _waves(self.time_dim, t, x), *context)
        return self._mlp(_events(inputs, x.ndim - 1)).apply(params["mlp"], *inputs)

    def out_shape(self, *shapes: Shape) -> Shape:
        return (self.out,)


@declaration
class TimedDiscriminator:
    """(vectors ..., t [...]) -> [...], one logit: an `MLP` of all of them, of t by sinusoids.

    Such as (x_{t-1}, x_t, t), or (x_{t-1}, t). A last input after t, the context [..., m, c] of a
    condition, is read as m c further numbers.

    Attributes:
        hidden: widths of the hidden layers.
        time_dim: number of sinusoids.
        activation: its name.
    """

    hidden: tuple[Width, ...] = (128, 128, 128)
    time_dim: TimeDim = 16
    activation: Activation = "leaky_relu"

    def _mlp(self, inputs: Sequence[Shape]) -> MLP:
        ndims = tuple(len(shape) for shape in inputs)
        return MLP(self.hidden, (), activation=self.activation, in_ndim=ndims)

    def init(self, key: Key, *shapes: Shape) -> Params:
        given = _with_waves("TimedDiscriminator", shapes, self.time_dim)
        return {"mlp": self._mlp(given).init(key, *given)}

    def apply(self, params: Params, x: Array, *rest: Array) -> Array:
        vectors, t, context = parted(rest, x.ndim - 1)
        inputs = (x, *vectors, _waves(self.time_dim, t, x), *context)
        return self._mlp(_events(inputs, x.ndim - 1)).apply(params["mlp"], *inputs)

    def out_shape(self, *shapes: Shape) -> Shape:
        return ()


def pixel_norm(z: Array) -> Array:
    """z / sqrt(mean z^2) over the last axis. Karras et al. 2018, arXiv:1710.10196, section 4.2."""
    return z / ops.sqrt(ops.mean(z * z, axis=-1, keepdims=True) + 1e-8)


def parted(inputs: Sequence[Array], lead: int) -> tuple[list[Array], Array, list[Array]]:
    """(what stands before the time, the time, the context after it, if there is one): arrays with
    `lead` axes in front, of which a context of tokens has two more."""
    context = [inputs[-1]] if inputs[-1].ndim == lead + 2 else []
    *before, t = inputs[: len(inputs) - len(context)]
    return before, t, context


def _events(inputs: Sequence[Array], lead: int) -> list[Shape]:
    return [tuple(v.shape[lead:]) for v in inputs]


def _waves(dim: int, t: Array, like: Array) -> Array:
    waves = TimeEmbedding(dim).apply({}, t)
    return ops.broadcast_to(waves, (*like.shape[:-1], dim))


def _with_waves(who: str, shapes: tuple[Shape, ...], dim: int) -> list[Shape]:
    """The shapes with that of sinusoids in place of the time's."""
    context = [s for s in shapes[-1:] if len(s) == 2]
    before = shapes[: len(shapes) - len(context)]
    if len(before) < 2 or before[-1] != ():
        raise ShapeError(
            f"{who}.init: got event shapes {shapes}, expected at least 2 inputs, the last of them "
            "a time, of shape (), or after it the tokens (m, c) of a condition; without a time "
            "take nets.MLP."
        )
    return [*before[:-1], (dim,), *context]
