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
LARGE = int(3.5 * GIB)


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
    """Drops what is compiled once the process is large: between files, and within a long one.

    Args:
        large: bytes; from there on it drops where the process has grown by a quarter of a GiB since
            the last time (half a GiB within a file), since not all that is freed leaves it.
    """

    def __init__(self, large: float = LARGE):
        self.large, self.last = large, 0.0

    def look(self, is_end_of_file: bool) -> bool:
        """Whether it dropped anything."""
        grown = GIB // 4 if is_end_of_file else GIB // 2
        if resident() < max(self.large, self.last + grown):
            return False
        drop()
        self.last = resident()
        return True
