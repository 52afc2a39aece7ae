"""A model's graph in plate notation, drawn as SVG with the page's colours.

Circles are random variables, filled where they are observed; small squares are parameters; boxes
are plates (what repeats) with their size. Solid arrows belong to the model, dashed ones to the
guide. The layout is by layers, causes above effects: enough for the graphs that people read.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence

from probgen.errors import DeclarationError

RADIUS, SQUARE = 25.0, 7.0
COLUMN, LAYER = 118.0, 104.0
PAD, LABEL = 21.0, 17.0


@dataclasses.dataclass(frozen=True)
class Node:
    """A variable or a parameter.

    kind: "latent", "observed", "deterministic", "factor" or "parameter"; plates: the names of the
    plates that it stands in, the outermost first.
    """

    name: str
    kind: str = "latent"
    plates: tuple[str, ...] = ()
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Arrow:
    """From a parent to what depends on it; `guide` marks the approximate posterior's."""

    start: str
    end: str
    guide: bool = False


@dataclasses.dataclass(frozen=True)
class Graph:
    """Nodes, arrows, and what to write at a plate: name -> text.

    Raises:
        DeclarationError: an arrow to or from a node that is not there.
    """

    nodes: Sequence[Node]
    arrows: Sequence[Arrow]
    plates: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        names = {n.name for n in self.nodes}
        for arrow in self.arrows:
            if not {arrow.start, arrow.end} <= names:
                raise DeclarationError(
                    f"graph: got an arrow from {arrow.start!r} to {arrow.end!r}, expected two of "
                    f"the nodes {sorted(names)}."
                )

    def layers(self) -> dict[str, int]:
        """Depth of each node: the longest way from a root along the model's arrows; a parameter
        stands in the layer above the first node that it serves, or beside it."""
        model = [a for a in self.arrows if not a.guide]
        depth = {n.name: 0 for n in self.nodes}
        for _ in self.nodes:  # longest ways settle within as many rounds as there are nodes
            for arrow in model:
                depth[arrow.end] = max(depth[arrow.end], depth[arrow.start] + 1)
        random = {n.name for n in self.nodes if n.kind != "parameter"}
        for _ in self.nodes:
            for name in random:
                above = [depth[a.start] + 1 for a in model if a.end == name and a.start in random]
                depth[name] = max(above, default=0)
        for node in self.nodes:
            if node.kind == "parameter":
                served = [depth[a.end] for a in self.arrows if a.start == node.name]
                depth[node.name] = min(served, default=0)
        return depth


def plates_svg(graph: Graph) -> str:
    """The graph as SVG text."""
    places = _places(graph)
    boxes = _boxes(graph, places)
    parts = [_box(graph, name, box) for name, box in boxes.items()]
    parts += [_arrow(graph, arrow, places) for arrow in graph.arrows]
    parts += [_node(node, *places[node.name]) for node in graph.nodes]
    rims = [_extent(node, *places[node.name]) for node in graph.nodes] + list(boxes.values())
    left, top = (min(r[i] for r in rims) - 5 for i in (0, 1))
    right, bottom = (max(r[i] for r in rims) + 5 for i in (2, 3))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left:.0f} {top:.0f} '
        f'{right - left:.0f} {bottom - top:.0f}" style="max-width: {right - left:.0f}px" '
        f'font-size="14"><defs>{_head("model", "ink")}{_head("guide", "blue")}</defs>'
        f"{''.join(parts)}</svg>"
    )


def _head(name: str, colour: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" '
        f'markerHeight="8" orient="auto-start-reverse"><path d="M0 1L10 5L0 9z" '
        f'fill="var(--{colour})"/></marker>'
    )


def _places(graph: Graph) -> dict[str, tuple[float, float]]:
    """Centres: a layer's variables in the middle, its parameters outside to the left and right."""
    depth = graph.layers()
    places: dict[str, tuple[float, float]] = {}
    for layer in sorted(set(depth.values())):
        here = [n for n in graph.nodes if depth[n.name] == layer]
        inner = [n for n in here if n.kind != "parameter"]
        inner.sort(key=lambda n: _parents_mean(graph, n.name, places))
        width = (len(inner) - 1) * COLUMN
        for i, node in enumerate(inner):
            places[node.name] = (i * COLUMN - width / 2, layer * LAYER)
    reach = max((abs(x) for x, _ in places.values()), default=0.0)
    most = max((len(n.plates) for n in graph.nodes), default=0)
    outside = reach + RADIUS + PAD * most + 62
    count: dict[tuple[int, int], int] = {}
    guided = {a.start for a in graph.arrows if a.guide}
    for node in graph.nodes:
        if node.kind == "parameter":
            side = 1 if node.name in guided else -1
            slot = (depth[node.name], side)
            k = count[slot] = count.get(slot, -1) + 1
            places[node.name] = (side * outside, depth[node.name] * LAYER + k * 34)
    return places


def _parents_mean(graph: Graph, name: str, places: dict[str, tuple[float, float]]) -> float:
    xs = [places[a.start][0] for a in graph.arrows if a.end == name and a.start in places]
    return sum(xs) / len(xs) if xs else 0.0


def _boxes(
    graph: Graph, places: dict[str, tuple[float, float]]
) -> dict[str, tuple[float, float, float, float]]:
    """Left, top, right, bottom of each plate; an outer one stands off its inner ones."""
    names = list(dict.fromkeys(p for n in graph.nodes for p in n.plates))
    boxes = {}
    for name in names:
        members = [n for n in graph.nodes if name in n.plates]
        inside = max(len(n.plates) - n.plates.index(name) for n in members)
        off, foot = PAD * inside, LABEL * inside
        xs, ys = zip(*(places[n.name] for n in members), strict=True)
        notes = LABEL if any(n.note and places[n.name][1] == max(ys) for n in members) else 0
        reach = RADIUS + off
        boxes[name] = (min(xs) - reach - 14, min(ys) - RADIUS - off, max(xs) + reach + 14,
                       max(ys) + RADIUS + foot + notes + 8)  # fmt: skip
    return dict(sorted(boxes.items(), key=lambda item: item[1][0] - item[1][2]))


def _box(graph: Graph, name: str, box: tuple[float, float, float, float]) -> str:
    left, top, right, bottom = box
    text = graph.plates.get(name, name)
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
        f'height="{bottom - top:.1f}" rx="9" fill="none" stroke="var(--muted)"/>'
        f'<text x="{right - 9:.1f}" y="{bottom - 8:.1f}" text-anchor="end" font-size="12" '
        f'fill="var(--muted)">{html.escape(text)}</text>'
    )


def _extent(node: Node, x: float, y: float) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a node with its label, which a square has beside it."""
    if node.kind in ("parameter", "factor"):
        label = 8.2 * len(node.name) + SQUARE + 7
        return (x - SQUARE, y - 12, x + label, y + 12) if x > 0 else (
            x - label, y - 12, x + SQUARE, y + 12)  # fmt: skip
    note = max(RADIUS, 3.6 * len(node.note))
    return x - note, y - RADIUS, x + note, y + RADIUS + (LABEL if node.note else 0)


def _node(node: Node, x: float, y: float) -> str:
    label = html.escape(node.name)
    note = ""
    if node.note:
        note = (
            f'<text x="{x:.1f}" y="{y + RADIUS + 15:.1f}" text-anchor="middle" font-size="12" '
            f'fill="var(--muted)">{html.escape(node.note)}</text>'
        )
    if node.kind in ("parameter", "factor"):
        at = f'x="{x - SQUARE:.1f}" y="{y - SQUARE:.1f}" width="{2 * SQUARE}" height="{2 * SQUARE}"'
        anchor, dx = ("start", SQUARE + 7) if x > 0 else ("end", -SQUARE - 7)
        return (
            f'<rect {at} rx="2" fill="var(--ink)"/><text x="{x + dx:.1f}" y="{y + 5:.1f}" '
            f'text-anchor="{anchor}" fill="var(--ink)">{label}</text>{note}'
        )
    fill = "var(--line)" if node.kind == "observed" else "var(--paper)"
    dash = ' stroke-dasharray="4 3"' if node.kind == "deterministic" else ""
    size = 16 if len(node.name) <= 3 else max(9, 40 / len(node.name) * 1.6)
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}" fill="{fill}" stroke="var(--ink)" '
        f'stroke-width="1.4"{dash}/><text x="{x:.1f}" y="{y + size / 3:.1f}" '
        f'text-anchor="middle" font-size="{size:.0f}" fill="var(--ink)">{label}</text>{note}'
    )


def _arrow(graph: Graph, arrow: Arrow, places: dict[str, tuple[float, float]]) -> str:
    kinds = {n.name: n.kind for n in graph.nodes}
    (x0, y0), (x1, y1) = places[arrow.start], places[arrow.end]
    dx, dy = x1 - x0, y1 - y0
    length = max((dx * dx + dy * dy) ** 0.5, 1e-9)
    ux, uy = dx / length, dy / length
    between = kinds[arrow.start] != "parameter" and kinds[arrow.end] != "parameter"
    far = abs(dy) > 1.5 * LAYER and between  # would run through a node of the layer between
    bend = 34.0 if (arrow.guide and between) or far else 0.0
    start = SQUARE + 2 if kinds[arrow.start] in ("parameter", "factor") else RADIUS
    end = RADIUS + 2
    px, py = -uy, ux  # to the right of an arrow that points up
    side = -bend if far and not arrow.guide else bend
    sx, sy = x0 + ux * start + px * side * 0.5, y0 + uy * start + py * side * 0.5
    ex, ey = x1 - ux * end + px * side * 0.5, y1 - uy * end + py * side * 0.5
    if bend:  # leave and meet the circles on their rims
        cut = (RADIUS**2 - (bend / 2) ** 2) ** 0.5
        sx, sy = x0 + ux * cut + px * side * 0.5, y0 + uy * cut + py * side * 0.5
        ex, ey = x1 - ux * (cut + 2) + px * side * 0.5, y1 - uy * (cut + 2) + py * side * 0.5
    mx, my = (sx + ex) / 2 + px * side * 0.7, (sy + ey) / 2 + py * side * 0.7
    colour, kind = ("blue", "guide") if arrow.guide else ("ink", "model")
    dash = ' stroke-dasharray="5 4"' if arrow.guide else ""
    return (
        f'<path d="M{sx:.1f} {sy:.1f}Q{mx:.1f} {my:.1f} {ex:.1f} {ey:.1f}" fill="none" '
        f'stroke="var(--{colour})" stroke-width="1.4"{dash} marker-end="url(#{kind})"/>'
    )
