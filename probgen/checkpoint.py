"""Checkpoints of a running fit: everything that the next step depends on, one folder a moment.

A fit is a pure function of (seed, step, state), so the state, the step and the history are all there
is to keep. A new checkpoint never overwrites the last one: it gets its own folder, and older ones
go once it stands.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from probgen import store
from probgen.backends.protocol import Backend
from probgen.errors import SaveError
from probgen.history import History
from probgen.trees import tree_map

log = logging.getLogger("probgen")
KEEP = 2


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.glob("step-*") if p.is_dir())


def save(
    root: Path, step: int, state: Any, history: History, backend: Backend, identity: dict
) -> None:
    """Writes a checkpoint of `step` and lets those before the last `KEEP` go."""
    arrays = store.flatten(tree_map(backend.to_numpy, state))
    config = {"step": step, "identity": identity, "events": history.events}
    store.write_folder(
        root / f"step-{step:09d}", {"state": arrays, "history": history.to_arrays()}, config
    )
    for folder in _folders(root)[:-KEEP]:
        shutil.rmtree(folder, ignore_errors=True)
    for left in root.glob(".*.new"):
        shutil.rmtree(left, ignore_errors=True)


def newest(root: Path, identity: dict) -> tuple[int, dict, History] | None:
    """The latest whole checkpoint: (step, arrays of the state, history), or None when there is none.

    Raises:
        SaveError: it belongs to another fit (says what differs), or every checkpoint is damaged.
    """
    folders = _folders(root)
    problems: list[SaveError] = []
    for folder in reversed(folders):
        try:
            arrays, config = store.read_folder(folder)
        except SaveError as error:
            log.warning("checkpoint %s is passed over: %s", folder.name, error)
            problems.append(error)
            continue
        differs = [k for k in identity if config.get("identity", {}).get(k) != identity[k]]
        if differs:
            was = {k: config.get("identity", {}).get(k) for k in differs}
            raise SaveError(
                f"{folder}: belongs to another fit: {', '.join(differs)} differ (there {was}, here "
                f"{ {k: identity[k] for k in differs} }); choose another checkpoint folder, or pass "
                "resume=False to begin anew."
            )
        history = History.from_arrays(arrays["history"], config.get("events", ()))
        return int(config["step"]), arrays["state"], history
    if problems:
        raise SaveError(
            f"{root}: none of its {len(problems)} checkpoints can be read"
        ) from problems[0]
    return None


def restore(template: Any, arrays: dict[str, np.ndarray], backend: Backend) -> Any:
    """The state in the form of `template`, on the backend, with the template's types."""
    filled = store.fill(template, arrays, "checkpoint")

    def like(old: Any, new: np.ndarray) -> Any:
        return backend.asarray(np.asarray(new).astype(backend.to_numpy(old).dtype))

    return tree_map(like, template, filled)
