"""The walk through a model's program that makes a guide of it: latents come from q, and nothing
else is a site; see `auto_guide`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.errors import AlgorithmError
from probgen.language import dist, ops
from probgen.language.program import net
from probgen.language.run import DATA_PLATE, ROW, Run, current
from probgen.language.series import moved
from probgen.language.supports import finite_values, support_of
from probgen.nets.layers import Parameter

Array = Any


class LatentPlace(NamedTuple):
    """Where a latent stands, and the parameters of q for it.

    Attributes:
        name: of the site.
        plates: sizes of the open plates, right-aligned; free_event: shape of one u.
        data_axis: of the data plate among the plates, None for a global latent.
        total: how many numbers the latents of its kind have (global, or of one datum).
        parameter: (what, shape of one, first value) -> [*shape], or [batch, *shape] of the rows at
            hand for a local latent.
    """

    name: str
    plates: tuple[int, ...]
    free_event: tuple[int, ...]
    data_axis: int | None
    total: int
    parameter: Callable[[str, tuple[int, ...], float], Array]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of u, [*plates, *free_event], without the data's axis."""
        plates = [n for i, n in enumerate(self.plates) if i != self.data_axis]
        return (*plates, *self.free_event)

    def plates_of(self, parameter: Array) -> list[int]:
        """Sizes of the plates, the data's being the rows that a parameter has."""
        return [parameter.shape[0] if i == self.data_axis else n for i, n in enumerate(self.plates)]

    def spread(self, x: Array) -> Array:
        """[*shape] or [batch, *shape] as [*plates, *free_event]."""
        return x if self.data_axis is None else moved(x, 0, self.data_axis)


class _Done(Exception):
    """The last latent is drawn."""


def walk(
    family: Any, program: Callable, inputs: Mapping[str, Any], data: Mapping[str, Any],
    latents: list[str], rows: Any, num_data: int | None, totals: dict[bool, int],
) -> None:  # fmt: skip
    """Runs a program with its latents drawn from a family, as the guide of the run at hand."""
    run = current("sample")
    outer = run.lower
    if not latents:
        return
    run.lower = _Hands(family, run, data, set(latents), rows, num_data, totals)
    try:
        program(**inputs)
    except _Done:
        pass
    finally:
        run.lower = outer


class _Hands:
    """A run's lowering under which latents come from q and nothing else is a site."""

    def __init__(
        self, family: Any, run: Run, data: Mapping[str, Any], left: set[str], rows: Any,
        num_data: int | None, totals: dict[bool, int],
    ):  # fmt: skip
        self.totals = totals
        self.family, self.run, self.outer = family, run, run.lower
        self.data, self.left, self.rows, self.num_data = data, left, rows, num_data
        self.state: dict = {}
        self.summed: list[str] = []  # discrete latents that it has passed
        self.drawn: dict[str, tuple] = {}  # of series: q declared and built, and u

    def __getattr__(self, name: str) -> Any:
        return getattr(self.outer, name)

    def factor(self, name: str, value: Any) -> None:
        del self.run.sites[name]

    def deterministic(self, name: str, value: Any) -> Any:
        del self.run.sites[name]
        return value

    def sample(self, name: str, fn: Any, obs: Any) -> Any:
        site = self.run.sites.pop(name)
        if name not in self.left:
            if obs is None and name not in self.data:
                first = self._first_value(name, site["distribution"], fn)
                if first is not None:
                    return first
            return self._observed(name, obs)
        if self.summed and self.outer.has_moving_support(fn):
            raise AlgorithmError(
                f"{type(self.family).__name__}: latent {name!r} has a computed support and comes "
                f"after the discrete {self.summed}, which are summed out, expected a support that "
                "does not hang on them; declare it before, or write the guide by hand."
            )
        transform = self.outer.onto_support(name, fn)
        plates = self.run.plate_shape()
        place = self._place(name, plates, _free_event(transform, fn, plates))
        q, seen = self.family.base(place, self.state)
        is_real = _is_real(site["distribution"])
        onto = _Onto(transform, site["distribution"], len(place.free_event), is_real)
        if not is_real:
            q = dist.Transformed(q, onto, event_shape=tuple(fn.event_shape))
        self.run.sites[name] = {**site, "distribution": q}
        value = self.outer.sample(name, self.outer.build(q, name), None)
        if seen is not None:
            seen(onto.back(value))
        self.left.discard(name)
        if not self.left:
            raise _Done
        return value

    def series(self, name: str, fn: Any, length: int, is_fixed: bool) -> Any:
        """A latent of a loop: one u [*plates, T, *free] from q, mapped moment by moment."""
        if name not in self.left:
            return self._observed_series(name, fn, length, is_fixed)
        transform = self.outer.onto_support(name, fn)
        plates = self.run.plate_shape()
        one = _free_event(transform, fn, plates)
        q, seen = self.family.base(self._place(name, plates, (length, *one)), self.state)
        built, given = self.outer.build(q, name), self.outer.values.get(name)
        if given is None:
            u = self.outer.value_of(name, built, None)
        else:
            u = moved(transform.inv(moved(given, -1 - len(fn.event_shape), 0)), 0, -1 - len(one))
        if seen is not None:
            seen(u)
        self.drawn[name] = (q, built, u, transform, len(one) + 1)

        def value(law: Any, u: Any) -> tuple[Any, Any]:
            here = self.outer.onto_support(name, law)
            z = here(u)
            return z, _summed(here.log_abs_det_jacobian(u, z), u.ndim - len(one))

        found = self.outer.given_series(u, fn)
        return dataclasses.replace(found, xs=moved(u, -1 - len(one), 0), value=value, whole=given)

    def _first_value(
        self, name: str, declared: Any, fn: Any, lead: tuple[int, ...] = ()
    ) -> Array | None:
        """Of a discrete latent that is summed out, on which q does not hang."""
        values = finite_values(declared)
        if values is None:
            return None
        self.summed.append(name)
        shape = (*self.outer.batch_of(fn), *lead, *fn.event_shape)
        return ops.broadcast_to(ops.asarray(values[0]), shape)

    def _observed_series(self, name: str, fn: Any, length: int, is_fixed: bool) -> Any:
        if name in self.data:
            return self.outer.given_series(self.data[name], fn)
        if is_fixed:
            return self.outer.series(name, fn, length, True)
        first = self._first_value(name, self.run.sites[name]["distribution"], fn, (length,))
        if first is not None:
            return self.outer.given_series(first, fn)
        # q reads no data: they could only move supports, which then are NaN, as are the draws.
        shape = (*self.outer.batch_of(fn), length, *fn.event_shape)
        return self.outer.given_series(ops.broadcast_to(ops.asarray(math.nan), shape), fn)

    def sample_series(
        self, name: str, series: Any, value: Any, kept: dict[str, Any], length: int
    ) -> Any:
        site = self.run.sites.pop(name)
        if name not in self.drawn:
            return value
        q, built, u, transform, ndim = self.drawn.pop(name)
        declared = site["distribution"]
        if _is_real(declared):
            self.run.sites[name] = {**site, "distribution": q}
            self.outer.sample(name, built, value)
        else:
            onto = _Onto(transform, declared, ndim, False)
            known = dist.Transformed(q, onto, event_shape=site["event_shape"])
            self.run.sites[name] = {**site, "distribution": known}
            log_q = built.log_prob(u) - self.outer.summed(kept["more"], series.first)
            self.outer.declare_series(name, series.first, value, log_q, None, length)
        self.left.discard(name)
        if not self.left:
            raise _Done
        return value

    def _observed(self, name: str, obs: Any) -> Any:
        if obs is None and name not in self.data:
            raise AlgorithmError(
                f"{type(self.family).__name__}: the program observes {name!r} before its last "
                f"latent, expected its value; give it: inputs={{{name!r}: the data}}, or declare "
                "the latents first."
            )
        return self.data[name] if obs is None else obs

    def _place(self, name: str, plates: tuple[int, ...], free: tuple[int, ...]) -> LatentPlace:
        is_local = DATA_PLATE in self.run.active
        axis = len(plates) + self.run.active[DATA_PLATE][0] if is_local else None

        def parameter(what: str, shape: tuple[int, ...], value: float) -> Array:
            full = f"guide/{name}/{what}"
            if not is_local:
                return self._net(full, shape, value)
            known = full in self.run.params
            if self.rows is None or (not known and self.num_data is None):
                raise AlgorithmError(
                    f"{type(self.family).__name__}: latent {name!r} has a q of its own for each of "
                    f"the data of the fit, expected the numbers of their rows: "
                    f"inputs={{{ROW!r}: np.arange(n)}} for all n of them; for data that were "
                    "not fitted write a guide that reads them (an encoder)."
                )
            size = 0 if self.num_data is None else self.num_data
            return ops.take(self._net(full, (size, *shape), value), self.rows)

        return LatentPlace(name, plates, free, axis, self.totals[is_local], parameter)

    def _net(self, name: str, shape: tuple[int, ...], value: float) -> Array:
        """A parameter by its full name, also inside of a part."""
        before = self.run.prefix, self.run.rename
        self.run.prefix, self.run.rename = "", {}
        try:
            return net(name, Parameter(tuple(map(int, shape)), value))()
        finally:
            self.run.prefix, self.run.rename = before


def _free_event(transform: Any, fn: Any, plates: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of one u; a support that depends on other latents has their particles in front."""
    lead = max(len(fn.batch_shape), len(plates))
    shape = (*(1,) * (lead - len(plates)), *plates, *fn.event_shape)
    return tuple(transform.inverse_shape(shape))[lead:]


def _is_real(declaration: Any) -> bool:
    found = support_of(declaration)
    if found is None or found.low is None:
        return False
    return bool(np.all(np.isneginf(found.low)) and np.all(np.isposinf(found.high)))


def _summed(log_det: Array, ndim: int) -> Array:
    """A log |det| with as many axes as the batch has: some libraries' leave axes unsummed."""
    more = log_det.ndim - ndim
    return ops.sum(log_det, axis=tuple(range(-more, 0))) if more else log_det


class _Onto:
    """A library's bijection for `dist.Transformed`; `like`: the prior, whose support it maps onto.

    The last value keeps its u, so that log q of a draw does not invert what rounding has flattened.
    """

    def __init__(self, transform: Any, like: Any, event_ndim: int, is_real: bool):
        self.transform, self.like, self.event_ndim = transform, like, event_ndim
        self.is_real = is_real
        self.last: Any = (None, None)

    def forward(self, u: Array) -> Array:
        value = self.transform(u)
        self.last = (value, u)
        return value

    def back(self, value: Array) -> Array:
        """u of a value."""
        if self.is_real:
            return value
        return self.last[1] if self.last[0] is value else self.transform.inv(value)

    def inverse_and_log_det(self, value: Array) -> tuple[Array, Array]:
        u = self.back(value)
        log_det = self.transform.log_abs_det_jacobian(u, value)
        return u, -_summed(log_det, u.ndim - self.event_ndim)
