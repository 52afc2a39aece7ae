"""A denoiser for vectors: an MLP that sees the noised datum and sinusoids of the time."""

from __future__ import annotations

from typing import Annotated

from probgen.errors import ShapeError
from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import Width, between
from probgen.nets.base import Activation, Array, Key, Params, Shape
from probgen.nets.mlp import MLP
from probgen.nets.time import TimeEmbedding


@declaration
class MLPDenoiser:
    """(x_t [..., d], t [...]) -> [..., d]: an `MLP` of x_t and a `TimeEmbedding` of t.

    A third input, the context [..., m, c] of a condition, is read as m c further numbers.

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

    def _mlp(self, num_inputs: int) -> MLP:
        ndims = (1, 1, 2)[:num_inputs]
        return MLP(self.hidden, self.out, activation=self.activation, in_ndim=ndims)

    def init(self, key: Key, *shapes: Shape) -> Params:
        given = (shapes[0][-1],), (self.time_dim,), *shapes[2:]
        if len(given) > 3 or any(len(shape) != 2 for shape in given[2:]):
            raise ShapeError(
                f"MLPDenoiser.init: got event shapes {shapes}, expected (d,), () and perhaps a "
                "context of tokens (m, c)."
            )
        return {"mlp": self._mlp(len(given)).init(key, *given)}

    def apply(self, params: Params, x: Array, t: Array, *context: Array) -> Array:
        waves = TimeEmbedding(self.time_dim).apply({}, t)
        waves = ops.broadcast_to(waves, (*x.shape[:-1], self.time_dim))
        return self._mlp(2 + len(context)).apply(params["mlp"], x, waves, *context)

    def out_shape(self, *shapes: Shape) -> Shape:
        return (self.out,)
