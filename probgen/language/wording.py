"""Words of error messages: a value that was got, a name that may have been meant."""

from __future__ import annotations

import difflib
import os
import sys
from typing import Any

LONGEST = 100


def did_you_mean(word: str, known: Any) -> str:
    """A hint for an error message: '; did you mean ...?', or nothing."""
    names = {str(name).lower(): name for name in known}
    close = difflib.get_close_matches(str(word).lower(), names, n=1)
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def shown(value: Any) -> str:
    """A value as a message shows it, on one line: a class by its name, an array by its shape, a
    text cut; of what prints as a table, its class."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape != ():
        return f"<array {tuple(shape)}>"
    if isinstance(value, tuple | list | set | frozenset | dict) and len(value) > LONGEST:
        return f"<{type(value).__name__} of {len(value)} entries>"
    try:
        text = repr(value)
    except Exception:  # whatever a user's own repr raises, the message is about something else
        text = f"<{type(value).__name__}>"
    if "\n" in text:
        text = _on_one_line(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _on_one_line(value: Any) -> str:
    """Entries shown one by one; anything else by its class."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{n!r}: {shown(v)}' for n, v in value.items())}}}"
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return f"[{', '.join(map(shown, value))}]"
    return f"<{type(value).__name__}>"


def caller() -> str:
    """File and line of the nearest frame outside the language and the standard library."""
    frame: Any = sys._getframe(2)
    while frame is not None and os.path.basename(frame.f_code.co_filename) in (
        "program.py",
        "series.py",
        "contextlib.py",
    ):
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}" if frame else "?"
