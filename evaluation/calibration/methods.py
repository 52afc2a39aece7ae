"""Methods whose draws are ranked: chains, a model's own guide, or any function of data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np

from probgen.backends.chains import Chains
from probgen.engine.chain_pieces import Pieces
from probgen.engine.guide_draws import draw_guide
from probgen.engine.markov import draw_posterior
from probgen.engine.posterior import Posterior
from probgen.errors import AlgorithmError
from probgen.evaluation.calibration.side_by_side import draw_side_by_side, goes_side_by_side
from probgen.evaluation.calibration.study import Sampler, Study, Values
from probgen.inference.sample.guide import Guide
from probgen.language.kinds import Rule


def _draws(method: Any) -> bool:
    return callable(getattr(method, "kernel", None)) or callable(method)


Method = Annotated[
    Any,
    Rule(
        "NUTS(...), HMC(...), Langevin(...), Guide(), or a function (data, num_draws, seed) -> "
        "dict of draws",
        _draws, alone=True,
    ),
]  # fmt: skip


def sampler_of(study: Study, method: Any, num_draws: int, thinning: int) -> Sampler:
    """What draws from the posteriors of simulated data sets, [chain, draw, ...], thinned."""
    if isinstance(method, Guide):
        return Sampler(_from_guide(study, num_draws))
    if callable(getattr(method, "kernel", None)):
        return _from_chains(study, method, num_draws, thinning)
    return Sampler(
        lambda data, key, seed: _from_function(study, method, data, seed, num_draws, thinning)
    )


def _from_chains(study: Study, method: Any, num_draws: int, thinning: int) -> Sampler:
    fields = {f.name for f in dataclasses.fields(method)}
    if fields >= {"thinning", "num_chains"}:
        length = "num_samples" if "num_samples" in fields else "num_steps"
        per_chain = -(-num_draws // method.num_chains)
        method = dataclasses.replace(method, **{length: per_chain * thinning}, thinning=thinning)
        thinning = 1
    study.posterior.check()
    tokens: dict[str, Any] = {}

    def token(posterior: Posterior, rows: Any) -> Any:
        """One for each form of the posterior, which hangs on the shapes of the data alone."""
        name = type(posterior).__name__
        if name not in tokens:
            key = study.backend.key(0)
            tokens[name] = posterior.token(study.params, rows, key)
        return tokens[name]

    def values(chains: Chains, rows: Any) -> Values:
        found = study.posterior.map_draws(
            "values", chains, study.params, rows, token(study.posterior, rows), None
        )
        return {n: found[n][:, ::thinning] for n in study.bound.latents}

    def draw(data: Values, key: Any, seed: int) -> Values:
        rows = study.rows(data)
        name = token(study.posterior, rows)
        chains = draw_posterior(
            method, study.posterior, study.params, rows, key, name, False, Pieces()
        )
        return values(chains, rows)

    def draw_many(sets: list[Values], key: Any) -> list[Values]:
        rows = [study.rows(data) for data in sets]
        found = draw_side_by_side(method, study.posterior, study.params, rows, key, token)
        return [values(*each) for each in zip(found, rows, strict=True)]

    return Sampler(draw, draw_many if goes_side_by_side(method, study.backend) else None)


def _from_guide(study: Study, num_draws: int) -> Callable[..., Values]:
    b, bound = study.backend, study.bound
    bound.require_guide(study.who)

    def run(params: Any, rows: Any, key: Any) -> dict[str, Any]:
        return draw_guide(bound, params, rows, key, num_particles=num_draws).latents

    compiled = b.compile(run)

    def draw(data: Values, key: Any, seed: int) -> Values:
        out = compiled(study.params, study.rows(data), key)
        return {n: b.to_numpy(v)[None] for n, v in out.items()}

    return draw


def _from_function(
    study: Study, method: Callable, data: Values, seed: int, num_draws: int, thinning: int
) -> Values:
    out = method(data, num_draws * thinning, seed)
    if not isinstance(out, Mapping) or set(out) != set(study.bound.latents):
        got = sorted(out) if isinstance(out, Mapping) else type(out).__name__
        raise AlgorithmError(
            f"{study.who}: the method gave {got}, expected a dict with the draws of "
            f"{sorted(study.bound.latents)}."
        )
    return {n: np.asarray(v)[None, ::thinning] for n, v in out.items()}
