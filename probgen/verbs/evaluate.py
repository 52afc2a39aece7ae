"""`evaluate`: how good is a model, per datum, with what error?"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from probgen import store
from probgen.backends.protocol import Backend
from probgen.chunks import ChunkStore, content
from probgen.data.sources import ArraySource, LazySource, as_source
from probgen.errors import AlgorithmError, DataError, MissingSeed
from probgen.evaluation_table import Evaluation
from probgen.feed import merge_inputs
from probgen.fitted import Fitted
from probgen.measure import Measure, Room, check_finite, start
from probgen.progress import bar
from probgen.support import SupportCheck

CHUNK = 100


def evaluate(
    fitted: Fitted,
    data: Any,
    measures: Iterable[Measure],
    *,
    seed: int | None = None,
    inputs: Mapping[str, Any] | None = None,
    names: tuple[str, ...] | None = None,
    chunk_size: int = CHUNK,
    path: str | os.PathLike | None = None,
    backend: str | Backend = "auto",
    device: str = "auto",
    progress_bar: bool = True,
) -> Evaluation:
    """Measures each datum, in chunks of `chunk_size`, so that memory does not grow with the data.

    The noise belongs to the datum (its place in the data) and the measure: chunk size, order and
    choice of the other measures change no number beyond floating-point rounding.

    Args:
        fitted: model and parameters.
        data: as in `fit`; memory-mapped arrays and map-style data sets are read chunk by chunk.
        measures: such as `[ELBO(num_particles=16), IWAE(num_particles=1000)]`.
        seed: an integer.
        inputs: further arguments of the program or the guide.
        names: of the entries of the data, as in `fit`.
        chunk_size: data at a time.
        path: a folder for the table. Finished chunks are written beside it as they come; the same
            call after a kill reads them and goes on. The table is there when the call returns.
        backend, device: those of the fit by default.

    Raises:
        MissingSeed, DataError, SupportError, AlgorithmError: what was got, expected, and the cure.
        NonFiniteError: a measure gave NaN for a datum (says which).
        SaveError: `path` cannot be written, or holds chunks of another evaluation.
    """
    chosen = _checked(fitted, measures, seed, chunk_size)
    b = fitted.resolve(backend, device)
    source = as_source(data, batch_size=None, seed=0, names=names)
    if not isinstance(source, ArraySource | LazySource):
        raise DataError(
            "evaluate: got a stream, expected data of a known size; collect it into arrays first."
        )
    size, example = source.size, source.take(np.arange(1))
    constants, per_datum = merge_inputs(fitted.model, example, inputs, size=size)
    fitted = dataclasses.replace(fitted, constants={**fitted.constants, **constants})

    def read(first: int, stop: int) -> dict[str, np.ndarray]:
        rows = (
            {k: v[first:stop] for k, v in source.arrays.items()}
            if isinstance(source, ArraySource)
            else source.take(np.arange(first, stop))
        )
        return {**rows, **{k: v[first:stop] for k, v in per_datum.items()}}

    chunk_size = min(chunk_size, size)
    count = -(-size // chunk_size)
    key = b.key(seed)  # type: ignore[arg-type]
    room = Room(fitted, b, key, chunk_size, count, read(0, 1), size, names)
    bound, params = room.bind()
    bound.require_rows("evaluate")
    check = SupportCheck(bound, params, key)
    kept = _chunk_store(path, fitted, chosen, seed, chunk_size, b)
    functions: list[Callable] = []
    parts: list[dict[str, dict[str, np.ndarray]]] = []
    with bar(size, wanted=progress_bar, unit="datum") as shown:
        for first in range(0, size, chunk_size):
            stop = min(first + chunk_size, size)
            rows = read(first, stop)
            values = kept.read(first, rows) if kept else None
            if values is None:
                check({k: b.asarray(v) for k, v in rows.items()})
                # Reference data, if any, are only gone through when something is to be computed.
                functions = functions or [start(m, room) for m in chosen]
                values = _measure(chosen, functions, rows, np.arange(first, stop))
                if kept:
                    kept.write(first, rows, values)
            parts.append(values)
            shown(stop - first)
    table = _table(chosen, parts, {"backend": b.name, "seed": seed, **b.info()})
    if kept:
        table.save(path)  # type: ignore[arg-type]
        kept.clear()
    return table


def _checked(fitted: Any, measures: Any, seed: int | None, chunk_size: int) -> list[Measure]:
    if seed is None:
        raise MissingSeed("evaluate: got no seed, expected an integer such as seed=0.")
    if not isinstance(fitted, Fitted):
        raise AlgorithmError(
            f"evaluate: got {type(fitted).__name__}, expected a Fitted: a model with parameters, "
            "as pg.fit or Fitted.from_pretrained give it."
        )
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise AlgorithmError(f"evaluate: got chunk_size={chunk_size!r}, expected 1 or more.")
    chosen = list(measures) if isinstance(measures, Iterable) else [measures]
    kinds = ("bind_measure", "bind_rows", "start")
    if not chosen or not all(any(hasattr(m, k) for k in kinds) for m in chosen):
        raise AlgorithmError(
            f"evaluate: got the measures {chosen}, expected a list such as "
            "[IWAE(num_particles=1000)] of probgen.inference."
        )
    labels = [m.name for m in chosen]
    twice = sorted({n for n in labels if labels.count(n) > 1})
    if twice:
        raise AlgorithmError(
            f"evaluate: got two measures named {twice[0]!r}, expected each name once."
        )
    return chosen


def _measure(
    chosen: list[Measure], functions: list[Callable], rows: dict, ids: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    values = {}
    for measure, function in zip(chosen, functions, strict=True):
        out = function(rows, ids)
        check_finite(measure.name, out["estimate"], int(ids[0]))
        values[measure.name] = out
    return values


def _table(chosen: list[Measure], parts: list, info: dict) -> Evaluation:
    values = {
        m.name: {q: np.concatenate([p[m.name][q] for p in parts]) for q in parts[0][m.name]}
        for m in chosen
    }
    said = {m.name: m.warnings(values[m.name]) for m in chosen if hasattr(m, "warnings")}
    return Evaluation.from_values(
        values,
        units={m.name: m.unit for m in chosen},
        larger_is_stranger={m.name: m.larger_is_stranger for m in chosen},
        warnings=said,
        info=info,
    )


def _chunk_store(
    path: Any, fitted: Fitted, chosen: list[Measure], seed: Any, chunk_size: int, b: Backend
) -> ChunkStore | None:
    if path is None:
        return None
    identity = {
        "measures": [repr(m) for m in chosen],
        "seed": seed,
        "chunk_size": chunk_size,
        "backend": b.name,
        "model": re.sub(r" at 0x[0-9a-f]+", "", repr(fitted.model)),
        "inputs": {k: _mark(v) for k, v in sorted(fitted.constants.items())},
        "parameters": content(store.flatten(fitted.params)),
    }
    return ChunkStore(path, identity)


def _mark(value: Any) -> str:
    """What tells one constant input from another."""
    array = np.asarray(value) if isinstance(value, int | float | list | np.ndarray) else None
    return repr(value) if array is None or array.dtype == object else content({"": array})
