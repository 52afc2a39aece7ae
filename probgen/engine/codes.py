"""What a fitted model's guide says of data, and what the model says of that: codes and back.

    encode        E[z | x] under the guide, latent by latent, each given the means of those before
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
from probgen.engine.guide_draws import guide_at_means
from probgen.errors import AlgorithmError

ROWS = 1000


def codes(
    fitted: Any, b: Backend, data: Any, inputs: Mapping[str, Any] | None, *, is_back: bool
) -> dict[str, np.ndarray]:
    """{latent: [n, *event]}, or {observed site: [n, *event]} where `is_back`."""
    who = "reconstruct" if is_back else "encode"
    arrays = as_arrays(data)
    shared, per_datum = merge_inputs(fitted.model, arrays, inputs)
    rows = {**arrays, **per_datum}
    bound, params = fitted.bind(b, {k: v[:1] for k, v in rows.items()}, constants=shared)
    bound.require_rows(who)
    bound.require_guide(who)
    names = tuple(n for n in bound.latents if bound.structure.sites[n].is_local)
    if not names or names != bound.latents:
        raise AlgorithmError(
            f"{who}: {bound.model.name!r} has the latents {list(bound.latents)}, expected latents "
            "inside the data plate alone, codes of single data; draw global ones by pg.infer."
        )
    run = b.compile(_back(bound) if is_back else _codes(bound))
    size = len(next(iter(rows.values())))
    parts = []
    for start in range(0, size, ROWS):
        part = {k: b.asarray(v[start : start + ROWS]) for k, v in rows.items()}
        found = run(params, part, b.key(0))  # draws of what comes after; their means take its place
        parts.append({n: b.to_numpy(v) for n, v in found.items()})
    return {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}


def _codes(bound: Bound) -> Callable:
    def run(params: Any, batch: Any, key: Any) -> dict[str, Any]:
        return guide_at_means(bound, params, batch, key, lambda n, site: _mean(bound, site, n))

    return run


def _back(bound: Bound) -> Callable:
    encode = _codes(bound)

    def run(params: Any, batch: Any, key: Any) -> dict[str, Any]:
        known = encode(params, batch, key)
        sites = bound.trace(params, batch, known, key=key, condition=False)
        return {n: _mean(bound, sites[n], n) for n in bound.observed}

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
