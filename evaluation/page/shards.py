"""`probgen merge`: the table of an evaluation that a job array made in shards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import probgen as pg
from probgen.errors import DataError
from probgen.evaluation.page.folder import SHARDS, TABLE
from probgen.language.declared import checked
from probgen.language.kinds import PathLike


@checked(where="merge")
def merged(
    folders: Sequence[str],
    *,
    out: PathLike | None = None,
    say: Callable[[str], None] = logging.getLogger("probgen").info,
) -> Path:
    """Makes the table of shards, as `run` would have made it without them.

    Args:
        folders: of shards, or what `run` had as `out`, which stands for all its shards.
        out: where the table goes; by default beside the shards of the one such folder.

    Raises:
        ProbgenError: no shards, no place for the table; else as of `pg.merge`.
    """
    given = [Path(f) for f in folders]
    with_shards = [f for f in given if (f / SHARDS).is_dir()]
    parts = [p for f in given for p in (_shards(f) if f in with_shards else [f])]
    if out is None and len(given) != 1:
        raise DataError(
            f"merge: got {len(given)} folders and no place for the table, expected --out DIR; or "
            "one folder, the --out of probgen evaluate --shard, beside whose shards it then goes."
        )
    if out is None and not with_shards:
        raise DataError(
            f"merge: got {given[0]}, which holds no shards, expected the --out of probgen evaluate "
            "--shard I/N; or folders of shards, and --out DIR for the table."
        )
    place = given[0] / TABLE if out is None else Path(out)
    table = pg.merge(parts, path=place)
    say(f"wrote    {place}: {table.num_data:,} data of {len(parts)} shards")
    if out is None:
        say("next     the same probgen evaluate command without --shard writes the page")
    return place


def _shards(folder: Path) -> list[Path]:
    """The shards that are done, of those that a folder has."""
    found = (folder / SHARDS).glob("[0-9]*-of-[0-9]*")
    return sorted(p for p in found if p.suffix != ".chunks")
