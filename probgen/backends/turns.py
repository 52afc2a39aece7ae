"""One thread at a time where a library keeps state for the whole process.

Pyro and NumPyro have one stack of handlers and one validation flag each, and torch one default
generator and one compiler's configuration. Who runs a program, traces a graph or draws from that
generator holds the library's turn; what is compiled runs beside it. A thread may hold a turn that
it holds already, and the child of a fork starts with none held.
"""

from __future__ import annotations

import os
import threading


class Turn:
    """A re-entrant lock, as `with turn:`."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            # The thread that held it at the fork is not there to give it back.
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


pyro_turn = Turn()  # torch's, too
numpyro_turn = Turn()
