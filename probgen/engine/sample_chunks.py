"""Samples that come in chunks, kept as they come, so that a run that was killed goes on.

As for `evaluate`, chunks lie in `<path>.chunks` under an identity, and go when all samples stand at
`path`. A chunk's key is its own, so what is left is what it would have been, to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from probgen.engine.interrupt import asked_to_stop
from probgen.errors import SaveError
from probgen.records import store
from probgen.records.chunks import ChunkStore, Values
from probgen.records.entries import AGAIN, require_same

GROUPS = {"values": 0, "stats": 0, "chain": 1}  # which axis of their arrays is the samples'


def in_chunks(
    path: str | os.PathLike | None, made: Callable[[], Mapping[str, Any]], num_samples: int,
    chunk_size: int, draws: Callable[[Iterable], Iterator],
) -> Values:  # fmt: skip
    """All samples, by group and name.

    Args:
        path: a folder, or None to keep nothing.
        made: gives what the samples depend on (`provenance.of_samples`).
        draws: of pieces (first, (first, stop)) each one's first and samples, in any order:
            "values", "stats" [n, ...]; "chain" [steps, n, ...].

    Raises:
        SaveError: it cannot be written, or holds something else; another run is writing there.
        OtherRun: it holds samples of another call.
        KeyboardInterrupt, Terminated: Ctrl-C or SIGTERM, after the chunk that is drawn.
    """
    spans = [(i, min(i + chunk_size, num_samples)) for i in range(0, num_samples, chunk_size)]
    if path is None:
        return _joined(dict(draws((span[0], span) for span in spans)))
    kept = ChunkStore(path, made())
    with kept.held():
        if store.check_place(kept.table, "samples"):
            found = _read(kept)
        else:
            parts: dict[int, Values] = {}

            def size(first: int) -> int:
                return min(chunk_size, num_samples - first)

            def done(first: int, part: Values) -> None:
                _check(part, size(first), f"{kept.folder}: chunk {first}")
                parts[first] = part
                count = sum(map(size, parts))
                asked.stop(
                    f"generate: stopped after {count} of {num_samples} samples, which are kept "
                    f"beside {kept.table}; the same call goes on from there."
                )

            def missing() -> Iterator[tuple[int, tuple]]:
                for span in spans:
                    part = kept.read(span[0], {})
                    if part is None:
                        yield span[0], span
                    else:
                        done(span[0], part)

            with asked_to_stop(True) as asked:
                for first, part in draws(missing()):
                    kept.write(first, {}, part)
                    done(first, part)
            found = _joined(parts)
            config = {
                "kind": "samples", "made": kept.identity,
                "order": {group: list(found[group]) for group in GROUPS},
            }  # fmt: skip
            store.write_folder(kept.table, {g: a for g, a in found.items() if a}, config)
        kept.clear()
    return found


def _joined(found: dict[int, Values]) -> Values:
    parts = [found[first] for first in sorted(found)]
    return {
        group: {n: np.concatenate([p[group][n] for p in parts], axis) for n in parts[0][group]}
        for group, axis in GROUPS.items()
    }


def _read(kept: ChunkStore) -> Values:
    arrays, config = store.read_folder(kept.table, "samples")
    require_same(kept.table, config["made"], kept.identity, AGAIN)
    found: Values = {}
    for group, names in config["order"].items():
        if sorted(names) != sorted(arrays.get(group, {})):
            raise SaveError(f"{kept.table}: lists {names} of {group}, and holds others; damaged.")
        found[group] = {n: arrays[group][n] for n in names}
    _check(found, None, str(kept.table))
    return found


def _check(values: Values, size: int | None, where: str) -> None:
    """Refuses groups and arrays that are not those of so many samples, or of one number of them."""
    sizes = {size} - {None}
    whole = set(values) == set(GROUPS) and bool(values["values"])
    for group, axis in GROUPS.items() if whole else ():
        for array in values[group].values():
            sizes.add(array.shape[axis] if array.ndim > axis else None)
    if not whole or len(sizes) != 1 or None in sizes:
        raise SaveError(f"{where}: holds samples of different numbers; it is damaged.")
