"""Where a diffusion's draws start: x_T, and the null text of each step where there are such codes.

    codes = {"x_T": [n, *shape], "null": [n, num_steps, m, d],
             "maps/LAYER": [n, num_steps, heads, pixels, m], ...}

`fitted.encode` makes them, with "residual" and "pivots" beside them, which tell of codes and are
not used. The null text takes the place of the model's own at the call that it was learned for; the
maps are for `AttentionControl`, and others leave them alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.target import START, START_MAPS, START_NULLS
from probgen.errors import AlgorithmError, DataError, ShapeError
from probgen.language.capabilities import MapsAttention
from probgen.language.declared import argument
from probgen.language.model import capability

Array = Any
NULL, RESIDUAL, PIVOTS, MAPS = "null", "residual", "pivots", "maps/"


def start_rows(
    model: Any, site: str, start: Any, num_samples: int, num_calls: int, guidance_scale: float
) -> dict[str, np.ndarray]:
    """Rows by name from an array or from codes; see `Starts`.

    Args:
        model: the diffusion. site: where its chain starts.
        start: an array [n, *shape], or codes.
        num_calls, guidance_scale: of the sampler.

    Raises:
        DataError, ShapeError: as `Reverse.start_rows`.
    """
    given = start if isinstance(start, Mapping) else {site: start}
    prefix = site[: site.rfind("/") + 1]
    nulls, told = prefix + NULL, {prefix + RESIDUAL, prefix + PIVOTS}
    maps = [n for n in given if n.startswith(prefix + MAPS)]
    if site not in given or not set(given) <= {site, nulls, *told, *maps}:
        raise DataError(
            f"generate: got start of {sorted(given)}, expected {site!r}, where the reverse "
            f"chain of {model.name!r} starts, as fitted.encode(x, method=DDIMInverse(50)) "
            "gives it."
        )
    rows = {START: _rows(given[site], (num_samples, *model.shape), model)}
    if nulls in given:
        rows[START_NULLS] = _nulls(given[nulls], num_samples, num_calls, guidance_scale)
    return rows


def map_rows(start: Any, num_samples: int, num_calls: int) -> dict[str, np.ndarray]:
    """Maps of codes by name, [num_samples, num_calls, heads, pixels, m].

    Raises:
        DataError: there are none. ShapeError: of other numbers of samples or steps.
    """
    given = start if isinstance(start, Mapping) else {}
    maps = {n: argument("generate", np.ndarray, **{n: v}) for n, v in given.items() if MAPS in n}
    if not maps:
        raise DataError(
            "generate: got no maps in start, expected codes with those of a source; encode it by "
            "NullTextInversion(..., keeps_maps=True)."
        )
    for name, each in maps.items():
        if each.ndim != 5 or each.shape[:2] != (num_samples, num_calls):
            raise ShapeError(
                f"generate: got start[{name!r}] of shape {list(each.shape)}, expected "
                f"[{num_samples}, {num_calls}, heads, pixels, m], the maps of each sample at each "
                "step; draw by the sampler that NullTextInversion was given."
            )
    return {START_MAPS + n.split(MAPS, 1)[1]: v for n, v in maps.items()}


def _rows(value: Any, want: tuple[int, ...], model: Any) -> np.ndarray:
    rows = argument("generate", np.ndarray, start=value)
    if rows.shape != want:
        raise ShapeError(
            f"generate: got start of shape {list(rows.shape)}, expected {list(want)}, one row for "
            f"each of num_samples={want[0]} of {model.name!r}."
        )
    return np.asarray(rows, float)


def _nulls(value: Any, num_samples: int, num_calls: int, guidance_scale: float) -> np.ndarray:
    rows = argument("generate", np.ndarray, **{"start['null']": value})
    if rows.ndim != 4 or len(rows) != num_samples:
        raise ShapeError(
            f"generate: got start['null'] of shape {list(rows.shape)}, expected [{num_samples}, "
            "num_steps, m, d], the null text of each sample at each step."
        )
    if rows.shape[1] != num_calls:
        raise DataError(
            f"generate: got start with null texts of {rows.shape[1]} steps for a sampler that "
            f"calls the network {num_calls} times, expected one for each call; draw by the sampler "
            "that NullTextInversion was given, or leave out 'null' from start."
        )
    if guidance_scale == 1.0:
        raise DataError(
            "generate: got start with null texts for a sampler with guidance_scale=1, which asks "
            "for none, expected the guidance that they were learned for; draw by the sampler that "
            "NullTextInversion was given, or leave out 'null' from start."
        )
    return np.asarray(rows, float)


def nulls_by_call(bound: Bound, batch: Mapping) -> dict[str, Array]:
    """{"null": [calls, n, m, d]} where the batch has null texts."""
    if START_NULLS not in batch:
        return {}
    return {NULL: bound.backend.ops.transpose(batch[START_NULLS], [1, 0, 2, 3])}


def check_nulls(model: Any, inputs: Mapping, along: Mapping) -> None:
    """Refuses null texts that are not those of the model.

    Raises:
        AlgorithmError: it has none. ShapeError: another shape.
    """
    if NULL not in along:
        return
    require_null(model, inputs, "generate")
    found, want = tuple(along[NULL].shape[1:]), tuple(inputs["context"].shape)
    if found != want:
        raise ShapeError(
            f"generate: got start['null'] of {list(found)} at a step, expected {list(want)}, that "
            f"of the context of {model.name!r}; encode the data with this model."
        )


def require_null(model: Any, inputs: Mapping, who: str) -> None:
    """Refuses a model without a context of no condition, from its `embedded` inputs.

    Raises:
        AlgorithmError: it has none.
    """
    if NULL not in inputs:
        raise AlgorithmError(
            f"{who}: the model {model.name!r} has no null text, the context of no condition, "
            "expected one that can be changed, such as a Diffusion with "
            "condition=nets.ContextEmbedding(...)."
        )


def require_maps(model: Any, who: str) -> None:
    """Refuses a model that cannot show and take maps of its condition.

    Raises:
        AlgorithmError: it cannot.
    """
    if capability(model, MapsAttention) is None:
        raise AlgorithmError(
            f"{who}: the model {model.name!r} shows no maps of its condition (predict_with_maps), "
            "expected a Diffusion whose denoiser attends to it, such as nets.PatchTransformer."
        )
