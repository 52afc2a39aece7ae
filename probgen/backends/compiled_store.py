"""What is compiled is kept: one bounded store for both backends and all verbs, shared by threads.

A program is kept under what it computes (its token), so that the same computation is found again
whoever asks, and another one never is. Data are arguments of programs, not parts of them. The least
recently used go first: past `MAX_PROGRAMS` of them, or past `MAX_BYTES` of constants in them.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable
from typing import Any

from probgen.backends.turns import Turn

MAX_PROGRAMS = 256
MAX_BYTES = 2**28


class Store:
    """Values by token, the least recently used dropped first.

    Args:
        size: how many are kept.
        room: bytes that they may hold in all, as `get` is told.
    """

    def __init__(self, size: int = MAX_PROGRAMS, room: int = MAX_BYTES):
        self.size, self.room = size, room
        self._turn = Turn()
        self._items: collections.OrderedDict[Hashable, tuple[Any, int]] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def get(
        self, token: Hashable, make: Callable[[], Any], nbytes: Callable[[Any], int] = lambda _: 0
    ) -> Any:
        """What was made for this token before, or is made now.

        Two threads that ask at once for what is not there may both make it: neither waits.

        Args:
            token: what the value is; None for what cannot be told, which is never kept.
            make: makes it; None is not kept.
            nbytes: of the value, how much memory it holds beside its code.
        """
        if token is None:
            return make()
        with self._turn:
            if token in self._items:
                self._items.move_to_end(token)
                return self._items[token][0]
        value = make()
        if value is None:
            return None
        with self._turn:
            self._items[token] = value, nbytes(value)
            self._items.move_to_end(token)
            held = sum(size for _, size in self._items.values())
            while self._items and (len(self._items) > self.size or held > self.room):
                held -= self._items.popitem(last=False)[1][1]
        return value

    def clear(self) -> None:
        """Drops all of them; whoever holds one goes on with it."""
        with self._turn:
            self._items.clear()


programs = Store()
