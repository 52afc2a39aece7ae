"""The exact E-step for discrete latents along a loop over time: forward and backward messages.

    xi_t(j, k) = p(z_(t-1) = j, z_t = k | x)

(Baum and Welch's). The M-step's expectation, sum_t sum_jk xi_t(j, k) log p_t(j, k), is taken over
the C^2 paths of `engine.messages`, in which the pair (j, k) stands at the moment t in just one.

Source: Baum, Petrie, Soules & Weiss 1970; Rabiner 1989, section III C.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probgen.engine.along import expected_sites
from probgen.engine.bound import Bound
from probgen.engine.messages import in_loops, pairs_of, paths_of, values_along
from probgen.errors import AlgorithmError
from probgen.inference.learn.e_steps import Exact, Expected, mean_log_prob, size_of

Array = Any
WHO = "EM(Enumerate())"


class ExactInTime(Exact):
    """The E-step by messages; latents along C^2 paths, [C^2, n, T, *event], and xi, [T, C^2, n]."""

    def __init__(self, bound: Bound):
        names = in_loops(bound.structure, bound.enumerated)
        if bound.latents or names != bound.enumerated:
            raise AlgorithmError(
                f"{WHO}: {bound.model.name!r} has the latents "
                f"{[*bound.latents, *bound.enumerated]}, expected those of one long loop alone, "
                f"{list(names)}; SVI(ELBO()) sums out all and climbs the same likelihood."
            )
        self.paths = paths_of(bound.structure, names, WHO)
        self.run = bound.backend.compile(self._compiled(bound), num_calls=bound.num_steps)

    def latents(self, bound: Bound, size: int) -> dict[str, Array]:
        b, s = bound.backend, bound.structure
        return {n: values_along(b, s, n, self.paths, size)[:-1] for n in bound.enumerated}

    def posterior(self, bound: Bound, params: Mapping, batch: Mapping) -> tuple[Array, dict]:
        """([T, C^2, n] probabilities of pairs, metrics per datum)."""
        ops = bound.backend.ops
        found = bound.summed(params, batch, is_told=True)
        pairs: Any = found.pairs
        log_likelihood = mean_log_prob(bound, found.sites)
        # Of a Markov chain: that of each pair, less that of what two pairs have in common.
        shared = ops.sum(pairs_of(ops, self.paths, pairs), axis=1)[:-1]
        entropy = (_entropy(ops, pairs) - _entropy(ops, shared)) / size_of(batch)
        return pairs, {
            "log_likelihood": log_likelihood, "entropy": entropy,
            "log_joint": log_likelihood - entropy,
        }  # fmt: skip

    def note(self) -> str:
        names = ", ".join(map(repr, self.paths.table.choices))
        return (
            f"the exact posterior of {names} by messages, {self.paths.size:,} values at each of "
            f"{self.paths.length:,} moments"
        )


def mean_log_joint_in_time(
    bound: Bound, params: Mapping, batch: Mapping, expected: Expected
) -> Any:
    """E log p(x, z) per datum, nats, z along the paths by the probabilities of its pairs."""

    def run(latents: dict[str, Array]) -> tuple:
        return bound.trace(params, batch, latents), {}

    latents, pairs = expected
    sites = expected_sites(
        bound.backend, bound.structure, bound.enumerated, run, dict(latents), pairs, WHO
    )
    return mean_log_prob(bound, sites)


def _entropy(ops: Any, p: Array) -> Array:
    return -ops.sum(p * ops.log(ops.where(p == 0, 1.0, p)))
