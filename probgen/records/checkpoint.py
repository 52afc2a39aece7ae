"""Checkpoints of a running fit: everything that the next step depends on, one folder a moment.

A fit is a pure function of (seed, step, state), so the state, the step and the history are all that
there is to keep. A new checkpoint never overwrites the last one: it gets its own folder, and older
ones go once it stands.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from probgen.backends.protocol import Backend
from probgen.errors import SaveError
from probgen.progress import log
from probgen.records import atomic, store
from probgen.records.entries import require_same
from probgen.records.history import History
from probgen.trees import tree_map

KEEP = 2
_NAME = re.compile(r"step-\d{9,}")


class Kept(NamedTuple):
    """A checkpoint that was read: `arrays` is the flattened state; see `restore`."""

    step: int
    arrays: dict[str, np.ndarray]
    history: History
    finished: bool
    beside: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one fit in one folder; the last `KEEP` are kept.

    Args:
        root: the folder.
        identity: what makes this fit this one (`provenance.of_fit`); a checkpoint of another
            identity is refused by `newest`.
        beside: what is kept beside it, and may differ (`provenance.beside_fit`).
    """

    def __init__(
        self, root: Path, identity: Mapping[str, Any], beside: Mapping[str, Any] | None = None
    ):
        self.root, self.identity, self.beside = atomic.at(root), dict(identity), dict(beside or {})
        self._ours: list[Path] = []

    @contextlib.contextmanager
    def held(self) -> Iterator[Checkpoints]:
        """Makes the folder and keeps it for this fit alone.

        Raises:
            SaveError: it may not be written, or another run is writing there.
        """
        with atomic.held(self.root, inside=True):
            atomic.settle_within(self.root, "step-[0-9]*")
            yield self

    def _folders(self) -> list[Path]:
        found = (p for p in self.root.glob("step-*") if _NAME.fullmatch(p.name) and p.is_dir())
        return sorted(found, key=lambda p: int(p.name[5:]))

    def save(
        self, step: int, state: Any, history: History, backend: Backend, finished: bool = False
    ) -> None:
        """Writes a checkpoint, then lets go of older ones and of those of an earlier fit.

        Args:
            step: how many steps are done.
            state, history: as they are after that step.
            backend: whose arrays the state holds.
            finished: nothing follows, whatever the number of steps (early stopping).

        Raises:
            SaveError: it cannot be written; the checkpoint before it is untouched.
        """
        arrays = store.flatten(tree_map(backend.to_numpy, state))
        config = {
            "kind": "checkpoint", "step": step, "finished": finished, "identity": self.identity,
            "beside": self.beside, "events": history.events,
        }  # fmt: skip
        folder = self.root / _name(step)
        try:
            store.check_place(folder, "checkpoint")
        except SaveError:
            atomic.remove(folder)  # damaged: it was passed over by `newest`
        store.write_folder(folder, {"state": arrays, "history": history.to_arrays()}, config)
        self._ours = [*(p for p in self._ours if p != folder), folder][-KEEP:]
        for other in self._folders():
            if other not in self._ours:
                atomic.remove(other)

    def newest(self) -> Kept | None:
        """The latest whole checkpoint, or None when there is none.

        Raises:
            OtherRun: it belongs to another fit (says what differs).
            SaveError: all are damaged.
        """
        problems: list[SaveError] = []
        whole: list[Path] = []
        kept: Kept | None = None
        for folder in reversed(self._folders()):
            try:
                kept = self._read(folder) if kept is None else kept
                whole.insert(0, folder)
            except _Damaged as error:
                log.warning("checkpoint %s is passed over: %s", folder.name, error)
                problems.append(error)
        if problems and kept is None:
            raise SaveError(
                f"{self.root}: got {len(problems)} checkpoints and none that can be read "
                f"({problems[0]}), expected a whole one; remove the folder, or pass "
                "resume=False, to begin anew."
            ) from problems[0]
        self._ours = whole[-KEEP:]
        for other in whole[:-KEEP]:  # a process was killed before it let go of them
            atomic.remove(other)
        return kept

    def _read(self, folder: Path) -> Kept:
        try:
            arrays, config = store.read_folder(folder, "checkpoint")
            past = History.from_arrays(arrays["history"], config["events"], str(folder))
            step = config["step"]
            if folder.name != _name(step) or past.num_steps not in (0, step):
                raise SaveError(f"{folder}: is of step {step}, its history of {past.num_steps}.")
        except SaveError as error:
            raise _Damaged(str(error)) from error
        cure = "choose another checkpoint folder, or pass resume=False to begin anew"
        require_same(folder, config["identity"], self.identity, cure)
        return Kept(step, arrays["state"], past, config["finished"], config["beside"])


def _name(step: int) -> str:
    return f"step-{step:09d}"


class _Damaged(SaveError):
    """A checkpoint that is passed over, for an older one."""


def restore(template: Any, arrays: dict[str, np.ndarray], backend: Backend) -> Any:
    """The state in the form of `template`, on the backend, with the template's types.

    Raises:
        SaveError: names, shapes or types of the arrays are not those of the template, or NaN.
    """
    filled = store.fill(template, arrays, "checkpoint")

    def like(old: Any, new: np.ndarray) -> Any:
        want = backend.to_numpy(old)
        if want.shape != new.shape or want.dtype != new.dtype:
            raise SaveError(
                f"checkpoint: got an array {new.dtype} {list(new.shape)}, expected {want.dtype} "
                f"{list(want.shape)}; was it written by another model or algorithm?"
            )
        if new.dtype.kind == "f" and not np.isfinite(new).all():
            raise SaveError(
                "checkpoint: got NaN or infinity in a state, which a fit never keeps; it is "
                "damaged: remove it, or pass resume=False to begin anew."
            )
        return backend.asarray(new)

    return tree_map(like, template, filled)
