"""Fitting a guide to one datum: what is searched over, and the bound that is maximised.

For a datum x with the model's parameters theta held fixed, over tau from its amortised start:

    maximise  L(x; theta, tau) = E_{q_tau(z)}[log p_theta(x, z) - log q_tau(z)]

    search="guide"       tau: a copy of all the guide's networks (the whole encoder)
    search="guide", rank_1=True
                         the same, the first linear layer by its output alone
    search="posterior"   tau: location and log scale of each latent of this datum, free Gaussians

The rank-1 form: for one x the gradient of a first layer W x + b is g x^T at every step, so Adam's
moments are those of g, and W x + b moves by s times what Adam makes of g, s = 1 + sum_j |x_j|. The
layer is then the vector a = a_0 + s c, and c is what Adam moves: exact up to Adam's eps and the
weight decay of that layer, which is left out.

What is done with the fitted tau is not here: see `regret`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.bound import Bound
from probgen.errors import AlgorithmError
from probgen.inference.objectives.terms import compute, log_weights
from probgen.language.run import DATA_PLATE
from probgen.nets.buffers import bare, kept_up
from probgen.trees import tree_leaves

Array = Any


class Search(NamedTuple):
    """A search set for one datum.

    Attributes:
        bound: the model with the guide that tau belongs to.
        init: (params, x) -> tau, the amortised start; x: name -> array without a batch axis.
        guide_params: (tau, params, x) -> the guide's parameters.
    """

    bound: Bound
    init: Callable
    guide_params: Callable


def rows_of(x: Mapping[str, Array]) -> dict[str, Array]:
    """One datum as a batch of one."""
    return {k: v[None] for k, v in x.items()}


def bind_search(bound: Bound, who: str, search: str, rank_1: bool, start: str) -> Search:
    """The search set for a model.

    Raises:
        AlgorithmError: there is no guide, it has no networks, no foldable first layer, or is not
            Gaussian, as the search needs.
    """
    bound.require_guide(who)
    if search == "posterior":
        return _posterior(bound, who, start)
    return _rank_1(bound, who) if rank_1 else _guide(bound, who)


def _guide(bound: Bound, who: str) -> Search:
    names = sorted(bound.guide_structure.nets)  # type: ignore[union-attr]
    if not names:
        raise AlgorithmError(
            f"{who}: the guide of {bound.model.name!r} has no networks, expected some to re-fit; "
            'use search="posterior".'
        )

    def init(params: Mapping, x: Mapping) -> dict:
        return bare(bound.upkeep, {name: params[name] for name in names})

    def guide_params(tau: Mapping, params: Mapping, x: Mapping) -> dict:
        return {**params, **kept_up(bound.upkeep, tau, params)}

    return Search(bound, init, guide_params)


def _rank_1(bound: Bound, who: str) -> Search:
    model: Any = bound.model
    encoder: Any = getattr(model, "encoder", None)
    likelihood: Any = getattr(model, "likelihood", None)
    others = sorted({*bound.guide_structure.nets} - {"encoder"})  # type: ignore[union-attr]
    is_plain = hasattr(encoder, "fold") and not getattr(encoder, "spectral", False)
    if not is_plain or likelihood is None or others:
        raise AlgorithmError(
            f"{who}: rank_1=True with the encoder {encoder!r}, expected a VAE whose only guide net "
            "is an MLP without spectral norm, since its first layer must be linear in the datum; "
            "leave rank_1 out."
        )
    first = encoder.first_layer()
    site = next(n for n in bound.observed if n == "x")

    def seen(x: Mapping) -> Array:
        return likelihood.encoder_input(x[site][None])

    def init(params: Mapping, x: Mapping) -> dict:
        rest, h = encoder.fold(params["encoder"], seen(x))
        return {"rest": rest, "c": h[0] * 0.0}

    def guide_params(tau: Mapping, params: Mapping, x: Mapping) -> dict:
        value = seen(x)
        _, h = encoder.fold(params["encoder"], value)
        folded = h + (1.0 + ops.sum(ops.abs(value))) * tau["c"]
        return {**params, "encoder": {**tau["rest"], first: {"folded": folded}}}

    return Search(bound, init, guide_params)


def _posterior(bound: Bound, who: str, start: str) -> Search:
    b = bound.backend
    shapes = {n: bound.structure.sites[n].event_shape for n in bound.latents}
    apart = [n for n in shapes if bound.structure.sites[n].plates != (DATA_PLATE,)]
    if apart:
        raise AlgorithmError(
            f"{who}: the latents {apart} lie in further plates or outside the data plate, "
            'expected one event a datum; use search="guide".'
        )

    def free() -> None:
        with pg.data_plate():
            for n, shape in shapes.items():
                loc = pg.net(f"tau/{n}/loc", nets.Parameter(shape))()
                log_scale = pg.net(f"tau/{n}/log_scale", nets.Parameter(shape))()
                pg.sample(n, dist.Normal(loc, ops.exp(log_scale)).to_event(len(shape)))

    def init(params: Mapping, x: Mapping) -> dict:
        # With its noise at zero every site stands at its centre, those above it included.
        bound.require_guide(who)
        guide: Any = bound.guide_structure
        eps = {n: guide.sites[n].noise_shape or s for n, s in shapes.items() if n in guide.sites}
        still = {n: b.asarray(np.zeros((1, *s))) for n, s in eps.items()}
        drawn = bound.trace_guide(params, rows_of(x), noise=still)
        tau = {}
        for n in shapes:
            found = b.gaussian(drawn[n].fn)
            if found is None:
                raise AlgorithmError(
                    f'{who}: search="posterior" with a guide whose site {n!r} is '
                    f"{type(drawn[n].fn).__name__}, expected independent Gaussians, whose location "
                    'and scale can be freed; use search="guide".'
                )
            loc, scale = found[0][0], found[1][0]
            begin = 1.0 if start == "guide" else 0.0
            tau[f"tau/{n}/loc"] = {"value": begin * loc}
            tau[f"tau/{n}/log_scale"] = {"value": begin * ops.log(scale)}
        return tau

    with_free: Any = _WithGuide(bound.model, free)
    freed = dataclasses.replace(bound, model=with_free)
    return Search(freed, init, lambda tau, params, x: tau)


class _WithGuide:
    """A model as it is, but for its guide."""

    def __init__(self, model: Any, guide: Callable):
        self._model, self.guide = model, guide

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def negative_bound(
    search: Search, tau: Any, params: Mapping, x: Mapping, key: Any, num_particles: int | None
) -> Array:
    """-L(x; theta, tau), nats, by `num_particles` draws and closed forms of the KL."""
    terms = compute(
        search.bound, params, rows_of(x), key, num_particles=num_particles,
        guide_params=search.guide_params(tau, params, x),
    )  # fmt: skip
    return -search.bound.backend.ops.mean(log_weights(terms))


def num_parameters(tau: Any) -> int:
    """Numbers in a tree of arrays or shapes."""
    total = 0
    for leaf in tree_leaves(tau):
        size = 1
        for axis in leaf.shape:
            size *= int(axis)
        total += size
    return total
