"""Several draws of latents that all data share: runs of one program side by side.

Where all latents belong to single data, particles are an axis in front of the data's, and a program
need not know. A program that draws what all data share is written for one value of it (a product
`covariates @ weights`), so it runs once a particle, mapped over; what the guide drew is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probgen.engine.bound import Bound
from probgen.engine.guide_draws import GuideDraws, draw_guide
from probgen.engine.posterior import Posterior
from probgen.errors import AlgorithmError
from probgen.inference.objectives.terms import Terms, collect


def terms_side_by_side(
    bound: Bound, params: Mapping, batch: Mapping[str, Any], key: Any, *, num_particles: int,
    analytic_kl: bool,
) -> Terms:  # fmt: skip
    """`terms.compute` with a leading axis of particles: local terms [K, batch], global ones [K].

    Raises:
        AlgorithmError: the guide draws more than the model's latents.
    """
    b = bound.backend
    draws = draw_guide(bound, params, batch, key, num_particles=num_particles)
    if further := sorted({*draws.sites} - {*draws.latents}):
        raise AlgorithmError(
            f"ELBO(num_particles={num_particles}): the guide of {bound.model.name!r} also draws "
            f"{further}, which are no latents of the model, beside latents that all data share; "
            "expected the model's alone; use num_particles=1."
        )
    shape = Posterior(bound, bound.batch_size(batch)).shape
    given = {n: b.ops.reshape(v, (num_particles, *shape(n))) for n, v in draws.latents.items()}
    is_local: dict[str, bool] = {}

    def one(given: Mapping, params: Mapping, batch: Mapping) -> dict:
        guide = bound.trace_guide(params, batch, latents=given)
        drawn = GuideDraws(dict(given), {n: s for n, s in guide.items() if s.kind == "sample"})
        sites = bound.trace(params, batch, given)
        found = collect(bound, drawn, sites, analytic_kl=analytic_kl)
        is_local.update(found.is_local)
        return {n: v for n, v in found._asdict().items() if n != "is_local"}

    found = b.vmap(one, in_axes=(0, None, None))(given, dict(params), dict(batch))
    values = {n: b.ops.mean(v, axis=0) for n, v in found.pop("values").items()}
    return Terms(**found, values=values, is_local=is_local)
