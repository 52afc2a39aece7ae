"""Ctrl-C and SIGTERM during long work that is kept: end between two pieces of it, not within one.

The first signal only sets a mark, which the work reads when a piece is done and saved; a second one
stops at once. What is raised then says how far the work has come, and the process ends with the
usual status: 130 after Ctrl-C (`KeyboardInterrupt`), 143 after SIGTERM (`Terminated`).

Handlers stand only while the work runs, in the main thread, and where nobody has put another one:
whoever handles SIGTERM in a way of their own, or ignores Ctrl-C, still does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from probgen.errors import Terminated
from probgen.progress import log, on_terminal

_DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Asked:
    """Whether the work was asked to end, and by what: `signal` is None, or a signal's number."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def stop(self, message: str) -> None:
        """Ends the work if that was asked for; called where all that is done is kept.

        Raises:
            KeyboardInterrupt: after Ctrl-C, with the message.
            Terminated: after SIGTERM; the message is logged too, since Python says nothing then.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt(message)
        if self.signal is not None:
            log.warning(message)
            raise Terminated(message)

    def _handle(self, number: int, frame: Any) -> None:
        if self.signal is not None:  # asked twice: at once
            self._put_back()
            if number == signal.SIGINT:
                raise KeyboardInterrupt("stopped at once; what was kept before stands")
            raise Terminated("stopped at once; what was kept before stands")
        self.signal = number
        if on_terminal():
            # Not by print: the signal may have come within one.
            with contextlib.suppress(OSError):
                os.write(sys.stderr.fileno(), b"\nends after this piece; again to stop at once\n")

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


@contextlib.contextmanager
def asked_to_stop(is_kept: bool) -> Iterator[Asked]:
    """Within, the first Ctrl-C or SIGTERM only marks the `Asked` that is given.

    Args:
        is_kept: whether the work is kept at all; otherwise nothing is gained by waiting, and a
            signal does what it always does.
    """
    asked = Asked()
    if is_kept and threading.current_thread() is threading.main_thread():
        for number, default in _DEFAULTS.items():
            if signal.getsignal(number) == default:
                asked._before[number] = signal.signal(number, asked._handle)
    try:
        yield asked
    finally:
        asked._put_back()
    if asked:  # after the last look at the mark
        signal.raise_signal(asked.signal)  # type: ignore[arg-type]
