"""Views: of a declaration a table, a formula, a picture in plate notation; of results, plots."""

from probgen.views.describe import describe, graph
from probgen.views.formula import latex
from probgen.views.graphs import graph_svg
from probgen.views.plots import as_html, plot_evaluation, plot_history, plot_samples

__all__ = [
    "as_html",
    "describe",
    "graph",
    "graph_svg",
    "latex",
    "plot_evaluation",
    "plot_history",
    "plot_samples",
]
