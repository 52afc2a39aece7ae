"""Keeps JAX right on a CPU: reductions by YNNPACK and programs out of order are turned off.

Since jaxlib 0.10.2 XLA:CPU gives reductions to YNNPACK, whose threads overwrite each other's parts
wherever a broadcast is summed, so one compiled call now and then returns another number; a matrix
times a vector that is then reduced is wrong every time, and arrays of seven axes end the process
(tensorflow issue 126812, jax issues 39103 and 40412; open in 0.11.0). 0.9.2 to 0.10.1 were tried
and are free of it. And where two batches of triangular systems are solved at once, as in the
density of a mixture of Gaussians, each waits for a thread of a pool whose threads all wait: the
program hangs for ever (seen on two cores with 0.10.2). In the order that needs least memory such
pieces come one after the other.

The cures are flags that XLA reads once, when JAX's client starts. So they stand in the environment
from `import probgen` on, where child processes of every kind find them too.

No framework is imported here; whether the flag came in time is asked of XLA, in `jax.probe`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import mmap
import os
import re
from collections.abc import MutableMapping
from pathlib import Path

from probgen.errors import UnsafeSums

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
CURE = f"{FLAG}=-reduce"
ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler"
IN_ORDER = f"{ORDER}=false"

_FIRST_TOUCHED = (0, 10, 2)


def is_touched() -> bool:
    """Whether the jaxlib that is installed hands reductions to YNNPACK, as far as is known."""
    try:
        version = importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3]) >= _FIRST_TOUCHED


def protect(environment: MutableMapping[str, str] = os.environ) -> None:
    """Adds the cures to XLA_FLAGS and keeps what stands there; XLA heeds the last word of a flag.

    A user who asked for YNNPACK's reductions by name keeps them (and is warned, see `warn`), and so
    does one who named an order.
    """
    if not is_touched():
        return
    flags = environment.get("XLA_FLAGS", "")
    if flags.strip() and not flags.lstrip().startswith("-"):  # then it names a file of flags
        try:
            flags = " ".join(Path(flags).read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError):
            return  # XLA will say so
    said = re.findall(rf"{FLAG}=(\S*)", flags)
    kinds = said[-1].split(",") if said else []
    new = [] if {"-reduce", "reduce", "+reduce"} & set(kinds) else [CURE]
    if ORDER not in flags:
        new.append(IN_ORDER)
    new = [each for each in new if is_known(each.partition("=")[0])]  # another ends the process
    if new:
        environment["XLA_FLAGS"] = " ".join([flags, *new]).lstrip()


def is_known(flag: str) -> bool:
    """Whether this jaxlib has a flag of XLA, which may be experimental and go: a look at it."""
    found = importlib.util.find_spec("jaxlib")
    folder = Path(found.origin).parent if found and found.origin else Path()
    return any(_holds(each, flag.lstrip("-").encode()) for each in folder.glob("*jax_common*"))


def _holds(path: Path, word: bytes) -> bool:
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(word) >= 0


def unsafe() -> UnsafeSums:
    """What is said where the flag came too late, or was asked to be otherwise."""
    version = importlib.metadata.version("jaxlib")
    return UnsafeSums(
        f"jax: jaxlib {version} started in this process with reductions by YNNPACK, which now and "
        "then sum broadcasts wrongly, in silence, so that numbers of this process cannot be "
        "trusted; expected its own reductions. Import probgen before anything is computed by JAX, "
        f"or start Python with XLA_FLAGS='{CURE} {IN_ORDER}' in the environment (and without "
        f"{FLAG}=reduce)."
    )
