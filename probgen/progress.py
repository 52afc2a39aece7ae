"""What is shown while something runs: bars on a terminal, lines of text, the log.

A terminal that is gone, a pipe that nobody reads any more (`| head`) or a full disk behind it ends
the showing, never the work.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

BETWEEN = 1.0  # seconds between two texts that cost something to make


class _Log(logging.LoggerAdapter):
    def log(self, level: int, msg: Any, *args: Any, **options: Any) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream was closed
            super().log(level, msg, *args, **{"stacklevel": 2, **options})


log = _Log(logging.getLogger("probgen"), {})


class _Shown:
    """A stream that takes what is written to it, and keeps its troubles to itself."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def bar(
    total: int, initial: int = 0, wanted: bool = True, unit: str = "step"
) -> Iterator[Callable]:
    """Gives `shown(count, metrics, words)`, which moves the bar and shows the main metric's mean,
    or what `words` says, which is asked only where somebody may see it."""
    if not wanted or not on_terminal():
        yield lambda count, metrics=None, words=None: None
        return
    from tqdm.auto import tqdm

    out = _Shown(sys.stderr)
    told = -BETWEEN
    with tqdm(total=total, initial=initial, unit=unit, dynamic_ncols=True, file=out) as shown:

        def move(
            count: int, metrics: dict[str, Any] | None = None, words: Callable | None = None
        ) -> None:
            nonlocal told
            if words is not None and time.monotonic() - told > BETWEEN:
                shown.set_postfix_str(words(), refresh=False)
                told = time.monotonic()
            for name in ("elbo", "iwae", "loss"):
                if metrics and name in metrics:
                    shown.set_postfix({name: f"{float(np.mean(metrics[name])):.4g}"})
                    break
            shown.update(count)

        yield move


def on_terminal() -> bool:
    """Whether somebody may be watching stderr."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except (OSError, ValueError):
        return False


def say(line: str) -> None:
    """Prints a line on stdout at once; where nobody reads it any more, what follows goes nowhere
    too, so that Python does not stumble over it when it ends."""
    try:
        print(line, flush=True)
    except ValueError:  # closed
        pass
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
