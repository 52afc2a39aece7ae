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
from probgen.engine.measure import EvaluationContext, Function, Values
from probgen.inference.likelihood.guide_terms import (
    AT_ONCE,
    guide_terms,
    in_parts,
    require_terms,
    weights_of,
)
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
    particles_at_once: Many = AT_ONCE

    unit = "nats"
    larger_is_stranger = False
    takes_one_value = True

    @property
    def name(self) -> str:
        return f"IWAE({self.num_particles})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> estimate, limit, error and diagnostics from the shared draws."""
        terms = guide_terms(context, self.name, self.num_particles, self.particles_at_once)
        return lambda rows, ids: self.of_weights(weights_of(terms(rows, ids)))

    def of_weights(self, log_w: np.ndarray) -> Values:
        """From log weights [n, K]."""
        return importance_estimate(log_w)


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


def particles(bound: Bound, who: str, num_particles: int, at_once: int) -> Callable:
    """(params, batch, key, guide_params) -> log w, [num_particles, batch], drawn in equal parts.

    For what draws inside a function of its own; a measure asks for `guide_terms`.

    Raises:
        AlgorithmError: the model has no guide, or global latents, or an unnormalised density.
    """
    require_terms(bound, who)

    def weights(
        params: Mapping, batch: Mapping, key: Any, guide_params: Mapping | None = None
    ) -> Array:
        def draw(key: Any, size: int) -> Array:
            return log_weights(
                compute(
                    bound, params, batch, key, num_particles=size, analytic_kl=False,
                    guide_params=guide_params,
                )
            )  # fmt: skip

        return in_parts(bound.backend, draw, key, num_particles, at_once)

    return weights
