"""What a declaration can show of itself: three views, drawn by a room that lies above it.

`import probgen` says where that room is, so that no file down here imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

_room: list[Callable[[], ModuleType]] = []


def set_views(load: Callable[[], ModuleType]) -> None:
    """Says who draws: `load()` gives a module with `describe`, `latex` and `graph`."""
    _room[:] = [load]


class Viewed:
    """Base of models, fitted or not.

    A program that conditions on inputs needs examples of them, or their shapes, as `data` or
    `inputs`.
    """

    def describe(self, data: Any = None, inputs: Any = None) -> str:
        """Sites and nets as text, one a line: shapes, plates, supports, numbers of parameters."""
        return _room[0]().describe(self, data, inputs)

    def latex(self, data: Any = None, inputs: Any = None) -> str:
        """The density, for LaTeX or matplotlib's mathtext."""
        return _room[0]().latex(self, data, inputs)

    def graph(self, data: Any = None, inputs: Any = None) -> str:
        """Graphviz source in plate notation: circles, shaded where observed, factors as squares."""
        return _room[0]().graph(self, data, inputs)
