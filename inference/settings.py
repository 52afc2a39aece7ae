"""Settings of methods and measures, refused where they are declared: counts are whole numbers.

A count that is wrong would be heard of late, deep inside a backend, or not at all: `IWAE(10.5)`
has no meaning, `True` is no number of particles, and "10" is read from a file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from probgen.errors import DeclarationError


def check_count(owner: Any, *names: str, least: int = 1, why: str = "") -> None:
    """Holds fields of a frozen dataclass to be whole numbers, and keeps them as Python's own.

    Args:
        owner: whose `__post_init__` asks.
        names: of the fields; integers of numpy are whole numbers, booleans are none.
        least: the smallest allowed.
        why: added to the message.

    Raises:
        DeclarationError: names the class, the field and what it got.
    """
    for name in names:
        value = getattr(owner, name)
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or value < least:
            raise DeclarationError(
                f"{type(owner).__name__}: got {name}={value!r}, expected a whole number of at "
                f"least {least}{why}; give {max(least, 16)}, say."
            )
        object.__setattr__(owner, name, int(value))
