"""Folders of arrays and JSON on disk: written whole or not at all, read without running anything.

A folder holds `<name>.safetensors` and `config.json`. It is put in its place by `probgen.place`.
`config.json` has the SHA-256 of every array file, so a truncated or mixed folder is told from a
good one. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from probgen import place
from probgen.errors import SaveError
from probgen.trees import tree_items, tree_like

FORMAT = "probgen"
VERSION = 1
_KINDS: dict[Any, str] = {
    "run": "a fitted model",
    "checkpoint": "a checkpoint",
    "evaluation": "a table of measures",
    "chunk": "a chunk of an evaluation",
    "chains": "draws of Markov chains",
}


def write_folder(
    path: str | os.PathLike, arrays: Mapping[str, Mapping[str, np.ndarray]], config: dict
) -> Path:
    """Writes {file name: {array name: array}} and a config, all or nothing (`probgen.place`).

    Raises:
        SaveError: the disk is full or may not be written, another process is writing there, or
            something that is not ours, or of another kind, stands at `path`; what stood there is
            untouched.
    """
    target = place.at(path)

    def make(fresh: Path) -> None:
        fresh.mkdir()
        sums = {}
        for name, group in arrays.items():
            file = fresh / f"{name}.safetensors"
            save_file({k: np.asarray(v, order="C") for k, v in group.items()}, file)
            sums[file.name] = _digest(file)
            place.sync(file)
        header = {"format": FORMAT, "version": VERSION, "sha256": sums}
        text = json.dumps({**header, **config}, indent=1) + "\n"
        place.write_text(fresh / "config.json", text)
        place.sync(fresh)

    with place.held(target):
        check_place(target, config.get("kind"))
        try:
            place.put(target, make)
        except (SafetensorError, TypeError, ValueError) as error:
            raise place.not_written(target, error) from error
    return target


def check_place(path: str | os.PathLike, kind: Any) -> bool:
    """Whether something of this kind stands at `path`; False where there is nothing yet.

    Raises:
        SaveError: something stands there that a save of this kind may not replace.
    """
    target = place.at(path)
    if target.exists() and not is_ours(target):
        raise SaveError(
            f"{target}: got a place that holds something else, expected a new folder, an empty one "
            "or a run folder of probgen; choose another path."
        )
    if not (target / "config.json").exists():
        return False
    held = _read_config(target).get("kind")
    if held != kind:
        raise SaveError(
            f"{target}: got a place that holds {_KINDS.get(held, held)}, expected a new folder or "
            f"one that holds {_KINDS.get(kind, kind)}; choose another path."
        )
    return True


def is_ours(folder: Path) -> bool:
    """Whether a save may replace the folder: it is empty, or holds what we wrote and no more."""
    if not folder.is_dir():
        return False
    names = {p.name for p in folder.iterdir()}
    if not names:
        return True
    try:
        config = _read_config(folder)
    except SaveError:
        return False
    return names <= {"config.json", *config["sha256"]}


def _digest(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_folder(path: str | os.PathLike) -> tuple[dict[str, dict[str, np.ndarray]], dict]:
    """The arrays and the config of a folder that `write_folder` made.

    Raises:
        SaveError: missing, truncated, damaged, or not written by probgen.
    """
    folder = place.standing(place.at(path))
    if not folder.is_dir():
        raise SaveError(f"{folder}: no such folder, expected one that probgen has written.")
    config = _read_config(folder)
    arrays = {}
    for name, digest in config["sha256"].items():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise SaveError(f"{folder}/config.json: names the file {name!r}, which is not allowed.")
        arrays[name.removesuffix(".safetensors")] = _read_arrays(folder / name, digest)
    return arrays, config


def _read_config(folder: Path) -> dict:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SaveError(
            f"{folder}: has no config.json, expected a folder written by probgen."
        ) from error
    except (ValueError, OSError, RecursionError) as error:
        raise SaveError(f"{folder}/config.json: cannot be read as JSON ({error}).") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise SaveError(
            f"{folder}: got the config of another program, expected format {FORMAT!r}; "
            "this folder was not written by probgen."
        )
    if not isinstance(config.get("version"), int) or config["version"] > VERSION:
        raise SaveError(
            f"{folder}: got format version {config.get('version')!r}, expected at most {VERSION}; "
            "install a newer probgen."
        )
    if not isinstance(config.get("sha256"), dict):
        raise SaveError(f"{folder}/config.json: lists no files; it is damaged.")
    return config


def _read_arrays(file: Path, digest: Any) -> dict[str, np.ndarray]:
    try:
        found, size = _digest(file), file.stat().st_size
    except OSError as error:
        raise SaveError(f"{file}: cannot be read ({error}), expected the run's arrays.") from error
    if found != digest:
        raise SaveError(
            f"{file}: its content ({size} bytes) is not what config.json says it is; the "
            "file is truncated or damaged. Restore it from a copy, or remove the folder and make "
            "it again."
        )
    try:
        return load_file(file)
    except (SafetensorError, ValueError, KeyError) as error:
        raise SaveError(f"{file}: is not a safetensors file ({error}).") from error


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """A tree as {"path/to/leaf": array}; names with a slash are kept apart by '//'."""
    return {
        "/".join(p.replace("/", "//") for p in path): np.asarray(leaf)
        for path, leaf in tree_items(tree)
    }


def unflatten(arrays: Mapping[str, np.ndarray]) -> dict:
    """The nested dict that `flatten` was given (containers become dicts)."""
    out: dict = {}
    for name, array in arrays.items():
        parts = [p.replace("\0", "/") for p in name.replace("//", "\0").split("/")]
        place = out
        for part in parts[:-1]:
            place = place.setdefault(part, {})
        place[parts[-1]] = array
    return out


def fill(template: Any, arrays: Mapping[str, np.ndarray], what: str) -> Any:
    """`template` with its leaves replaced by the arrays of a flattened tree of the same form."""
    names = list(flatten_names(template))
    if set(names) != set(arrays):
        lost, extra = sorted(set(names) - set(arrays))[:3], sorted(set(arrays) - set(names))[:3]
        raise SaveError(
            f"{what}: its arrays are not those of this run (missing {lost}, unknown {extra}); was "
            "it written by another model or algorithm?"
        )
    return tree_like(template, [arrays[n] for n in names])


def flatten_names(tree: Any) -> list[str]:
    """The names that `flatten` gives to the leaves, in the order of `tree_leaves`."""
    return ["/".join(p.replace("/", "//") for p in path) for path, _ in tree_items(tree)]
