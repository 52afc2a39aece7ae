"""What a folder of each kind must hold: the one schema that all that is read is checked against.

A form is a type, `[form]` (a list of such), `(form,)` (a tuple), `Each(form)` (a dict of such), or
`Fields`. Forms are checked before anything is built, so that readers take what they get without
further questions.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from probgen.errors import OtherRun, SaveError
from probgen.records.reading import TYPES


class Each(NamedTuple):
    """A dict with any names, and values of one form."""

    form: Any


class Fields(NamedTuple):
    """A dict with these names, `more` where they are there, and no others."""

    needed: Mapping[str, Any]
    more: Mapping[str, Any] = types.MappingProxyType({})


class Count:
    """A whole number of at least 0."""


class NumberType:
    """The name of a type of numbers that files hold, such as "float32"."""


class Kind(NamedTuple):
    """A kind of folder.

    says: in words; config: form of its config beside the header; files, may: the arrays that it
    must and may have; since: the first format version that says enough to be gone on with.
    """

    says: str
    config: Fields
    files: frozenset[str]
    may: frozenset[str] = frozenset()
    since: int = 1


Anything = object
MEASURE = Fields(
    {"name": str, "unit": str, "larger_is_stranger": bool, "warnings": [str]},
    {"shared_error": bool},
)
KINDS = {
    "run": Kind(
        "a fitted model",
        Fields({"model": Anything, "model_name": str, "info": dict, "inputs": dict},
               {"events": [str]}),
        frozenset({"model"}), frozenset({"history", "parts", "extras", "raw"}),
    ),
    "checkpoint": Kind(
        "a checkpoint",
        Fields({"step": Count, "finished": bool, "identity": dict, "beside": Each(str),
                "events": [str]}),
        frozenset({"state", "history"}), since=2,
    ),
    "evaluation": Kind(
        "a table of measures",
        Fields({"info": dict, "measures": [MEASURE]}),
        frozenset({"table"}), since=2,
    ),
    "chunk": Kind(
        "a chunk of an evaluation",
        Fields({"names": [str], "data": str, "made": dict}, {"measures": [MEASURE]}),
        frozenset({"values"}), since=2,
    ),
    "pieces": Kind(
        "the state of a sampler", Fields({"after": Count, "made": dict}), frozenset({"state"}),
        since=2,
    ),
    "chains": Kind(
        "draws of Markov chains",
        Fields({"made": dict, "num_warmup": Count,
                "order": Fields({"free": [str], "stats": [str]}, {"learned": [str]})}),
        frozenset({"free", "stats"}), frozenset({"learned"}), since=2,
    ),
    "samples": Kind(
        "samples of a model",
        Fields({"made": dict,
                "order": Fields({"values": [str], "stats": [str], "chain": [str]})}),
        frozenset({"values"}), frozenset({"stats", "chain"}), since=2,
    ),
}  # fmt: skip
NUMBERS = sorted(str(np.dtype(t)) for t in TYPES.values())
LARGEST = 2**26  # entries that a declaration in a file may ask for: 256 MiB of float32
_HEADER = {"format", "version", "sha256", "kind", "checksum"}


def check_folder(folder: Path, config: Mapping[str, Any], kind: str) -> None:
    """Refuses a folder whose config is not one of this kind.

    Raises:
        OtherRun: a format version that says too little to tell whose it is.
        SaveError: another kind, or a field that is not of its form.
    """
    held, wanted = config.get("kind"), KINDS[kind]
    if held != kind:
        raise SaveError(f"{folder}: holds {says(held)}, expected {wanted.says}.")
    if config["version"] < wanted.since:
        raise OtherRun(
            f"{folder}: holds {wanted.says} of format version {config['version']} (probgen 0.1), "
            "which does not say enough to tell whose numbers they are, expected version "
            f"{wanted.since}; make it again, or read it with the probgen that wrote it."
        )
    where = f"{folder}/config.json"
    check({k: v for k, v in config.items() if k not in _HEADER}, wanted.config, where)
    check(config["sha256"], Each(str), f"{where}: sha256")
    names = {n.removesuffix(".safetensors") for n in config["sha256"]}
    if not wanted.files <= names <= wanted.files | wanted.may:
        raise SaveError(
            f"{where}: lists the arrays {sorted(names)}, expected {sorted(wanted.files)} for "
            f"{wanted.says}; it is damaged."
        )


def says(kind: Any) -> str:
    """A kind of folder in words."""
    return KINDS[kind].says if isinstance(kind, str) and kind in KINDS else f"{kind!r}"


def check(value: Any, form: Any, where: str) -> None:
    """Refuses a value that is not of the form.

    Raises:
        SaveError: names the place of the first that is not.
    """
    if isinstance(form, Fields):
        _need(isinstance(value, dict), value, "an object", where)
        known = {**form.needed, **form.more}
        lost, extra = sorted(set(form.needed) - set(value)), sorted(set(value) - set(known))
        if lost or extra:
            raise SaveError(
                f"{where}: lacks {lost} and has the unknown {extra}, expected {sorted(known)}; it "
                "is damaged, or of another release."
            )
        for name, each in value.items():
            check(each, known[name], f"{where}: {name}")
    elif isinstance(form, Each):
        _need(isinstance(value, dict), value, "an object", where)
        for name, each in value.items():
            check(each, form.form, f"{where}: {name}")
    elif isinstance(form, list):
        _need(isinstance(value, list), value, "a list", where)
        for i, each in enumerate(value):
            check(each, form[0], f"{where}: {i}")
    elif isinstance(form, tuple):
        _need(isinstance(value, tuple), value, "a tuple", where)
        for i, each in enumerate(value):
            check(each, form[0], f"{where}: {i}")
    elif form is NumberType:
        _need(isinstance(value, str) and value in NUMBERS, value, f"one of {NUMBERS}", where)
    elif form is Count:
        _need(type(value) is int and value >= 0, value, "a whole number", where)
    elif form is not Anything:
        _need(type(value) is form, value, f"a {form.__name__}", where)


def check_sizes(shapes: Iterable[Iterable[int]], stored: int, where: str) -> None:
    """Refuses shapes that are far larger than what a file holds, before anything is built of them.

    Args:
        shapes: as they are declared.
        stored: how many numbers are stored.

    Raises:
        SaveError: one of them has more than `LARGEST` entries, and more than are stored.
    """
    for shape in shapes:
        size = math.prod(shape)
        if size > max(LARGEST, stored):
            raise SaveError(
                f"{where}: declares a size of {size:,}, expected at most {LARGEST:,}, or as "
                f"many as are stored ({stored:,}); declare the model in Python, for model=."
            )


def _need(is_so: bool, value: Any, wanted: str, where: str) -> None:
    if not is_so:
        raise SaveError(f"{where}: got {str(value)[:80]!r}, expected {wanted}; it is damaged.")
