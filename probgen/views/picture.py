"""A model looked at: its structure, and which site depends on which (`probgen.engine.dependence`).

A run happens on whichever backend is installed. How it is shown is not here: see
`probgen.views.describe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.backends import resolve
from probgen.engine.batches import merge_inputs
from probgen.engine.bind import bind
from probgen.engine.bound import Bound
from probgen.engine.dependence import ROWS, Experiment
from probgen.engine.fitted import Fitted
from probgen.errors import ShapeError
from probgen.language.model import Model

__all__ = ["Picture", "draw"]


class Picture(NamedTuple):
    """What the three views draw from.

    Attributes:
        bound, params: the model on a backend.
        declared: site -> its distribution, as the program wrote it.
        observed: sites that data observe.
        edges: (from, to): sites, inputs and nets to sites of the program.
        guide_edges: the same for the guide.
        per_datum: inputs with one row a datum.
        note: what was left out, or "".
    """

    name: str
    bound: Bound
    params: Mapping
    declared: Mapping[str, Any]
    observed: frozenset[str]
    edges: list[tuple[str, str]]
    guide_edges: list[tuple[str, str]]
    per_datum: frozenset[str]
    note: str = ""


def draw(
    model: Model | Fitted,
    data: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
    *,
    with_edges: bool = True,
    sketch: bool = True,
) -> Picture:
    """Runs a model on a few made-up data and finds its structure.

    Args:
        data: what the program needs to run: name -> example rows [n, ...], or the shape of one
            datum as a tuple. The sites named are the observed ones. Families need none.
        inputs: what the program conditions on, as the verbs take it: an array with as many rows as
            the data (without data: any that the program takes so) has one row a datum, all else is
            shared; a tuple is the shape of one datum.
        with_edges: also find which site depends on which.
        sketch: take the model's own small stand-in where it has one (`Model.sketch`).
    """
    params: Mapping | None = None
    constants = dict(inputs or {})
    given = dict(data or {})
    if isinstance(model, Fitted):
        params = model.params
        constants = {**model.constants, **constants}
        seen = {k: (ROWS, *shape) for k, shape in model.shapes.items()}
        given = given or {k: np.zeros(n, model.dtypes.get(k, "float32")) for k, n in seen.items()}
        model = model.model
    note = ""
    small, words, _ = model.sketch()
    if sketch and words:
        model, note = small, words
    backend = resolve("auto", "cpu", prefer=model.backend or "torch")

    def bound_with(size: int | None) -> tuple[dict[str, np.ndarray], Bound, dict]:
        shapes = {k: v for k, v in constants.items() if _is_shape(v)}
        others = {k: v for k, v in constants.items() if k not in shapes}
        shared, per_datum = merge_inputs(model, given, others, size)
        rows = {k: _rows(v) for k, v in {**given, **shapes, **per_datum}.items()}
        return rows, *bind(model, backend, data=rows, constants=shared, params=params)

    sizes = [len(v) for v in given.values() if not _is_shape(v)]
    lengths = [len(v) for v in constants.values() if not given and np.ndim(v)]
    try:
        rows, bound, found = bound_with(next(iter([*sizes, *lengths]), None))
    except ShapeError:
        if not lengths:
            raise
        rows, bound, found = bound_with(None)  # it is no input with rows
    declared = _declared(bound, found, rows)
    observed = _observed(bound, rows)
    edges: list = []
    guide_edges: list = []
    if with_edges:
        experiment = Experiment(bound, found, rows)
        edges = experiment.edges()
        if model.guide is not None:
            guide_edges = experiment.guide_edges()
    return Picture(
        model.name, bound, found, declared, observed, edges, guide_edges,
        frozenset(rows), note,
    )  # fmt: skip


def _is_shape(example: Any) -> bool:
    return isinstance(example, tuple) and all(isinstance(n, int) for n in example)


def _rows(example: Any) -> np.ndarray:
    """`ROWS` rows of an example, or of zeros in the shape of one datum."""
    if _is_shape(example):
        return np.zeros((ROWS, *example), np.float32)
    array = np.asarray(example)
    array = array.astype(np.float32) if array.dtype == np.float64 else array
    return np.resize(array, (ROWS, *array.shape[1:]))


def _declared(bound: Bound, params: Mapping, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    b: Any = bound.backend
    one = {k: b.asarray(v[:1]) for k, v in rows.items()}
    program = bound.model.program
    run, _ = b.probe(
        program, dict(params), values={}, inputs=bound.inputs(program, one, "model"),
        key=b.key(0), batch_size=1, initialise=None,
    )  # fmt: skip
    return {n: s["distribution"] for n, s in run.sites.items() if "distribution" in s}


def _observed(bound: Bound, rows: Mapping[str, Any]) -> frozenset[str]:
    """Sites with data or `obs=`; else those that the guide leaves out; else "x"."""
    sites = bound.structure.sites
    known = {n for n, s in sites.items() if s.is_fixed or (n in rows and s.kind == "sample")}
    if known:
        return frozenset(known)
    samples = {n for n, s in sites.items() if s.kind == "sample"}
    if bound.guide_structure is not None:
        return frozenset(samples - set(bound.guide_structure.sites))
    return frozenset(samples & {"x"})
