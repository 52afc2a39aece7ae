"""A loop over time with sites inside: `pg.scan`, one step for all of them.

    (carry, x_t) -> (carry, output_t),   z_t ~ p(z_t | carry, x_t),   t = 1 ... T

The step is run once beside the loop, for the names, shapes and supports of its sites; then the loop
runs over what their values are made of (given values, data, noise, positions on the real line),
which have the time in front. A site of the loop stands in the program as one variable,

    [*plates, T, *event]     of the density     sum_t log p(z_t | what came before)

so that a series is one event, and rows of data are series. What a law of a series is to a library
is in `probgen.backends.series`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from probgen.errors import BackendError, DeclarationError, DuplicateSite, ShapeError
from probgen.language import ops
from probgen.language.recursions import length_of
from probgen.language.run import Run, claim, current, held, moments, running_inside
from probgen.trees import tree_items, tree_leaves, tree_map

Array = Any
Tree = Any
TRIES = 4  # runs of the step in which its carry takes the shape that it keeps


def moved(x: Array, source: int, to: int) -> Array:
    """One axis put elsewhere."""
    axes = list(range(x.ndim))
    axes.insert(to % x.ndim, axes.pop(source))
    return x if axes == list(range(x.ndim)) else ops.transpose(x, axes)


def scan(
    name: str, step: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any = None,
    length: int | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """A loop over time whose step declares sites: state space models, AR, GARCH, random walks.

        def step(z, y):
            z = pg.sample("z", dist.Normal(0.9 * z, 1.0))
            return z, pg.sample("y", dist.Normal(z, 0.5), obs=y)

        pg.scan("t", step, 0.0, length=100)       # "y" is given by obs=, xs=, or as data of a verb

    The values of a site are [*plates, T, *event], data, draws and results alike: outside of plates
    a series of numbers is [T], inside the data plate (around the loop) data are [series, T]. Plates
    may also be opened in the step. `xs` and outputs have the time in front, as in `ops.scan`. A
    series is one event, so that its log-likelihood is one number, and minibatches are of series.

    The step may hold sample, deterministic, factor, net, plate, submodel and `ops.scan`. It is
    traced and compiled once, whatever T; on torch so where it pays (see `docs/time.md`).

    Args:
        name: of the time, beside the names of sites: the axis in results, the box in pictures.
        step: (carry, x_t) -> (carry, output_t); pure but for its sites.
        init: the first carry: a number, an array, a dict or tuple of them. It is stretched to the
            shape that the step gives it (by the data, say).
        xs: arrays [T, ...], or a dict or tuple of them; None for a step that reads none.
        length: T, needed without xs.

    Returns:
        (the last carry, the outputs stacked in front).

    Raises:
        ShapeError: no length, arrays of different lengths, a carry that keeps no shape, or events
            that grow with it.
        DuplicateSite: a name is taken.
        DeclarationError: one loop inside another.
        BackendError: in a native program (`to_pyro`, `to_numpyro`).
    """
    run = current("scan")
    full = claim(run, name, "scan")
    if isinstance(run.lower, Step):
        raise DeclarationError(
            f"pg.scan {full!r}: stands inside the step of {run.lower.loop!r}, expected one loop; "
            "give the inner loop no sites (ops.scan), or its sites an event axis."
        )
    if run.is_native:
        raise BackendError(
            f"pg.scan {full!r}: got a native program of {run.lower.library}, whose tools draw a "
            "site before its density is known, expected one of our verbs; use pg.infer, pg.fit, "
            "pg.generate or pg.evaluate."
        )
    return _Loop(run, full, step, length_of("pg.scan", xs, length)).go(init, xs)


class Step:
    """The hands of one step: sites take their value of the moment, and what they say is kept.

    Attributes:
        loop: name of the loop it belongs to.
        now: what the sites' values are made of at this moment; None: this run finds out.
    """

    def __init__(self, loop: _Loop, outer: Any, now: dict[str, Any] | None):
        self.loop, self.outer, self.now, self.series = loop.name, outer, now, loop.series
        self.length, self.is_first = loop.length, now is None
        self.kept: dict[str, dict[str, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.outer, name)

    def sample(self, name: str, fn: Any, obs: Any) -> Any:
        if self.is_first and name not in self.series:
            self.series[name] = self.outer.series(name, fn, self.length, obs is not None)
        series = self.series[name]
        if self.is_first:
            self._check_event(name, series, fn)
            x = tree_map(lambda v: v[0], series.xs)
        else:
            x = self.now[name]  # type: ignore[index]
        value, more = (obs, None) if series.is_fixed else series.value(fn, x)
        self.kept[name] = {
            "value": None if series.whole is not None else value, "more": more,
            "log_prob": fn.log_prob(value), "inside": self.outer.moving_inside(fn, value),
        }  # fmt: skip
        if self.is_first:
            series.first = fn
        return value

    def _check_event(self, name: str, series: Any, fn: Any) -> None:
        """What values are made of was laid out for the events of the first run."""
        shapes = [tuple(law.event_shape) for law in (series.first, fn) if law is not None]
        if shapes[0] != shapes[-1] and series.whole is None and not series.is_fixed:
            raise ShapeError(
                f"pg.scan {self.loop!r}: site {name!r} has events of shape {shapes[0]} by init and "
                f"of {shapes[1]} by the carry that the step returns, expected one shape for all "
                "moments; give init in the shape of the returned carry."
            )

    def factor(self, name: str, value: Any) -> None:
        self.kept[name] = {"log_prob": ops.asarray(value)}

    def deterministic(self, name: str, value: Any) -> Any:
        value = ops.asarray(value)
        self.kept[name] = {"value": value}
        return value


class _Loop:
    """One loop of a run."""

    def __init__(self, run: Run, name: str, step: Callable, length: int):
        self.run, self.name, self.step, self.length = run, name, step, length
        self.series: dict[str, Any] = {}
        self.sites: dict[str, dict] = {}
        self.seen = dict(run.seen)

    def go(self, init: Tree, xs: Tree) -> tuple[Tree, Tree]:
        run, module = self.run, self.run.lower.ops
        carry = tree_map(module.asarray, init)
        given = None if xs is None else tree_map(module.asarray, xs)
        carry, first = self._settled(carry, given)
        moments = {n: s.xs for n, s in self.series.items()}
        fixed = {n: v for n, v in held.get().items() if n in self.sites}
        fixed = {n: moved(v, self._lead(n, v), 0) for n, v in fixed.items()}

        def body(carry: Tree, at: Tree) -> tuple[Tree, Tree]:
            x, now, here = at
            _, new, out, hands = self._run(carry, x, now, here)
            return tree_map(_like, new, carry), (out, hands.kept)

        if run.lower.checks:  # a look at shapes and types: one moment stands for all
            last, stacked = first[0], tree_map(self._repeated, first[1:])
        else:
            last, stacked = module.scan(body, carry, (given, moments, fixed), self.length)
        outputs, kept = stacked
        for name in self.sites:
            self._declare(name, kept[name])
        return last, outputs

    def _repeated(self, x: Array) -> Array:
        return ops.broadcast_to(x[None], (self.length, *x.shape))

    def _settled(self, carry: Tree, xs: Tree) -> tuple[Tree, tuple]:
        """The carry in the shape that it keeps, and (carry, output, what is kept) of one step."""
        x = None if xs is None else tree_map(lambda v: v[0], xs)
        for _ in range(TRIES):
            inner, new, out, hands = self._run(carry, x, None, {})
            self._check_form(carry, new)
            pairs = list(zip(tree_leaves(carry), tree_leaves(new), strict=True))
            if not all(_may_meet(a.shape, b.shape) for a, b in pairs):
                break
            wide = tree_map(_like, carry, new)
            pairs = list(zip(tree_leaves(wide), tree_leaves(carry), strict=True))
            if all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs):
                self._take(inner)
                return carry, (tree_map(_like, new, carry), out, hands.kept)
            carry = wide
        shapes = [[tuple(v.shape) for v in tree_leaves(t)] for t in (carry, new)]
        raise ShapeError(
            f"pg.scan {self.name!r}: the step makes of a carry of the shapes {shapes[0]} one of "
            f"{shapes[1]}, expected one shape for all moments; return a carry of init's shape."
        )

    def _check_form(self, carry: Tree, new: Tree) -> None:
        old, got = ([".".join(p) for p, _ in tree_items(t)] for t in (carry, new))
        if old != got:
            raise ShapeError(
                f"pg.scan {self.name!r}: the step returns a carry with the parts {got}, expected "
                f"those of init, {old}; return (carry, output), the carry of init's form."
            )

    def _run(self, carry: Tree, x: Tree, now: Any, here: dict) -> tuple[Run, Tree, Tree, Step]:
        """One step: its run, the new carry, the output as arrays, and its hands."""
        run = self.run
        hands = Step(self, run.lower, now)
        inner = dataclasses.replace(
            run, lower=hands, sites={}, values={}, seen=dict(self.seen), rename=dict(run.rename)
        )
        token = held.set(here)
        try:
            with running_inside(inner):
                result = self.step(carry, x)
        finally:
            held.reset(token)
        if not isinstance(result, tuple) or len(result) != 2:
            raise DeclarationError(
                f"pg.scan {self.name!r}: the step returns {type(result).__name__}, expected a pair "
                "(carry, output); return carry, None where there is no output."
            )
        asarray = run.lower.ops.asarray
        return inner, tree_map(asarray, result[0]), tree_map(asarray, result[1]), hands

    def _take(self, inner: Run) -> None:
        """What a run of the step has shown of its sites."""
        run = self.run
        run.seen.update(inner.seen)
        for name, site in inner.sites.items():
            if name in run.plates:
                raise DuplicateSite(f"site {name!r} has the name of a plate; rename it.")
            self.sites[name] = {**site, "scan": (self.name, self.length)}

    def _lead(self, name: str, value: Array) -> int:
        """How many axes of a deterministic value are plates', where its time goes."""
        run, plates = self.run, self.sites[name]["plates"]
        dims = {p: run.plates[p][0] for p in plates}
        sizes = {d: run.plates[p][1].size for p, d in dims.items()}
        want = [sizes.get(-i, 1) for i in range(max((-d for d in sizes), default=0), 0, -1)]
        if run.particles is not None:
            with_particles = [run.particles[0], *want]
            if _fits(value.shape, with_particles):
                return len(with_particles)
        return len(want) if _fits(value.shape, want) else 0

    def _declare(self, name: str, kept: dict) -> None:
        """One variable of the program, in the plates that it stood in."""
        run, site = self.run, self.sites[name]
        with self._plates(site["plates"]):
            into = moments.get()
            if into is not None and "log_prob" in kept:
                law = self.series[name].first if name in self.series else None
                into[name] = run.lower.by_moment(kept, law, self.length)
            if site["kind"] == "factor":
                run.sites[name] = site
                run.lower.factor(name, ops.sum(kept["log_prob"], axis=0))
            elif site["kind"] == "deterministic":
                run.sites[name] = site
                value = kept["value"]
                value = moved(value, 0, self._lead(name, value[0]))
                value = held.get().get(name, value)
                run.values[name] = run.lower.deterministic(name, value)
            else:
                series = self.series[name]
                ndim = len(site["event_shape"])
                whole = series.whole
                if whole is None:
                    whole = moved(kept["value"], 0, -1 - ndim)
                site["event_shape"] = (self.length, *site["event_shape"])
                run.sites[name] = site
                run.values[name] = run.lower.sample_series(name, series, whole, kept, self.length)

    @contextlib.contextmanager
    def _plates(self, names: tuple[str, ...]) -> Iterator[None]:
        """The plates that were opened in the step, opened again."""
        run = self.run
        with contextlib.ExitStack() as stack:
            new = [p for p in names if p not in run.active]
            for plate in new:
                dim, opened = run.plates[plate]
                stack.enter_context(opened)
                run.active[plate] = (dim, opened.size)
            try:
                yield
            finally:
                for plate in new:
                    del run.active[plate]


def _fits(shape: Any, plates: list[int]) -> bool:
    head = tuple(shape)[: len(plates)]
    return len(head) == len(plates) and all(h in (1, p) for h, p in zip(head, plates, strict=True))


def _may_meet(a: Any, b: Any) -> bool:
    """Whether two shapes stretch to one, from the right."""
    return all(m in (1, n) or n == 1 for m, n in zip(a[::-1], b[::-1], strict=False))


def _like(x: Array, other: Array) -> Array:
    """`x` stretched to the shape, and promoted to the type, that it has together with `other`."""
    same = x.shape == other.shape and x.dtype == other.dtype
    return x if same else x + ops.zeros_like(other)
