"""Chains that come in pieces, kept as they come, so that a run that was killed goes on.

As for `evaluate`, pieces lie in `<path>.chunks` under an identity, and go when the chains stand at
`path`. Beside the pieces lies the sampler's state after the last of them, from which the next one
is what it would have been, to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from probgen.backends.chains import Chains, WarmStart
from probgen.engine.chain_watch import Until, Watch
from probgen.engine.interrupt import Asked, asked_to_stop
from probgen.errors import SaveError
from probgen.records import store
from probgen.records.chunks import ChunkStore, Values, named
from probgen.records.entries import AGAIN, require_same
from probgen.trees import tree_map

_GROUPS = ("free", "stats", "learned")  # of `Chains`, as they stand on disk
TOGETHER, APART = "together", "each by itself"  # how they were run, which their rounding tells


class Pieces:
    """What a sampler has done so far: in memory alone, or kept too.

    Attributes:
        parts: of each piece, {"free": draws on the real line, "stats": statistics} by name; empty
            for a piece of warm-up.
        state: of the sampler after the last piece, arrays by name; empty where pieces need none.
        only: the number of the one chain that is run here, of those that others run elsewhere; None
            for all of them. Its noise is its own, whoever runs it.
        warm: where the chains that are run here go on from; None where they start anew.
    """

    def __init__(
        self, kept: ChunkStore | None = None, asked: Asked | None = None,
        until: Until | None = None, only: int | None = None,
    ):  # fmt: skip
        self._watch, self.only = Watch(until), only
        self.warm: WarmStart | None = None
        self.parts: list[Values] = []
        self.state: dict[str, np.ndarray] = {}
        self._kept, self._asked = kept, asked
        if kept is not None and (kept.folder / "state").exists():
            self._read(kept)

    def _read(self, kept: ChunkStore) -> None:
        place = kept.folder / "state"
        arrays, config = store.read_folder(place, "pieces")
        require_same(place, config["made"], kept.identity, AGAIN)
        self.state = arrays["state"]
        for i in range(config["after"]):
            part = kept.read(i, {})
            if part is None:
                raise SaveError(
                    f"{kept.folder}: lacks piece {i} of the chains that it holds, expected all of "
                    "them; remove the folder to begin anew."
                )
            self.parts.append(part)
        whole = [named(part) for part in self.parts if part]
        types = [{n: (v.dtype, v.shape[1:]) for n, v in part.items()} for part in whole]
        lengths = [{v.shape[:1] for v in part.values()} for part in whole]
        if any(f != types[0] for f in types) or any(len(n) != 1 or () in n for n in lengths):
            raise SaveError(f"{kept.folder}: holds pieces that do not fit together; it is damaged.")

    def numbers(self, num_chains: int) -> range:
        """The numbers of the chains that are run here."""
        return range(num_chains) if self.only is None else range(self.only, self.only + 1)

    def add(self, part: Values, state: Callable[[], Mapping[str, np.ndarray]] = dict) -> None:
        """Takes the next piece, and what gives the state after it."""
        index = len(self.parts)
        self.parts.append(part)
        if self._kept is None:
            return
        self._kept.write(index, {}, part)
        config = {"kind": "pieces", "after": index + 1, "made": self._kept.identity}
        store.write_folder(self._kept.folder / "state", {"state": dict(state())}, config)

    def suffice(self, count: int) -> bool:
        """Whether the draws of the first `count` pieces are as many as were asked for."""
        return not self._watch.short_of(self.parts[:count])

    def words(self) -> str:
        """What a bar shows of the chains so far."""
        return self._watch.words(self.parts)

    def pause(self, done: str) -> None:
        """Ends the run where that was asked for.

        Args:
            done: how far it has come, such as "3 of 4 chains".

        Raises:
            KeyboardInterrupt, Terminated: by what it was asked.
        """
        if self._kept is not None and self._asked is not None:
            self._asked.stop(
                f"infer: stopped after {done}, which are kept beside {self._kept.table}; the same "
                "call goes on from there."
            )


def chains(
    path: str | os.PathLike, made: Mapping[str, Any], sample: Callable[[Pieces], Chains],
    until: Until | None = None,
) -> Chains:  # fmt: skip
    """The chains at `path`, or those that `sample` gives, which are then kept there.

    Args:
        path: a folder.
        made: what the draws depend on (`provenance.of_posterior`).
        sample: the sampler, which goes on from the pieces that it gets.
        until: when its chains are long enough.

    Raises:
        SaveError: it cannot be written, or holds something else; another run is writing there.
        OtherRun: it holds chains of another posterior, method or seed.
    """
    kept = ChunkStore(path, {**made, "chains": TOGETHER})
    with kept.held():
        if store.check_place(kept.table, "chains"):
            found = _read(kept)
        else:
            with asked_to_stop(True) as asked:
                found = sample(Pieces(kept, asked, until))
            _write(kept, found)
        kept.clear()
    return found


def apart(
    path: str | os.PathLike | None, made: Callable[[], Mapping[str, Any]], num_chains: int,
    num_warmup: int, run: Callable[[Iterable], Iterator],
) -> Chains:  # fmt: skip
    """Chains that are run each by itself, and kept as they are done.

    Args:
        path: a folder, or None to keep nothing.
        made: gives what the draws depend on.
        run: of pieces (number, (number,)) each chain's number and its draws, "free", "stats" and
            what it "learned" by name, in any order.

    Raises:
        SaveError, OtherRun: as of `chains`.
    """
    if path is None:
        return _stacked(dict(run((i, (i,)) for i in range(num_chains))), num_warmup)
    kept = ChunkStore(path, {**made(), "chains": APART})
    with kept.held():
        if store.check_place(kept.table, "chains"):
            found = _read(kept)
        else:
            parts: dict[int, Values] = {}

            def missing() -> Iterator[tuple[int, tuple]]:
                for i in range(num_chains):
                    part = kept.read(i, {})
                    if part is None:
                        yield i, (i,)
                    else:
                        parts[i] = part

            with asked_to_stop(True) as asked:
                for i, part in run(missing()):
                    kept.write(i, {}, part)
                    parts[i] = part
                    asked.stop(
                        f"infer: stopped after {len(parts)} of {num_chains} chains, which are kept "
                        f"beside {kept.table}; the same call goes on from there."
                    )
            found = _stacked(parts, num_warmup)
            _write(kept, found)
        kept.clear()
    return found


def _stacked(parts: Mapping[int, Values], num_warmup: int) -> Chains:
    found = tree_map(lambda *x: np.stack(x), *(parts[i] for i in sorted(parts)))
    return Chains(found["free"], found["stats"], num_warmup, found.get("learned", {}))


def _write(kept: ChunkStore, found: Chains) -> None:
    config = {
        "kind": "chains", "made": kept.identity, "num_warmup": found.num_warmup,
        "order": {g: list(getattr(found, g)) for g in _GROUPS},
    }  # fmt: skip
    arrays = {g: dict(getattr(found, g)) for g in _GROUPS}
    store.write_folder(kept.table, {g: v for g, v in arrays.items() if v}, config)


def _read(kept: ChunkStore) -> Chains:
    arrays, config = store.read_folder(kept.table, "chains")
    require_same(kept.table, config["made"], kept.identity, AGAIN)
    groups = []
    for group in _GROUPS:
        names = config["order"].get(group, [])
        if sorted(names) != sorted(arrays.get(group, {})):
            raise SaveError(f"{kept.table}: lists {names} of {group}, and holds others; damaged.")
        groups.append({n: arrays[group][n] for n in names})
    free, stats, learned = groups
    lengths = {v.shape[:2] for group in (free, stats) for v in group.values()}
    num_chains = {v.shape[:1] for group in groups for v in group.values()}
    if len(lengths) != 1 or len(num_chains) != 1:
        raise SaveError(f"{kept.table}: holds chains of different lengths; it is damaged.")
    return Chains(free, stats, config["num_warmup"], learned)
