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
    """Drops what is compiled once the process is large: between files, and within a long one.

    What is freed often stays with the process, since small objects lie scattered, and is used again
    by what comes next. So a large process drops every few files, grown or not; at the end of each
    it would pay more for compiling anew than the memory is worth.

    Args:
        large: bytes; above, it drops where it has grown by a quarter of a GiB since the last time
            (half a GiB within a file), and at the end of every sixth file.
    """

    def __init__(self, large: float = LARGE):
        self.large = large
        self._last, self._files = 0, 0

    def look(self, is_end_of_file: bool) -> bool:
        """Whether it dropped anything."""
        size, grown = resident(), GIB // 4 if is_end_of_file else GIB // 2
        self._files += is_end_of_file
        is_time = is_end_of_file and self._files >= 6
        if size < self.large or not (is_time or size > self._last + grown):
            return False
        drop()
        self._last, self._files = resident(), 0
        return True
