"""What a diffusion is learned from: the data themselves, or draws of a guide in whose place it is.

    Diffusion                   x, observed
    VAE(latent=Diffusion)       z ~ q(z | x), drawn anew at each step; the diffusion is the prior

The steps of the prior's own chain, which the whole guide would draw, are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from probgen.engine.bound import Bound
from probgen.errors import AlgorithmError
from probgen.language import dist
from probgen.language.capabilities import Denoises, prior_of
from probgen.language.model import capability

Array = Any
PREFIX = "prior/"  # of its parameters, in a model whose prior it is


class Diffused(NamedTuple):
    """A diffusion and its data within a bound model.

    Attributes:
        model: the diffusion.
        params: (all parameters by net) -> the diffusion's own by net.
        draw: (params, batch, key) -> its data [n, *shape], constants to every derivative.
    """

    model: Any
    params: Callable
    draw: Callable


def diffused(bound: Bound, who: str) -> Diffused:
    """The diffusion that a bound model is, or that is the prior of its latent.

    Raises:
        AlgorithmError: there is none; the data do not observe "x"; of a prior: all of it is
            frozen, or a net beside it is not.
    """
    model: Any = bound.model
    own_model, prior = (capability(m, Denoises) for m in (model, prior_of(model)))
    if "x" in bound.observed and own_model is not None:
        return Diffused(own_model, lambda params: params, lambda params, batch, key: batch["x"])
    if "x" not in bound.observed or prior is None or model.guide is None:
        raise AlgorithmError(
            f"{who}: the model {model.name!r} (data: {list(bound.observed)}) has no "
            "denoiser and noise schedule, expected a Diffusion with data for 'x', or a VAE with "
            "latent=Diffusion(...)."
        )
    _require_alone(bound, who)
    flat = dist.Normal(0.0, 1.0).expand(tuple(prior.shape)).to_event(len(prior.shape))
    plain = dataclasses.replace(bound, model=model.with_latent(flat))

    def draw(params: Mapping, batch: Mapping, key: Any) -> Array:
        return bound.backend.ops.stop_gradient(plain.trace_guide(params, batch, key=key)["z"].value)

    def own(params: Mapping) -> dict:
        return {k.removeprefix(PREFIX): v for k, v in params.items() if k.startswith(PREFIX)}

    return Diffused(prior, own, draw)


def _require_alone(bound: Bound, who: str) -> None:
    """Some of the prior is to be learned, and nothing else."""
    frozen = bound.frozen()
    still = sorted(n for n in bound.nets if n.startswith(PREFIX) and n in frozen)
    free = sorted(n for n in bound.nets if not n.startswith(PREFIX) and n not in frozen)
    if still and not any(n.startswith(PREFIX) and n not in frozen for n in bound.nets):
        raise AlgorithmError(
            f"{who}: the prior of {bound.model.name!r} is frozen ({still}), expected one to "
            "learn; give the Diffusion itself as latent=, and its parameters by init=."
        )
    if free:
        raise AlgorithmError(
            f"{who}: the nets {free} of {bound.model.name!r} are not frozen, expected the "
            "prior alone to learn, since denoising teaches them nothing; fit them first and give "
            f"init=fitted.params, freeze={tuple(free)}, or learn all by SVI(ELBO())."
        )
