"""Memory is asked for before it is taken: what does not fit is refused in words, not by the kernel.

A machine that runs out of memory stops answering, or ends some process of its choice; a Python
`MemoryError` comes only where the system promises no more than it has, which most do not.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from probgen.errors import ProbgenError

SMALL = 2**26  # bytes that are always there
_CGROUP = Path("/sys/fs/cgroup")


def available() -> int | None:
    """Bytes that are free, by the system and by this process's control group; None: unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        told = next(line for line in lines if line.startswith("MemAvailable"))
        found.append(1024 * int(told.split()[1]))
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())  # "max" is no number: no limit
        found.append(max(limit - int((_CGROUP / "memory.current").read_text()), 0))
    return min(found, default=None)


def ask(where: str, num_bytes: int, cure: str, error: type[ProbgenError]) -> None:
    """Refuses what the machine cannot hold.

    Args:
        where: who asks, and for what.
        num_bytes: at the least.
        cure: what to do, as the end of a sentence.
        error: the class of the refusal.

    Raises:
        ProbgenError: of that class; says how much is wanted and there.
    """
    if num_bytes < SMALL:  # asked often, for a net's every layer
        return
    there = available()
    if there is not None and num_bytes > there:
        raise error(
            f"{where}: got a size of {_size(num_bytes)}, expected at most the {_size(there)} of "
            f"memory that are free; {cure}."
        )


def _size(num_bytes: int) -> str:
    value = float(num_bytes)
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:,.3g} {unit}"
