"""The out folder of `probgen tune`: whose it is, and whether what stands there may be replaced.

A folder of this command holds its page and what the page is of, and nothing else; it is replaced as
a whole. One that holds something else is refused, whatever is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probgen.errors import SaveError
from probgen.evaluation.page.text import plain
from probgen.records import atomic, reading

KIND = "tune"  # in the JSON file, under "kind"
PAGE, MODEL, PICTURES = "report.html", "model", "pictures"
OWN = {PAGE, "report.json", MODEL, PICTURES}


def claim(
    target: Path, settings: Mapping[str, Any], read: Sequence[str | os.PathLike], *, overwrite: bool
) -> None:
    """Sees that the folder may be written, before anything is computed.

    Args:
        target: where the work goes, from `atomic.at`.
        settings: of the work, as its JSON holds them.
        read: folders that it reads, which must not lie in it.
        overwrite: replace the work of other settings.

    Raises:
        SaveError: a file, a folder that holds something else or what is read, or the work of other
            settings.
    """
    for path in read:
        if target in (place := atomic.at(path), *place.parents):
            raise SaveError(
                f"tune: got {target} as the out folder, in which {path} lies, which is read, "
                "expected another one; give --out DIR."
            )
    if not os.path.lexists(target):
        return
    names = sorted(os.listdir(target)) if target.is_dir() else []
    others = [name for name in names if name not in OWN]
    found = _report(target)
    if not target.is_dir() or others or (names and found.get("kind") != KIND):
        what = f"{', '.join(others[:3])}" if others else "no page of this command"
        raise SaveError(
            f"tune: got {target} as the out folder, which {'holds' if target.is_dir() else 'is'} "
            f"something else ({what if target.is_dir() else 'a file'}), expected a new or empty "
            "folder, or one of this command's; give another with --out."
        )
    if names and found.get("settings") != plain(dict(settings)) and not overwrite:
        raise SaveError(
            f"tune: {target} is of other pictures, prompts or options, expected the same ones, or "
            "none; give another folder with --out, or --overwrite to replace it."
        )


def _report(target: Path) -> Mapping[str, Any]:
    """The JSON file that stands there; nothing where it cannot be read."""
    try:
        found = reading.read_json(target / "report.json", "a report")
    except SaveError:
        return {}
    return found if isinstance(found, Mapping) else {}
