"""Nets that start from a first batch of their inputs (`init(key, *shapes, data=...)`).

The guide runs once on the batch, then the model with the guide's latents; each such net is
initialised as it is first called, so that those after it see what it gives.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from probgen.engine.bound import Bound
from probgen.language.run import on_call
from probgen.language.seeds import named
from probgen.nets.base import wants_data
from probgen.trees import tree_map


def from_data(
    bound: Bound, params: Mapping[str, Any], batch: Mapping[str, Any], key: Any,
    known: Collection[str],
) -> dict[str, Any]:  # fmt: skip
    """`params` with those nets started from the batch that want it.

    Args:
        batch: of a fit, on the backend; where it is empty, inputs are drawn from the model.
        key: for latents.
        known: nets whose parameters exist already, and stay.
    """
    b = bound.backend
    wanting = {n for n, net in bound.nets.items() if wants_data(net) and n not in known}
    if not wanting:
        return dict(params)
    found: dict[str, Any] = {}

    def start(name: str, net: Any, shapes: Any, inputs: Any) -> Any:
        if name in wanting and name not in found:
            drawn = net.init(named(bound.seed, name), *shapes, data=tuple(inputs))
            found[name] = tree_map(b.asarray, drawn)
        return found.get(name)

    k_guide, k_model = b.split(key, 2)
    size, latents = bound.batch_size(batch) or bound.num_draws, {}
    token = on_call.set(start)
    try:
        if bound.model.guide is not None:
            sites = bound.trace_guide(params, batch, key=k_guide, batch_size=size)
            latents = {n: s.value for n, s in sites.items() if n in bound.latents}
        bound.trace({**params, **found}, batch, latents, key=k_model, batch_size=size)
    finally:
        on_call.reset(token)
    return {**params, **found}
