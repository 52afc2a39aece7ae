"""Folders of arrays and JSON on disk: written whole or not at all, read without running anything.

A folder holds `<name>.safetensors` and `config.json`. It is put in its place by
`probgen.records.atomic`. `config.json` has the SHA-256 of every array file and of itself, so a
damaged, truncated or mixed folder is told from a good one. How they are read is in `reading`, what
they hold in `forms`. No pickle.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from probgen.errors import SaveError
from probgen.records import atomic, forms, places, reading
from probgen.records.places import Address, Place
from probgen.trees import tree_items, tree_like


def write_folder(
    path: str | os.PathLike | Address, arrays: Mapping[str, Mapping[str, np.ndarray]], config: dict
) -> Place:
    """Writes {file name: {array name: array}} and a config, all or nothing (see `records.atomic`).

    Raises:
        SaveError: the disk is full or may not be written, another process is writing there, or
            something that is not ours, or of another kind, stands at `path`; what stood there is
            untouched.
    """
    target = places.at(path)
    if isinstance(target, Address):
        check_place(target, config.get("kind"))
        with places.beside(target) as local:
            write_folder(local, arrays, config)
            target.send(local)
        return target

    def make(fresh: Path) -> None:
        fresh.mkdir()
        sums = {}
        for name, group in arrays.items():
            file = fresh / f"{name}.safetensors"
            save_file({k: np.asarray(v, order="C") for k, v in group.items()}, file)
            sums[file.name] = reading.digest(file)
            atomic.sync(file)
        header = {"format": reading.FORMAT, "version": reading.VERSION, "sha256": sums}
        atomic.write_text(fresh / "config.json", reading.sealed({**header, **config}))
        atomic.sync(fresh)

    with atomic.held(target):
        check_place(target, config.get("kind"))
        try:
            atomic.put(target, make)
        except (SafetensorError, TypeError, ValueError) as error:
            raise atomic.not_written(target, error) from error
    return target


def check_place(path: str | os.PathLike | Address, kind: Any) -> bool:
    """Whether something of this kind stands at `path`; False where there is nothing yet.

    Raises:
        SaveError: something stands there that a save of this kind may not replace.
    """
    target = places.at(path)
    if isinstance(target, Address):
        names = target.names()
        is_left = all(n.endswith(".safetensors") for n in names)  # of a run that was killed
        held = target.header() if places.CONFIG in names else {}
        ours = is_left if not held else held.get("format") == reading.FORMAT
    else:
        ours = is_ours(target) or not target.exists()
        there = ours and (target / places.CONFIG).exists()
        held = reading.read_header(target) if there else {}
    if not ours:
        raise SaveError(
            f"{target}: got a place that holds something else, expected a new folder, an empty one "
            "or a run folder of probgen; choose another path."
        )
    if not held:
        return False
    if held.get("kind") != kind:
        found = forms.says(held.get("kind"))
        raise SaveError(
            f"{target}: got a place that holds {found}, expected a new folder or one that holds "
            f"{forms.says(kind)}; choose another path."
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
        config = reading.read_header(folder)
    except SaveError:
        return False
    return names <= {"config.json", *config["sha256"]}


def read_folder(
    path: str | os.PathLike | Address, kind: str
) -> tuple[dict[str, dict[str, np.ndarray]], dict]:
    """The arrays and the config of a folder of that kind that `write_folder` made.

    Raises:
        SaveError: missing, truncated, damaged, of another kind, or not written by probgen.
    """
    place = places.at(path)
    if isinstance(place, Address):
        return places.through(place, lambda local: read_folder(local, kind))
    folder = atomic.standing(place)
    if not folder.is_dir():
        raise SaveError(f"{folder}: no such folder, expected one that probgen has written.")
    config = reading.read_header(folder)
    forms.check_folder(folder, config, kind)
    reading.check_config(folder, config)
    arrays = {
        name.removesuffix(".safetensors"): reading.read_arrays(folder / name, digest)
        for name, digest in config["sha256"].items()
    }
    return arrays, config


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """A tree as {"path/to/leaf": array}; names with a slash are kept apart by '//'."""
    return {
        "/".join(p.replace("/", "//") for p in path): np.asarray(leaf)
        for path, leaf in tree_items(tree)
    }


def unflatten(arrays: Mapping[str, np.ndarray]) -> dict:
    """The nested dict that `flatten` was given (containers become dicts).

    Raises:
        SaveError: a name stands for an array and for a group of arrays.
    """
    out: dict = {}
    for name, array in arrays.items():
        parts = [p.replace("\0", "/") for p in name.replace("//", "\0").split("/")]
        place = out
        for part in parts[:-1]:
            place = place.setdefault(part, {}) if isinstance(place, dict) else place
        if not isinstance(place, dict) or parts[-1] in place:
            raise SaveError(
                f"arrays: got {name!r} beside an array or a group of the same name, expected each "
                "name once; the file is damaged, or two parameters are named alike."
            )
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
