"""Nets for vectors of a denoising diffusion GAN: a denoiser with a latent, a discriminator."""

from __future__ import annotations

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

    Without a latent it is called as (x_t, t).

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

    def _mlp(self) -> MLP:
        return MLP(self.hidden, self.out, activation=self.activation, in_ndim=1)

    def init(self, key: Key, *shapes: Shape) -> Params:
        _check_time("LatentDenoiser", shapes, 2)
        return {"mlp": self._mlp().init(key, *shapes[:-1], (self.time_dim,))}

    def apply(self, params: Params, x: Array, *rest: Array) -> Array:
        *latent, t = rest
        if self.is_normed:
            latent = [pixel_norm(z) for z in latent]
        waves = _waves(self.time_dim, t, x)
        return self._mlp().apply(params["mlp"], x, *latent, waves)

    def out_shape(self, *shapes: Shape) -> Shape:
        return (self.out,)


@declaration
class TimedDiscriminator:
    """(vectors ..., t [...]) -> [...], one logit: an `MLP` of all of them, of t by sinusoids.

    Such as (x_{t-1}, x_t, t), or (x_{t-1}, t).

    Attributes:
        hidden: widths of the hidden layers.
        time_dim: number of sinusoids.
        activation: its name.
    """

    hidden: tuple[Width, ...] = (128, 128, 128)
    time_dim: TimeDim = 16
    activation: Activation = "leaky_relu"

    def _mlp(self) -> MLP:
        return MLP(self.hidden, (), activation=self.activation, in_ndim=1)

    def init(self, key: Key, *shapes: Shape) -> Params:
        _check_time("TimedDiscriminator", shapes, 2)
        return {"mlp": self._mlp().init(key, *shapes[:-1], (self.time_dim,))}

    def apply(self, params: Params, *inputs: Array) -> Array:
        *vectors, t = inputs
        waves = _waves(self.time_dim, t, vectors[0])
        return self._mlp().apply(params["mlp"], *vectors, waves)

    def out_shape(self, *shapes: Shape) -> Shape:
        return ()


def pixel_norm(z: Array) -> Array:
    """z / sqrt(mean z^2) over the last axis. Karras et al. 2018, arXiv:1710.10196, section 4.2."""
    return z / ops.sqrt(ops.mean(z * z, axis=-1, keepdims=True) + 1e-8)


def _waves(dim: int, t: Array, like: Array) -> Array:
    waves = TimeEmbedding(dim).apply({}, t)
    return ops.broadcast_to(waves, (*like.shape[:-1], dim))


def _check_time(who: str, shapes: tuple[Shape, ...], least: int) -> None:
    if len(shapes) < least or shapes[-1] != ():
        raise ShapeError(
            f"{who}.init: got event shapes {shapes}, expected at least {least} inputs, the last of "
            "them a time, of shape (); without a time take nets.MLP."
        )
