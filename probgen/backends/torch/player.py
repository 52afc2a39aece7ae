"""Launches of inductor's C++ kernels by one call, without Python between them.

A kernel is a C function of pointers. A table of launches holds, for each argument, where it lies,

    address = base + stride * ((t + shift) & mask)      at moment t

so that one table serves a loop whose rows move on (mask -1), a carry that goes to and fro between
two buffers (mask 1), and launches on the same memory (stride 0). A launch without a function copies
memory. The player is a dozen lines of C++, built once by the compiler that inductor has.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from probgen.backends.torch.inductor import past_cut_libraries

MOST_ARGUMENTS = 160

_SOURCE = r"""
#include <cstdint>
#include <cstring>
typedef char* P;
%(types)s
struct Table {
    int64_t launches, begin, end;
    void* const* fns;
    const int64_t *counts, *bytes;
    const P* base;
    const int64_t *stride, *shift, *mask;
};
extern "C" int play(const Table* const* tables, int64_t count, int64_t times) {
    P p[%(most)d];
    try {
        for (int64_t again = 0; again < times; ++again)
        for (int64_t c = 0; c < count; ++c) {
            const Table& m = *tables[c];
            for (int64_t t = m.begin; t < m.end; ++t) {
                int64_t k = 0;
                for (int64_t l = 0; l < m.launches; ++l) {
                    const int64_t n = m.counts[l];
                    for (int64_t i = 0; i < n; ++i, ++k)
                        p[i] = m.base[k] + m.stride[k] * ((t + m.shift[k]) & m.mask[k]);
                    if (m.fns[l] == nullptr) { std::memcpy(p[0], p[1], m.bytes[l]); continue; }
                    switch (n) {
%(cases)s
                    }
                }
            }
        }
    } catch (...) { return 1; }
    return 0;
}
"""


class NoPlayer(RuntimeError):
    """A kernel that is no C function of pointers, or no compiler for the player."""


class Place(NamedTuple):
    """Where an argument lies: see the head of this file; `base` is an address."""

    base: int
    stride: int = 0
    shift: int = 0
    mask: int = -1


Launch = tuple[int, list[Place], int]


def address(kernel: Callable) -> int:
    """Of the C function behind one of inductor's kernels.

    Raises:
        NoPlayer: there is none to be found.
    """
    path = getattr(getattr(kernel, "__self__", None), "__file__", None)
    try:
        function = getattr(ctypes.CDLL(path), kernel.__name__) if path else None
    except (OSError, AttributeError):
        function = None
    if function is None:
        raise NoPlayer(f"{kernel} is no function of a library")
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@functools.cache
def _play() -> Any:
    from torch._inductor.codecache import CppCodeCache

    counts = range(1, MOST_ARGUMENTS + 1)
    text = _SOURCE % {
        "most": MOST_ARGUMENTS,
        "types": "\n".join(f"typedef void (*F{n})({', '.join(['P'] * n)});" for n in counts),
        "cases": "\n".join(
            f"case {n}: ((F{n})m.fns[l])({', '.join(f'p[{i}]' for i in range(n))}); break;"
            for n in counts
        ),
    }
    try:
        play = past_cut_libraries(lambda: CppCodeCache.load(text)).play
    except Exception as error:
        raise NoPlayer(f"the player was not compiled: {error}") from error
    play.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    return play


class _Table(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_int64) for n in ("launches", "begin", "end")),
        *((n, ctypes.c_void_p) for n in (
            "fns", "counts", "bytes", "base", "stride", "shift", "mask"
        )),
    ]  # fmt: skip


class Table:
    """Launches at the moments t = begin ... end - 1.

    Args:
        launches: (address of the function, places of its arguments, bytes); address 0 copies so
            many bytes of memory from the second place to the first.

    Attributes:
        base: [arguments] addresses, which may be written over between two plays.

    Raises:
        NoPlayer: a kernel of too many arguments.
    """

    def __init__(self, launches: Sequence[Launch], begin: int = 0, end: int = 1):
        if any(len(args) > MOST_ARGUMENTS for _, args, _ in launches):
            raise NoPlayer(f"a kernel of more than {MOST_ARGUMENTS} arguments")
        places = [p for _, args, _ in launches for p in args]
        column = lambda values: np.array(values, np.int64)  # noqa: E731
        self.launches = launches
        self.base = column([p.base for p in places])
        self._columns = (
            column([f for f, *_ in launches]), column([len(args) for _, args, _ in launches]),
            column([b for *_, b in launches]), self.base, column([p.stride for p in places]),
            column([p.shift for p in places]), column([p.mask for p in places]),
        )  # fmt: skip
        self.struct = _Table(len(launches), begin, end, *(c.ctypes.data for c in self._columns))

    def at(self, begin: int, end: int) -> None:
        """Other moments."""
        self.struct.begin, self.struct.end = begin, end


class Player:
    """Tables, played one after the other.

    Raises:
        NoPlayer: no compiler.
    """

    def __init__(self, tables: Sequence[Table]):
        self._call, self.tables = _play(), tables
        pointers = [ctypes.addressof(t.struct) for t in tables]
        self._pointers = (ctypes.c_void_p * len(tables))(*pointers)
        self._args = ctypes.addressof(self._pointers), len(tables)

    def play(self, times: int = 1) -> None:
        """All of them, so many times.

        Raises:
            RuntimeError: a kernel did (a whole number divided by zero).
        """
        if self._call(*self._args, times):
            raise RuntimeError("a compiled kernel failed: a whole number divided by zero?")
