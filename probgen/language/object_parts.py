"""Functions, classes and objects, taken apart into what tells one from another.

What a user wrote counts by its bytecode and all that it names; what a library defines (Python,
probgen, anything installed) by its name. How parts become one hash is in `identity`.
"""

from __future__ import annotations

import copyreg
import dataclasses
import dis
import functools
import importlib.util
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Parts = Iterable[tuple[str, Any]]

_CODE = (
    "co_code", "co_consts", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_flags",
    "co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_exceptiontable",
)  # fmt: skip
_METHODS = (types.FunctionType, property, staticmethod, classmethod)
_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType)
# What `dataclass` writes; its fields say the same.
_WRITTEN = {"__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__"}


def of_code(code: types.CodeType) -> Parts:
    """Bytecode, constants and names; not the lines and files that it came from."""
    return [(n, getattr(code, n)) for n in _CODE]


def of_function(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Code, defaults, what it closes over, and, of a user's, the globals that it names."""
    yield "code", fn.__code__
    yield "defaults", fn.__defaults__
    yield "keyword defaults", fn.__kwdefaults__
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            yield name, "empty"
    if not is_library(fn.__module__):
        names, attributes, modules = _names(fn.__code__)
        for name in sorted(names & fn.__globals__.keys()):
            yield from _global(f"global {name}", fn.__globals__[name], attributes, set())
        for name in sorted(modules):  # those that it imports itself
            found = sys.modules.get(_absolute(name, fn.__globals__))
            yield from _global(f"import {name}", found, attributes, set())


def _global(name: str, value: Any, attributes: set[str], seen: set[int]) -> Parts:
    """A global; of a module of the user those members that the function may mean."""
    yield name, value
    is_module = isinstance(value, types.ModuleType) and id(value) not in seen
    if is_module and not is_library(value.__name__):
        seen.add(id(value))
        for each in sorted(attributes & vars(value).keys()):
            yield from _global(f"{name}.{each}", vars(value)[each], attributes, seen)


def _names(code: types.CodeType) -> tuple[set[str], set[str], set[str]]:
    """(globals, attributes, imported modules) that a function's bytecode names, functions within it
    included; a relative import begins with its dots."""
    names: set[str] = set()
    attributes: set[str] = set()
    modules: set[str] = set()
    before: list[Any] = [None, None]  # an import's level is loaded two instructions before it
    for each in dis.get_instructions(code):
        if each.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(each.argval)
        elif each.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):
            attributes.add(each.argval)
        elif each.opname == "IMPORT_NAME":
            modules.add("." * (before[0] or 0) + each.argval)
        before = [before[1], each.argval]
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            more = _names(inner)
            names, attributes, modules = names | more[0], attributes | more[1], modules | more[2]
    return names, attributes, modules


def _absolute(module: str, namespace: Mapping[str, Any]) -> str:
    if not module.startswith("."):
        return module
    package = namespace.get("__package__") or ""
    try:
        return importlib.util.resolve_name(module, package)
    except ImportError:
        return module


def of_class(cls: type) -> tuple[str, Parts]:
    """A library's class by its name; a user's by its bases and members."""
    if is_library(cls.__module__):
        return f"library {full_name(cls)}", ()
    written = _WRITTEN if dataclasses.is_dataclass(cls) else set()
    members = [("bases", cls.__bases__)]
    for name, member in sorted(vars(cls).items()):
        special = name.startswith("__") and not isinstance(member, _METHODS)
        if special or name in written or name.startswith("_abc") or isinstance(member, _SLOTS):
            continue
        if isinstance(member, property):
            member = (member.fget, member.fset)
        elif isinstance(member, staticmethod | classmethod):
            member = (type(member), member.__func__)
        elif isinstance(member, functools.cached_property):
            member = member.func
        members.append((name, member))
    return f"class {cls.__name__}", members


def of_dataclass(value: Any) -> Iterator[tuple[str, Any]]:
    """Fields, and what else was set on one that may be changed."""
    fields = [f.name for f in dataclasses.fields(value)]
    for name in fields:
        yield name, getattr(value, name, "no value")
    setter: Any = type(value).__setattr__
    if setter is object.__setattr__ and hasattr(value, "__dict__"):
        more = _state(value, vars(value))
        yield "more", {n: v for n, v in more.items() if n not in fields}


def of_object(value: Any) -> Parts:
    """What pickle would keep of an object."""
    registered = copyreg.dispatch_table.get(type(value))
    try:
        reduced = registered(value) if registered else value.__reduce_ex__(4)
    except RuntimeError:
        if not (hasattr(value, "state_dict") and hasattr(value, "__dict__")):
            raise
        # A network of torch that pickle refuses, for its classes are made as it runs.
        return [("class", type(value)), ("state", _state(value, vars(value)))]
    if isinstance(reduced, str):  # a name in its module
        for module in (getattr(value, "__module__", None), type(value).__module__):
            if found_at(module, reduced) is value:
                return [("name", f"{module}.{reduced}")]
        raise TypeError(f"pickle knows it as {reduced!r}, which is not to be found")
    make, args, state, items, pairs = (*reduced, None, None, None)[:5]
    if isinstance(state, tuple) and len(state) == 2:  # (attributes, slots)
        state = tuple(_state(value, s) if isinstance(s, dict) else s for s in state)
    elif isinstance(state, dict):
        state = _state(value, state) or None  # as where it was never given an attribute
    return [
        ("maker", make), ("arguments", args), ("state", state),
        ("items", None if items is None else list(items)),
        ("pairs", None if pairs is None else list(pairs)),
    ]  # fmt: skip


def _state(value: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes in order of their names, without docstrings and what is only remembered."""
    kept = {k: v for k, v in state.items() if k != "__doc__"}
    for cls in type(value).__mro__:
        for name, member in vars(cls).items():
            if isinstance(member, functools.cached_property):
                kept.pop(name, None)
    if hasattr(value, "state_dict"):  # torch numbers the hooks of all networks that ever were
        hooks = {k: v for k, v in kept.items() if "_hooks" in k and isinstance(v, Mapping)}
        kept |= {k: list(v.values()) for k, v in hooks.items()}
    return dict(sorted(kept.items(), key=lambda item: str(item[0])))


def full_name(cls: type) -> str:
    """A class by its module and name."""
    return f"{cls.__module__}.{cls.__qualname__}"


def import_name(value: Any) -> str | None:
    """Where to find something callable that a library defines; None where it does not."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not (callable(value) and isinstance(module, str) and isinstance(name, str)):
        return None
    return f"{module}.{name}" if is_library(module) and found_at(module, name) is value else None


def found_at(module: Any, name: str) -> Any:
    """What a loaded module holds under a dotted name; None where it does not."""
    found = sys.modules.get(module) if isinstance(module, str) else None
    for each in name.split("."):
        found = getattr(found, each, None)
    return found


def is_library(module: str | None) -> bool:
    """Whether a module is Python's, probgen's, or was installed; not one of the user's files."""
    top = (module or "").partition(".")[0]
    if top in sys.stdlib_module_names or top == "probgen":
        return True
    found = sys.modules.get(module or "") or sys.modules.get(top)
    place = getattr(found, "__file__", None) or ""
    return bool({"site-packages", "dist-packages"} & set(Path(place).parts))
