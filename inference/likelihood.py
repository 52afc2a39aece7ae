"""Log-likelihood of each datum under a model with a guide, with its Monte Carlo error.

    ELBO_K   (1/K) sum_k log w_k             IWAE_K   log (1/K) sum_k w_k

with w_k = p(x, z_k) / q(z_k | x), z_k ~ q. Both are lower bounds of log p(x) in expectation, nats
per datum, constants included. Particles are worked through in parts, so K may be large.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from probgen.bound import Bound
from probgen.errors import AlgorithmError, DeclarationError
from probgen.inference.terms import compute, log_weights

Array = Any


@dataclasses.dataclass(frozen=True)
class IWAE:
    """The importance-weighted estimate of log p(x), a lower bound in expectation.

    Args:
        num_particles: K.
        particles_at_once: how many are drawn at a time, for memory.

    Gives per datum: `estimate`; `standard_error`, by the delta method sd(w) / (mean(w) sqrt(K)),
    which is itself unreliable when few particles carry the weight; `effective_particles`,
    (sum w)^2 / sum w^2, its diagnostic.

    Raises (when bound): AlgorithmError: no guide, global latents, an unnormalised density.

    Source: Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519.
    """

    num_particles: int = 1000
    particles_at_once: int = 100

    unit = "nats"
    larger_is_stranger = False

    def __post_init__(self) -> None:
        if self.num_particles < 1 or self.particles_at_once < 1:
            raise DeclarationError(f"{self!r}: expected at least one particle.")

    @property
    def name(self) -> str:
        return f"IWAE({self.num_particles})"

    def bind_measure(self, bound: Bound) -> Callable:
        """The measure for one model: (params, batch, key) -> estimates."""
        ops = bound.backend.ops
        weights = particles(bound, self.name, self.num_particles, self.particles_at_once)

        def measure(params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
            log_w = weights(params, batch, key)
            log_sum = ops.logsumexp(log_w, axis=0)
            relative = ops.exp(log_w - log_sum)
            squares = ops.sum(relative * relative, axis=0)
            k = float(self.num_particles)
            # var of the mean of w, over its squared mean: (K sum r^2 - 1) / (K - 1)
            spread = ops.clip(k * squares - 1.0, 0.0, k) / max(k - 1.0, 1.0)
            return {
                "estimate": log_sum - math.log(k),
                "standard_error": ops.sqrt(spread),
                "effective_particles": 1.0 / squares,
            }

        return measure


def elbo_measure(bound: Bound, num_particles: int, at_once: int = 100) -> Callable:
    """The ELBO of each datum and its standard error over the particles (NaN-free: 0 at K = 1)."""
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
    """(params, batch, key) -> log w, [num_particles, batch], drawn in equal parts.

    Raises:
        AlgorithmError: the model has no guide, or global latents, or an unnormalised density.
    """
    bound.require_guide(who)
    if bound.has_global_latents or not bound.model.is_normalized:
        why = (
            "latents outside the data plate"
            if bound.has_global_latents
            else "an unnormalised density"
        )
        raise AlgorithmError(
            f"{who}: the model {bound.model.name!r} has {why}, expected local latents and a "
            "normalised density, so that importance weights are per datum."
        )
    b = bound.backend
    sizes = [at_once] * (num_particles // at_once)
    rest = num_particles - at_once * len(sizes)

    def draw(params: Mapping, batch: Mapping, key: Any, size: int) -> Array:
        return log_weights(
            compute(bound, params, batch, key, num_particles=size, analytic_kl=False)
        )

    def weights(params: Mapping, batch: Mapping, key: Any) -> Array:
        parts = []
        k_whole, k_rest = b.split(key, 2)
        if sizes:
            _, blocks = b.scan(
                lambda carry, k: (carry, draw(params, batch, k, at_once)),
                0,
                b.split(k_whole, len(sizes)),
            )
            parts.append(b.ops.reshape(blocks, (at_once * len(sizes), *blocks.shape[2:])))
        if rest:
            parts.append(draw(params, batch, k_rest, rest))
        return parts[0] if len(parts) == 1 else b.ops.concatenate(parts, axis=0)

    return weights
