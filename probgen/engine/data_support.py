"""Refuses data outside the support of their site, before they are used.

A support whose bounds are plain numbers (real, positive, {0, 1}, {0 ... k}) is read off one run on
one datum, and every value is then held against it: no network runs on all the data. Only where the
bounds are arrays (a Binomial with a count per datum), or the program itself gives a site's value
(`obs=`), is the model run on all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from probgen.backends.protocol import Array, Key
from probgen.data.checks import on_device
from probgen.engine.bound import Bound
from probgen.engine.data_types import cure
from probgen.engine.messages import in_loops
from probgen.errors import SupportError

ROWS = 256  # data per run of the model where it must be run
VALUES = 2**24  # values per comparison where it need not


class SupportCheck:
    """`check(batch)` for batches of one data set; remembers the supports that it has read."""

    def __init__(self, bound: Bound, params: Mapping, key: Key):
        self.bound, self.params, self.key = bound, params, key
        self._fixed: dict[str, Any] | None = None

    def __call__(self, batch: Mapping[str, Any]) -> None:
        """Refuses rows (numpy, or the backend's arrays) outside their support.

        Raises:
            SupportError: names the site, its support, how many values are outside, their range.
        """
        self.bound.model.check_rows(_OnHost(batch, self.bound.backend))
        observed = [n for n in self.bound.observed if n in batch]
        sites = self.bound.structure.sites
        by_obs = [n for n, s in sites.items() if s.is_fixed and s.is_local and n not in observed]
        if not (observed or by_obs) or not batch:
            return
        if self._fixed is None:
            self._fixed = self._probe({k: v[:1] for k, v in batch.items()})
        for name in observed:
            if name in self._fixed:
                values = batch[name]
                rows = max(1, VALUES // max(1, int(np.prod(values.shape[1:]))))
                for start in range(0, len(values), rows):
                    self._compare(name, self._fixed[name], values[start : start + rows])
        at_edge = {n for n in observed if n in self._fixed and self._is_at_edge(n, batch[n])}
        others = [*(n for n in observed if n not in self._fixed or n in at_edge), *by_obs]
        size = len(next(iter(batch.values()))) if others else 0
        for start in range(0, size, ROWS):
            part = {k: v[start : start + ROWS] for k, v in batch.items()}
            hidden = self._by_any_value(part, [n for n in others if n in observed])
            for name, inside in hidden.items():
                self._refuse(name, inside, part[name])
            shown = [n for n in others if n not in hidden]
            run = self._trace(part) if shown else {}
            for name in shown:
                value = part[name] if name in observed else run[name].value
                self._compare(name, run[name].fn, value)
                if name in at_edge:
                    self._has_density(name, run[name].fn, value)

    def _is_at_edge(self, name: str, values: Any) -> bool:
        """Whether a value lies where the density may be infinite or zero (0 under a Gamma)."""
        at = self.bound.backend.edges(self._fixed[name])  # type: ignore[index]
        return bool(at) and bool(np.isin(self.bound.backend.to_numpy(values), at).any())

    def _has_density(self, name: str, fn: Any, values: Array) -> None:
        b = self.bound.backend
        found = b.to_numpy(b.log_prob(fn, b.asarray(values)))
        bad = np.isinf(found)
        if bad.any():
            what = "infinite" if found[bad][0] > 0 else "0"
            raise SupportError(
                f"data {name!r}: {int(bad.sum())} of {bad.size} data have a value at the edge of "
                f"the support of {self.bound.structure.sites[name].distribution.split('(')[0]}, "
                f"where its density is {what}, expected values where it is finite; move them "
                "inside, or choose a likelihood with mass there."
            )

    def _probe(self, rows: Mapping[str, Any], size: int = 1) -> dict[str, Any]:
        """Site -> its distribution, of the observed sites whose support is the same for all data.

        On JAX the run is abstract, so nothing is compiled and no parameter of the distribution may
        be used; a support without arrays does not.
        """
        bound, b = self.bound, self.bound.backend
        arrays = {k: b.asarray(v) for k, v in rows.items()}
        small = bound.model.sketch()
        program = small.model.program
        _, sites = b.probe(
            program, dict(self.params), values={},
            inputs=bound.inputs(program, arrays, f"model {bound.model.name!r}"),
            key=self.key, batch_size=size, initialise=None,
        )  # fmt: skip
        found = {n: sites[small.sites.get(n, n)].fn for n in bound.observed}
        return {n: fn for n, fn in found.items() if not has_arrays(fn)}

    def _trace(self, rows: Mapping[str, Any]) -> Any:
        b = self.bound.backend
        arrays = {k: b.asarray(v) for k, v in rows.items()}
        return self.bound.trace(self.params, arrays, key=self.key, condition=False)

    def _by_any_value(self, rows: Mapping[str, Any], names: list[str]) -> dict[str, np.ndarray]:
        """Of sites whose support may hang on discrete latents that are summed out: whether each
        datum lies inside by some value of theirs; along a long loop, whether it has a density."""
        bound, b = self.bound, self.bound.backend
        names = [n for n in names if n not in (self._fixed or {})]
        if not (bound.enumerated and names):
            return {}
        arrays, infos = {k: b.asarray(v) for k, v in rows.items()}, bound.structure.sites
        loops = {infos[n].scan for n in in_loops(bound.structure, bound.enumerated)}
        looped = [n for n in infos if n in names and infos[n].scan in loops]

        def inside(sites: Mapping[str, Any]) -> dict[str, dict[str, Array]]:
            found = {n: b.in_support(sites[n].fn, sites[n].value) for n in names if n not in looped}
            ok = {n: b.ops.where(ok, 1.0, 0.0) for n, ok in found.items() if ok is not None}
            return {"inside": ok}

        def run(params: Any, arrays: Mapping, key: Any) -> tuple[dict, dict]:
            found = bound.summed(params, arrays, key=key, extra=inside)
            return found.extra["inside"], {n: found.sites[n].log_prob for n in looped}

        found, densities = b.compile(run, num_calls=1)(self.params, arrays, self.key)
        possible = {n: b.to_numpy(v) != -np.inf for n, v in densities.items()}
        return possible | {n: b.to_numpy(v).max(axis=0) > 0 for n, v in found.items()}

    def _compare(self, name: str, fn: Any, values: Array) -> None:
        b: Any = self.bound.backend
        values = on_device(b, {name: values})[name]
        ok = b.in_support(fn, values)
        if ok is None:
            return
        self._refuse(name, b.to_numpy(ok), values)

    def _refuse(self, name: str, inside: np.ndarray, values: Any) -> None:
        if inside.all():
            return
        flat = self.bound.backend.to_numpy(values).reshape(-1)
        info = self.bound.structure.sites[name]
        raise SupportError(
            f"data {name!r}: {int((~inside).sum())} of {inside.size} events lie outside the "
            f"support of {info.family} ({info.mass}); the data range over [{flat.min():g}, "
            f"{flat.max():g}]. {cure(info.family)}"
        )


def bounds(fn: Any) -> list[Any]:
    """The numbers and arrays that a support is made of, such as the ends of an interval."""
    try:
        waiting = [fn.support]
    except NotImplementedError:
        return []
    found = []
    while waiting:
        part = waiting.pop()
        if isinstance(part, list | tuple):
            waiting += part
        elif "constraint" in type(part).__module__:
            waiting += list(vars(part).values()) if hasattr(part, "__dict__") else []
        elif hasattr(part, "ndim") or isinstance(part, int | float):
            found.append(part)
    return found


class _OnHost(Mapping):
    """Rows in numpy, each fetched from the device when it is asked for."""

    def __init__(self, rows: Mapping[str, Any], backend: Any):
        self._rows, self._backend = rows, backend

    def __getitem__(self, name: str) -> np.ndarray:
        return self._backend.to_numpy(self._rows[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def has_arrays(fn: Any) -> bool:
    """Whether the bounds of a distribution's support may differ from datum to datum."""
    return any(getattr(part, "ndim", 0) for part in bounds(fn))


def check_support(bound: Bound, params: Mapping, batch: Mapping[str, Array], key: Key) -> None:
    """`SupportCheck` for a single batch.

    Raises:
        SupportError: a value lies outside the support of its site.
    """
    SupportCheck(bound, params, key)(batch)


def check_plain(bound: Bound, params: Mapping, rows: Mapping[str, Any], key: Key) -> None:
    """Holds data of any shape against supports that are plain numbers, for `infer`.

    Where bounds are computed, the first points of the chains tell (`Posterior.check_start`).

    Raises:
        SupportError: a value lies outside the support of its site.
    """
    check = SupportCheck(bound, params, key)
    inputs = {k: v for k, v in rows.items() if k not in bound.observed}
    for name, fn in check._probe(inputs, bound.num_rows or 1).items():
        if not bound.backend.has_moving_support(fn):
            check._compare(name, fn, rows[name])
