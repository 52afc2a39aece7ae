"""A fitted model on a page: its formula, its graph, its sites and networks.

Who depends on whom is found by experiment, so that it holds for every program on either backend:
with all sites held at one draw, one of them (or one network's parameters, or one input) is changed,
and those sites whose log-probability moves depend on it directly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from probgen.bound import Bound, parameter_count
from probgen.evaluation.report.blocks import Block, Figure, Formula, Table
from probgen.evaluation.report.plates import Arrow, Graph, Node, plates_svg
from probgen.fitted import Fitted
from probgen.program import DATA_PLATE
from probgen.trees import tree_map

Values = dict[str, Any]


def model_blocks(fitted: Fitted) -> list[Block]:
    """Formula (when the family knows one), graph, and a table of sites and of networks."""
    backend = fitted.resolve("auto")
    bound, params = fitted.bind(backend, num_data=fitted.info.get("num_data"))
    shapes = {k: v for k, v in fitted.shapes.items() if k not in bound.structure.sites}
    graph = graph_of(bound, params, inputs=shapes)
    blocks: list[Block] = []
    latex = fitted.model.formula()
    if latex:
        blocks.append(Formula(latex))
    names = [n.name for n in graph.nodes if n.kind != "parameter"]
    edges = [[a.start, a.end, "guide" if a.guide else "model"] for a in graph.arrows]
    blocks.append(
        Figure(
            plates_svg(graph),
            "In plate notation: shaded is observed, the box is repeated for each datum, squares "
            "are networks, and dashed arrows belong to the guide.",
            f"Graph of the model in plate notation, with the variables {', '.join(names)}.",
            numbers={"arrows": edges},
        )
    )
    blocks.append(_table(bound, fitted))
    return blocks


def _table(bound: Bound, fitted: Fitted) -> Table:
    rows: list[list[str | float]] = []
    for name, site in bound.structure.sites.items():
        shape = " × ".join(map(str, site.event_shape)) or "1"
        seen = "observed" if name in bound.observed else "latent"
        rows.append([name, f"{seen if site.kind == 'sample' else site.kind}, {shape}"])
    for name, count in parameter_count(fitted.params).items():
        rows.append([name, f"network, {count:,} parameters"])
    return Table(["part", "what it is"], rows, name="parts", wide=False)


def graph_of(
    bound: Bound,
    params: Mapping,
    *,
    inputs: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    num_data: int = 3,
) -> Graph:
    """The graph of a bound model: its sites, inputs and networks, and the arrows between them.

    Args:
        inputs: shape of one datum of each input that goes along with the data.
        seed, num_data: of the draws that the dependences are found with.
    """
    b = bound.backend
    given = [_draw_inputs(b, inputs or {}, seed + i, num_data) for i in (0, 1)]

    def trace(values: Values, params: Mapping, key: Any) -> dict[str, Any]:
        batch = {k: v for k, v in values.items() if k in given[0]}
        latents = {k: v for k, v in values.items() if k not in given[0]}
        return bound.trace(params, batch, latents, key=key, batch_size=num_data, condition=False)

    first, second = (
        {**given[i], **_values(trace(given[i], params, b.key(seed + i)))} for i in (0, 1)
    )
    found = _dependences(b, lambda v, p: trace(v, p, b.key(seed)), first, second, params)
    arrows = [Arrow(cause, effect) for cause, effect in found]
    nets = dict(bound.structure.nets)
    if bound.guide_structure is not None:
        drawn = {n for n in bound.guide_structure.sites if n in first}

        def guide(values: Values, params: Mapping) -> dict[str, Any]:
            seen = {k: v for k, v in values.items() if k in bound.observed or k in given[0]}
            latents = {n: v for n, v in values.items() if n in drawn}
            return bound.trace_guide(params, seen, latents=latents, key=b.key(seed))

        found = _dependences(b, guide, first, second, params)
        arrows += [Arrow(cause, effect, guide=True) for cause, effect in found]
        nets |= bound.guide_structure.nets
    nodes = [_node(bound, name) for name in bound.structure.sites]
    nodes += [Node(name, "observed", (DATA_PLATE,)) for name in given[0]]
    nodes += [Node(name, "parameter") for name in nets if name in params]
    size = f"{bound.num_data:,} data" if bound.num_data else "each datum"
    sizes = {n: f"{n}: {k}" for n, k in bound.structure.plate_sizes.items()}
    return Graph(nodes, arrows, {**sizes, DATA_PLATE: size})


def _draw_inputs(b: Any, shapes: Mapping[str, tuple[int, ...]], seed: int, num_data: int) -> Values:
    rng = np.random.default_rng(seed)
    draws = {k: rng.standard_normal((num_data, *s)) for k, s in shapes.items()}
    return {k: b.asarray(v.astype(np.float32)) for k, v in draws.items()}


def _node(bound: Bound, name: str) -> Node:
    site = bound.structure.sites[name]
    kind = (
        ("observed" if name in bound.observed else "latent") if site.kind == "sample" else site.kind
    )
    return Node(name, kind, site.plates)


def _values(sites: Mapping[str, Any]) -> Values:
    return {n: s.value for n, s in sites.items() if s.kind == "sample"}


def _dependences(
    b: Any,
    trace: Callable[[Values, Mapping], dict[str, Any]],
    first: Values,
    second: Values,
    params: Mapping,
) -> list[tuple[str, str]]:
    """(cause, effect) pairs: the effect's log-probability moves when the cause alone is changed."""

    def run(values: Values, params: Mapping) -> dict[str, np.ndarray]:
        sites = trace(values, params)
        return {n: b.to_numpy(s.log_prob) for n, s in sites.items() if s.log_prob is not None}

    base = run(first, params)
    found = []
    for name in first:
        moved = run({**first, name: second[name]}, params)
        found += [(name, n) for n in base if n != name and _differs(base[n], moved[n])]
    for name in params:
        shaken = tree_map(lambda p: p * 1.1 + 0.01, params[name])
        moved = run(first, {**params, name: shaken})
        found += [(name, n) for n in base if _differs(base[n], moved[n])]
    return found


def _differs(a: np.ndarray, b: np.ndarray) -> bool:
    return not np.allclose(a, b, rtol=1e-6, atol=1e-6, equal_nan=True)
