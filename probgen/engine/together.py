"""A fit in several processes: what they must agree on, and what only the first of them does.

Each process makes the same calls and holds the same state, so that nothing has to be sent but what
the backend's own collectives send within a step. Here is the rest: that they run the same fit, that
files are read and written by the first process alone, that all stop at the same step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from probgen.backends.protocol import Backend
from probgen.engine.workers import house
from probgen.errors import BackendError, SaveError
from probgen.records.checkpoint import Checkpoints, Kept
from probgen.records.history import History
from probgen.trees import tree_map


@contextlib.contextmanager
def in_touch(backend: Backend) -> Iterator[None]:
    """Says in our words that another process of a fit is gone.

    Raises:
        BackendError: in place of what the backend's collectives raise then.
    """
    try:
        yield
    except Exception as error:
        if backend.num_processes == 1 or not backend.is_lost(error):
            raise
        raise BackendError(
            f"devices: process {backend.process} of {backend.num_processes} has lost another one "
            f"({' '.join(str(error).split())[:200]}), expected all of them until the fit ends; see "
            "what that one said, and start all of them again: with a checkpoint= they go on from "
            "the last one that is kept."
        ) from error


def require_divisible(size: int, backend: Backend) -> None:
    """Refuses a batch that the devices cannot share alike.

    Raises:
        BackendError: its size is no multiple of their number.
    """
    if size % backend.num_devices:
        raise BackendError(
            f"devices: got batch_size={size} on {backend.num_devices} devices, expected a multiple "
            "of their number, since each takes as many rows of a batch; give another batch_size."
        )


def agree(backend: Backend, entries: Mapping[str, Any]) -> None:
    """Refuses a fit that is not the same in all processes.

    Args:
        entries: what must be, by name, as text or what JSON takes; all processes have all names.

    Raises:
        BackendError: names what differs, and where from the first process.
    """
    if backend.num_processes == 1:
        return
    entries = {**entries, "source of probgen": house(), "libraries": backend.versions()}
    marks = [_mark(json.dumps(v, sort_keys=True, default=str)) for v in entries.values()]
    with in_touch(backend):
        found = backend.gather(np.array(marks, np.int32))
    off = [(n, i) for n, column in zip(entries, found.T, strict=True) for i in _others(column)]
    if off:
        names = list(dict.fromkeys(n for n, _ in off))
        where = sorted({i for _, i in off})
        raise BackendError(
            f"devices: got another {', another '.join(names)} in the processes {where} than in "
            f"process 0 of {backend.num_processes}, expected the same fit in all of them; call fit "
            "with the same arguments everywhere, and seed what draws data or starting weights."
        )


def _others(column: np.ndarray) -> list[int]:
    return [int(i) for i in np.flatnonzero(column != column[0])]


def _mark(text: str) -> int:
    """31 bits that tell one text from another."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF


def largest(backend: Backend, number: int) -> int:
    """The largest of the numbers that the processes give."""
    if backend.num_processes == 1:
        return number
    return int(backend.gather(np.array(number, np.int32)).max())


def once(backend: Backend, fn: Callable[[], bytes]) -> bytes:
    """What `fn` gives in the first process, which alone runs it; its error is raised in all.

    Raises:
        SaveError: in the others, what the first one's error said.
    """
    if backend.num_processes == 1:
        return fn()
    if backend.process:
        with in_touch(backend):
            told = backend.share(b"")
        if told[:1] == b"!":
            raise SaveError(told[1:].decode())
        return told[1:]
    try:
        out = fn()
    except Exception as error:
        with in_touch(backend):
            backend.share(b"!" + str(error).encode())
        raise
    with in_touch(backend):
        backend.share(b"." + out)
    return out


class SharedCheckpoints(Checkpoints):
    """Checkpoints that the first process reads and writes for all."""

    def __init__(self, root: Any, identity: Any, beside: Any, backend: Backend):
        super().__init__(root, identity, beside)
        self.backend = backend

    @contextlib.contextmanager
    def held(self) -> Iterator[Checkpoints]:
        with contextlib.ExitStack() as stack:

            def take() -> bytes:
                stack.enter_context(super(SharedCheckpoints, self).held())
                return b""

            once(self.backend, take)
            yield self

    def save(
        self, step: int, state: Any, history: History, backend: Backend, finished: bool = False
    ) -> None:
        arrays = tree_map(backend.to_numpy, state)  # all take part where it lies in pieces

        def write() -> bytes:
            super(SharedCheckpoints, self).save(step, arrays, history, backend, finished)
            return b""

        once(backend, write)

    def newest(self) -> Kept | None:
        def read() -> bytes:
            found = super(SharedCheckpoints, self).newest()
            return b"" if found is None else _packed(found)

        data = once(self.backend, read)
        return _unpacked(data, str(self.root)) if data else None


def _packed(kept: Kept) -> bytes:
    head = {
        "step": kept.step, "finished": kept.finished, "beside": dict(kept.beside),
        "events": kept.history.events,
    }  # fmt: skip
    parts = [json.dumps(head).encode(), _saved(kept.arrays), _saved(kept.history.to_arrays())]
    return b"".join(len(p).to_bytes(8, "big") + p for p in parts)


def _saved(arrays: Mapping[str, np.ndarray]) -> bytes:
    return save({k: np.asarray(v, order="C") for k, v in arrays.items()})


def _unpacked(data: bytes, where: str) -> Kept:
    parts, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "big")
        parts.append(data[at + 8 : at + 8 + size])
        at += 8 + size
    head = json.loads(parts[0])
    history = History.from_arrays(load(parts[2]), head["events"], where)
    return Kept(head["step"], load(parts[1]), history, head["finished"], head["beside"])
