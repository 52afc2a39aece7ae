"""Mean and spread of the guide, and the reconstruction from its mean: what needs no noise.

    mu(x), sigma(x)^2   mean and variance of q(z | x), each latent at the mean of those before it
    x_hat               E[x | z = mu(x)]

All latents of a datum are one vector, in the order in which the guide draws them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probgen.backends.protocol import Site
from probgen.engine.bound import Bound
from probgen.engine.guide_draws import guide_at_means
from probgen.engine.measure import EvaluationContext, Function
from probgen.errors import AlgorithmError
from probgen.language.capabilities import HasMean
from probgen.language.declared import declaration
from probgen.language.model import capability

Array = Any


@declaration
class GuideMoments:
    """As a measure: "mean" and "sd", [n, d], of the guide; no estimate."""

    unit = "latent units"
    larger_is_stranger = True
    name = "GuideMoments"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> {"mean": [n, d], "sd": [n, d]}."""
        bound = context.bound
        check_guide(bound, self.name)

        def measure(params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
            means, spreads = moments(bound, params, batch, key)
            return {"mean": flat(bound, means), "sd": flat(bound, spreads)}

        return context.device(measure, self.name)


def moments(
    bound: Bound, params: Mapping, batch: Mapping, key: Any
) -> tuple[dict[str, Array], dict[str, Array]]:
    """(means, standard deviations) of the guide's latents by name; the key changes nothing."""
    b, ops = bound.backend, bound.backend.ops
    spreads: dict[str, Array] = {}

    def mean_of(name: str, site: Site) -> Array:
        shape = tuple(site.value.shape)
        try:
            mean, variance = b.mean(site.fn), site.fn.variance
        except NotImplementedError as error:
            raise AlgorithmError(
                f"guide of {bound.model.name!r}: the distribution of {name!r}, "
                f"{type(site.fn).__name__}, has no mean and variance in closed form, expected a "
                "Gaussian or the like; use a score that draws from the guide, such as "
                "ReconstructionError."
            ) from error
        spreads[name] = ops.broadcast_to(ops.sqrt(variance), shape)
        return ops.broadcast_to(mean, shape)

    return guide_at_means(bound, params, batch, key, mean_of), spreads


def sites_at(
    bound: Bound, params: Mapping, batch: Mapping, latents: Mapping[str, Array]
) -> dict[str, Any]:
    """The model's observed sites, with the latents given."""
    sites = bound.trace(params, batch, latents)
    return {n: sites[n] for n in bound.observed}


def reconstruction(
    bound: Bound, params: Mapping, batch: Mapping, latents: Mapping[str, Array]
) -> dict[str, Array]:
    """E[x | z] of the observed sites, by the model's own `mean` where it has one."""
    model = capability(bound.model, HasMean)
    if model is not None and "z" in latents and bound.observed == ("x",):
        return {"x": model.mean(bound, params, latents["z"])}
    found = {}
    for name, site in sites_at(bound, params, batch, latents).items():
        try:
            found[name] = bound.backend.mean(site.fn)
        except (NotImplementedError, AttributeError) as error:
            raise AlgorithmError(
                f"model {bound.model.name!r}: the distribution of site {name!r}, "
                f"{type(site.fn).__name__}, has no mean in closed form, expected one for a "
                "reconstruction; declare it as probgen.models.VAE, or use "
                "ReconstructionError, which needs none."
            ) from error
    return found


def check_guide(bound: Bound, who: str) -> None:
    """Refuses a model whose bound is not one of each datum.

    Raises:
        AlgorithmError: no guide, latents outside the data plate, an unnormalised density.
    """
    bound.require_guide(who)
    bound.require_normalized(who)
    bound.require_local_latents(who)
    if not bound.latents:
        raise AlgorithmError(
            f"{who}: the model {bound.model.name!r} has no latents, expected a guide over some; "
            "a score of a guide says nothing of it; use the log-density itself."
        )


def flat(bound: Bound, values: Mapping[str, Array]) -> Array:
    """Arrays [batch, ...] side by side as [batch, d]."""
    ops = bound.backend.ops
    parts = [ops.reshape(v, (v.shape[0], -1)) for v in values.values()]
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=1)
