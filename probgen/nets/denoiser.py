"""A denoiser for vectors: an MLP that sees the noised datum and sinusoids of the time."""

from __future__ import annotations

from typing import Annotated

from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import Width, between
from probgen.nets.base import Activation, Array, Key, Params, Shape
from probgen.nets.mlp import MLP
from probgen.nets.time import TimeEmbedding


@declaration
class MLPDenoiser:
    """(x_t [..., d], t [...]) -> [..., d]: an `MLP` of x_t and a `TimeEmbedding` of t.

    Attributes:
        out: d.
        hidden: widths of the hidden layers.
        time_dim: number of sinusoids.
        activation: its name.
    """

    out: Width
    hidden: tuple[Width, ...] = (128, 128, 128)
    time_dim: Annotated[int, between(2, 10**6)] = 32
    activation: Activation = "silu"

    def _mlp(self) -> MLP:
        return MLP(self.hidden, self.out, activation=self.activation, in_ndim=1)

    def init(self, key: Key, *shapes: Shape) -> Params:
        return {"mlp": self._mlp().init(key, (shapes[0][-1],), (self.time_dim,))}

    def apply(self, params: Params, x: Array, t: Array) -> Array:
        waves = TimeEmbedding(self.time_dim).apply({}, t)
        waves = ops.broadcast_to(waves, (*x.shape[:-1], self.time_dim))
        return self._mlp().apply(params["mlp"], x, waves)

    def out_shape(self, *shapes: Shape) -> Shape:
        return (self.out,)
