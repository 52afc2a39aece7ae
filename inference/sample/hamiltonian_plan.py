"""Which transitions of NUTS and HMC are made at a time: warm-up by Stan's windows, then draws."""

from __future__ import annotations

from typing import Any, NamedTuple

from probgen.inference.sample.warmup import windows

NUM_PIECES = 20  # about how many pieces each of warm-up and draws comes in


class Piece(NamedTuple):
    """Transitions that are made at a time: the number of the first one in its phase, how many, how
    long the window is whose step size they learn (0: none), whether it starts and ends with them,
    whether its draws give a mass matrix, and whether the draws are kept."""

    start: int
    num: int
    window: int
    is_first: bool
    is_last: bool
    is_slow: bool
    is_kept: bool


def plan(method: Any) -> list[Piece]:
    """The pieces of a run, warm-up first."""
    pieces = []
    length = max(1, -(-method.num_warmup // NUM_PIECES))
    for size, is_slow in windows(method.num_warmup):
        for at in range(0, size, length):
            end = min(at + length, size)
            pieces.append(Piece(at, end - at, size, at == 0, end == size, is_slow, False))
    # Thinning changes nothing but what is kept.
    total, length = method.num_draws * method.thinning, -(-method.num_samples // NUM_PIECES)
    for at in range(0, total, length):
        pieces.append(Piece(at, min(length, total - at), 0, False, False, False, True))
    return pieces
