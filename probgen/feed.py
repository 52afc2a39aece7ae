"""What a chunk of steps reads: rows of data on the device, or batches stacked as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.data.sources import ArraySource, LazySource
from probgen.data.streams import StreamSource
from probgen.errors import DataError
from probgen.modelling import Model, arguments

RESIDENT_BYTES = 2**30  # data up to this size are kept on the device
STACKED_BYTES = 2**27  # and this much of larger data is stacked at a time


class Feed:
    """`chunk(step, count) -> (arrays, indices or None, count)`, the arguments of `run_steps`.

    Data that fit are moved to the device once and indexed there; larger ones, map-style data sets
    and streams are stacked for each chunk. `check` sees all data once.
    """

    def __init__(self, source: Any, backend: Backend, check: Callable[[dict], None]):
        self.source, self.backend, self.check = source, backend, check
        self._resident: dict[str, Any] | None = None
        self._stream: Iterator | None = None
        self._next = -1
        if isinstance(source, ArraySource):
            check(source.arrays)
            if sum(v.nbytes for v in source.arrays.values()) <= RESIDENT_BYTES:
                self._resident = {k: backend.asarray(v) for k, v in source.arrays.items()}

    def chunk(self, step: int, count: int) -> tuple[Any, Any, int]:
        if self._resident is not None:
            return self._resident, self.source.schedule(step, count), count
        if isinstance(self.source, ArraySource | LazySource):
            rows = [self.source.take(self.source.indices(step + i)) for i in range(count)]
        else:
            rows = self._from_stream(step, count)
        if not rows:
            return {}, None, 0
        if not isinstance(self.source, ArraySource):
            for batch in rows:
                self.check(batch)
        stacked = {k: self.backend.asarray(np.stack([r[k] for r in rows])) for k in rows[0]}
        return stacked, None, len(rows)

    def _from_stream(self, step: int, count: int) -> list[dict[str, np.ndarray]]:
        if self._stream is None or self._next != step:
            self._stream = self.source.batches(step, repeat=True)
        rows = []
        for batch in self._stream:
            rows.append(batch)
            if len(rows) == count:
                break
        self._next = step + len(rows)
        return rows


def merge_inputs(
    model: Model, data: Any, inputs: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(inputs shared by all data, inputs with one row a datum)."""
    constants: dict[str, Any] = {}
    per_datum: dict[str, np.ndarray] = {}
    first = next(iter(data.values()), None) if isinstance(data, Mapping) else data
    size = len(first) if hasattr(first, "__len__") and np.ndim(first) else None
    known = set(arguments(model.program)) | set(arguments(model.guide) if model.guide else ())
    for name, value in (inputs or {}).items():
        if name not in known:
            raise DataError(
                f"inputs: got {name!r}, expected one of {sorted(known)}, the arguments of "
                f"{model.name!r} and its guide."
            )
        array = np.asarray(value)
        if array.ndim and size is not None and array.shape[0] == size:
            per_datum[name] = array
        else:
            constants[name] = array if array.ndim else value
    return constants, per_datum


__all__ = ["Feed", "StreamSource", "merge_inputs"]
