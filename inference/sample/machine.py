"""What the state machines of HMC and NUTS share: places, leapfrogs, what a step is given and tells.

    Machine   begin(place, noise, length) -> state
              step(state, noise, size, scale, length, *args) -> (state, told)

All chains move at once, [chain, ...]; a chain that ends a transition begins the next one in the
same step. `told` has x and statistics, [chain, ...], of which those count where `done` is true.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from probgen.engine.markov import DIVERGED as DIVERGED

Array = Any


class Machine(NamedTuple):
    """See the head of this file.

    `length` is that of a trajectory in time, [chain], for machines that have one; `size` the step
    size, [chain]; `scale` the root of the inverse mass matrix, (A v, A' v) as two functions.
    """

    begin: Callable
    step: Callable


class Noise(NamedTuple):
    """What a step may draw: [chain, d] standard normal, [chain, 3] uniform on [0, 1)."""

    normal: Array
    uniform: Array


class Place(NamedTuple):
    """A position [chain, d]; A' times the gradient of the log density there, [chain, d]; the log
    density [chain] and H with the momentum that it was reached with [chain], nats."""

    x: Array
    score: Array
    log_density: Array
    energy: Array


class End(NamedTuple):
    """An end of a trajectory, [chain, d] each: position, momentum and score."""

    x: Array
    p: Array
    score: Array


def dot(ops: Any, a: Array, b: Array) -> Array:
    """a'b over the last axis."""
    return ops.sum(a * b, axis=-1)


def choose(ops: Any, which: Array, new: Any, old: Any) -> Any:
    """Of each chain the new array, or tuple of arrays, where `which` says so."""
    if not isinstance(new, tuple):
        return ops.where(which if new.ndim == 1 else ops.expand_dims(which, -1), new, old)
    wide = ops.expand_dims(which, -1)
    return type(new)(
        *(ops.where(which if a.ndim == 1 else wide, a, b) for a, b in zip(new, old, strict=True))
    )


def leapfrog(
    ops: Any, climb: Callable, end: End, size: Array, scale: Any, *args: Any
) -> tuple[End, Place]:
    """One step of the integrator from an end: the new end, and the place there."""
    push, pull = scale
    h = ops.expand_dims(size, -1)
    half = end.p + 0.5 * h * end.score
    x = end.x + h * push(half)
    log_density, grad = climb(x, *args)
    score = pull(grad)
    p = half + 0.5 * h * score
    energy = 0.5 * dot(ops, p, p) - log_density
    return End(x, p, score), Place(x, score, log_density, energy)


def started(ops: Any, energy: Array, here: Place) -> Array:
    """H_0 - H, the log weight of a place; -inf where H is no number."""
    gain = energy - here.energy
    return ops.where(ops.isnan(gain), -float("inf"), gain)
