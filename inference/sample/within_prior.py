"""Draws of a model whose latent's prior is what a sampler draws from, as of a latent diffusion.

    z by the sampler, with the prior's own parameters;  then x ~ p(x | z)

A prior that has such a prior itself is drawn in the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from probgen.engine.bound import Bound
from probgen.engine.target import OF_SAMPLER
from probgen.language import dist
from probgen.language.capabilities import prior_of
from probgen.language.model import family_of

Array = Any
Drawn = tuple[dict[str, Array], dict[str, Array]]  # values by site, and those along the way
PREFIX = "prior/"  # of the prior's parameters, and of its sites but for its "x", which is z


def innermost(model: Any) -> tuple[Any, str]:
    """(the model at the end of a line of priors, what stands before the names of its sites)."""
    prefix = ""
    while (prior := prior_of(model)) is not None:
        model, prefix = prior, prefix + PREFIX
    return family_of(model), prefix


def given_prior(bound: Bound, make: Callable[[Bound], Callable]) -> Callable:
    """(params, batch, key, num_samples) -> `Drawn` of a model, given how its prior is drawn.

    Args:
        bound: a model whose prior is a model.
        make: the same of the prior, from it as it is bound.
    """
    b, model = bound.backend, bound.model
    draw_z = make(dataclasses.replace(bound, model=prior_of(model)))

    def once(params: Mapping, batch: Mapping, z: Array, key: Any) -> Array:
        shape = tuple(z.shape[1:])
        flat = dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape))
        # Without the prior's own chain, whose values nobody asks for.
        plain = dataclasses.replace(bound, model=model.with_latent(flat))  # type: ignore[attr-defined]
        sites = plain.trace(
            params, batch, {"z": z}, key=key, batch_size=z.shape[0], condition=False
        )
        return sites["x"].value

    draw_x = b.compile(once, num_calls=1)

    def draws(params: Mapping, batch: Mapping, key: Any, num_samples: int) -> Drawn:
        k_z, k_x = b.split(key, 2)
        own = {k.removeprefix(PREFIX): v for k, v in params.items() if k.startswith(PREFIX)}
        values, path = (_renamed(v) for v in draw_z(own, batch, k_z, num_samples))
        inputs = {k: v for k, v in batch.items() if not k.startswith(OF_SAMPLER)}
        return {**values, "x": draw_x(params, inputs, values["z"], k_x)}, path

    return draws


def _renamed(values: Mapping[str, Array]) -> dict[str, Array]:
    return {"z" if n == "x" else PREFIX + n: v for n, v in values.items()}
