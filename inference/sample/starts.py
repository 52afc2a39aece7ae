"""Starting values of chains, by site: checked before a chain moves, one for all or one for each.

A value of a site's own shape (or one that broadcasts to it) starts all chains; one with a further
axis in front, as long as there are chains, starts each at its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.engine.data_support import has_arrays
from probgen.engine.posterior import Posterior
from probgen.errors import DataError, ShapeError, SupportError

Array = Any


def starting_values(
    posterior: Posterior, given: Mapping[str, Any], num_chains: int, params: Any, rows: Any,
    key: Any, who: str,
) -> dict[str, Array]:  # fmt: skip
    """Starts by site, [num_chains, *plates, *event], in the supports, on the backend.

    Args:
        posterior: whose latents they are.
        given: values by site, numbers or arrays.
        num_chains: how many chains.
        params, rows, key: of the run, for the sites' supports.
        who: the method, for messages.

    Raises:
        DataError: text, NaN or infinity. ShapeError: another shape than the site's.
        SupportError: a value outside its site's support. Where the support's bounds depend on
            other latents, the first run finds out (`Posterior.check_start`).
    """
    if not given:
        return {}
    b, bound = posterior.bound.backend, posterior.bound
    out = {
        n: b.asarray(_spread(posterior, n, _numbers(n, v, who), num_chains, who))
        for n, v in given.items()
    }
    program = bound.model.program
    _, sites = b.probe(
        program, dict(params), values={n: rows[n] for n in bound.observed},
        inputs=bound.inputs(program, rows, f"model {bound.model.name!r}"), key=key,
        batch_size=posterior.num_rows or 1, initialise=None,
    )  # fmt: skip
    for name, value in out.items():
        fn = sites[name].fn
        # Bounds may be those of another draw here; past them the bijection gives NaN, and is seen.
        moving = has_arrays(fn) or b.has_moving_support(fn)
        inside = None if moving else b.in_support(fn, value)
        if inside is not None and not b.to_numpy(inside).all():
            info = bound.structure.sites[name]
            flat = b.to_numpy(value)
            raise SupportError(
                f"{who}: init_strategy starts {name!r} outside the support of "
                f"{info.family} ({info.mass}), got values over "
                f"[{flat.min():g}, {flat.max():g}]"
                + (f" that sum to {flat.sum(-1).flat[0]:g}" if info.mass == "simplex" else "")
                + "; give one inside it, or leave the site out to start it by itself."
            )
    return out


def _numbers(name: str, value: Any, who: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise DataError(
            f"{who}: init_strategy gives {name!r} the value {value!r}, expected a finite number or "
            "an array of them."
        )
    return array.astype(np.float64)


def _spread(
    posterior: Posterior, name: str, value: np.ndarray, num_chains: int, who: str
) -> np.ndarray:
    """[num_chains, *shape of the site]."""
    shape = posterior.shape(name)
    if value.shape == (num_chains, *shape):
        return value
    if value.ndim <= len(shape):
        try:
            return np.broadcast_to(value, (num_chains, *shape)).copy()
        except ValueError:
            pass
    raise ShapeError(
        f"{who}: init_strategy gives {name!r} an array of shape {value.shape}, expected {shape}, "
        f"one start for all chains, or {(num_chains, *shape)}, one for each of the {num_chains}."
    )
