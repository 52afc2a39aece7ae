"""A picture as a graph in plate notation: sites, inputs and networks, and the arrows between."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from probgen.engine.fitted import Fitted
from probgen.language.model import Model
from probgen.language.run import DATA_PLATE
from probgen.views.palette import COLOURS
from probgen.views.picture import Picture, draw
from probgen.views.plates import Arrow, Graph, Node, plates_svg

__all__ = ["graph_of", "graph_svg"]


def graph_svg(
    model: Model | Fitted,
    data: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> str:
    """The graph as an SVG that stands by itself; see `probgen.views.picture.draw`."""
    num_data = model.info.get("num_data") if isinstance(model, Fitted) else None
    svg = plates_svg(graph_of(draw(model, data, inputs), num_data=num_data))
    return re.sub(r"var\(--(\w+)\)", lambda m: COLOURS[m[1]], svg)


def graph_of(picture: Picture, *, num_data: int | None = None) -> Graph:
    """The graph of a picture: its sites, inputs and networks, and the arrows between them.

    Args:
        num_data: what to write at the data plate; None for "each datum".
    """
    structure, guide = picture.bound.structure, picture.bound.guide_structure
    nodes = [
        Node(name, _kind(picture, name), structure.sites[name].boxes) for name in structure.sites
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
    sizes |= {n: f"{n} = 1 ... {k}" for n, k in structure.scans.items()}
    return Graph(nodes, arrows, {**sizes, DATA_PLATE: size})


def _kind(picture: Picture, name: str) -> str:
    kind = picture.bound.structure.sites[name].kind
    return kind if kind != "sample" else ("observed" if name in picture.observed else "latent")
