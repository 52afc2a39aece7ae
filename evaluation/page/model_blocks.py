"""A fitted model on a page: its formula, its graph, its sites and networks.

What is shown is what `probgen.views.picture` finds: which site depends on which, by experiment, so
it holds for every program on either backend. How a graph is drawn is `plates`'.
"""

from __future__ import annotations

from probgen.engine.bound import parameter_count
from probgen.engine.fitted import Fitted
from probgen.evaluation.page.blocks import Block, Figure, Formula, Paragraph, Table
from probgen.views.formula import latex
from probgen.views.graphs import graph_of
from probgen.views.picture import Picture, draw
from probgen.views.plates import plates_svg


def model_blocks(fitted: Fitted) -> list[Block]:
    """Formula, graph, and a table of sites and of networks."""
    picture = draw(fitted)
    graph = graph_of(picture, num_data=fitted.info.get("num_data"))
    names = [n.name for n in graph.nodes if n.kind != "parameter"]
    edges = [[a.start, a.end, "guide" if a.guide else "model"] for a in graph.arrows]
    figure = Figure(
        plates_svg(graph),
        "In plate notation: shaded is observed, the box is repeated for each datum, squares "
        "are networks, and dashed arrows belong to the guide.",
        f"Graph of the model in plate notation, with the variables {', '.join(names)}.",
        numbers={"arrows": edges},
    )
    note = [Paragraph(picture.note, small=True)] if picture.note else []
    return [Formula(latex(fitted)), figure, _table(picture, fitted), *note]


def _table(picture: Picture, fitted: Fitted) -> Table:
    rows: list[list[str | float]] = []
    for name, site in picture.bound.structure.sites.items():
        shape = " × ".join(map(str, site.event_shape)) or "1"
        seen = "observed" if name in picture.observed else "latent"
        rows.append([name, f"{seen if site.kind == 'sample' else site.kind}, {shape}"])
    for name, count in parameter_count(fitted.params).items():
        rows.append([name, f"network, {count:,} parameters"])
    return Table(["part", "what it is"], rows, name="parts", wide=False)
