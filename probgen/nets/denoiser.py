"""A denoiser for vectors: an MLP that sees the noised datum and sinusoids of the time."""

from __future__ import annotations

from dataclasses import dataclass

from probgen import ops
from probgen.nets.base import Array, Key, Params, Shape
from probgen.nets.mlp import MLP
from probgen.nets.time import TimeEmbedding


@dataclass(frozen=True)
class MLPDenoiser:
    """(x_t [..., d], t [...]) -> [..., d]: an `MLP` of x_t and a `TimeEmbedding` of t.

    Attributes:
        out: d.
        hidden: widths of the hidden layers.
        time_dim: number of sinusoids.
        activation: its name.
    """

    out: int
    hidden: tuple[int, ...] = (128, 128, 128)
    time_dim: int = 32
    activation: str = "silu"

    def _mlp(self) -> MLP:
        return MLP(tuple(self.hidden), self.out, activation=self.activation, in_ndim=1)

    def init(self, key: Key, *shapes: Shape) -> Params:
        return {"mlp": self._mlp().init(key, (shapes[0][-1],), (self.time_dim,))}

    def apply(self, params: Params, x: Array, t: Array) -> Array:
        waves = TimeEmbedding(self.time_dim).apply({}, t)
        waves = ops.broadcast_to(waves, (*x.shape[:-1], self.time_dim))
        return self._mlp().apply(params["mlp"], x, waves)

    def out_shape(self, *shapes: Shape) -> Shape:
        return (self.out,)
