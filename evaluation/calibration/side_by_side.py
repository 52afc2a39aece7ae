"""Chains of one model given many data sets, which move side by side: a compiled program for all.

A chain of NUTS or HMC by engine="probgen" hangs on its own number and its own data alone, so that a
thousand posteriors may be drawn from by one call, each by chains of its own. Here is the posterior
whose data have the sets in front, and which samplers can do it; `study` is who asks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from probgen.backends.chains import Chains
from probgen.backends.protocol import Backend
from probgen.engine.chain_pieces import Pieces
from probgen.engine.markov import draw_posterior
from probgen.engine.posterior import Point, Posterior
from probgen.inference.sample.hamiltonian_method import HamiltonianMethod
from probgen.trees import tree_map

Array = Any


@dataclasses.dataclass(frozen=True)
class ManyPosteriors(Posterior):
    """A posterior a chain: every array of `rows` has the chains in front, [chain, ...]."""

    def point(
        self, params: Mapping, rows: Mapping[str, Array], free: Mapping[str, Array] | None = None,
        *, key: Any = None, given: Mapping[str, Array] | None = None,
        strategy: str = "init_to_uniform",
    ) -> Point:  # fmt: skip
        """At `free`, of one chain's rows (see `each`). A start looks at the first chain's: it
        hangs on no data, and whether it is good is asked of each chain's own."""
        if free is None:
            rows = {n: v[0] for n, v in rows.items()}
        return super().point(params, rows, free, key=key, given=given, strategy=strategy)

    def each(self, fn: Callable) -> Callable:
        """fn(x, params, rows) of each chain, with its own rows."""
        both = self.bound.backend.each(lambda own, params: fn(own[0], params, own[1]))
        return lambda x, params, rows: both((x, rows), params)


def goes_side_by_side(method: Any, backend: Backend) -> bool:
    """Whether one call can draw from many posteriors by this method."""
    if not isinstance(method, HamiltonianMethod) or not isinstance(method.init_strategy, str):
        return False
    return (method.engine or backend.hmc_engines[0]) == "probgen"


def draw_side_by_side(
    method: HamiltonianMethod, posterior: Posterior, params: Any,
    sets: Sequence[Mapping[str, Array]], key: Any, token: Callable[[Posterior, Any], Any],
) -> list[Chains]:  # fmt: skip
    """The chains of each data set, `method.num_chains` of them.

    Args:
        sets: rows on the backend, of each data set.
        token: gives that of a posterior and its rows.
    """
    b, num = posterior.bound.backend, method.num_chains
    many = ManyPosteriors(posterior.bound, posterior.num_rows)
    rows = {n: b.ops.stack([rows[n] for rows in sets for _ in range(num)]) for n in sets[0]}
    method = dataclasses.replace(method, num_chains=num * len(sets))
    chains = draw_posterior(method, many, params, rows, key, token(many, rows), False, Pieces())
    own = [np.arange(i * num, (i + 1) * num) for i in range(len(sets))]
    each = [tree_map(lambda v, i=i: v[i], (chains.free, chains.stats)) for i in own]
    return [Chains(free, stats, chains.num_warmup) for free, stats in each]
