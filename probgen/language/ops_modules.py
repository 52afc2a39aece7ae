"""Which backend computes: read off the arrays at hand, or the program that is running."""

from __future__ import annotations

import importlib
from contextvars import ContextVar
from functools import lru_cache
from types import ModuleType
from typing import Any

from probgen.errors import BackendError

running_ops: ContextVar[ModuleType | None] = ContextVar("running_ops", default=None)
"""The backend of the program that is running, for calls without an array; the language sets it."""

_MODULES = {
    "torch": "probgen.backends.torch.ops",
    "jax": "probgen.backends.jax.ops",
    "jaxlib": "probgen.backends.jax.ops",
}


def _running() -> ModuleType | None:
    return running_ops.get()


@lru_cache(maxsize=512)
def _module_of_type(kind: type) -> str | None:
    """The ops module for one array type, read from where its classes are defined."""
    roots = (base.__module__.partition(".")[0] for base in kind.__mro__)
    return next((_MODULES[root] for root in roots if root in _MODULES), None)


def _module_of(value: Any) -> str | None:
    # Containers first: torch.Size is a tuple that is defined in torch, but holds only numbers.
    if isinstance(value, list | tuple):
        return next((name for item in value if (name := _module_of(item))), None)
    kind: Any = type(value)
    return _module_of_type(kind)


def ops_for(*values: Any) -> ModuleType:
    """The backend's ops module for the first framework array among `values` (or in their lists).

    Without one, the backend of the running program; see `running_ops`.

    Raises:
        BackendError: no array of a framework, and no program is running.
    """
    for value in values:
        if name := _module_of(value):
            return importlib.import_module(name)
    if (module := _running()) is not None:
        return module
    kinds = ", ".join(sorted({type(v).__name__ for v in values})) or "no arguments"
    raise BackendError(
        f"ops: got {kinds}, expected at least one torch tensor or JAX array to say which backend "
        "computes; convert one argument (torch.as_tensor, jax.numpy.asarray), or use numpy itself."
    )
