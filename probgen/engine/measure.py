"""What `pg.evaluate` can be asked for, and the room that a measure works in.

A measure gives an estimate of each datum, with its standard error and diagnostics. Most are one
function on the device, `bind_measure`; those of several models, or of reference data, or that run
on the host, define `start` instead. Noise belongs to the datum: the measure m of datum i draws from
the key fold_in(fold_in(key, m), i), so neither the other measures nor how the data are cut into
chunks changes a number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Protocol

import numpy as np

from probgen.backends.protocol import Backend
from probgen.data.sources import as_arrays
from probgen.engine.bound import Bound
from probgen.engine.fitted import Fitted
from probgen.errors import DataError, NonFiniteError, NotByRow
from probgen.language.kinds import Rule

Rows = Mapping[str, np.ndarray]
Values = dict[str, np.ndarray]


class Measure(Protocol):
    """Something that is known of each datum, with its error.

    Attributes:
        name: of the measure, with its settings (see `changed_settings`); without a slash.
        unit: such as "nats".
        larger_is_stranger: the direction.

    `bind_measure(bound)` gives a function (params, batch, key) -> dict with "estimate" [batch],
    "standard_error" [batch] where there is one, and diagnostics [batch, ...] by name. The key is
    one key a datum: whatever is drawn has the data's axis first (`Backend.row_keys`).

    Optional, looked for by name:
        bind_rows(bound, num_data): instead of `bind_measure`: a function of the same arguments that
            compiles its own parts, such as a loop of optimisations.
        finish(values): on the host, after each chunk, numpy in and out.
        start(room): instead of `bind_measure`: a function (rows, ids) -> values on the host.
        settle(values): on the host, once all data are in: what only they together can tell.
        warnings(values): sentences about all the data, for the printed table.
        shared_error: True where its standard errors are one error that all data share.
        noise_name: what its noise is keyed by, where that is not the name: measures that share one
            see the same draws.
        __identity__(): what tells it from others where its attributes do not
            (`probgen.language.identity`).
    """

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def larger_is_stranger(self) -> bool: ...

    def bind_measure(self, bound: Bound) -> Callable: ...


class Room:
    """Model, backend and randomness of one evaluation, as measures see them.

    Attributes:
        fitted: the model that is evaluated.
        backend: where it runs.
        names: names under which data come, for reference data given as one array.
        chunk_size: data at a time.
    """

    def __init__(
        self,
        fitted: Fitted,
        backend: Backend,
        key: Any,
        chunk_size: int,
        num_chunks: int,
        example: Rows,
        num_data: int,
        names: tuple[str, ...] | None = None,
    ):
        self.fitted, self.backend, self.chunk_size, self.names = fitted, backend, chunk_size, names
        self._key, self._num_chunks, self._example = key, num_chunks, example
        self._num_data = num_data
        self._bound: dict[Same, tuple[Bound, dict]] = {}
        self._functions: dict[Same, tuple[Callable, Any, Any]] = {}
        self._kept: dict[Any, Any] = {}
        self._placed: tuple[Rows, int, dict[str, Any]] | None = None
        self._seen: dict[Same, tuple[Rows, int, Values]] = {}

    def bind(self, fitted: Fitted | None = None) -> tuple[Bound, dict]:
        """A model on this backend with its parameters; the evaluated one by default.

        Bound once an evaluation, whoever asks.
        """
        chosen = self.fitted if fitted is None else fitted
        token = Same(chosen)
        if token not in self._bound:
            example = {k: v[:1] for k, v in self._example.items()}
            self._bound[token] = chosen.bind(
                self.backend, example, num_data=self._num_data, num_steps=self._num_chunks
            )
        return self._bound[token]

    def once(self, token: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once an evaluation for whoever asks under an equal token."""
        if token not in self._kept:
            self._kept[token] = make()
        return self._kept[token]

    def _batch(self, rows: Rows, ids: np.ndarray) -> dict[str, Any]:
        """A chunk on the device, put there once for all measures that ask for it.

        Every chunk has one shape, so that nothing is compiled twice: the last is filled up.
        """
        last = self._placed
        if last is None or last[0] is not rows or last[1] != len(ids):
            fill = self._fill(len(ids))
            batch = {k: self.backend.asarray(v[fill]) for k, v in rows.items()}
            last = self._placed = (rows, len(ids), batch)
        return last[2]

    def _fill(self, count: int) -> np.ndarray:
        return np.minimum(np.arange(max(self.chunk_size, count)), count - 1)

    def device(
        self, measure: Measure, fitted: Fitted | None = None
    ) -> Callable[[Rows, np.ndarray], Values]:
        """`measure` as a function (rows, ids) -> values; computed once a chunk, whoever asks.

        Args:
            measure: one with `bind_measure`.
            fitted: another model, such as a background.
        """
        token = Same(measure, fitted or self.fitted)
        if token not in self._functions:
            bound, params = self.bind(fitted)
            if hasattr(measure, "bind_rows"):
                function = self._one_by_one_if_needed(measure.bind_rows(bound, self._num_data))
            else:
                function = self.backend.compile(
                    measure.bind_measure(bound), self._num_chunks, over="rows"
                )
            name = getattr(measure, "noise_name", measure.name)
            key = self.backend.fold_in(self._key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
            self._functions[token] = (function, params, key)
        function, params, key = self._functions[token]

        def run(rows: Rows, ids: np.ndarray) -> Values:
            last = self._seen.get(token)
            if last is not None and last[0] is rows and last[1] == ids[0]:
                return dict(last[2])
            values = self._run(measure, function, params, key, rows, ids)
            self._seen[token] = (rows, int(ids[0]), values)
            return dict(values)

        return run

    def _run(
        self, measure: Any, function: Callable, params: Any, key: Any, rows: Rows, ids: np.ndarray
    ) -> Values:
        b, count = self.backend, len(ids)
        keys = b.row_keys(key, ids[self._fill(count)])
        out = function(params, self._batch(rows, ids), keys)
        values = {n: b.to_numpy(v)[:count] for n, v in out.items()}
        finish = getattr(measure, "finish", None)
        return finish(values) if finish is not None else values

    def _one_by_one_if_needed(self, function: Callable) -> Callable:
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

    def over(
        self, measure: Measure, data: Any, fitted: Fitted | None = None, first_id: int = 2**30
    ) -> Values:
        """A measure of reference data (training images, say), chunk by chunk.

        Their numbers start at `first_id`, so that they share no noise with the data evaluated.

        Raises:
            DataError: they lack an entry that the data have.
        """
        arrays = as_arrays(data, names=self.names)
        missing = sorted(set(self._example) - set(arrays))
        if missing:
            raise DataError(
                f"{measure.name}: the reference data have {sorted(arrays)}, expected also "
                f"{missing}, as the data have; give them under the same names."
            )
        function = start(measure, self, fitted)
        size = len(next(iter(arrays.values())))
        parts = []
        for i in range(0, size, self.chunk_size):
            rows = {k: v[i : i + self.chunk_size] for k, v in arrays.items()}
            ids = first_id + np.arange(i, min(i + self.chunk_size, size))
            parts.append(function(rows, ids))
        values = {q: np.concatenate([p[q] for p in parts]) for q in parts[0]}
        check_finite(f"{measure.name} of the reference data", values["estimate"], 0)
        return values


class Same:
    """Values as a key of what was computed of them: equal where they are, else by object.

    The key holds them, so that no other object comes to stand in their place.
    """

    def __init__(self, *values: Any):
        self._values = values

    def __hash__(self) -> int:
        return hash(tuple(map(_hash, self._values)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same) or hash(self) != hash(other):
            return False
        pairs = zip(self._values, other._values, strict=True)
        return all(a is b or (_hash(a) != id(a) and a == b) for a, b in pairs)


def _hash(value: Any) -> int:
    """Of the value, or of the object where it has none (such as a dataclass with an array)."""
    try:
        return hash(value)
    except TypeError:
        return id(value)


# A measure as a part of a declaration.
AnyMeasure = Annotated[
    Any,
    Rule(
        "a measure such as IWAE(1000)",
        lambda v: hasattr(v, "bind_measure") or hasattr(v, "start"),
        alone=True,
    ),
]


def changed_settings(measure: Any, *, shown: Iterable[str] = ()) -> list[str]:
    """Texts "field=value" for each setting that is not the default, for a measure's name.

    Left out are fields without a default, which are data or models, and those that say how much is
    done at a time (`..._at_once`), which is a matter of memory.

    Args:
        measure: a dataclass.
        shown: fields that the name says already.
    """
    said, known = [], set(shown)
    for field in dataclasses.fields(measure):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        is_silent = field.name.endswith("_at_once")
        if field.name in known or is_silent or default is dataclasses.MISSING:
            continue
        value = getattr(measure, field.name)
        if not _equal(value, default):
            said.append(f"{field.name}={_text(value)}")
    return said


def _equal(value: Any, default: Any) -> bool:
    return bool(np.array_equal(value, default)) if value is not None else default is None


def _text(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    text = value if isinstance(value, str) else repr(value)
    return text.replace("/", "|")  # names become paths in a table


def short_mark(*parts: str) -> str:
    """Four hexadecimal digits that tell texts apart, for names: "#3f2a"."""
    return "#" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:4]


def start(
    measure: Any, room: Room, fitted: Fitted | None = None
) -> Callable[[Rows, np.ndarray], Values]:
    """The measure as a function (rows, ids) -> values: its own `start`, or its device function."""
    if callable(getattr(measure, "start", None)):  # a setting of that name is no hook
        return measure.start(room)
    return room.device(measure, fitted)


def check_finite(
    name: str, estimate: np.ndarray, first: int, why: Callable[[int], str] | None = None
) -> None:
    """Refuses NaN among estimates.

    Args:
        first: place of the first of them among the data.
        why: what an index among them says of the cause (`probgen.engine.explain`).

    Raises:
        NonFiniteError: says how many, and the first datum.
    """
    bad = np.flatnonzero(np.isnan(estimate))
    if len(bad):
        raise NonFiniteError(
            f"evaluate: {name} is NaN for {len(bad)} data, the first is datum {first + bad[0]}; "
            "look at that datum, and at the model's parameters for NaN"
            f"{why(int(bad[0])) if why else ''}."
        )
