"""What a result was made of, entry by entry: the same as now, or refused with what differs.

The entries themselves are made by `probgen.engine.provenance`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from probgen.errors import OtherRun

AGAIN = "give the same arguments to have that result, or another path, or remove the folder"
_HASH = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")


def require_same(
    place: Any, found: Mapping[str, Any], wanted: Mapping[str, Any], cure: str
) -> None:
    """Refuses what was made of something else, and says in what it differs.

    Raises:
        OtherRun: an entry of `wanted` is another one in `found`.
    """
    differs = differences(found, wanted)
    if differs:
        raise OtherRun(f"{place}: was made with another {', another '.join(differs)}; {cure}.")


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The entries of `wanted` that are others in `found`, each with what is not the same."""
    return [f"{k}{_difference(found.get(k), v)}" for k, v in wanted.items() if found.get(k) != v]


def changes(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """One sentence for each entry of `beside_fit` that is another one than it was."""
    return [
        f"goes on with another {name}{_difference(found.get(name), value)}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]


def _difference(got: Any, want: Any) -> str:
    """What is not the same, short enough to read; of hashes alone there is nothing to read."""
    if isinstance(got, list) and isinstance(want, list):
        gone, new = [x for x in got if x not in want], [x for x in want if x not in got]
        if gone and new:
            got, want = gone, new
        elif not (gone or new):
            want = "the same in another order"
    elif isinstance(got, dict) and isinstance(want, dict):
        names = sorted(n for n in {*got, *want} if got.get(n) != want.get(n))
        return f" ({', '.join(names)})"
    elif isinstance(want, str) and _HASH.fullmatch(want):
        return ""
    got, want = _text(got), _text(want)
    pairs = enumerate(zip(got, want, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(got), len(want)))
    return f" ({_short(got, same)}, expected {_short(want, same)})"


def _text(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return _HASH.sub(r"\1", text)


def _short(text: str, same: int) -> str:
    """A long text by its start, the place where it differs after `same` letters, and its end."""
    if len(text) <= 160:
        return text
    if same < 100 or len(text) - same < 60:
        return f"{text[:120]}...{text[-37:]}"
    return f"{text[:40]}...{text[same - 30 : same + 50]}...{text[-37:]}"
