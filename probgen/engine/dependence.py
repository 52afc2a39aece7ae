"""Which site depends on which, found by experiment.

So that it is the program's own truth and the same on both backends: all values are held fixed, one
variable is set to NaN, and the log-probabilities that become NaN depend on it, since NaN goes
through every arithmetic operation, a product with a zero weight included. A discrete variable,
through which NaN may not go, is also drawn anew several times, and what changes depends on it. Only
direct dependence shows: all other values are held, those of deterministic sites too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.data_support import bounds
from probgen.language.model import arguments
from probgen.language.run import held as program_held
from probgen.language.supports import constraint_of
from probgen.trees import tree_map

ROWS = 8  # data in the experiments: enough that a redrawn coin changes somewhere
REDRAWS = 4


class Experiment:
    """Dependencies of a program and its guide, found by changing one thing at a time.

    Args:
        rows: `ROWS` rows of data and inputs, numpy.
        is_thorough: for refusals: each variable also gets other finite values, since NaN need not
            go through a comparison, and what refuses a change counts as dependent.
    """

    def __init__(
        self,
        bound: Bound,
        params: Mapping,
        rows: Mapping[str, np.ndarray],
        is_thorough: bool = False,
    ):
        self.bound, b = bound, bound.backend
        self.is_thorough = is_thorough
        rng = np.random.default_rng(0)
        # Off zero, where a freshly drawn last layer often is.
        self.params = self._changed(dict(params), lambda p: p + 0.1 * rng.standard_normal(p.shape))
        self.rows = {k: b.asarray(v) for k, v in rows.items()}
        self.sites = bound.structure.sites
        sites = self._trace(self.params, self.rows, self._stand_ins(), key=0)
        self.values = {n: s.value for n, s in sites.items() if s.kind == "sample"}
        self.held = {n: s.value for n, s in sites.items() if s.kind == "deterministic"}
        # At values that are given, as in every experiment: of a draw a flow knows the noise, and
        # its density differs by a rounding from that of the inverse.
        self.base = self._shown(self._trace(self.params, self.rows, self.values, key=0))

    def _changed(self, params: Any, change: Callable) -> Any:
        """By numpy: a framework would compile each operation for each shape, to use it once."""
        b = self.bound.backend

        def one(p: Any) -> Any:
            old = np.asarray(b.to_numpy(p))
            kind = old.dtype if np.issubdtype(old.dtype, np.floating) else np.dtype(np.float32)
            return b.asarray(np.asarray(change(old)).astype(kind))

        return tree_map(one, params)

    def _trace(self, params: Any, rows: Any, values: Any, key: int) -> Any:
        b: Any = self.bound.backend
        return self.bound.trace(
            params, rows, values, key=b.key(key), batch_size=ROWS, condition=False
        )

    def _stand_ins(self) -> dict[str, Any]:
        """Values, inside their supports, of sites that have no draws."""
        b, structure, out = self.bound.backend, self.bound.structure, {}
        for name, site in self.sites.items():
            if site.kind == "sample" and not getattr(site.declaration, "has_draw", True):
                shape = (*structure.plate_shape(name, ROWS), *site.event_shape)
                middle = constraint_of(site.declaration).middle
                out[name] = middle(b.asarray(np.zeros(shape, np.float32)))
        return out

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
            except Exception:  # a factorisation, or an index, may refuse NaN
                return found | set(self.base if self.is_thorough else ())
            finally:
                program_held.reset(token)
            seen = [n for n in shown if n not in self.held] if free is None else [free]
            found |= {n for n in seen if _differs(shown[n], self.base[n])}
        return found

    def laws(self, net: str) -> set[str]:
        """Sites whose log-probability a net changes, all drawn values held."""
        changes = [self._nan_net(net), self._moved_net(net)]
        return self._union(lambda c: (c, self.rows, self.values, {}), changes)

    def moving_supports(self, net: str) -> set[str]:
        """Sites whose support does not end where it did, once a net is another."""

        def ends(params: Any) -> dict[str, list[np.ndarray]]:
            sites, to_numpy = self._trace(params, self.rows, self.values, 0), b.to_numpy
            return {n: [np.asarray(to_numpy(e)) for e in bounds(sites[n].fn)] for n in self.values}

        b = self.bound.backend
        old, new = ends(self.params), ends(self._moved_net(net))
        return {n for n in old if any(map(_differs, old[n], new[n]))}

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
            changes = [self._nan_net(name)]
            if self.is_thorough:
                changes += [self._moved_net(name)]
            add(name, self._union(lambda c: (c, self.rows, self.values, self.held), changes))
        return out

    def _union(self, arguments_of: Callable, changes: list) -> set[str]:
        return set().union(*(self._affected(*arguments_of(c)) for c in changes))

    def _new_values(self, name: str) -> list:
        """NaN, and for a discrete site some other draws of it."""
        value = self.values[name]
        out = [value * np.nan]
        can_draw = getattr(self.sites[name].declaration, "has_draw", True)
        if can_draw and (self.sites[name].is_discrete or self.is_thorough):
            others = {n: v for n, v in self.values.items() if n != name}
            keys = range(1, REDRAWS + 1)
            out += [self._trace(self.params, self.rows, others, k)[name].value for k in keys]
        return out

    def _nan_net(self, name: str) -> dict:
        return {**self.params, name: self._changed(self.params[name], lambda p: p * np.nan)}

    def _moved_net(self, name: str) -> dict:
        return {
            **self.params, name: self._changed(self.params[name], lambda p: p * 1.5 + 0.25),
        }  # fmt: skip

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
