"""What a declaration is, by its content alone: one hash, the same in every process.

A value is taken apart down to numbers and text, and the parts' hashes are hashed (sha256):

    arrays                  type, shape, bytes
    functions, classes      of the user: bytecode, constants, defaults, what they close over, and
                            the globals that they name; of a library: the name
    declarations, Fitted    fields; parameters and inputs
    networks of torch       settings and buffers; under `from_torch` parameters by shape alone,
                            since those of the fit take their place (see `Form`)
    other objects           class and state, as pickle would keep them, without cached properties

A comment changes nothing; a docstring, or another Python's bytecode, does: two values of one hash
give the same numbers, two of different hashes may do so too. A library counts by its name. A class
whose state does not tell what it is, or that pickle cannot take apart, says so by
`__identity__(self)`, any value of the kinds above.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import types
from typing import Any, NamedTuple

import numpy as np

from probgen.errors import DeclarationError, ProbgenError
from probgen.language.content import content
from probgen.language.object_parts import (
    Parts,
    full_name,
    import_name,
    is_library,
    of_class,
    of_code,
    of_dataclass,
    of_function,
    of_object,
)

_PLAIN = (type(None), bool, int, float, complex, type(...), type(NotImplemented))


def identity(value: Any, what: str = "value") -> str:
    """The hash of a declaration's content, 64 hexadecimal digits.

    Args:
        value: a declaration, a `Fitted`, a function, arrays, or containers and objects of such.
        what: what an error calls it.

    Raises:
        DeclarationError: something in it cannot be told by its content, such as an open file or a
            lock; names the way there.
    """
    return contents(value, what).identity


class Contents(NamedTuple):
    """A value's identity and the tensors of torch in it, each once.

    tensors: those whose numbers are part of the identity: of two values of one identity the tensors
    at one place hold the same; forms: those that count by their form alone.
    """

    identity: str
    tensors: list[Any]
    forms: list[Any]


def contents(value: Any, what: str = "value") -> Contents:
    """`identity` with the tensors that it is made of."""
    marker = _Marker()
    try:
        return Contents(marker.mark(value, what).hex(), marker.tensors, marker.forms)
    except RecursionError as error:
        raise DeclarationError(
            f"{what}: got a {type(value).__name__} nested too deeply to be told by its content, "
            "expected a declaration; give its class __identity__(self), which returns what it is."
        ) from error


class Form(NamedTuple):
    """What `__identity__` gives where the numbers of arrays in `value` do not count.

    Attributes:
        arrays: those of which type and shape alone count; None: all of them.
    """

    value: Any
    arrays: tuple | None = None


class _Marker:
    """One walk over a value; `form` is the one that is being walked through."""

    def __init__(self, form: Form | None = None):
        self.is_form = form is not None and form.arrays is None
        self.given = {id(a) for a in (form.arrays if form is not None else None) or ()}
        self.tensors: list[Any] = []
        self.forms: list[Any] = []
        self.done: dict[int, tuple[Any, bytes]] = {}  # holds the values, so that ids stay theirs
        self.open: list[int] = []
        self.path: list[str] = []

    def mark(self, value: Any, name: str) -> bytes:
        key = id(value)
        if key in self.done:
            return self.done[key][1]
        if key in self.open:  # a function that calls itself: so many steps up
            return _hash("above", str(len(self.open) - self.open.index(key)).encode())
        self.open.append(key)
        self.path.append(name)
        try:
            found = self._leaf(value)
            if found is None:
                kind, parts = self._parts(value)
                marks = [_hash(n, self.mark(v, n)) for n, v in parts]
                found = _hash(kind, *(sorted(marks) if kind == "set" else marks))
        except (ProbgenError, RecursionError):
            raise
        except Exception as error:
            raise DeclarationError(
                f"{' > '.join(self.path)}: got a {full_name(type(value))}, whose content cannot be "
                f"told ({error}), expected numbers, text, arrays, functions, declarations, or "
                "objects that pickle takes; leave it out, or give its class __identity__(self), "
                "which returns what it is."
            ) from error
        self.open.pop()
        self.path.pop()
        self.done[key] = (value, found)
        return found

    def _leaf(self, value: Any) -> bytes | None:
        kind = type(value)
        if kind in _PLAIN:
            return _hash(kind.__name__, (hex(value) if kind is int else repr(value)).encode())
        if kind is str:
            return _hash("str", value.encode("utf-8", "surrogatepass"))
        if kind is bytes:
            return _hash("bytes", value)
        if isinstance(value, type):
            return None
        if isinstance(value, Form):
            inner = _Marker(value)
            inner.path, inner.tensors, inner.forms = [*self.path], self.tensors, self.forms
            return _hash("form", inner.mark(value.value, "value"))
        is_array = hasattr(value, "dtype") and isinstance(getattr(value, "shape", None), tuple)
        if is_array and (self.is_form or id(value) in self.given):
            self.forms.append(value)
            return _hash("array", f"{value.dtype} {tuple(value.shape)}".encode())
        # Of a subclass, such as a masked array, and an array of JAX, pickle knows more.
        if kind in (np.ndarray, np.memmap) or isinstance(value, np.generic):
            return None if value.dtype.hasobject else _array("array", value)
        if all(hasattr(value, n) for n in ("detach", "cpu", "numpy", "dtype")):
            self.tensors.append(value)
            there = value.detach().cpu()
            try:
                numbers = there.numpy()
            except TypeError:  # a type that numpy lacks, such as bfloat16: float holds its numbers
                numbers = there.float().numpy()
            return _array(f"tensor {value.dtype}", numbers)
        return None

    def _parts(self, value: Any) -> tuple[str, Parts]:
        """(kind, parts by name); a kind is all that there is to say beside the parts."""
        if isinstance(value, type):
            return of_class(value)
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__}", ()
        named = import_name(value)
        if named is not None:
            return f"library {named}", ()
        if isinstance(value, types.FunctionType):
            return "function", of_function(value)
        if isinstance(value, types.CodeType):
            return "code", of_code(value)
        if hasattr(type(value), "__identity__"):
            return "stated", [("class", type(value)), ("identity", value.__identity__())]
        if isinstance(value, enum.Enum):
            return f"member {value.name}", [("class", type(value)), ("value", value.value)]
        if isinstance(value, set | frozenset):
            return "set", [("item", v) for v in value]
        if type(value) in (list, tuple):
            return type(value).__name__, [(str(i), v) for i, v in enumerate(value)]
        if type(value) in (dict, types.MappingProxyType):
            # A key's text may hold an address, so that only a string is named.
            keys = [(k if isinstance(k, str) else str(i), k) for i, k in enumerate(value)]
            pairs = [[(f"key {n}", k), (n, value[k])] for n, k in keys]
            return "dict", [part for pair in pairs for part in pair]
        if dataclasses.is_dataclass(value):
            return "declaration", [("class", type(value)), *of_dataclass(value)]
        if isinstance(value, np.ndarray) and type(value) in (np.ndarray, np.memmap):
            return f"objects {value.shape}", [("items", value.ravel().tolist())]
        wraps = callable(value) and hasattr(value, "__wrapped__")
        if wraps and is_library(type(value).__module__):  # jax.jit, lru_cache
            return f"wrapped {full_name(type(value))}", [("function", value.__wrapped__)]
        return "object", of_object(value)


def _hash(kind: str, *parts: bytes) -> bytes:
    return hashlib.sha256(b"\0".join([kind.encode("utf-8", "replace"), b"".join(parts)])).digest()


def _array(kind: str, array: Any) -> bytes:
    return _hash(kind, content({"": np.asarray(array)}).encode())
