"""Seeds: an integer that the user gives, never a default; and what is drawn from it by name."""

from __future__ import annotations

import numbers
import zlib
from typing import Any

import numpy as np

from probgen.errors import MissingSeed


def check_seed(seed: Any, where: str) -> int:
    """`seed` as an int.

    Raises:
        MissingSeed: there is none, or it is no integer of at least 0.
    """
    if seed is None:
        raise MissingSeed(f"{where}: got no seed, expected an integer such as seed=0.")
    if not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or seed < 0:
        raise MissingSeed(f"{where}: got seed={seed!r}, expected an integer of at least 0.")
    return int(seed)


def named(seed: int, name: str) -> np.random.Generator:
    """A generator of a net's initial values: a pure function of (seed, name) on every machine."""
    key = [seed & (2**64 - 1), zlib.crc32(name.encode())]
    return np.random.Generator(np.random.Philox(key=key))
