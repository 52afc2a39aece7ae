"""What a chunk of steps reads: rows of data on the device, or batches stacked as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.data.checks import clean_array, is_array, on_device
from probgen.data.sources import ArraySource, LazySource
from probgen.data.streams import StreamSource
from probgen.errors import DataError
from probgen.language.model import Model, arguments
from probgen.language.run import ROW

RESIDENT_BYTES = 2**30  # data up to this size are kept on the device
STACKED_BYTES = 2**25  # and this much of larger data is stacked at a time


class NoData:
    """What a fit without data reads: empty batches, of which `batch_size` says how many draws each
    stands for."""

    size: None = None

    def __init__(self, batch_size: int):
        self.batch_size = batch_size

    def example(self) -> dict[str, np.ndarray]:
        """Nothing."""
        return {}


class BatchFeed:
    """`chunk(step, count) -> (arrays, indices or None, count)`, the arguments of `run_steps`.

    Data that fit are moved to the device once and indexed there; larger ones, map-style data sets
    and streams are stacked for each chunk, at most `max_steps` batches at a time, so that memory
    does not grow with the data. `check` sees all data once.
    """

    def __init__(self, source: Any, backend: Backend, check: Callable[[dict], None]):
        self.source, self.backend, self.check = source, backend, check
        self._resident: dict[str, Any] | None = None
        self._stream: Iterator | None = None
        self._next = -1
        self._has_rows = False
        if isinstance(source, ArraySource):
            check(source.arrays)
            if sum(v.nbytes for v in source.arrays.values()) <= RESIDENT_BYTES:
                self._resident = on_device(backend, source.arrays)
        self.max_steps: int | None = None
        if self._resident is None:
            batch = sum(v.nbytes for v in source.example().values())
            self.max_steps = max(1, STACKED_BYTES // max(batch, 1))

    def number_rows(self) -> None:
        """From here on batches have the numbers of their rows in the data, under `ROW`.

        Raises:
            DataError: the data have something else under that name.
        """
        own = self.source.example().get(ROW)
        if own is not None and not np.array_equal(own, self.source.indices(0)):
            raise DataError(
                f"data: got an entry {ROW!r} that does not number the data, expected another name "
                "for it, since this algorithm reads the numbers of a batch's rows there; rename it."
            )
        self._has_rows = True
        if self._resident is not None:
            rows = self.backend.asarray(np.arange(self.source.size))
            self._resident = {**self._resident, ROW: rows}

    def first(self) -> dict[str, Any]:
        """The batch of step 0 on the backend."""
        batch = self.source.example()
        if self._has_rows:
            batch = {**batch, ROW: self.source.indices(0)}
        return {k: self.backend.asarray(v) for k, v in batch.items()}

    def chunk(self, step: int, count: int) -> tuple[Any, Any, int]:
        """The batches of `count` steps from `step` on, or of fewer where a stream ends."""
        if self._resident is not None:
            return self._resident, self.source.schedule(step, count), count
        if isinstance(self.source, NoData):
            return {}, np.zeros((count, 1), np.int64), count  # rows of nothing: an empty batch
        if isinstance(self.source, ArraySource | LazySource):
            rows = [self.source.take(self.source.indices(step + i)) for i in range(count)]
        else:
            rows = self._from_stream(step, count)
        if not rows:
            return {}, None, 0
        if not isinstance(self.source, ArraySource):
            for batch in rows:
                self.check(batch)
        if self._has_rows:
            rows = [{**r, ROW: self.source.indices(step + i)} for i, r in enumerate(rows)]
        names = list(rows[0])
        stacked = {k: self.backend.asarray(np.stack([r[k] for r in rows])) for k in names}
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
    model: Model, data: Any, inputs: Mapping[str, Any] | None, size: int | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(inputs shared by all data, inputs with one row a datum).

    An array whose first axis is as long as the data has one row a datum.

    Args:
        model: whose program and guide name the inputs.
        data: an array or a dict of arrays, for the number of data where `size` is not given.
        inputs: by name.
        size: number of data.

    Raises:
        DataError: a name that is no argument of the program or the guide, or that the data have;
            values that the model has no use for (`Model.check_rows`).
    """
    constants: dict[str, Any] = {}
    per_datum: dict[str, np.ndarray] = {}
    if size is None:
        first = next(iter(data.values()), None) if isinstance(data, Mapping) else data
        size = len(first) if hasattr(first, "__len__") and np.ndim(first) else None  # type: ignore
    known = set(arguments(model.program)) | set(arguments(model.guide) if model.guide else ())
    for name, value in (inputs or {}).items():
        if name not in known:
            raise DataError(
                f"inputs: got {name!r}, expected one of {sorted(known)}, the arguments of "
                f"{model.name!r} and its guide."
            )
        if isinstance(data, Mapping) and name in data:
            raise DataError(f"inputs: got {name!r}, which the data have too; give it only once.")
        if isinstance(value, list | tuple) or (is_array(value) and len(value.shape)):
            array = clean_array(value, f"inputs[{name!r}]")
            (per_datum if array.shape[0] == size else constants)[name] = array
        else:
            constants[name] = value
    model.check_rows({**constants, **per_datum})
    return constants, per_datum


__all__ = ["BatchFeed", "NoData", "StreamSource", "merge_inputs"]
