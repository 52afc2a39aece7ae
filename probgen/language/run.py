"""A run of a program: the state that its words talk to, and the names that backends share.

Outside a run a program is only a declaration. A backend runs it by making a `Run`, which the words
(`probgen.language.program`) find in a context variable. The run is the only state, it belongs to
one call, and it is gone when that returns.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from probgen.errors import DeclarationError, DuplicateSite
from probgen.language.ops import running_ops
from probgen.language.recursions import looping
from probgen.language.wording import caller

DATA_PLATE = "data"
ROW = "row"  # the entry of a batch with the numbers of its rows in the data of the fit
PARTICLES = "_particles"
NOT_NORMAL = (
    "site {name!r}: got noise for a {kind}, which is not a function of normal noise, expected a "
    "Normal, a LogNormal, a dist.Transformed of one, or another of probgen.language.noise; use "
    "space='data' or another distribution."
)
NO_BIJECTION = (
    "site {name!r}: got a latent of support {support}, which has no map from the real line, "
    "expected a support such as real, positive, interval or simplex; choose another distribution."
)


@dataclasses.dataclass
class Run:
    """One execution of a program on a backend.

    Attributes:
        lower: the backend's hands: `sample`, `factor`, `deterministic`, `plate`, `build`, `ops`.
        params: nested dict, one entry a net.
        batch_size: size of the data plate, or None when the program has none.
        initialise: called as `initialise(name, declaration, event_shapes)` for a net without
            parameters; None when parameters must exist.
        particles: (size, dim) of an outermost plate of particles, or None.
        is_native: handlers of Pyro or NumPyro stand around the run, and may add axes on the left.
    """

    lower: Any
    params: dict
    batch_size: int | None = None
    initialise: Callable | None = None
    particles: tuple[int, int] | None = None
    is_native: bool = False
    prefix: str = ""
    rename: dict[str, str] = dataclasses.field(default_factory=dict)
    plates: dict[str, tuple[int, Any]] = dataclasses.field(default_factory=dict)
    active: dict[str, tuple[int, int]] = dataclasses.field(
        default_factory=dict
    )  # name: (dim, size)
    seen: dict[str, str] = dataclasses.field(default_factory=dict)  # site: file and line
    sites: dict[str, dict] = dataclasses.field(default_factory=dict)
    nets: dict[str, Any] = dataclasses.field(default_factory=dict)
    values: dict[str, Any] = dataclasses.field(default_factory=dict)

    def full_name(self, name: str) -> str:
        return self.rename.get(name, self.prefix + name)

    def plate_shape(self) -> tuple[int, ...]:
        """Sizes of the open plates, the particles' left out, right-aligned; 1 where none lies."""
        dims = dict(v for k, v in self.active.items() if k != PARTICLES)
        return tuple(dims.get(-i, 1) for i in range(max((-d for d in dims), default=0), 0, -1))


_run: contextvars.ContextVar[Run | None] = contextvars.ContextVar("probgen_run", default=None)
# Asked at each call of a net, (name, declaration, event shapes, inputs) -> parameters, or None for
# those of the run: how nets start from a first batch of their inputs (`probgen.engine.data_init`).
on_call: contextvars.ContextVar[Callable | None] = contextvars.ContextVar("on_call", default=None)
# Values in place of deterministic sites: how `probgen.views.describe` asks what depends on them.
held: contextvars.ContextVar[dict] = contextvars.ContextVar("probgen_held", default={})  # noqa: B039

# Filled with the log density of each moment of a loop's sites, [T, *particles, *data], by name
# (`probgen.engine.messages`).
moments: contextvars.ContextVar[dict | None] = contextvars.ContextVar("moments", default=None)


@contextlib.contextmanager
def running(run: Run) -> Iterator[Run]:
    """Makes `run` the one that the words talk to; for backends."""
    token, ops_token = _run.set(run), running_ops.set(run.lower.ops)
    try:
        with contextlib.ExitStack() as stack:
            if run.particles is not None:
                size, dim = run.particles
                stack.enter_context(run.lower.plate(PARTICLES, size, dim))
                run.active[PARTICLES] = (dim, size)
            yield run
    finally:
        running_ops.reset(ops_token)
        _run.reset(token)


def within_run(fn: Callable) -> Callable:
    """`fn` as if it were called here: `pg.net` in it finds this run, its names and open plates.

    A distribution's own functions are also called when the run has ended, for log densities.
    """
    run = _run.get()
    if run is None:
        return fn
    here = dataclasses.replace(run, rename=dict(run.rename), active=dict(run.active))

    def call(*args: Any) -> Any:
        with running_inside(here):
            return fn(*args)

    return call


@contextlib.contextmanager
def running_inside(here: Run) -> Iterator[None]:
    """A part of a run as the run that the words talk to."""
    token, ops_token = _run.set(here), running_ops.set(here.lower.ops)
    try:
        yield
    finally:
        running_ops.reset(ops_token)
        _run.reset(token)


def current(word: str) -> Run:
    """The run that is going on, or an error that says what a program is for."""
    run = _run.get()
    if run is None:
        raise DeclarationError(
            f"pg.{word}: called outside a run, expected inside a program; decorate the function "
            "with @pg.model and give it to pg.fit, pg.infer, pg.generate or pg.evaluate."
        )
    return run


def claim(run: Run, name: str, what: str) -> str:
    """The full name of a new site (or loop), now taken.

    Raises:
        DeclarationError: no name, or inside a step of `ops.scan`. DuplicateSite: it is taken.
    """
    if not isinstance(name, str) or not name:
        raise DeclarationError(f"pg.{what}: got the name {name!r}, expected a non-empty string.")
    full, here = run.full_name(name), caller()
    if looping.get():
        raise DeclarationError(
            f"site {full!r}: is declared at {here} inside a step of ops.scan, expected no sites "
            "there; use pg.scan(name, step, ...), whose step may declare sites."
        )
    if full in run.seen or full in run.plates or full == DATA_PLATE:
        raise DuplicateSite(
            f"site {full!r} is declared at {run.seen.get(full, 'a plate')} and at {here}, expected "
            "one name per site; rename one, or share the value if they are one variable."
        )
    run.seen[full] = here
    return full
