"""What declarations and results can show of themselves, drawn by a room that lies above them.

`import probgen` says where that room is, so that no file down here imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

from probgen.errors import DeclarationError

_room: list[Callable[[], ModuleType]] = []


def set_views(load: Callable[[], ModuleType]) -> None:
    """Says who draws: `load()` gives the module of the views."""
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

    def graph(
        self, data: Any = None, inputs: Any = None, *, form: Literal["dot", "svg"] = "dot"
    ) -> str:
        """The model in plate notation: circles, shaded where observed, factors as squares.

        Args:
            form: "dot" for graphviz source, "svg" for a drawing that stands by itself.
        """
        if form not in ("dot", "svg"):
            raise DeclarationError(f"graph: got form={form!r}, expected 'dot' or 'svg'.")
        views = _room[0]()
        return (views.graph if form == "dot" else views.graph_svg)(self, data, inputs)


class Plotted:
    """Base of results that are looked at: `plot()`, and the same in a notebook."""

    _plot = ""  # the view that draws it

    def plot(self, names: Any = None) -> Any:
        """A matplotlib figure; `names` chooses among what it holds (see `probgen.views.plots`)."""
        return getattr(_room[0](), self._plot)(self, names)

    def _repr_html_(self) -> str:
        return _room[0]().as_html(self)
