"""`dist.Transformed`, `dist.Density` and `dist.ImproperUniform` for both libraries, written once.

    y = f(x),  x ~ base:     log p(y) = log p_base(f^-1(y)) + log |det d f^-1 / dy|

A backend's own class takes a `Law` and, where there is one, the base as its library's distribution;
`Written` is what the two classes share. What is not looked at is whether the given functions are
each other's inverse, or a given density integrates to one: that is their author's word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from probgen.errors import AlgorithmError, ShapeError
from probgen.language import ops
from probgen.language.constraints import BijectTo, Constraint, constraint, guard
from probgen.language.dist import Deferred
from probgen.language.noise import NoiseMap
from probgen.language.run import within_run
from probgen.language.supports import constraint_of

Array = Any
NAMES = ("Transformed", "Density", "ImproperUniform")


class Law(NamedTuple):
    """A distribution by its functions.

    Attributes:
        name: of the family.
        event_shape, support: of its values.
        log_prob: (values [*batch, *event], base) -> [*batch], nats, inside the support.
        draw: from the base's value, or else from noise [*batch, *noise_shape]; None: no draws.
        noise_shape: of the noise of one event, where there is no base.
    """

    name: str
    event_shape: tuple[int, ...]
    support: Constraint
    log_prob: Callable[[Array, Any], Array]
    draw: Callable[[Array], Array] | None
    noise_shape: tuple[int, ...] = ()


class Written:
    """What a library's class of a `Law` does; `inner` is the base, None where there is none."""

    law: Law
    inner: Any
    batch_shape: Any

    def log_prob(self, value: Array, *intermediates: Any) -> Array:
        """[*batch] log density, nats; -inf outside the support, NaN for NaN."""
        law = self.law
        ok, safe = guard(law.support, value, len(law.event_shape))
        found = law.log_prob(safe, self.inner)
        return found if ok is None else ops.where(ok, found, float("-inf"))

    @property
    def has_draw(self) -> bool:
        """Whether it can be drawn from."""
        return self.law.draw is not None and (self.inner is None or has_draw(self.inner))

    @property
    def mean(self) -> Array:
        """Of what is computed, a draw without noise: the draw itself, [*batch, *event]."""
        law = self.law
        if self.inner is not None or law.draw is None or law.noise_shape != (0,):
            raise NotImplementedError(f"dist.{law.name} by functions has no known mean")
        return law.draw(np.zeros((*self.batch_shape, 0), np.float32))

    def noise_map(self, of_base: NoiseMap | None) -> NoiseMap | None:
        """It as a function of noise; of the base's where there is one."""
        draw = self.law.draw
        if draw is None or (self.inner is not None and of_base is None):
            return None
        if self.law.name == "ImproperUniform":
            return None  # its draws are starts: their noise has another density than theirs
        if of_base is None:
            return NoiseMap(self.law.noise_shape, draw)
        return NoiseMap(of_base.shape, lambda eps: draw(of_base.value(eps)))

    def drawn(self, base: Callable[[Any], Array], normal: Callable[[tuple], Array]) -> Array:
        """A draw: `base(inner)` draws of the base, `normal(noise_shape)` of noise."""
        if self.law.draw is None:
            raise AlgorithmError(NO_DRAW.format(name=self.law.name))
        given = base(self.inner) if self.inner is not None else normal(self.law.noise_shape)
        return self.law.draw(given)


NO_DRAW = (
    "dist.{name}: has no draws, expected draw=, a function of normal noise, where draws are asked "
    "for; a chain (NUTS, Langevin) draws from its density."
)


def has_draw(fn: Any) -> bool:
    """Whether a library's distribution, perhaps under wrappers, can be drawn from."""
    while not isinstance(fn, Written) and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn.has_draw if isinstance(fn, Written) else True


def stand_in(fn: Any, like: Array, batch: tuple[int, ...]) -> Array:
    """A value inside the support of what has no draws, for a run that looks at shapes alone."""
    base = fn
    while not isinstance(base, Written):
        base = base.base_dist
    shape = (*batch, *fn.event_shape)
    return base.law.support.middle(ops.broadcast_to(like, shape))


def law_of(deferred: Deferred, base: Any, bijection: Callable, site: str) -> tuple[Law, Any]:
    """(the law that a declaration means, the base that its class is given).

    Args:
        base: of a `Transformed`, or where an `ImproperUniform` starts; built.
        bijection: (support, event shape of the base) -> forward, inverse_and_log_det, event shape.
        site: for messages.
    """
    given = dict(deferred.arguments)
    if deferred.name != "Transformed":
        return _density(deferred, given, site, base), base
    forward, inverse, shape = given["forward"], given.get("inverse_and_log_det"), base.event_shape
    if isinstance(forward, BijectTo):
        if constraint(forward.support).event_ndim and len(shape) != 1:
            raise ShapeError(
                f"site {site!r}: got a base with events of shape {tuple(shape)} for {forward!r}, "
                "expected vectors; declare it with .expand([n]).to_event(1)."
            )
        forward, inverse, shape = bijection(forward.support, tuple(shape))
    elif inverse is None:
        forward, inverse = forward.forward, forward.inverse_and_log_det
    shape = tuple(given.get("event_shape", shape))
    forward, inverse = within_run(forward), within_run(inverse)

    both = getattr(given["forward"], "forward_and_log_det", None)
    both, last = both and within_run(both), [(None, None, None)]

    def log_prob(y: Array, inner: Any) -> Array:
        own, x, log_det = last[0]
        if own is None or y is not own:
            x, log_det = inverse(y)
        found = inner.log_prob(x)
        _check_log_det(site, found, log_det, y.ndim - len(shape))
        return found + log_det

    def draw(x: Array) -> Array:
        if both is None:
            return _checked(site, "forward", forward(x), shape)
        y, log_det = both(x)
        last[0] = (_checked(site, "forward", y, shape), x, -log_det)
        return y

    return Law("Transformed", shape, constraint_of(deferred), log_prob, draw), base


def _density(deferred: Deferred, given: dict, site: str, start: Any) -> Law:
    of_start = () if start is None else tuple(start.event_shape)
    name, shape = deferred.name, tuple(given.get("event_shape", of_start))
    support = constraint_of(deferred)
    if name == "ImproperUniform":
        ndim = len(shape)

        def flat(x: Array, inner: Any) -> Array:
            return 0.0 * (ops.sum(x, axis=tuple(range(-ndim, 0))) if ndim else x)

        begin = None if start is None else lambda x: _checked(site, "start", x, shape)
        return Law(name, shape, support, flat, begin)
    density, draw = within_run(given["log_prob"]), given.get("draw")

    def log_prob(x: Array, inner: Any) -> Array:
        found = density(x)
        want, got = tuple(x.shape)[: x.ndim - len(shape)], tuple(getattr(found, "shape", ()))
        if len(got) < len(want) or got[len(got) - len(want) :] != want:
            raise ShapeError(
                f"site {site!r}: the log_prob of dist.Density gives shape {got} for values of "
                f"shape {tuple(x.shape)}, expected {want}, one number an event of shape {shape}; "
                "sum over the event's axes, or give event_shape=."
            )
        return found

    drawn = None if draw is None else within_run(draw)
    make = None if drawn is None else lambda eps: _checked(site, "draw", drawn(eps), shape)
    return Law(name, shape, support, log_prob, make, tuple(given.get("noise_shape", shape)))


def _checked(site: str, what: str, value: Array, shape: tuple[int, ...]) -> Array:
    got = tuple(value.shape)
    if got[len(got) - len(shape) :] != shape:
        raise ShapeError(
            f"site {site!r}: {what} gives values of shape {got}, expected events of shape {shape} "
            "on their last axes; give event_shape= what one event has."
        )
    return value


def _check_log_det(site: str, of_base: Array, log_det: Any, batch_ndim: int) -> None:
    ndim = len(getattr(log_det, "shape", ()))
    # Observed values have no axis of particles, over which Pyro stretches the base.
    if ndim and ndim not in (of_base.ndim, batch_ndim):
        raise ShapeError(
            f"site {site!r}: inverse_and_log_det gives a log_det of shape {tuple(log_det.shape)}, "
            f"expected {tuple(of_base.shape)} as the base's log density, one number an event; sum "
            "it over the event's axes, and call .to_event on the base where a transform mixes "
            "them."
        )
