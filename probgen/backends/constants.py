"""Numpy arrays that a program closes over, as arrays that values of the run may meet.

`table[z]` with a drawn z asks numpy for the number of z, which a compiled program has not; torch
refuses `w * X` outright. While a program runs, the arrays that it, or a function of its module that
it calls, knows by a name (globals, closures) are seen as `Constant`s: still numpy's, the
same memory, but an index or a partner that belongs to the run takes them to the backend first.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from probgen.backends.turns import Turn

_turn = Turn()  # runs on torch and on JAX at once would find each other's


class Constant(np.ndarray):
    """A view of an array that knows the way to its backend; an adapter subclasses it."""

    def to_backend(self) -> Any:
        """The same numbers as the backend's array."""
        raise NotImplementedError

    @staticmethod
    def is_value(x: Any) -> bool:
        """Whether x belongs to the backend."""
        raise NotImplementedError

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        if any(map(self.is_value, parts)):
            return self.to_backend()[index]
        return super().__getitem__(index)


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> frozenset[str]:
    """Globals that a function names, those of functions within it too."""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(code.co_names).union(*map(_names, inner))


def _is_plain(value: Any) -> bool:
    return type(value) is np.ndarray and value.dtype.kind in "biuf"


def _places(
    fn: Any, seen: set[int]
) -> Iterator[tuple[Callable[[Any], Any], np.ndarray, Callable[[], Any]]]:
    """(what sets it, the array, what gets it) of all that a user's function knows by a name."""
    fn = getattr(fn, "__func__", fn)
    library = not isinstance(fn, types.FunctionType) or fn.__module__.startswith("probgen.")
    if library or id(fn) in seen:
        return
    seen.add(id(fn))
    known = fn.__globals__
    for name in _names(fn.__code__) & known.keys():
        value = known[name]
        if _is_plain(value):
            yield partial(known.__setitem__, name), value, partial(known.get, name)
        elif isinstance(value, types.FunctionType) and value.__globals__ is known:
            yield from _places(value, seen)
    for cell in fn.__closure__ or ():
        with contextlib.suppress(ValueError):  # not assigned yet
            value = cell.cell_contents
            if _is_plain(value):
                put = partial(setattr, cell, "cell_contents")
                yield put, value, partial(getattr, cell, "cell_contents")
            yield from _places(value, seen)


@contextlib.contextmanager
def constants_of(program: Any, kind: type[Constant]) -> Iterator[None]:
    """While it lasts, arrays that a program knows by a name are of this kind."""
    with _turn:
        found = list(_places(program, set()))
        try:
            lent = [value.view(kind) for _, value, _ in found]
            for (put, _, _), view in zip(found, lent, strict=True):
                put(view)
            yield
        finally:
            for (put, value, get), view in zip(found, lent, strict=True):
                if get() is view:  # else the program has put another in its place
                    put(value)
