"""What a fitted model's guide says of data, and what the model says of that: codes and back.

    encode        E[z | x] under the guide, latent by latent, each given the means of those before
                  p(z | x) of a discrete latent that is summed out, exactly, at these means
    reconstruct   E[x | z] under the model at these codes

No draw is in them, so there is no seed. Rows are worked through in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.data.sources import as_arrays
from probgen.engine.batches import merge_inputs
from probgen.engine.bound import Bound
from probgen.engine.combinations import probabilities
from probgen.engine.guide_draws import guide_at_means
from probgen.errors import AlgorithmError, NonFiniteError
from probgen.language.run import DATA_PLATE

ROWS = 1000


def codes(
    fitted: Any, b: Backend, data: Any, inputs: Mapping[str, Any] | None, *, is_back: bool
) -> dict[str, np.ndarray]:
    """{latent: [n, *event]}, or {observed site: [n, *event]} where `is_back`."""
    who = "reconstruct" if is_back else "encode"
    bound, params, rows = _bind(fitted, b, data, inputs, who)
    bound.require_guide(who)
    bound, chain = _beside_chain(bound, who)
    hidden = (*bound.latents, *bound.enumerated)
    if not hidden or not all(bound.structure.sites[n].is_local for n in hidden):
        raise AlgorithmError(
            f"{who}: {bound.model.name!r} has the latents {list(hidden)}, expected latents "
            "inside the data plate alone, codes of single data; draw global ones by pg.infer."
        )
    run = _back(bound) if is_back else _codes(bound, chain)
    run = b.compile(run, num_calls=-(-_size(rows) // ROWS))
    # Draws of what comes after get a key; their means take its place.
    return _by_chunks(b, rows, lambda part: run(params, part, b.key(0)))


def _beside_chain(bound: Bound, who: str) -> tuple[Bound, frozenset[str]]:
    """The model itself; of one with a long chain what draws a step in place of all, as the codes
    beside the chain (a VAE's z) do not depend on it, and the names of that step's draws.

    Raises:
        AlgorithmError: nothing stands beside the chain.
    """
    if not bound.is_long or bound.make_short is None:
        return bound, frozenset()
    short = bound.make_short()
    if not set(short.latents) & set(bound.latents):
        raise AlgorithmError(
            f"{who}: the latents of {bound.model.name!r} are the {len(bound.latents)} steps of its "
            "chain, noise that its guide draws, expected latents that the chain is the prior of; "
            "fitted.encode(x, method=DDIMInverse(50)) leads data to the noise that they come from."
        )
    return short, frozenset(short.latents) - frozenset(bound.latents)


def codes_by(
    method: Any, fitted: Any, b: Backend, data: Any, inputs: Mapping[str, Any] | None
) -> dict[str, np.ndarray]:
    """Codes by a way of their own (`EncodesModel`), [n, *event] by name.

    Raises:
        NonFiniteError: a code is NaN or infinite.
    """
    bound, params, rows = _bind(fitted, b, data, inputs, "encode")
    run = method.codes_of(bound)
    found = _by_chunks(b, rows, lambda part: run(params, part))
    for name, value in found.items():
        if not np.isfinite(value).all():
            raise NonFiniteError(
                f"encode, {method!r}: got codes {name!r} that are NaN or infinite, expected finite "
                "numbers; look at the data and at the parameters for NaN."
            )
    return found


def _bind(
    fitted: Any, b: Backend, data: Any, inputs: Mapping[str, Any] | None, who: str
) -> tuple[Bound, dict, dict[str, np.ndarray]]:
    arrays = as_arrays(data)
    shared, per_datum = merge_inputs(fitted.model, arrays, inputs)
    rows = {**arrays, **per_datum}
    fitted.model.check_rows(rows)
    bound, params = fitted.bind(b, {k: v[:1] for k, v in rows.items()}, constants=shared)
    bound.require_rows(who)
    return bound, params, rows


def _size(rows: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(rows.values())))


def _by_chunks(b: Backend, rows: Mapping[str, np.ndarray], run: Callable) -> dict[str, np.ndarray]:
    parts = []
    for start in range(0, _size(rows), ROWS):
        found = run({k: b.asarray(v[start : start + ROWS]) for k, v in rows.items()})
        parts.append({n: b.to_numpy(v) for n, v in found.items()})
    return {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}


def _codes(bound: Bound, left_out: frozenset[str]) -> Callable:
    def run(params: Any, batch: Any, key: Any) -> dict[str, Any]:
        known = _means(bound, params, batch, key)
        codes = {n: v for n, v in known.items() if n not in left_out}
        if not bound.enumerated:
            return codes
        found = bound.summed(params, batch, known, is_told=True)
        probs = {n: _rows_first(bound, n, found) for n in bound.enumerated}
        return {**codes, **probs}

    return run


def _means(bound: Bound, params: Any, batch: Any, key: Any) -> dict[str, Any]:
    if not bound.latents:
        return {}
    return guide_at_means(bound, params, batch, key, lambda n, site: _mean(bound, site, n))


def _rows_first(bound: Bound, name: str, found: Any) -> Any:
    """Probabilities of a latent's values, [n, *plates, *event, K]."""
    structure, ops = bound.structure, bound.backend.ops
    probs = probabilities(bound.backend, structure, found, name)
    axis = len(structure.plate_shape(name, 1)) + structure.plate_axes[DATA_PLATE]
    return ops.transpose(probs, [axis, *(i for i in range(probs.ndim) if i != axis)])


def _back(bound: Bound) -> Callable:
    def means(sites: Any) -> dict[str, Any]:
        return {n: _mean(bound, sites[n], n) for n in bound.observed}

    def run(params: Any, batch: Any, key: Any) -> dict[str, Any]:
        known = _means(bound, params, batch, key)
        if not bound.enumerated:
            return means(bound.trace(params, batch, known, key=key, condition=False))
        found = bound.summed(params, batch, known, extra=means)
        if found.is_markov is not None:
            raise AlgorithmError(
                f"reconstruct: {bound.model.name!r} has discrete latents along a long loop, "
                f"{list(bound.enumerated)}, which are summed out, expected latents of a datum "
                "beside it; encode gives their probabilities, moment by moment."
            )
        weights = bound.backend.ops.softmax(found.log_weights, axis=0)
        return {
            n: bound.backend.ops.einsum("cn,cn...->n...", weights, v)
            for n, v in found.extra.items()
        }

    return run


def _mean(bound: Bound, site: Any, name: str) -> Any:
    try:
        mean = bound.backend.mean(site.fn)
    except (NotImplementedError, AttributeError) as error:
        raise AlgorithmError(
            f"site {name!r}: its distribution {bound.structure.sites[name].family} has no mean in "
            "closed form, expected one, such as a Normal; draw with pg.generate or pg.infer."
        ) from error
    return bound.backend.ops.broadcast_to(mean, tuple(site.value.shape))
