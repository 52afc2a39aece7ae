"""E-steps: what is known of each datum's latents at the parameters of the moment.

    chains    z_n <- K_theta(z_n), a kernel that keeps p_theta(z | x_n), from where the chain of
              datum n was left at its last visit
    exact     r_n(c) = p_theta(z = c | x_n), for each of the values c of discrete latents

A chain a datum, in the state of the learner, so that it survives a kill and goes on with a
`Fitted`. The M-step, which is `em`'s, reads `Expected`: latents with weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from probgen.backends.protocol import Site
from probgen.engine.bound import Bound
from probgen.engine.combinations import on_rows, table_of
from probgen.engine.learner import all_params
from probgen.engine.markov import judged
from probgen.engine.spaces import model_target
from probgen.engine.target import Sampler, run_chain, transitions
from probgen.errors import AlgorithmError
from probgen.inference.sample.hamiltonian import leading
from probgen.language.declared import declaration
from probgen.language.run import ROW

Array = Any
Tree = Any


class Expected(NamedTuple):
    """Of each datum's latents, what expectations are taken over.

    Attributes:
        latents: values by site, [C, batch, *event], in their supports.
        weights: [C, batch], which sum to one over C.
    """

    latents: dict[str, Array]
    weights: Array


class Chains:
    """The E-step by a sampler: one chain a datum, which starts at its first visit from the prior.

    State: "chains", positions by site, [num_data, *event]; "visited", [num_data] of 0 and 1.
    """

    needs_rows = True
    evaluate = None

    def __init__(self, bound: Bound, sampler: Sampler):
        if not bound.latents:
            raise AlgorithmError(
                f"EM: got {type(sampler).__name__} for {bound.model.name!r}, all of whose latents "
                f"are discrete, {list(bound.enumerated)}, expected EM(Enumerate()), which needs no "
                "chains for them."
            )
        self.sampler = sampler
        self.target = model_target(bound, "latent")
        calls = None if bound.num_steps is None else bound.num_steps * transitions(sampler)
        b = bound.backend
        self.kernel = sampler.kernel(b, self.target, num_calls=calls)
        self.fresh = b.compile(
            lambda params, batch, key: self.target.init(params, batch, key, size_of(batch)),
            num_calls=bound.num_steps,
        )
        self.values = b.compile(self.target.values, num_calls=bound.num_steps)

    def own(self, bound: Bound, params: Mapping, batch: Mapping, key: Any, extras: Any) -> dict:
        """Chains that no datum has visited yet, or those of an earlier fit."""
        b, n = bound.backend, bound.num_data or 0
        blank = b.tree_map(lambda v: 0.0 * v[:1], self.fresh(params, batch, key))
        chains = b.tree_map(lambda v: b.ops.broadcast_to(v, (bound.num_data, *v.shape[1:])), blank)
        state = {"chains": chains, "visited": 0.0 * b.uniform(key, (n,))}
        return {n: bound.kept(n, v, extras) for n, v in state.items()}

    def __call__(
        self, bound: Bound, state: Mapping, batch: Mapping, key: Any
    ) -> tuple[Expected, dict, dict]:
        """(latents of the batch, the state from here on, metrics)."""
        b, ops, own = bound.backend, bound.backend.ops, state["own"]
        params, rows = all_params(state), batch[ROW]
        k_new, k_chain = b.split(key, 2)
        visits = ops.take(own["visited"], rows)
        start = b.tree_map(
            lambda old, new: ops.where(leading(ops, visits, new) > 0, ops.take(old, rows), new),
            own["chains"], self.fresh(params, batch, k_new),
        )  # fmt: skip
        end, stats = run_chain(
            b, self.kernel, start, k_chain, transitions(self.sampler), params, batch,
            keep=lambda at, info: _told(ops, judged(ops, info, at.x)),
        )  # fmt: skip
        chains = b.tree_map(lambda old, new: ops.put(old, rows, new), own["chains"], end.x)
        visited = ops.put(own["visited"], rows, ops.ones_like(visits))
        values = self.values(end.x, params, batch)
        found = {n: ops.mean(v) for n, v in stats.items()}
        found["movement"] = _movement(ops, start, end.x)
        latents = {n: values[n][None] for n in self.target.names}
        expected = Expected(latents, ops.ones_like(visits)[None])
        return expected, {"chains": chains, "visited": visited}, found

    def check(self, bound: Bound, params: Mapping, batch: Mapping) -> None:
        """Nothing: chains go wherever there is a gradient."""

    def note(self) -> str:
        return f"{self.sampler.note()}, one chain a datum, kept from one visit to the next"

    def cures(self) -> dict[str, str]:
        ends = f"of the ends of the chains: {self.sampler.cure()}"
        return {"log_joint": ends, "movement": ends}


@declaration
class Enumerate:
    """The exact E-step for discrete latents: each value of each datum's, with its probability.

    Latents of finitely many values, such as those of mixtures; all combinations of one datum's
    latents are gone through (`probgen.engine.enumeration`), up to 10,000. Those of a longer loop
    (`pg.scan`), hidden Markov models, are known by messages (`probgen.engine.messages`): an M-step
    of your own then gets latents along C^2 paths, [C^2, n, T, *event], C being the number of values
    of one moment, and weights [T, C^2, n]: that of path c at t is the probability that datum n has
    the path's values at t - 1 and t.
    """


class Exact:
    """The E-step by enumeration; it has no state."""

    needs_rows = False

    def __init__(self, bound: Bound):
        if bound.latents or not bound.enumerated:
            raise AlgorithmError(
                f"EM(Enumerate()): {bound.model.name!r} has the latents "
                f"{[*bound.latents, *bound.enumerated]}, expected discrete ones of finitely many "
                "values alone; move the others by a chain: EM(Langevin(...)), under which those "
                "are summed out."
            )
        self.table = table_of(bound.structure, bound.enumerated, "EM(Enumerate())")
        self.run = bound.backend.compile(self._compiled(bound), num_calls=bound.num_steps)

    def _compiled(self, bound: Bound) -> Any:
        return lambda params, batch: self.posterior(bound, params, batch)

    def own(self, bound: Bound, params: Mapping, batch: Mapping, key: Any, extras: Any) -> dict:
        """None."""
        return {}

    def __call__(
        self, bound: Bound, state: Mapping, batch: Mapping, key: Any
    ) -> tuple[Expected, dict, dict]:
        """(every value with its probability, no state, metrics)."""
        weights, found = self.run(all_params(state), batch)
        return Expected(self.latents(bound, size_of(batch)), weights), {}, found

    def latents(self, bound: Bound, size: int) -> dict[str, Array]:
        """The values that have weights, by site."""
        b, s = bound.backend, bound.structure
        return {n: on_rows(b, s, n, self.table, size) for n in bound.enumerated}

    def posterior(self, bound: Bound, params: Mapping, batch: Mapping) -> tuple[Array, dict]:
        """([C, batch] probabilities, metrics per datum)."""
        return _posterior(bound, params, batch)

    def evaluate(self, bound: Bound, params: Mapping, batch: Mapping, key: Any) -> dict:
        """The likelihood of held-out data."""
        return {"log_likelihood": self.posterior(bound, params, batch)[1]["log_likelihood"]}

    def check(self, bound: Bound, params: Mapping, batch: Mapping) -> None:
        """Nothing: a finite sum is exact."""

    def note(self) -> str:
        names = ", ".join(map(repr, self.table.choices))
        return f"the exact posterior of {names}, over {self.table.size:,} values of each datum"

    def cures(self) -> dict[str, str]:
        return {}


def _posterior(bound: Bound, params: Mapping, batch: Mapping) -> tuple[Array, dict]:
    """([C, batch] probabilities, metrics per datum); log p(x) = E log p(x, z) + entropy."""
    ops = bound.backend.ops
    found = bound.summed(params, batch)
    log_r = ops.log_softmax(found.log_weights, axis=0)
    weights = ops.exp(log_r)
    entropy = -ops.mean(ops.sum(ops.where(weights > 0, weights * log_r, 0.0), axis=0))
    log_likelihood = mean_log_prob(bound, found.sites)
    metrics = {
        "log_likelihood": log_likelihood, "entropy": entropy, "log_joint": log_likelihood - entropy,
    }  # fmt: skip
    return weights, metrics


def mean_log_prob(bound: Bound, sites: Mapping[str, Site], weights: Array | None = None) -> Array:
    """log p of all sites per datum, nats: what all data share counts 1/N for each of them.

    Args:
        weights: [C, batch] of densities [C, batch], which sum to one over C.
    """
    ops = bound.backend.ops
    out: Any = 0.0
    for site in sites.values():
        if site.log_prob is None:
            continue
        each = site.log_prob
        if weights is not None and site.is_local:
            # What is impossible has no weight, and -inf times 0 would be NaN.
            each = ops.sum(weights * ops.where(weights > 0, each, 0.0), axis=0)
        elif weights is not None:
            each = each[0]
        out = out + (ops.mean(each) if site.is_local else each / float(bound.num_data or 1))
    return out


def size_of(batch: Mapping) -> int:
    """Number of data in a batch."""
    return int(next(iter(batch.values())).shape[0])


def _told(ops: Any, stats: Mapping[str, Array]) -> dict[str, Array]:
    """Means over a batch's chains: acceptance where steps have a ratio, share that diverged."""
    found = {"diverging": ops.mean(ops.where(stats["diverging"], 1.0, 0.0))}
    if "acceptance_rate" in stats:
        found["acceptance"] = ops.mean(stats["acceptance_rate"])
    return found


def _movement(ops: Any, start: Tree, end: Tree) -> Array:
    """Root of the mean square that a coordinate moved in the E-step."""
    total = sum(ops.sum((x - start[n]) ** 2) for n, x in end.items())
    return ops.sqrt(total / sum(math.prod(x.shape) for x in end.values()))
