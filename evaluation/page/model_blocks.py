"""A fitted model on a page: its formula, its graph, its sites and networks.

What is shown is what `probgen.views.picture` finds: which site depends on which, by experiment, so
it holds for every program on either backend. How a graph is drawn is `plates`'.
"""

from __future__ import annotations

from probgen.engine.bound import parameter_count
from probgen.engine.fitted import Fitted
from probgen.evaluation.page.blocks import Block, Figure, Formula, Paragraph, Table
from probgen.evaluation.page.plates import Arrow, Graph, Node, plates_svg
from probgen.language.program import DATA_PLATE
from probgen.views.formula import latex
from probgen.views.picture import Picture, draw


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


def graph_of(picture: Picture, *, num_data: int | None = None) -> Graph:
    """The graph of a picture: its sites, inputs and networks, and the arrows between them.

    Args:
        num_data: what to write at the data plate; None for "each datum".
    """
    structure, guide = picture.bound.structure, picture.bound.guide_structure
    nodes = [
        Node(name, _kind(picture, name), tuple(structure.sites[name].plates))
        for name in structure.sites
    ]
    nets = dict(structure.nets) | dict(guide.nets if guide is not None else {})
    nodes += [Node(name, "parameter") for name in nets]
    arrows = [Arrow(a, z) for a, z in picture.edges]
    arrows += [Arrow(a, z, guide=True) for a, z in picture.guide_edges]
    known = {n.name for n in nodes}
    inputs = dict.fromkeys(a.start for a in arrows if a.start not in known)
    plates = {name: (DATA_PLATE,) if name in picture.per_datum else () for name in inputs}
    nodes += [Node(name, "observed", plates[name]) for name in inputs]
    size = f"{num_data:,} data" if num_data else "each datum"
    sizes = {n: f"{n}: {k}" for n, k in structure.plate_sizes.items()}
    return Graph(nodes, arrows, {**sizes, DATA_PLATE: size})


def _kind(picture: Picture, name: str) -> str:
    kind = picture.bound.structure.sites[name].kind
    return kind if kind != "sample" else ("observed" if name in picture.observed else "latent")
