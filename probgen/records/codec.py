"""Declarations as JSON and back, without running code from the file.

A declaration is a frozen dataclass of probgen (a net, a family, a likelihood), a distribution, a
`Fitted` that another model is built on, or plain data. Its class is written as "module:name";
reading looks that name up among probgen's own modules and nowhere else, and builds the dataclass
from its fields. Arrays go to a `Pool` beside the JSON, once each. A model that is a function of its
user, or holds a module of another library, cannot be written: it is asked for again on loading.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from probgen.errors import ProbgenError, SaveError
from probgen.language.dist import Deferred, Family
from probgen.records import forms

INLINE = 16  # arrays of up to so many values are written into the JSON itself
_METHODS = ("expand", "to_event", "mask")


class NotADeclaration(SaveError):
    """A value that JSON cannot hold as a declaration, such as a user's function."""


class Pool:
    """Arrays by reference: those that are saved anyway, and those that are added.

    A base model's frozen parameters are among the fit's own, so a `Tilted` model stores them once.

    Args:
        known: arrays that are saved under these names.
    """

    def __init__(self, known: Mapping[str, np.ndarray]):
        self._names = {self._mark(np.asarray(v)): k for k, v in known.items()}
        self.added: dict[str, np.ndarray] = {}

    @staticmethod
    def _mark(array: np.ndarray) -> tuple:
        content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
        return array.dtype.str, array.shape, content

    def put(self, array: np.ndarray) -> str:
        """The name under which the array is saved; equal arrays share one."""
        mark = self._mark(array)
        if mark not in self._names:
            self._names[mark] = f"parts:{len(self.added)}"
            self.added[self._names[mark]] = array
        return self._names[mark]


_DECODERS: dict[str, Callable[[Any, Mapping[str, np.ndarray]], Any]] = {}


def decodes(name: str, decoder: Callable[[Any, Mapping[str, np.ndarray]], Any]) -> None:
    """Says who reads what a class with `__encode__` wrote under that name."""
    _DECODERS[name] = decoder


def encode(value: Any, pool: Pool | None = None) -> Any:
    """A declaration as JSON data.

    Args:
        value: the declaration.
        pool: takes large arrays and the parameters of fitted parts; without one, arrays are
            written into the JSON and fitted parts are refused.

    Raises:
        NotADeclaration: it holds something that is not probgen's own or plain data.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Deferred):
        return {
            "dist": value.name,
            "arguments": encode(dict(value.arguments), pool),
            "calls": [[m, encode(list(a), pool)] for m, a in value.calls],
        }
    if isinstance(value, Family):
        return {"family": value.name}
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if pool is not None and array.size > INLINE:
            return {"stored": pool.put(array)}
        return {"array": array.tolist(), "dtype": str(array.dtype)}
    if type(value) is tuple:
        return {"tuple": [encode(v, pool) for v in value]}
    if type(value) is list:
        return [encode(v, pool) for v in value]
    if type(value) is dict:
        return {"dict": [[encode(k, pool), encode(v, pool)] for k, v in value.items()]}
    if hasattr(value, "__encode__") and pool is not None:
        return {"fitted": value.__encode__(pool)}
    if _is_declaration(type(value)):
        fields = [f.name for f in dataclasses.fields(value) if f.init]
        cls = type(value)
        return {
            "class": f"{cls.__module__}:{cls.__qualname__}",
            "fields": {name: encode(getattr(value, name), pool) for name in fields},
        }
    raise NotADeclaration(
        f"{value!r} (a {type(value).__module__}.{type(value).__qualname__}) cannot be written to a "
        "run folder, expected declarations of probgen or plain data."
    )


def decode(data: Any, arrays: Mapping[str, np.ndarray] | None = None) -> Any:
    """The declaration that `encode` was given.

    Args:
        data: what `encode` returned, by way of JSON.
        arrays: the arrays that a pool named.

    Raises:
        SaveError: the data name something that is not one of probgen's declarations.
    """
    arrays = arrays or {}
    try:
        forms.check_sizes(_sizes(data), sum(a.size for a in arrays.values()), "config.json")
        return _decode(data, arrays)
    except SaveError:
        raise
    except ProbgenError as error:
        raise SaveError(f"config.json: holds a declaration that is refused: {error}") from error
    except Exception as error:  # a declaration that is built of anything may raise anything
        raise SaveError(f"config.json: cannot be read as a declaration ({error!r}).") from error


def _decode(data: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(data, list):
        return [_decode(v, arrays) for v in data]
    if not isinstance(data, dict):
        return data
    if "dist" in data:
        return _distribution(data, arrays)
    if "family" in data:
        return _family(data["family"])
    if "array" in data:
        forms.check(data.get("dtype"), forms.NumberType, "config.json: array")
        return np.asarray(data["array"], dtype=data["dtype"])
    if "stored" in data:
        return _stored(data["stored"], arrays)
    if "tuple" in data:
        return tuple(_decode(v, arrays) for v in data["tuple"])
    if "dict" in data:
        return {_decode(k, arrays): _decode(v, arrays) for k, v in data["dict"]}
    if "fitted" in data:
        return _DECODERS["fitted"](data["fitted"], arrays)
    return _find(data["class"])(**{k: _decode(v, arrays) for k, v in data["fields"].items()})


def _sizes(data: Any, counts: bool = True) -> Iterator[list[int]]:
    """The sizes that a declaration asks for: whole numbers of its fields, and what `expand` takes.

    Args:
        data: JSON of a declaration.
        counts: whether a whole number is a size; an argument of a distribution is a value.
    """
    if isinstance(data, list):
        for each in data:
            yield from _sizes(each, counts)
    elif isinstance(data, dict) and "fitted" in data:
        yield from _sizes(data["fitted"]["model"])
    elif isinstance(data, dict) and "dist" in data:
        yield from _sizes(data["arguments"], counts=False)
        for method, args in data["calls"]:
            if method == "expand":
                yield [n for (n,) in _sizes(args)]
    elif isinstance(data, dict) and "array" not in data:
        yield from _sizes(list(data.values()), counts)
    elif counts and type(data) is int and data > 0:
        yield [data]


def _stored(name: Any, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    if name not in arrays:
        raise SaveError(f"config.json: names the array {name!r}, which the folder does not hold.")
    return arrays[name]


def _distribution(data: dict, arrays: Mapping[str, np.ndarray]) -> Deferred:
    declared = _family(data["dist"])(**_decode(data["arguments"], arrays))
    for method, args in data["calls"]:
        if method not in _METHODS:
            raise SaveError(f"config.json: unknown method {method!r} of a distribution.")
        declared = getattr(declared, method)(*_decode(args, arrays))
    return declared


def _family(name: Any) -> Family:
    from probgen.language.dist import SIGNATURES

    if name not in SIGNATURES:
        raise SaveError(f"config.json: names the distribution {name!r}, which probgen lacks.")
    return Family(name)


def _is_declaration(found: Any) -> bool:
    """Whether a class is a frozen dataclass of probgen that a file may name."""
    return (
        isinstance(found, type)
        and dataclasses.is_dataclass(found)
        and found.__dataclass_params__.frozen  # type: ignore[attr-defined]
        and found.__module__.split(".")[0] == "probgen"
        and found.__qualname__.isidentifier()
    )


def _find(path: Any) -> Any:
    module, _, name = str(path).partition(":")
    parts = module.split(".")
    found: Any = None
    named = all(p.isidentifier() and not p.startswith("_") for p in (*parts, name))
    if parts[0] == "probgen" and named:
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError:
            found = None
    if not _is_declaration(found) or found.__module__ != module:
        raise SaveError(
            f"config.json: names the class {path!r}, expected a declaration of probgen; nothing "
            "else is loaded from a file."
        )
    return found
