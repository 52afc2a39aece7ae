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
    """A hash of data that come in pieces, the same however they are cut and in whatever order.

        sum over data i of SHA-256(i, names and types, row i), modulo 2^256

    so that the marks of parts add up to the mark of the whole.
    """

    def __init__(self) -> None:
        self._sum = 0

    def add(self, rows: Mapping[str, np.ndarray], first: int) -> None:
        """Takes rows, of which the first is datum `first`."""
        names = sorted(rows)
        form = " ".join(f"{n} {rows[n].dtype} {rows[n].shape[1:]}" for n in names)
        start = hashlib.sha256(form.encode("utf-8", "surrogatepass"))
        size = len(rows[names[0]])
        flat = [np.ascontiguousarray(rows[n]) for n in names]
        flat = [v.reshape(size, -1).view(np.uint8) for v in flat if v.nbytes]
        for i in range(size):
            mark = start.copy()
            mark.update((first + i).to_bytes(8, "little"))
            for v in flat:
                mark.update(v[i])
            self._sum += int.from_bytes(mark.digest(), "little")

    def join(self, digest: str) -> None:
        """Takes the data of another mark."""
        self._sum += int(digest, 16)

    def digest(self) -> str:
        """The hash of all rows so far, 64 hexadecimal digits."""
        return f"{self._sum % 2**256:064x}"


def _feed(digest: Any, array: np.ndarray) -> None:
    if not array.nbytes:
        return
    rows = array.reshape(1) if array.ndim == 0 else array
    step = max(1, _BLOCK * len(rows) // rows.nbytes)
    for first in range(0, len(rows), step):
        block = np.ascontiguousarray(rows[first : first + step])
        digest.update(block.reshape(-1).view(np.uint8))
