"""The folder of `probgen evaluate`: whose it is, and whether what stands there may be replaced.

A page belongs to one command, which the settings in `report.json` tell; a table to one evaluation,
which `pg.evaluate` tells by its identity. The same again finds its table; another is refused, so
that no result is lost silently, unless it is told to overwrite.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probgen.errors import OtherRun, SaveError
from probgen.evaluation.page.text import plain
from probgen.records import atomic, reading

PAGE, TABLE, SHARDS = "report.html", "table", "shards"


def claim(
    folder: Path,
    run_folder: str | os.PathLike,
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Sees that a page of these settings may be written, before anything is computed.

    Args:
        folder: where the page goes.
        run_folder: of the model, which must not be written into.
        settings: of the page, as its JSON holds them.
        overwrite: take away a page of another evaluation.

    Raises:
        SaveError: the folder is a saved model's, or holds a page of another evaluation.
    """
    if atomic.at(folder) == atomic.at(run_folder) or (folder / "config.json").exists():
        raise SaveError(
            f"evaluate: got {folder} as the folder of the report, which holds a saved model, "
            "expected another one; give --out DIR."
        )
    if (folder / PAGE).exists() and _settings(folder) != plain(dict(settings)):
        if not overwrite:
            raise refused(folder / PAGE)
        clear(folder, (PAGE, "report.json"))


def clear(
    folder: Path, names: tuple[str, ...] = (PAGE, "report.json", TABLE, f"{TABLE}.chunks")
) -> None:
    """Takes an evaluation away."""
    for name in names:
        atomic.remove(atomic.at(folder / name))


def refused(what: Path, why: OtherRun | None = None) -> SaveError:
    """The error that names what stands there, and how it may be replaced."""
    said = "other data, measures, options or parameters"
    if why is not None:
        said = str(why).partition(": ")[2].partition(";")[0]
    return SaveError(
        f"evaluate: {what} is of another evaluation ({said}), expected the same one or none; give "
        "another folder with --out, or --overwrite to replace it."
    )


def _settings(folder: Path) -> Any:
    """The settings of the page that stands there; None where they cannot be told."""
    try:
        return reading.read_json(folder / "report.json", "a report").get("settings")
    except (SaveError, AttributeError):
        return None
