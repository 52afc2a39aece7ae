"""What a result is made of: entries by name, equal where all that its numbers depend on is equal.

A checkpoint, a chunk of an evaluation and its table carry their entries, and are gone on with only
where those of the present call are the same: model, algorithm and measures by their content
(`identity`: code and all that it closes over, parameters of fitted parts), data, inputs and given
parameters by their bytes, and the settings as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from probgen.backends.chains import WarmStart
from probgen.backends.protocol import Backend
from probgen.data.sources import ArraySource, LazySource
from probgen.engine.fitted import Fitted
from probgen.language.content import content
from probgen.language.identity import identity
from probgen.language.model import Model
from probgen.records.store import flatten
from probgen.trees import tree_map
from probgen.version import __version__

PROBED = 16  # data of a map-style data set that are read to tell it from another


def of_fit(
    model: Model, algorithm: Any, backend: Backend, *, source: Any, seed: int,
    constants: Mapping[str, Any], given: Any, held_out: Mapping[str, np.ndarray] | None,
    ema_decay: float | None, accumulate: int, freeze: Sequence[str] = (), extras: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """What a fit is, but for its number of steps: another entry gives another fit.

    Raises:
        DeclarationError: something in model, algorithm or inputs cannot be told by its content.
    """
    return {
        "model": _named(model, model.name),
        "algorithm": _named(algorithm, "algorithm"),
        "seed": seed,
        "batch_size": source.batch_size,
        "backend": backend.name,
        "float": float_width(backend),
        "ema_decay": ema_decay,
        "accumulate": accumulate,
        "data": _of_data(source),
        "inputs": of_inputs(constants),
        "validation": None if held_out is None else content(held_out),
        "given parameters": content(flatten({**model.fitted_params(), **(given or {})})),
        "freeze": sorted(freeze) or None,
        "given extras": content(flatten(extras)) if extras else None,
    }


def beside_fit(backend: Backend, initial: Any) -> dict[str, str]:
    """What a fit that is gone on with may differ in, and then says so (`changes`).

    A module of torch or equinox brings the weights that it starts from; where nobody seeds them
    they are others in each process, and a state that was kept takes their place.
    """
    start = content(flatten(tree_map(backend.to_numpy, initial)))
    more = {} if backend.num_devices == 1 else {"number of devices": str(backend.num_devices)}
    return {"version of probgen": __version__, "starting parameters": start, **more}


def of_evaluation(
    fitted: Fitted, measures: Sequence[Any], seed: int, backend: Backend
) -> dict[str, Any]:
    """What a table is of, but for the data: equal entries give equal numbers.

    Raises:
        DeclarationError: something in model, measures or inputs cannot be told by its content.
    """
    return {
        "probgen": __version__,
        "measures": [f"{m.name} {identity(m, m.name)}" for m in measures],
        "seed": seed,
        "backend": backend.name,
        "float": float_width(backend),
        "model": f"{fitted.model.name} {identity(fitted.model, fitted.model.name)}",
        "inputs": of_inputs(fitted.constants),
        "parameters": content(flatten(fitted.params)),
    }


def of_posterior(
    model: Model, method: Any, backend: Backend, *, seed: int, rows: Mapping[str, np.ndarray],
    constants: Mapping[str, Any], params: Any, num_data: int | None, until: Any = None,
    warm: WarmStart | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What draws of chains are of: equal entries give equal draws.

    Raises:
        DeclarationError: something in model, method or inputs cannot be told by its content.
    """
    return {
        "probgen": __version__,
        "versions": backend.versions(),
        "model": _named(model, model.name),
        "method": _named(method, "method"),
        "seed": seed,
        "backend": backend.name,
        "float": float_width(backend),
        "observed data": content(rows),
        "inputs": of_inputs(constants),
        "parameters": content(flatten(tree_map(backend.to_numpy, params))),
        "num_data": num_data,
        "until": None if until is None else repr(until),
        "warm start": None if warm is None else content(flatten(warm._asdict())),
    }


def of_samples(
    fitted: Fitted, backend: Backend, *, seed: int, method: Any, inputs: Mapping[str, Any],
    **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """What samples are of: equal entries give equal samples.

    Raises:
        DeclarationError: something in model, method or inputs cannot be told by its content.
    """
    return {
        "probgen": __version__,
        "versions": backend.versions(),
        "model": _named(fitted.model, fitted.model.name),
        "method": _named(method, "method"),
        "seed": seed,
        "backend": backend.name,
        "float": float_width(backend),
        "inputs": of_inputs({**fitted.constants, **inputs}),
        "parameters": content(flatten(fitted.params)),
        **settings,
    }


def of_inputs(constants: Mapping[str, Any]) -> dict[str, str]:
    """Inputs that all data share, each by its content."""
    return {k: identity(v, f"inputs[{k!r}]") for k, v in sorted(constants.items())}


def float_width(backend: Backend) -> str:
    """The type that numbers get: float32, or float64 where its user set the framework so."""
    return str(backend.to_numpy(backend.asarray(np.zeros(1))).dtype)


def _named(value: Any, what: str) -> str:
    """A declaration as text, for who reads it, and by its content."""
    return f"{re.sub(r' at 0x[0-9a-fA-F]+', '', repr(value))} {identity(value, what)}"


def _of_data(source: Any) -> str:
    """What tells one data set from another.

    Arrays are known in full. Of a map-style data set size, form and `PROBED` items spread over it
    are known, where reading those twice gives the same; one that draws as it is read (random crops)
    is known by size and form alone, and a stream by the form of its batches.
    """
    example = source.example()
    if not example:
        return "none"
    form = ", ".join(f"{k} {v.dtype} {list(v.shape[1:])}" for k, v in sorted(example.items()))
    text = f"{source.size} x ({form})"
    if isinstance(source, ArraySource):
        return f"{text} {content(source.arrays)} in the order of seed {source.seed}"
    if isinstance(source, LazySource):
        return f"{text} {probed(source.size, source.take)} in the order of seed {source.seed}"
    return text


def probed(size: int, take: Callable[[np.ndarray], Mapping[str, np.ndarray]]) -> str:
    """What tells data from others where not all are read: `PROBED` rows, spread over all."""
    rows = np.unique(np.linspace(0, size - 1, PROBED).astype(np.int64))
    once, again = content(take(rows)), content(take(rows))
    return once if once == again else "drawn as they are read"
