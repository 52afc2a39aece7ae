"""Chains for `generate`: of a whole model, or of the energy in its latent's prior alone.

VAE(latent=EBM)      chains climb the density of z; x is drawn given their ends, whatever its law
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from probgen.engine.bound import Bound
from probgen.engine.fitted import Fitted
from probgen.engine.markov import chain_ends
from probgen.engine.spaces import model_target, space_name
from probgen.engine.target import Sampler, transitions
from probgen.language.capabilities import prior_of


def chains(
    bound: Bound, method: Sampler, space: Any, num_chunks: int, return_chain: bool
) -> Callable:
    """(params, batch, key, count) -> (values of all sites, what is kept along the way, stats)."""
    of = _of_prior if _is_of_prior(bound) else _of_all
    return of(bound, method, space, num_chunks, return_chain)


def _of_all(
    bound: Bound, method: Sampler, space: Any, num_chunks: int, return_chain: bool
) -> Callable:
    """The chains' ends, in noise space for a model with latents and in data space without, unless
    the space is given; along a chain in noise space the noise is kept."""
    where = space or ("noise" if bound.latents else "data")
    target = model_target(bound, where)

    def shown(x: Mapping, params: Any, batch: Any) -> dict:
        values = x if space_name(where) == "noise" else target.values(x, params, batch)
        return {n: values[n] for n in target.names}

    return chain_ends(
        bound.backend, method, target, num_calls=num_chunks * transitions(method),
        keep=shown if return_chain else None,
    )  # fmt: skip


def _is_of_prior(bound: Bound) -> bool:
    """Whether all factors stand in the prior of the model's latent, so that it alone takes chains,
    and what is given the latent is drawn as the program says."""
    factors, model = bound.structure.factors, bound.model
    return bool(factors) and prior_of(model) is not None and all(
        n.startswith("prior/") for n in factors
    )  # fmt: skip


def _of_prior(
    bound: Bound, method: Sampler, space: Any, num_chunks: int, return_chain: bool
) -> Callable:
    """Chains of the prior by itself; the rest of the program runs at their ends."""
    prior = bound.model.prior()  # type: ignore[attr-defined]
    own = lambda params: {  # noqa: E731
        k.removeprefix("prior/"): v for k, v in params.items() if k.startswith("prior/")
    }
    part, _ = Fitted(prior, {}).bind(bound.backend)
    run = _of_all(part, method, space, num_chunks, return_chain)

    def ends(params: Any, batch: Any, key: Any, count: int) -> tuple:
        k_chains, k_rest = bound.backend.split(key, 2)
        values, chain, stats = run(own(params), {}, k_chains, count)
        named = {"z" if n == "x" else f"prior/{n}": v for n, v in values.items()}
        return rest(params, batch, named, k_rest, count), chain, stats

    def rest(params: Any, batch: Any, named: dict, key: Any, count: int) -> dict:
        def once(params: Any, batch: Any, named: Any, key: Any) -> dict:
            sites = bound.trace(params, batch, named, key=key, batch_size=count, condition=False)
            return {n: s.value for n, s in sites.items() if s.kind != "factor"}

        return bound.backend.compile(once, num_calls=1)(params, batch, named, key)

    return ends
