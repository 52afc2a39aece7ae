"""Log-likelihood of each datum under a model with a guide, with its Monte Carlo error.

    ELBO_K   (1/K) sum_k log w_k             IWAE_K   log (1/K) sum_k w_k

with w_k = p(x, z_k) / q(z_k | x), z_k ~ q. Both are lower bounds of log p(x) in expectation, nats
per datum, constants included. Particles are worked through in parts, so K may be large. The log
weights of a chunk come back to the host, where they are summed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.special import logsumexp

from probgen.engine.bound import Bound
from probgen.errors import AlgorithmError
from probgen.inference.likelihood.interval import Weighted, error_of_mean, lower_limit
from probgen.inference.likelihood.psis import khat
from probgen.inference.objectives.terms import compute, log_weights
from probgen.language.declared import declaration
from probgen.language.kinds import Many

Array = Any


@declaration
class IWAE(Weighted):
    """The importance-weighted estimate of log p(x), a lower bound in expectation.

    Args:
        num_particles: K.
        particles_at_once: how many are drawn at a time, for memory.

    Gives per datum: `estimate`; `lower_bound`, which log p(x) is above in 95 % of cases and more,
    whatever the tail of the weights; `standard_error`, by the delta method sd(w) / (mean(w)
    sqrt(K)) with Student's law, only where estimate +- 1.96 of it covers log p(x) in 95 % of cases,
    else NaN (a bound only); and what tells so: `effective_particles`, (sum w)^2 / sum w^2, and
    `khat`, the Pareto shape of the largest weights (+inf where a handful of weights dwarfs the
    rest, the worst case; NaN where there is no tail to fit, that is with K < 25 or with weights the
    largest of which are equal). Whether an interval holds is told by the k-hats of all data of the
    table together (`interval.has_interval`): one that looks fine beside many that do not is
    more likely lucky than light. No draw tells of a mode that the guide never visits.

    Raises (when bound): AlgorithmError: no guide, global latents, an unnormalised density.

    Sources: Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519; Vehtari et al. 2024,
    arXiv:1507.02646, for k-hat.
    """

    num_particles: Many = 1000
    particles_at_once: Many = 25

    unit = "nats"
    larger_is_stranger = False

    @property
    def name(self) -> str:
        return f"IWAE({self.num_particles})"

    def bind_measure(self, bound: Bound) -> Callable:
        """The log weights for one model: (params, batch, key) -> {"log_w": [batch, K]}."""
        weights = particles(bound, self.name, self.num_particles, self.particles_at_once)

        def measure(params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
            return {"log_w": bound.backend.ops.transpose(weights(params, batch, key))}

        return measure

    def finish(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Estimate, error and diagnostics from the log weights."""
        return importance_estimate(values["log_w"])


def importance_estimate(log_w: np.ndarray) -> dict[str, np.ndarray]:
    """log-mean-exp of log weights [n, K] in float64, its limit, its error and diagnostics.

    All are NaN for a datum with a weight that is NaN or +inf, which is no density: `evaluate`, who
    knows the datum's number, refuses it.
    """
    log_w = np.asarray(log_w, np.float64)
    log_w = np.where(np.isposinf(log_w), np.nan, log_w)
    num = log_w.shape[1]
    log_sum = logsumexp(log_w, axis=1)
    relative = num * np.exp(log_w - log_sum[:, None])
    estimate = log_sum - math.log(num)
    out = {"estimate": estimate, "lower_bound": estimate + lower_limit(1.0)}
    if num > 1:
        error = error_of_mean(relative)
        out |= {"standard_error": error, "lower_bound": estimate + lower_limit(error)}
    tail = np.full(len(log_w), np.nan)
    known = ~np.isnan(log_w).any(1)
    if known.any():
        tail[known] = khat(log_w[known])
    return out | {"effective_particles": num**2 / (relative**2).sum(1), "khat": tail}


def elbo_measure(bound: Bound, num_particles: int, at_once: int = 100) -> Callable:
    """The ELBO of each datum and its standard error over the particles (none at K = 1)."""
    ops = bound.backend.ops
    weights = particles(bound, f"ELBO({num_particles})", num_particles, at_once)

    def measure(params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
        log_w = weights(params, batch, key)
        mean = ops.mean(log_w, axis=0)
        if num_particles == 1:
            return {"estimate": mean}
        error = ops.sqrt(ops.var(log_w, axis=0, ddof=1) / num_particles)
        return {"estimate": mean, "standard_error": error}

    return measure


def particles(bound: Bound, who: str, num_particles: int, at_once: int) -> Callable:
    """(params, batch, key, guide_params) -> log w, [num_particles, batch], drawn in equal parts.

    Raises:
        AlgorithmError: the model has no guide, or global latents, or an unnormalised density.
    """
    bound.require_guide(who)
    bound.require_normalized(who)
    if bound.has_global_latents:
        raise AlgorithmError(
            f"{who}: the model {bound.model.name!r} has latents outside the data plate, expected "
            "local ones, so that importance weights are per datum."
        )
    b = bound.backend
    sizes = [at_once] * (num_particles // at_once)
    rest = num_particles - at_once * len(sizes)

    def draw(params: Mapping, guide: Mapping | None, batch: Mapping, key: Any, size: int) -> Array:
        return log_weights(
            compute(
                bound, params, batch, key, num_particles=size, analytic_kl=False,
                guide_params=guide,
            )
        )  # fmt: skip

    def weights(
        params: Mapping, batch: Mapping, key: Any, guide_params: Mapping | None = None
    ) -> Array:
        parts = []
        k_whole, k_rest = b.split(key, 2)
        if sizes:
            _, blocks = b.scan(
                lambda carry, k: (carry, draw(params, guide_params, batch, k, at_once)),
                0,
                b.split(k_whole, len(sizes)),
            )
            parts.append(b.ops.reshape(blocks, (at_once * len(sizes), *blocks.shape[2:])))
        if rest:
            parts.append(draw(params, guide_params, batch, k_rest, rest))
        return parts[0] if len(parts) == 1 else b.ops.concatenate(parts, axis=0)

    return weights
