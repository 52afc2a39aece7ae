"""Declarations as JSON and back, without running code from the file.

A declaration is a dataclass of probgen (a net, a family, a likelihood), a distribution, or plain
data. Its class is written as "module:name"; reading looks that name up among probgen's own modules
and nowhere else, and builds the dataclass from its fields. A model that is a user's function cannot
be written: it is named, and asked for again when the run is loaded.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import numpy as np

from probgen.dist import Deferred, Family
from probgen.errors import SaveError


class NotADeclaration(SaveError):
    """A value that JSON cannot hold as a declaration, such as a user's function."""


def encode(value: Any) -> Any:
    """A declaration as JSON data.

    Raises:
        NotADeclaration: it holds something that is not probgen's own or plain data.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Deferred):
        return {"dist": value.name, "arguments": encode(dict(value.arguments)),
                "calls": [[m, encode(list(a))] for m, a in value.calls]}  # fmt: skip
    if isinstance(value, Family):
        return {"family": value.name}
    if isinstance(value, np.ndarray | np.generic):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, tuple):
        return {"tuple": [encode(v) for v in value]}
    if isinstance(value, list):
        return [encode(v) for v in value]
    if isinstance(value, dict):
        return {"dict": {str(k): encode(v) for k, v in value.items()}}
    if hasattr(value, "__saved_as__"):
        return encode(value.__saved_as__())
    cls = type(value)
    if dataclasses.is_dataclass(value) and cls.__module__.split(".")[0] == "probgen":
        fields = {
            f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init
        }
        return {"class": f"{cls.__module__}:{cls.__qualname__}", "fields": fields}
    raise NotADeclaration(
        f"{value!r} (a {cls.__module__}.{cls.__qualname__}) cannot be written to a run folder, "
        "expected declarations of probgen or plain data."
    )


def decode(data: Any) -> Any:
    """The declaration that `encode` was given.

    Raises:
        SaveError: the data name something that is not one of probgen's declarations.
    """
    if isinstance(data, list):
        return [decode(v) for v in data]
    if not isinstance(data, dict):
        return data
    try:
        return _decode_dict(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SaveError(f"config.json: cannot be read as a declaration ({error!r}).") from error


def _decode_dict(data: dict) -> Any:
    if "dist" in data:
        calls = tuple((m, tuple(decode(a))) for m, a in data["calls"])
        declared = Family(str(data["dist"]))(**decode(data["arguments"]))
        for method, args in calls:
            if method not in ("expand", "to_event", "mask"):
                raise SaveError(f"config.json: unknown method {method!r} of a distribution.")
            declared = getattr(declared, method)(*args)
        return declared
    if "family" in data:
        return Family(str(data["family"]))
    if "array" in data:
        return np.asarray(data["array"], dtype=data["dtype"])
    if "tuple" in data:
        return tuple(decode(v) for v in data["tuple"])
    if "dict" in data:
        return {k: decode(v) for k, v in data["dict"].items()}
    return _find(data["class"])(**{k: decode(v) for k, v in data["fields"].items()})


def _find(path: str) -> type:
    module, _, name = path.partition(":")
    parts = module.split(".")
    found: Any = None
    if parts[0] == "probgen" and all(p.isidentifier() for p in parts) and name.isidentifier():
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError:
            found = None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)) or (
        found.__module__ != module
    ):
        raise SaveError(
            f"config.json: names the class {path!r}, expected a declaration of probgen; nothing "
            "else is loaded from a file."
        )
    return found
