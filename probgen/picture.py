"""A model looked at: its structure, and which site depends on which, found by experiment.

So that it is the program's own truth and the same on both backends: all values are held fixed, one
variable is set to NaN, and the log-probabilities that become NaN depend on it, since NaN goes
through every arithmetic operation, a product with a zero weight included. A discrete variable,
through which NaN may not go, is also drawn anew several times, and what changes depends on it. Only
direct dependence shows: all other values are held, those of deterministic sites too. A run happens
on whichever backend is installed. How it is shown is not here: see `probgen.describe`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.backends import resolve
from probgen.bound import Bound, bind
from probgen.fitted import Fitted
from probgen.modelling import Model, arguments
from probgen.program import held as program_held
from probgen.trees import tree_map

__all__ = ["Picture", "draw"]

ROWS = 8  # data in the experiments: enough that a redrawn coin changes somewhere
REDRAWS = 4


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
        inputs: what the program conditions on and all data share.
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
    small, words = model.sketch()
    if sketch and words:
        model, note = small, words
    rows = {k: _rows(v) for k, v in given.items()}
    backend = resolve("auto", "cpu", prefer=model.backend or "torch")
    bound, found = bind(model, backend, data=rows, constants=constants, params=params)
    declared = _declared(bound, found, rows)
    observed = _observed(bound, rows)
    edges: list = []
    guide_edges: list = []
    if with_edges:
        experiment = _Experiment(bound, found, rows)
        edges = experiment.edges()
        if model.guide is not None:
            guide_edges = experiment.guide_edges()
    return Picture(
        model.name, bound, found, declared, observed, edges, guide_edges,
        frozenset(rows), note,
    )  # fmt: skip


def _rows(example: Any) -> np.ndarray:
    """`ROWS` rows of an example, or of zeros in the shape of one datum."""
    if isinstance(example, tuple) and all(isinstance(n, int) for n in example):
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


class _Experiment:
    """Dependencies of a program and its guide, found by changing one thing at a time."""

    def __init__(self, bound: Bound, params: Mapping, rows: Mapping[str, np.ndarray]):
        self.bound, b = bound, bound.backend
        rng = np.random.default_rng(0)
        # Off zero, where a freshly drawn last layer often is.
        self.params = tree_map(
            lambda p: p + b.asarray(0.1 * rng.standard_normal(tuple(p.shape)).astype(np.float32)),
            dict(params),
        )
        self.rows = {k: b.asarray(v) for k, v in rows.items()}
        sites = self._trace(self.params, self.rows, {}, key=0)
        self.sites = bound.structure.sites
        self.values = {n: s.value for n, s in sites.items() if s.kind == "sample"}
        self.held = {n: s.value for n, s in sites.items() if s.kind == "deterministic"}
        self.base = self._shown(sites)

    def _trace(self, params: Any, rows: Any, values: Any, key: int) -> Any:
        b: Any = self.bound.backend
        return self.bound.trace(
            params, rows, values, key=b.key(key), batch_size=ROWS, condition=False
        )

    def _shown(self, sites: Any) -> dict[str, np.ndarray]:
        """What a site shows: its log-probability, or its value when it is deterministic."""
        to_numpy = self.bound.backend.to_numpy
        return {
            n: to_numpy(s.value if s.log_prob is None else s.log_prob) for n, s in sites.items()
        }

    def _affected(self, params: Any, rows: Any, values: Any, held: Any) -> set[str]:
        """Sites that are not what they were, or none where the change cannot be made at all.

        A deterministic site is held for the others, but shows what it would have been: each is
        therefore looked at once more with itself let go.
        """
        found: set[str] = set()
        for free in [None, *held]:
            rest = {n: v for n, v in held.items() if n != free}
            token = program_held.set(rest)
            try:
                shown = self._shown(self._trace(params, rows, values, 0))
            except Exception:
                return found  # a factorisation, or an index, may refuse NaN
            finally:
                program_held.reset(token)
            seen = [n for n in shown if n not in self.held] if free is None else [free]
            found |= {n for n in seen if _differs(shown[n], self.base[n])}
        return found

    def edges(self) -> list[tuple[str, str]]:
        """(from, to): from inputs, sites and nets, in the program's order."""
        out: list[tuple[str, str]] = []

        def add(source: str, targets: set[str]) -> None:
            out.extend((source, t) for t in self.base if t in targets and t != source)

        for name in arguments(self.bound.model.program):
            if name in self.rows:
                changes = [{**self.rows, name: row} for row in _changes(self.rows[name])]
                add(name, self._union(lambda c: (self.params, c, self.values, self.held), changes))
        for name in self.base:
            if name in self.held:
                changes = [{**self.held, name: v} for v in _changes(self.held[name])]
                add(name, self._union(lambda c: (self.params, self.rows, self.values, c), changes))
            elif name in self.values:
                changes = [{**self.values, name: v} for v in self._new_values(name)]
                add(name, self._union(lambda c: (self.params, self.rows, c, self.held), changes))
        for name in self.bound.structure.nets:
            add(name, self._affected(self._nan_net(name), self.rows, self.values, self.held))
        return out

    def _union(self, arguments_of: Callable, changes: list) -> set[str]:
        return set().union(*(self._affected(*arguments_of(c)) for c in changes))

    def _new_values(self, name: str) -> list:
        """NaN, and for a discrete site some other draws of it."""
        value = self.values[name]
        out = [value * np.nan]
        if self.sites[name].is_discrete:
            others = {n: v for n, v in self.values.items() if n != name}
            keys = range(1, REDRAWS + 1)
            out += [self._trace(self.params, self.rows, others, k)[name].value for k in keys]
        return out

    def _nan_net(self, name: str) -> dict:
        return {**self.params, name: tree_map(lambda p: p * np.nan, self.params[name])}

    def guide_edges(self) -> list[tuple[str, str]]:
        """The same for the guide, whose inputs are data and observed sites."""
        bound, b = self.bound, self.bound.backend
        structure = bound.guide_structure
        names = arguments(bound.require_guide("graph"))
        seen = {**{n: self.values[n] for n in names if n in self.values}, **self.rows}
        latents = {n: v for n, v in self.values.items() if n in structure.sites}  # type: ignore

        def run(params: Any, rows: Any, values: Any) -> dict[str, np.ndarray]:
            sites = bound.trace_guide(params, rows, key=b.key(0), latents=values)
            return self._shown({n: s for n, s in sites.items() if n in latents})

        base = run(self.params, seen, latents)
        out: list[tuple[str, str]] = []

        def add(source: str, params: Any, rows: Any, values: Any) -> None:
            try:
                shown = run(params, rows, values)
            except Exception:
                return  # as in `_affected`
            for t, v in shown.items():
                if t != source and _differs(v, base[t]) and (source, t) not in out:
                    out.append((source, t))

        for name in names:
            for row in _changes(seen[name]) if name in seen else []:
                add(name, self.params, {**seen, name: row}, latents)
        for name in latents:
            for value in self._new_values(name):
                add(name, self.params, seen, {**latents, name: value})
        for name in structure.nets:  # type: ignore[union-attr]
            add(name, self._nan_net(name), seen, latents)
        return out


def _changes(row: Any) -> list:
    """Other values for rows of data: NaN, and for integers what the other rows hold."""
    if "float" in str(row.dtype):
        return [row * np.nan]
    return [row * np.nan, row[np.roll(np.arange(ROWS), 1)]]


def _differs(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape != b.shape or not np.array_equal(a, b, equal_nan=True)
