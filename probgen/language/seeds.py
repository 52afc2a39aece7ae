"""The one check of a seed: an integer that the user gives, never a default."""

from __future__ import annotations

import numbers
from typing import Any

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
