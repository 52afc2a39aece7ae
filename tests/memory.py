"""What a long run of tests has compiled is dropped once its process is large.

JAX keeps every compiled function, torch every kernel, and the allocator what both have freed: a
worker of the whole suite came to 6.6 GB. Nothing but time is lost by dropping them.
"""

import ctypes
import gc
import os
import sys
from pathlib import Path

from probgen import backends

GIB = 2**30
LARGE = 2.25 * GIB


def resident() -> int:
    """Bytes of this process that are in memory; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def drop() -> None:
    """Forgets what the frameworks, as far as they are loaded, and probgen have compiled."""
    backends.forget()
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    if "torch._dynamo" in sys.modules:
        sys.modules["torch"].compiler.reset()
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)


class Watch:
    """Drops what is compiled once the process is large: after each file, and within a long one.

    What is freed often stays with the process, since small objects lie scattered, and is used again
    by what comes next. So it is dropped after every file, not only when the process has grown.

    Args:
        large: bytes; within a file, as much growth again as half a GiB after each time.
    """

    def __init__(self, large: float = LARGE):
        self.large = self.limit = large

    def look(self, is_end_of_file: bool) -> bool:
        """Whether it dropped anything."""
        if resident() < (self.large if is_end_of_file else self.limit):
            return False
        drop()
        self.limit = max(self.large, resident() + GIB // 2)
        return True
