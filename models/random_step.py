"""A long diffusion chain by one random step a datum, in place of all T.

The bound of a chain by its forward process is a sum over steps,

    E_q[log p(x_{0:T}) - log q(x_{1:T} | x)] = c - KL(q(x_T | x) || N(0, I))
                                               - sum_t w_t E |x - x0_theta(x_t, t)|^2,
    w_t = c_t^2 / (2 std_t^2),   c_t the share of x in the posterior's mean,

and one step t ~ r stands for all, times 1 / r_t: unbiased, for values and for gradients, so that it
serves whatever is a mean of log weights (the ELBO), and nothing else (no importance weights).

    r_t proportional to w_t noise_t^2 / signal_t^2 = (SNR_{t-1} / SNR_t - 1) / 2 of t > 0,

under which the term of a net that predicts the noise no better at one step than at another varies
with x_t alone.

Sources: Ho, Jain & Abbeel 2020, arXiv:2006.11239, equations 5 to 8; of r Vahdat, Kreis & Kautz
2021, arXiv:2106.05931, section 3.3.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

import probgen as pg
from probgen import dist, ops
from probgen.language.model import Model

Array = Any


@dataclasses.dataclass(frozen=True)
class RandomStep(Model):
    """A `Diffusion` whose bound has the same mean, by one step; made by `Diffusion.by_steps`.

    Sites: "place" and "noise", which step and its eps, of one law in program and guide; "x", whose
    density is exp of the estimate. Nets: the chain's.
    """

    chain: Any

    @property
    def program(self) -> Any:
        if self.chain.condition is None:
            return lambda: self._declared(None)
        return lambda condition: self._declared(condition)

    def _declared(self, condition: Any) -> None:
        with pg.data_plate():
            place, noise = self._drawn()
            context = self.chain.context_of(condition, noise)
            pg.sample("x", dist.Density(
                lambda x: self._bound(x, place, noise, context), draw=lambda eps: eps,
                event_shape=self.chain.shape,
            ))  # fmt: skip

    @property
    def guide(self) -> Any:  # type: ignore[override]
        def guide(x: Array) -> None:
            with pg.data_plate():
                self._drawn()

        return guide

    def _drawn(self) -> tuple[Array, Array]:
        shape = self.chain.shape
        return pg.sample("place", dist.Uniform(0.0, 1.0)), pg.sample(
            "noise", dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape))
        )

    def _bound(self, x: Array, place: Array, noise: Array, context: list[Array]) -> Array:
        """[*lead] the estimate for x [*lead, *shape] at one step of each."""
        chain, dim = self.chain, math.prod(self.chain.shape)
        table = chain.table()
        weight, share = shares(table)
        ends = ops.asarray_like(np.cumsum(share)[:-1], x)
        t = ops.sum(ops.where(place[..., None] >= ends, 1.0, 0.0), axis=-1)
        columns = {**table, "weight": weight / share}
        row = {
            k: ops.reshape(
                ops.take(ops.asarray_like(v, x), ops.cast(t, "int32")),
                (*t.shape, *(1 for _ in chain.shape)),
            )
            for k, v in columns.items()
        }
        x_t = row["signal"] * x + row["noise"] * noise
        predicted = pg.net("denoiser", chain.denoiser)(x_t, t, *context)
        clean = chain.clean(x_t, predicted, row)
        axes = tuple(range(-len(chain.shape), 0))
        error = ops.sum(row["weight"] * (x - clean) ** 2, axis=axes)
        bar = float(table["signal"][-1] ** 2)
        prior_kl = 0.5 * (bar * ops.sum(x * x, axis=axes) - dim * (bar + math.log1p(-bar)))
        last = math.log(table["std"][0]) + 0.5 * math.log(2.0 * math.pi) + table["std_kl"].sum()
        return -(error + prior_kl + dim * float(last))


def shares(table: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(w [T], r [T]); of a last step without signal r takes the signal of the one before."""
    weight = 0.5 * (table["of_x0"] / table["std"]) ** 2
    signal = table["signal"]
    share = weight * (table["noise"] / np.maximum(signal, signal[signal > 0].min())) ** 2
    return weight, share / share.sum()
