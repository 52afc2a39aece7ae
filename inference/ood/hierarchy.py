"""Likelihood ratio within a hierarchy: the evidence that only its lowest latents carry.

    LLR_{>k}(x) = L(x) - L_{>k}(x),   nats, larger is stranger

L is the importance-weighted bound. L_{>k} takes the guide's draws of the upper latents and draws
the k lowest from the model instead, p(z_i | z_{i+1}):

    log w = log p(x | z) + sum_{i > k} (log p(z_i | ...) - log q(z_i | ...))

which is a bound on log p(x) too, with E[w] = p(x). Low latents reconstruct any image; a datum that
the upper ones do not explain loses much by going without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.guide_draws import draw_guide
from probgen.engine.measure import EvaluationContext, Function, Rows, Values
from probgen.errors import AlgorithmError
from probgen.inference.likelihood.guide_terms import in_parts
from probgen.inference.likelihood.importance import IWAE, importance_estimate
from probgen.inference.likelihood.interval import Weighted, settle
from probgen.language.declared import declaration
from probgen.language.kinds import Many, Width

Array = Any
# Families whose mean is their mode.
SYMMETRIC = ("dist.Normal", "dist.MultivariateNormal", "dist.Laplace", "dist.Logistic")


@declaration
class HierarchyRatio(Weighted):
    """L - L_{>k} of a hierarchical VAE: `VAE(latent=another VAE)`, or a program with a guide.

    In nats, larger is stranger. Assumes that the upper latents hold what data of this kind share,
    and that the guide of the upper ones is sound for the data evaluated.

    Fails: with few latents in the upper levels, or collapsed ones, L_{>k} knows nothing of x; the
    best k differs from pair to pair, and choosing it on the tested set is a leak. With "mode" the
    lower term is no bound on log p(x), though it has less noise, and it is what the paper uses.

    Args:
        num_lowest: k, how many of the lowest latents are left to the model. The order is that of
            the program: the latent declared last is the lowest.
        num_particles: K of L.
        num_particles_above: K of L_{>k}; 1 in the paper.
        lowest: "mode" (the mean, for symmetric families) or "sample" of p(z_i | z_{i+1}).
        particles_at_once: for memory.

    Gives per datum: `estimate`; `standard_error` where both have two particles or more; `bound`
    and `bound_above`, both terms; `khat`, the larger of theirs.

    Raises: DeclarationError: settings. When bound: AlgorithmError: fewer than num_lowest + 1
        latents, no guide, global latents, a mode that is not the mean.

    Source: Havtorn et al. 2021, arXiv:2102.08248.
    """

    num_lowest: Width = 1
    num_particles: Many = 1000
    num_particles_above: Many = 1
    lowest: Literal["mode", "sample"] = "mode"
    particles_at_once: Many = 25

    unit = "nats"
    larger_is_stranger = True
    of_bound = ""

    @property
    def name(self) -> str:
        return (
            f"HierarchyRatio(>{self.num_lowest}, {self.num_particles}, "
            f"{self.num_particles_above} {self.lowest})"
        )

    def bind_measure(self, context: EvaluationContext) -> Function:
        """Both bounds, chunk by chunk."""
        at_once, at_mode = self.particles_at_once, self.lowest == "mode"
        lower = _Above(self.num_lowest, self.num_particles_above, at_mode, at_once, self.name)
        above = context.function(lower)
        whole = context.function(IWAE(self.num_particles, at_once))

        def measure(rows: Rows, ids: np.ndarray) -> Values:
            ours, upper = whole(rows, ids), above(rows, ids)
            values = {
                "estimate": ours["estimate"] - upper["estimate"],
                "bound": ours["estimate"],
                "bound_above": upper["estimate"],
                "khat": np.fmax(ours["khat"], upper["khat"]),
            }
            if "standard_error" in ours and "standard_error" in upper:
                # The two draw from keys of their own, so their errors are independent.
                values["standard_error"] = np.hypot(ours["standard_error"], upper["standard_error"])
            return values

        return measure

    def settle(self, values: Values) -> Values:
        """As many draws as the smaller term has must do for both."""
        return settle(values, min(self.num_particles, self.num_particles_above))


@declaration
class _Above:
    """L_{>k} alone, as a measure of the device."""

    num_lowest: int
    num_particles: int
    at_mode: bool
    at_once: int
    who: str = dataclasses.field(default="", repr=False, compare=False)  # for errors

    unit = "nats"
    larger_is_stranger = False

    @property
    def name(self) -> str:
        kind = "mode" if self.at_mode else "sample"
        return f"L(>{self.num_lowest}, {self.num_particles} {kind})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        bound, once = context.bound, min(self.at_once, self.num_particles)
        low = self._lowest(bound)

        def measure(params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
            def draw(k: Any, size: int) -> Array:
                return self._log_w(bound, params, batch, k, size, low)

            log_w = in_parts(bound.backend, draw, key, self.num_particles, once)
            return {"log_w": bound.backend.ops.transpose(log_w)}

        run = context.device(measure, self.name)
        return lambda rows, ids: importance_estimate(run(rows, ids)["log_w"])

    def _log_w(
        self, bound: Bound, params: Mapping, batch: Mapping, key: Any, size: int, low: list[str]
    ) -> Array:
        """[size, batch] log weights with the upper latents alone from the guide."""
        b = bound.backend
        k_guide, k_model = b.split(key, 2)
        drawn = draw_guide(bound, params, batch, k_guide, num_particles=size)
        kept = {n: drawn.latents[n] for n in bound.latents if n not in low}

        def run() -> dict:
            return bound.trace(params, batch, kept, key=k_model, num_particles=size)

        if self.at_mode:
            for name in low:  # from the top down: each given those above it
                kept[name] = b.mean(run()[name].fn)
        sites = run()
        log_w: Any = 0.0
        for name, site in sites.items():
            if site.log_prob is not None and name not in low:
                log_w = log_w + site.log_prob
                if name in kept:
                    log_w = log_w - drawn.sites[name].log_prob
        return log_w

    def _lowest(self, bound: Bound) -> list[str]:
        """Names of the k lowest latents, the upper of them first."""
        who = self.who or self.name
        bound.require_guide(who)
        names = list(bound.latents)
        bound.require_normalized(who)
        bound.require_local_latents(who)
        if len(names) <= self.num_lowest:
            raise AlgorithmError(
                f"{who}: the model {bound.model.name!r} has the latents {names}, expected a "
                f"hierarchy of at least {self.num_lowest + 1}; declare one as "
                "VAE(latent=VAE(...), ...), or lower num_lowest."
            )
        low = names[-self.num_lowest :]
        for name in low:
            family = bound.structure.sites[name].distribution.partition("(")[0]
            if self.at_mode and family not in SYMMETRIC:
                raise AlgorithmError(
                    f"{who}: latent {name!r} is {family}, expected one of {SYMMETRIC}, whose mode "
                    'is the mean; use lowest="sample".'
                )
        return low
