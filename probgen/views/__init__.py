"""The teaching views of a declaration: a table, a formula, a picture in plate notation."""

from probgen.views.describe import describe, graph
from probgen.views.formula import latex

__all__ = ["describe", "graph", "latex"]
