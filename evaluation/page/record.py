"""Numbers that a page keeps and does not show."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Record:
    """Numbers for the JSON file that the page does not show."""

    values: dict[str, Any]

    def html(self, key: str) -> str:
        return ""

    def data(self) -> dict[str, Any]:
        return self.values
