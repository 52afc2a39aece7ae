"""The folder of `probgen evaluate`: whose it is, and whether what stands there may be replaced.

A page and its table belong to one command on one content: the settings in `report.json` and the
table's identity say which. The same again finds its table; another is refused, so that no result
is lost silently, unless it is told to overwrite.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probgen.errors import SaveError
from probgen.evaluation.report.text import plain
from probgen.evaluation_table import Evaluation

PAGE, TABLE = "report.html", "table"


def claim(
    folder: Path,
    run_folder: str | os.PathLike,
    settings: Mapping[str, Any],
    identity: str,
    *,
    overwrite: bool = False,
) -> Evaluation | None:
    """The finished table of this very evaluation, or None where it has yet to be made.

    Args:
        folder: where the page goes.
        run_folder: of the model, which must not be written into.
        settings: of the page, as its JSON holds them.
        identity: of the table: everything that its numbers depend on.
        overwrite: take away a page and a table of another evaluation.

    Raises:
        SaveError: the folder is a saved model's, or holds another evaluation; it cannot be made.
    """
    if folder.resolve() == Path(run_folder).resolve() or (folder / "config.json").exists():
        raise SaveError(
            f"evaluate: got {folder} as the folder of the report, which holds a saved model, "
            "expected another one; give --out DIR."
        )
    kept = Evaluation.load(folder / TABLE) if (folder / TABLE / "config.json").exists() else None
    same_table = kept is not None and kept.info.get("identity") == identity
    other = [folder / TABLE] if kept is not None and not same_table else []
    if (folder / PAGE).exists() and _settings(folder) != plain(dict(settings)):
        other.append(folder / PAGE)
    if other and not overwrite:
        raise SaveError(
            f"evaluate: {other[-1]} is of another evaluation (other data, measures, options or "
            "parameters), expected the same one or none; give another folder with --out, or "
            "--overwrite to replace it."
        )
    if overwrite and not same_table:
        for each in (folder / TABLE, folder / f"{TABLE}.chunks"):
            shutil.rmtree(each, ignore_errors=True)
    if other:
        for name in (PAGE, "report.json"):
            (folder / name).unlink(missing_ok=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(
            f"evaluate: {folder} cannot be made ({error.strerror or error}), expected a folder "
            "for the report; give another one with --out."
        ) from error
    return kept if same_table else None


def _settings(folder: Path) -> Any:
    """The settings of the page that stands there; None where they cannot be told."""
    try:
        return json.loads((folder / "report.json").read_text("utf-8")).get("settings")
    except (OSError, ValueError, AttributeError):
        return None
