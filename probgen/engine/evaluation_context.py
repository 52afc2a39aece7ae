"""One evaluation as its measures see it: a model with its parameters, the data, and their noise.

What several measures ask for is made once: a model is bound once, a chunk is put on the device
once, and a measure is computed once a chunk, whoever asks. Noise belongs to the datum: what is
drawn under the name m for datum i comes from the key fold_in(fold_in(key, m), i), so neither the
other measures nor how the data are cut into chunks changes a number. What a measure is, is not
here: see `probgen.engine.measure`.
"""

from __future__ import annotations

import copy
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.bound import Bound
from probgen.engine.fitted import Fitted
from probgen.errors import NotByRow

Rows = Mapping[str, np.ndarray]
Values = dict[str, np.ndarray]
Function = Callable[[Rows, np.ndarray], Values]  # (rows of a chunk, their numbers) -> values


class EvaluationContext:
    """What `bind_measure` gets.

    Args:
        key: of the seed.
        example: one datum, with its inputs.
        is_once: it is all the data of a program without a data plate (`Bound.is_once`).
        num_chunks: how often a function will run, for `compile`; by the data where not told.

    Attributes:
        fitted: the model that is evaluated.
        bound, params: it on the backend, with `bound.structure`, `bound.latents` and the like.
        backend: where it runs.
        num_data: how many data are evaluated.
        chunk_size: data at a time.
        names: names under which data come, for reference data given as one array.
    """

    def __init__(
        self, fitted: Fitted, backend: Backend, key: Any, example: Rows, *, num_data: int,
        chunk_size: int, num_chunks: int | None = None, names: tuple[str, ...] | None = None,
        is_once: bool = False,
    ):  # fmt: skip
        self._is_once = is_once
        self.fitted, self.backend, self.names = fitted, backend, names
        self.num_data, self.chunk_size = num_data, chunk_size
        self._key, self._example = key, {k: v[:1] for k, v in example.items()}
        self._num_chunks = -(-num_data // chunk_size) if num_chunks is None else num_chunks
        self._kept: dict[Any, Any] = {}
        self._placed: list[tuple[Rows, int, dict[str, Any]]] = []  # the last chunk

    @functools.cached_property
    def _bound(self) -> tuple[Bound, dict]:
        return self.fitted.bind(
            self.backend, self._example, num_data=self.num_data, num_steps=self._num_chunks,
            is_once=self._is_once,
        )  # fmt: skip

    @property
    def bound(self) -> Bound:
        return self._bound[0]

    @property
    def params(self) -> dict:
        return self._bound[1]

    def at(self, fitted: Fitted) -> EvaluationContext:
        """The same evaluation at another model, such as a background: same data, same noise."""
        if fitted is self.fitted:
            return self

        def make() -> EvaluationContext:
            other = copy.copy(self)  # what is kept is kept in one place
            other.__dict__.pop("_bound", None)
            other.fitted = fitted
            return other

        return self.once(CacheKey("at", fitted), make)

    def by_steps(self, who: str) -> EvaluationContext:
        """For a mean of log weights: a long chain by one step in place of all, where it can be.

        Raises:
            AlgorithmError: it cannot.
        """
        bound = self.bound.by_steps(who, True)
        if bound is self.bound:
            return self

        def make() -> EvaluationContext:
            other = copy.copy(self)
            other.__dict__["_bound"] = (bound, self.params)
            return other

        return self.once(CacheKey("by steps", self.fitted), make)

    def once(self, token: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once an evaluation for whoever asks under an equal token."""
        if token not in self._kept:
            self._kept[token] = make()
        return self._kept[token]

    def function(self, measure: Any) -> Function:
        """Another measure as (rows, ids) -> values; bound once, and computed once a chunk."""
        token = CacheKey("measure", measure, self.fitted)
        return self.once(token, lambda: _once_a_chunk(measure.bind_measure(self)))

    def device(self, fn: Callable, noise: str, *, is_compiled: bool = False) -> Function:
        """`fn(params, batch, key) -> arrays [batch, ...] by name`, compiled, as a function of rows.

        The key is one key a datum: whatever is drawn has the data's axis first
        (`Backend.row_keys`).

        Args:
            noise: what its draws are keyed by, mostly the measure's name; those that share one see
                the same draws.
            is_compiled: `fn` compiles its own parts, such as a loop of optimisations.
        """
        b = self.backend
        run = self._by_row(fn) if is_compiled else b.compile(fn, self._num_chunks, over="rows")
        key = b.fold_in(self._key, zlib.crc32(noise.encode()) & 0x7FFFFFFF)
        return lambda rows, ids: self._run(run, key, rows, ids)

    def close(self) -> None:
        """Drops what is kept, functions of this context among it: parameters go with the call."""
        self._kept.clear()
        self._placed.clear()

    def _run(self, run: Callable, key: Any, rows: Rows, ids: np.ndarray) -> Values:
        b, count = self.backend, len(ids)
        keys = b.row_keys(key, ids[self._fill(count)])
        out = run(self.params, self._batch(rows, count), keys)
        return {n: b.to_numpy(v)[:count] for n, v in out.items()}

    def _batch(self, rows: Rows, count: int) -> dict[str, Any]:
        """A chunk on the device, put there once for all measures that ask for it.

        Every chunk has one shape, so that nothing is compiled twice: the last is filled up.
        """
        last = self._placed
        if not last or last[0][0] is not rows or last[0][1] != count:
            fill = self._fill(count)
            last[:] = [(rows, count, {k: self.backend.asarray(v[fill]) for k, v in rows.items()})]
        return last[0][2]

    def _fill(self, count: int) -> np.ndarray:
        return np.minimum(np.arange(max(self.chunk_size, count)), count - 1)

    def _by_row(self, function: Callable) -> Callable:
        """`compile(over="rows")` for a function that compiles its own parts."""

        def run(params: Any, batch: Mapping[str, Any], key: Any) -> dict[str, Any]:
            try:
                return function(params, batch, key)
            except NotByRow:
                count = len(next(iter(batch.values())))
                rows = [
                    function(params, {k: v[i : i + 1] for k, v in batch.items()}, key[i])
                    for i in range(count)
                ]
            concatenate = self.backend.ops.concatenate
            return {n: concatenate([r[n] for r in rows], axis=0) for n in rows[0]}

        return run


def _once_a_chunk(function: Function) -> Function:
    """The values of the chunk that was asked for last are kept."""
    last: list[tuple[Rows, np.ndarray, Values]] = []

    def run(rows: Rows, ids: np.ndarray) -> Values:
        if not last or last[0][0] is not rows or not np.array_equal(last[0][1], ids):
            last[:] = [(rows, ids, function(rows, ids))]
        return dict(last[0][2])

    return run


class CacheKey:
    """Values as a key of what was computed of them: equal where they are, else by object.

    The key holds them, so that no other object comes to stand in their place.
    """

    def __init__(self, *values: Any):
        self._values = values

    def __hash__(self) -> int:
        return hash(tuple(map(_hash, self._values)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CacheKey) or hash(self) != hash(other):
            return False
        pairs = zip(self._values, other._values, strict=True)
        return all(a is b or (_hash(a) != id(a) and a == b) for a, b in pairs)


def _hash(value: Any) -> int:
    """Of the value, or of the object where it has none (such as a dataclass with an array)."""
    try:
        return hash(value)
    except TypeError:
        return id(value)
