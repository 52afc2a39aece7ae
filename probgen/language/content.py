"""Hashes of arrays: by name, type, shape and bytes, without a second copy of what may be large."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

_BLOCK = 1 << 26  # bytes hashed at a time: arrays that are no run of bytes are copied in such parts


def content(arrays: Mapping[str, Any]) -> str:
    """A hash of arrays by name, type, shape and bytes; the order of the names does not count."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode("utf-8", "surrogatepass"))
        _feed(digest, array)
    return digest.hexdigest()


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
            _feed(self._parts[name], array)

    def digest(self) -> str:
        """The hash of all rows so far."""
        parts = [f"{n} {self._parts[n].hexdigest()}" for n in sorted(self._parts)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _feed(digest: Any, array: np.ndarray) -> None:
    if not array.nbytes:
        return
    rows = array.reshape(1) if array.ndim == 0 else array
    step = max(1, _BLOCK * len(rows) // rows.nbytes)
    for first in range(0, len(rows), step):
        block = np.ascontiguousarray(rows[first : first + step])
        digest.update(block.reshape(-1).view(np.uint8))
