"""The teaching view: a declaration as a table, as a formula, as a picture in plate notation.

    describe(model)   sites and nets, one a line: shapes, plates, supports, numbers of parameters
    latex(model)      the density, for LaTeX or matplotlib's mathtext
    graph(model)      graphviz source: circles, shaded where observed; plates; factors as squares

All three draw from a `probgen.views.picture.Picture`, which says what the model was seen to be. A
program that conditions on inputs needs examples of them, or their shapes, as `data` or `inputs`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.engine.bound import parameter_count
from probgen.engine.fitted import Fitted
from probgen.engine.structure import Structure
from probgen.language.model import Model
from probgen.language.run import DATA_PLATE
from probgen.trees import tree_items
from probgen.views.formula import call, latex
from probgen.views.picture import Picture, draw

__all__ = ["describe", "graph", "latex"]

# ---- the table -----------------------------------------------------------------------------------


def describe(
    model: Model | Fitted,
    data: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> str:
    """Sites and nets of a model as text; see `views.picture.draw` for `data` and `inputs`."""
    p = draw(model, data, inputs, with_edges=False)
    sites = [_site_line(p, name, p.bound.structure) for name in p.bound.structure.sites]
    header = ("site", "kind", "distribution", "plates", "event", "support")
    parts = [f"{p.name}{' (' + p.note + ')' if p.note else ''}", _table([header, *sites])]
    guide = p.bound.guide_structure
    if guide is not None:
        lines = [
            (n, "guide", _head(s.distribution), _plates(s.plates, guide), _shape(s.event_shape), "")
            for n, s in guide.sites.items()
        ]
        parts.append(_table([("guide", "", "distribution", "plates", "event", ""), *lines]))
    parts.append(_nets_table(p))
    if not p.bound.is_normalized:
        parts.append("The density is known up to a constant.")
    return "\n\n".join(parts)


def _site_line(p: Picture, name: str, structure: Structure) -> tuple[str, ...]:
    site = structure.sites[name]
    kind = site.kind
    if kind == "sample":
        kind = "observed" if name in p.observed else "latent" if site.is_local else "global latent"
    shape = _shape(site.event_shape) if site.kind == "sample" else ""
    declared = p.declared.get(name)
    return (
        name, kind, call(declared), _plates(site.boxes, structure), shape,
        site.mass,
    )  # fmt: skip


def _nets_table(p: Picture) -> str:
    guide = p.bound.guide_structure
    nets = {**p.bound.structure.nets, **(guide.nets if guide is not None else {})}
    counts, frozen = parameter_count(p.params), p.bound.model.frozen()
    lines: list[tuple[str, ...]] = [("net", "declaration", "parameters", "shape")]
    for name, declaration in nets.items():
        about = _short(declaration) + (" frozen" if name in frozen else "")
        lines.append((name, about, f"{counts.get(name, 0):,}", ""))
        for path, leaf in tree_items(p.params.get(name)):
            size = int(np.prod(leaf.shape))
            lines.append(("", "  " + "/".join(path), f"{size:,}", _shape(tuple(leaf.shape))))
    total = sum(counts.get(n, 0) for n in nets)
    return _table([*lines, ("total", "", f"{total:,}", "")]) if nets else "no nets"


def _short(declaration: Any) -> str:
    """A declaration with the options that are not its defaults."""
    if not dataclasses.is_dataclass(declaration):
        return repr(declaration)
    shown = []
    for f in dataclasses.fields(declaration):
        value = getattr(declaration, f.name)
        if f.repr and not (f.default is not dataclasses.MISSING and value == f.default):
            text = repr(value)
            if "\n" in text:  # a module of a framework: pages, of which its class says enough
                text = f"{type(value).__name__}(...)"
            shown.append(f"{f.name}={text}")
    return f"{type(declaration).__name__}({', '.join(shown)})"


def _head(text: str) -> str:
    return text.split("(")[0].removeprefix("dist.") + "(...)"


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]" if shape else "scalar"


def _plates(plates: tuple[str, ...], structure: Structure) -> str:
    sizes, times = structure.plate_sizes, structure.scans

    def shown(plate: str) -> str:
        if plate in times:
            return f"{plate} = 1 ... {times[plate]}"
        return plate if plate == DATA_PLATE else f"{plate} ({sizes[plate]})"

    return ", ".join(map(shown, plates)) or "-"


def _table(lines: list[tuple[str, ...]]) -> str:
    """Left-aligned columns under a rule; numbers with thousands separators to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]

    def row(line: tuple[str, ...]) -> str:
        cells = [
            c.rjust(w) if re.fullmatch(r"[\d,]+", c) else c.ljust(w)
            for c, w in zip(line, widths, strict=True)
        ]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * w for w in widths if w)
    return "\n".join([row(lines[0]), rule, *map(row, lines[1:])])


# ---- the picture ---------------------------------------------------------------------------------


def graph(
    model: Model | Fitted,
    data: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> str:
    """Graphviz source in plate notation; render it with `dot -Tsvg`.

    Circles are variables, shaded when observed; a double circle is deterministic; a black square
    is a factor; plain text an input; a rounded box a net. Dashed arrows belong to the guide. See
    `probgen.views.picture.draw` for `data` and `inputs`.
    """
    p = draw(model, data, inputs)
    structure, guide = p.bound.structure, p.bound.guide_structure
    lines = [
        "digraph model {",
        "  graph [rankdir=TB, fontname=Helvetica, labeljust=r, labelloc=b];",
        "  node [fontname=Helvetica, shape=circle, width=0.6, style=filled, fillcolor=white];",
    ]
    if p.note:
        lines.append(f"  label={_quote(p.note)};")
    outside = {a for a, _ in [*p.edges, *p.guide_edges]} - set(structure.sites)
    nets = {*structure.nets, *(guide.nets if guide is not None else ())}
    has_data = any(DATA_PLATE in site.plates for site in structure.sites.values())
    local = {n for n in outside - nets if n in p.per_datum} if has_data else set()
    look = 'shape=box, style="rounded"'
    for name in sorted(outside - local):
        lines.append(f"  {_quote(name)} [{look if name in nets else PLAIN}];")
    lines += _cluster(p, (), "  ", sorted(local))
    lines += [f"  {_quote(a)} -> {_quote(t)};" for a, t in p.edges]
    lines += [
        f"  {_quote(a)} -> {_quote(t)} [style=dashed, constraint=false];" for a, t in p.guide_edges
    ]
    return "\n".join([*lines, "}"]) + "\n"


PLAIN = "shape=plaintext, fillcolor=none"


def _cluster(p: Picture, path: tuple[str, ...], indent: str, local: list[str]) -> list[str]:
    """Nodes whose plates are `path`, and one cluster for every plate just inside.

    `local` are inputs with one row a datum, which stand in the data plate.
    """
    structure = p.bound.structure
    lines = [indent + _node(p, name) for name, s in structure.sites.items() if s.boxes == path]
    depth = len(path)
    inner = dict.fromkeys(
        s.boxes[depth]
        for s in structure.sites.values()
        if s.boxes[:depth] == path and len(s.boxes) > depth
    )
    for plate in inner:
        if plate in structure.scans:
            label = f"{plate} = 1 ... {structure.scans[plate]}"
        else:
            size = "N" if plate == DATA_PLATE else str(structure.plate_sizes[plate])
            label = f"{plate}: {size}"
        name = "cluster_" + "_".join((*path, plate))
        lines.append(f"{indent}subgraph {_quote(name)} {{")
        lines.append(f'{indent}  graph [label={_quote(label)}, style="rounded"];')
        if plate == DATA_PLATE:
            lines += [f"{indent}  {_quote(n)} [{PLAIN}];" for n in local]
            local = []
        lines += _cluster(p, (*path, plate), indent + "  ", local)
        lines.append(f"{indent}}}")
    return lines


def _node(p: Picture, name: str) -> str:
    kind = p.bound.structure.sites[name].kind
    if kind == "factor":
        look = f'shape=square, width=0.2, label="", xlabel={_quote(name)}, fillcolor=black'
    elif kind == "deterministic":
        look = "peripheries=2"
    else:
        look = "fillcolor=lightgray" if name in p.observed else "fillcolor=white"
    return f"{_quote(name)} [{look}];"


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
