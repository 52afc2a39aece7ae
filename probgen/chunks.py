"""Finished chunks of an evaluation on disk, so that a run that was killed goes on where it was.

Beside the place of the table lies `<table>.chunks`: one folder a chunk, with the content hash of
the data that it measured. They go when the table stands. All is written by `probgen.place`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from probgen import place, provenance, store
from probgen.content import content

Values = dict[str, dict[str, np.ndarray]]


class ChunkStore:
    """Chunks under one identity: measures, settings, seed, parameters, chunk size.

    Args:
        table: where the finished table will stand.
        identity: what must be the same for a chunk to count; JSON data.

    Raises (when a chunk is read):
        SaveError: the folder holds chunks of another evaluation, or a damaged one.
    """

    def __init__(self, table: str | os.PathLike, identity: Mapping[str, Any]):
        self.table = place.at(table)
        self.folder = self.table.with_name(f"{self.table.name}.chunks")
        self.identity = dict(identity)

    @contextlib.contextmanager
    def held(self) -> Iterator[ChunkStore]:
        """Keeps the table's place, and the chunks, for this evaluation alone.

        Raises:
            SaveError: it may not be written, or another run is writing there.
        """
        with place.held(self.table), place.held(self.folder):
            yield self

    def _place(self, start: int) -> Path:
        return self.folder / f"chunk-{start:010d}"

    def read(self, start: int, rows: Mapping[str, np.ndarray]) -> Values | None:
        """The values of the chunk that begins at datum `start`, or None when it is not there."""
        at = self._place(start)
        if not at.exists():
            return None
        arrays, config = store.read_folder(at)
        wanted = {**self.identity, "data": content(rows)}
        provenance.require_same(at, config, wanted, provenance.AGAIN)
        values: Values = {}
        for name, array in arrays["values"].items():
            index, _, quantity = name.partition("/")
            values.setdefault(config["names"][int(index)], {})[quantity] = array
        return values

    def write(self, start: int, rows: Mapping[str, np.ndarray], values: Values) -> None:
        """Keeps the values of one chunk."""
        names = list(values)
        arrays = {f"{i}/{q}": a for i, n in enumerate(names) for q, a in values[n].items()}
        config = {"kind": "chunk", "names": names, "data": content(rows), **self.identity}
        store.write_folder(self._place(start), {"values": arrays}, config)

    def clear(self) -> None:
        """Removes the chunks: the table holds them all."""
        place.remove(self.folder)
