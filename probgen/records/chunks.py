"""Finished chunks of an evaluation on disk, so that a run that was killed goes on where it was.

Beside the place of the table lies `<table>.chunks`: one folder a chunk, with the content hash of
the data that it measured. They go when the table stands. All is written by
`probgen.records.atomic`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from probgen.errors import SaveError
from probgen.language.content import content
from probgen.records import places, store
from probgen.records.entries import AGAIN, require_same
from probgen.records.places import Place

Values = dict[str, dict[str, np.ndarray]]


class ChunkStore:
    """Chunks under one identity: measures, settings, seed, parameters, chunk size.

    Args:
        table: where the finished table will stand.
        identity: what must be the same for a chunk to count; JSON data.
        measures: what a table says of each, for who reads it while it grows.

    Raises (when a chunk is read):
        SaveError: the folder holds chunks of another evaluation, or a damaged one.
    """

    def __init__(
        self, table: str | os.PathLike, identity: Mapping[str, Any],
        measures: list[dict[str, Any]] | None = None,
    ):  # fmt: skip
        self.table, self.measures = places.at(table), measures
        self.folder = self.table.with_name(f"{self.table.name}.chunks")
        self.identity = dict(identity)

    @contextlib.contextmanager
    def held(self) -> Iterator[ChunkStore]:
        """Keeps the table's place, and the chunks, for this evaluation alone.

        Raises:
            SaveError: it may not be written, or another run is writing there.
        """
        with places.held(self.table), places.held(self.folder):
            yield self

    def starts(self) -> list[int]:
        """The data at which the chunks that are there begin."""
        names = [n for n in places.names(self.folder) if n.startswith("chunk-")]
        return [int(n.removeprefix("chunk-")) for n in names if n[6:].isdigit()]

    def _place(self, start: int) -> Place:
        return self.folder / f"chunk-{start:010d}"

    def read(self, start: int, rows: Mapping[str, np.ndarray]) -> Values | None:
        """The values of the chunk that begins at datum `start`, or None when it is not there."""
        at = self._place(start)
        if not at.exists():
            return None
        arrays, config = store.read_folder(at, "chunk")
        found, wanted = {**config["made"], "data": config["data"]}, self._wanted(rows)
        require_same(at, found, wanted, AGAIN)
        values = grouped(arrays["values"], config["names"], str(at))
        if rows:
            check_estimates(values, len(next(iter(rows.values()))), str(at))
        return values

    def write(self, start: int, rows: Mapping[str, np.ndarray], values: Values) -> None:
        """Keeps the values of one chunk."""
        config = {
            "kind": "chunk", "names": list(values), "data": content(rows), "made": self.identity,
            **({} if self.measures is None else {"measures": self.measures}),
        }  # fmt: skip
        store.write_folder(self._place(start), {"values": named(values)}, config)

    def _wanted(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {**self.identity, "data": content(rows)}

    def clear(self) -> None:
        """Removes the chunks: the table holds them all."""
        places.remove(self.folder)

    def so_far(self) -> tuple[Values, np.ndarray, dict]:
        """(values of the chunks that are there, the numbers of their data, the last one's config),
        for who reads while another writes.

        Raises:
            SaveError: there are none, or chunks of two evaluations.
        """
        parts: list[Values] = []
        ids: list[np.ndarray] = []
        config: dict[str, Any] = {}
        for start in self.starts():
            arrays, last = store.read_folder(self._place(start), "chunk")
            if config:
                require_same(self._place(start), last["made"], config["made"], AGAIN)
            config = last
            parts.append(grouped(arrays["values"], config["names"], str(self.folder)))
            check_estimates(parts[-1], None, str(self.folder))
            ids.append(start + np.arange(len(parts[-1][config["names"][0]]["estimate"])))
        if "measures" not in config:
            raise SaveError(
                f"{self.table}: has no table and no chunk of one yet, expected what pg.evaluate "
                "writes at its path; wait for the first chunk, or look for the path."
            )
        values = {
            name: {q: np.concatenate([p[name][q] for p in parts]) for q in parts[0][name]}
            for name in config["names"]
        }
        return values, np.concatenate(ids), config


def named(values: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Quantities of measures under one name each, "measure/quantity"."""
    return {f"{n}/{q}": np.asarray(a) for n, group in values.items() for q, a in group.items()}


def grouped(arrays: Mapping[str, np.ndarray], names: list[str], where: str) -> Values:
    """What `named` was given: by measure, in the order of `names`.

    Raises:
        SaveError: a measure twice, or arrays of one that is not listed.
    """
    if len(set(names)) != len(names):
        raise SaveError(f"{where}: lists a measure twice, {names}; it is damaged.")
    values: Values = {name: {} for name in names}
    for key, array in arrays.items():
        name, _, quantity = key.partition("/")
        if name not in values or not quantity:
            raise SaveError(f"{where}: holds {key!r}, expected measures {names}; it is damaged.")
        values[name][quantity] = array
    return values


def check_estimates(values: Values, size: int | None, where: str) -> None:
    """Refuses measures without one estimate a datum.

    Args:
        values: by measure.
        size: number of data, or None where any will do.
        where: the folder, for the message.

    Raises:
        SaveError: names the measure.
    """
    for name, group in values.items():
        estimate = group.get("estimate")
        is_one = estimate is not None and estimate.ndim == 1 and estimate.dtype.kind in "fiu"
        size = len(estimate) if is_one and size is None else size  # type: ignore[arg-type]
        if not is_one or any(v.shape[:1] != (size,) for v in group.values()):
            raise SaveError(f"{where}: has no estimates of {name!r}, one a datum; it is damaged.")
