"""Stan's warm-up: when step size and mass matrix are learned, and of which draws.

    75 | 25 | 50 | 100 | 200 | 500 | 50        transitions of 1,000

The first and the last window learn the step size alone; of each window between them the draws
give a new mass matrix at its end, after which the step size is searched for and learned anew.

Source: Stan Reference Manual, "HMC algorithm parameters", automatic parameter tuning.
"""

from __future__ import annotations

from typing import NamedTuple

FIRST, SMALLEST, LAST = 75, 25, 50


class Window(NamedTuple):
    """So many transitions, and whether their draws give a mass matrix."""

    length: int
    is_slow: bool


def windows(num_warmup: int) -> list[Window]:
    """Those of a warm-up; of one shorter than 20 the step size alone is learned, and of one
    shorter than 150 the three parts are 15, 75 and 10 per cent."""
    if num_warmup < 20:
        return [Window(num_warmup, False)] if num_warmup else []
    first, size, last = FIRST, SMALLEST, LAST
    if first + size + last > num_warmup:
        first, last = int(0.15 * num_warmup), int(0.1 * num_warmup)
        size = num_warmup - first - last
    lengths, left = [size], num_warmup - first - last - size
    while left:
        size = 2 * size
        # A window after which the next, twice as long, would not fit takes all that is left.
        lengths.append(left if left < 3 * size else size)
        left -= lengths[-1]
    return [Window(first, False), *(Window(n, True) for n in lengths), Window(last, False)]
