"""Keys for torch, which has none: a 64-bit number, split by a mixing function.

A key that reaches a compiled function also knows its `origin`, the path by which it was derived
from one of the function's arguments; the compiler turns that into an input that is drawn anew, from
the same path, at every call. Row keys hold one seed a datum, so that each datum's draws are its own
whatever data are beside it. No framework here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

_MASK = (1 << 64) - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """seed: 64 bits, or a tuple of one for each datum (row keys); origin: (argument number, data
    folded in...) inside a compiled function."""

    seed: int | tuple[int, ...]
    origin: tuple[int, ...] | None = None

    def __getitem__(self, i: int) -> Key:
        """The i-th of row keys, as a key."""
        return row(self, i)


def mix(seed: int, data: int) -> int:
    """SplitMix64's finaliser over seed + (data + 1) * golden ratio: a well spread 64-bit hash.

    Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators".
    """
    z = (seed + (data + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def fold_in(key: Key, data: int) -> Key:
    """A new key from a key and a number."""
    origin = None if key.origin is None else (*key.origin, data)
    return Key(seed_at(key.seed, (data,)), origin)


def seed_at(seed: int | tuple[int, ...], path: tuple[int, ...]) -> int | tuple[int, ...]:
    """The seed that folding `path` into a key of `seed` gives; of every row for row keys."""
    if isinstance(seed, tuple):
        return tuple(seed_at(each, path) for each in seed)  # type: ignore[misc]
    for data in path:
        seed = mix(seed, data)
    return seed


def rows(key: Key, ids: Sequence[int]) -> Key:
    """Row keys: for the datum with number i the key fold_in(key, i)."""
    return Key(tuple(mix(key.seed, int(i)) for i in ids))  # type: ignore[arg-type]


def row(key: Key, i: int) -> Key:
    """The i-th of row keys, as a key."""
    return Key(key.seed[i])  # type: ignore[index]


def pick(key: Key, indices: Sequence[int]) -> Key:
    """Some of row keys."""
    return Key(tuple(key.seed[i] for i in indices))  # type: ignore[index]
