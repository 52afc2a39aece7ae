"""Where a chain lives, and the log density that it climbs there.

    data     the sites' own values:     log p~(x) = sum of all sites and factors
    latent   latents given data:        log p~(z, x) with x held
    noise    standard normal noise:     log N(eps; 0, I) + sum of factors at x(eps)

In noise space every continuous site is a deterministic function of its noise, so a model tilted by
an energy has the density log N(eps; 0, I) - E(x(eps)): VAEBM's reparametrised sampling and
exponential tilting's latent sampling in one line. Densities of unnormalised models are known up to
a constant; all are nats, one per chain.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from probgen.bound import Bound
from probgen.errors import AlgorithmError

Array = Any
SPACES = ("data", "latent", "noise")


@dataclasses.dataclass(frozen=True)
class Space:
    """A space bound to a model.

    Attributes:
        names: the sites that move.
        init: (params, batch, key, num_chains) -> positions, a dict of arrays [chains, *event].
        log_density: (positions, params, batch) -> [chains].
        sites: (positions, params, batch) -> the model's trace there.
    """

    kind: str
    names: tuple[str, ...]
    init: Callable
    log_density: Callable
    sites: Callable


def bind_space(bound: Bound, kind: str) -> Space:
    """The space of that name for a model.

    Raises:
        AlgorithmError: unknown name, a discrete site where gradients are needed, a global site,
            or a site that is not a function of normal noise.
    """
    if kind not in SPACES:
        raise AlgorithmError(f"space: got {kind!r}, expected one of {SPACES}.")
    names = tuple(
        n
        for n, s in bound.structure.sites.items()
        if s.kind == "sample" and (kind != "latent" or n not in bound.observed)
    )
    for name in names:
        site = bound.structure.sites[name]
        if site.is_discrete:
            raise AlgorithmError(
                f"space {kind!r}: site {name!r} is discrete ({site.distribution}), expected a "
                "continuous one, since the chain follows gradients; use a Normal likelihood."
            )
        if not site.is_local:
            raise AlgorithmError(
                f"space {kind!r}: site {name!r} is global, expected sites inside the data plate "
                "(one chain a datum); use pg.infer for global latents."
            )
    return _noise(bound, names) if kind == "noise" else _values(bound, kind, names)


def _values(bound: Bound, kind: str, names: tuple[str, ...]) -> Space:
    condition = kind == "latent"

    def sites(x: Mapping, params: Mapping, batch: Mapping) -> dict:
        size = next(iter(x.values())).shape[0]
        return bound.trace(params, batch, x, batch_size=size, condition=condition)

    def log_density(x: Mapping, params: Mapping, batch: Mapping) -> Array:
        return total(sites(x, params, batch))

    def init(params: Mapping, batch: Mapping, key: Any, num_chains: int) -> dict:
        drawn = bound.trace(params, batch, key=key, batch_size=num_chains, condition=condition)
        return {n: drawn[n].value for n in names}

    return Space(kind, names, init, log_density, sites)


def _noise(bound: Bound, names: tuple[str, ...]) -> Space:
    b = bound.backend
    shapes = {n: bound.structure.sites[n].event_shape for n in names}
    size = sum(math.prod(s) for s in shapes.values())

    def sites(eps: Mapping, params: Mapping, batch: Mapping) -> dict:
        chains = next(iter(eps.values())).shape[0]
        return bound.trace(params, batch, noise=eps, batch_size=chains, condition=False)

    def log_density(eps: Mapping, params: Mapping, batch: Mapping) -> Array:
        squares = sum(
            b.ops.sum(b.ops.reshape(e * e, (e.shape[0], -1)), axis=-1) for e in eps.values()
        )
        normal = -0.5 * squares - 0.5 * size * math.log(2.0 * math.pi)
        return normal + total(sites(eps, params, batch), factors_only=True)

    def init(params: Mapping, batch: Mapping, key: Any, num_chains: int) -> dict:
        keys = b.split(key, len(names))
        return {n: b.normal(k, (num_chains, *shapes[n])) for n, k in zip(names, keys, strict=True)}

    return Space("noise", names, init, log_density, sites)


def total(sites: Mapping[str, Any], factors_only: bool = False) -> Array:
    """Sum of log-probabilities over sites, [chains]."""
    kinds = ("factor",) if factors_only else ("factor", "sample")
    values = [s.log_prob for s in sites.values() if s.kind in kinds]
    if not values:
        return next(s.log_prob for s in sites.values() if s.kind == "sample") * 0.0
    out = values[0]
    for value in values[1:]:
        out = out + value
    return out
