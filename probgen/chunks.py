"""Finished chunks of an evaluation on disk, so that a run that was killed goes on where it was.

Beside the place of the table lies `<table>.chunks`: one folder a chunk, written atomically, with
the content hash of the data that it measured. They go when the table stands.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from probgen import store
from probgen.errors import SaveError

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
        self.folder = Path(f"{os.path.abspath(table)}.chunks")
        self.identity = dict(identity)

    def _place(self, start: int) -> Path:
        return self.folder / f"chunk-{start:010d}"

    def read(self, start: int, rows: Mapping[str, np.ndarray]) -> Values | None:
        """The values of the chunk that begins at datum `start`, or None when it is not there."""
        place = self._place(start)
        if not place.exists():
            return None
        arrays, config = store.read_folder(place)
        require_same(place, config, {**self.identity, "data": content(rows)})
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
        shutil.rmtree(self.folder, ignore_errors=True)


def require_same(place: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses what was made with other settings, and says which.

    Raises:
        SaveError: an entry of `wanted` is another one in `found`.
    """
    for what, want in wanted.items():
        got = found.get(what)
        if got != want:
            raise SaveError(
                f"{place}: was made with another {what}{_difference(got, want)}; give the same "
                "arguments to have that evaluation, or another path, or remove the folder."
            )


class RowsMark:
    """A hash of data that come in pieces, the same however they are cut."""

    def __init__(self) -> None:
        self._parts: dict[str, Any] = {}

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Takes the next rows."""
        for name, array in rows.items():
            if name not in self._parts:
                start = f"{name} {array.dtype} {array.shape[1:]}\n"
                self._parts[name] = hashlib.sha256(start.encode())
            self._parts[name].update(np.ascontiguousarray(array).tobytes())

    def digest(self) -> str:
        """The hash of all rows so far."""
        parts = [f"{n} {self._parts[n].hexdigest()}" for n in sorted(self._parts)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def content(arrays: Mapping[str, np.ndarray]) -> str:
    """A hash of arrays by name, type, shape and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _difference(got: Any, want: Any) -> str:
    """What is not the same, short enough to read; of hashes alone there is nothing to read."""
    if isinstance(got, list) and isinstance(want, list):
        gone, new = [x for x in got if x not in want], [x for x in want if x not in got]
        got, want = gone or "the same in another order", new or "the same in another order"
    elif isinstance(got, dict) and isinstance(want, dict):
        names = sorted(n for n in {*got, *want} if got.get(n) != want.get(n))
        return f" ({', '.join(names)})"
    elif isinstance(want, str) and len(want) == 64:
        return ""
    return f" ({_short(got)}, expected {_short(want)})"


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 160 else text[:157] + "..."
