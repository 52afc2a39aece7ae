"""Adaptive Runge-Kutta steps with a stated error, each datum with steps of its own.

Dormand and Prince's pair of orders five and four: the step goes on with the fifth, and the
difference of the two, e, is what the step is judged by. A step of length h along a way of length L
is kept where

    cost(e) <= tolerance h / L + rounding,      rounding: 4e-7 of cost(h dy)

so that the costs of all steps add up to the tolerance at most, whatever their number (error per
unit step). `cost` says what an error of the state costs in the caller's units. That e is a step's
error is a guess that may be wrong where the right-hand side turns sharply: whoever needs to know
solves twice, with another tolerance. One call of `step`
moves every datum once; data that have arrived stay, so that the numbers of a datum do not depend on
its neighbours.

Sources: Dormand & Prince 1980, J. Comput. Appl. Math. 6; Hairer, Norsett & Wanner 1993, II.4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from probgen.backends.protocol import Backend

Array = Any
Tree = Any

_A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
STAGES = len(_A)  # calls of the right-hand side a step: the first is the last of the step before
TABLEAU = np.array([[*row, *[0.0] * (7 - len(row))] for row in _A])  # [6, 7]
REACH = TABLEAU.sum(1)
ERROR = np.array(
    [71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40]
)  # of order five minus order four
SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0
ROUNDING = 4e-7  # of single precision: shorter steps would not be better


class Moving(NamedTuple):
    """All data on their ways.

    Attributes:
        at: [n] where each is; h: [n] how far it will try to go next.
        y: its state, a dict of arrays [n, ...]; slope: dy there.
        tolerance: [n] of each, for its whole way.
        cost: [n] of the errors of its steps so far; tries: [n] steps, kept or not.
    """

    at: Array
    h: Array
    y: dict[str, Array]
    slope: dict[str, Array]
    tolerance: Array
    cost: Array
    tries: Array


def adaptive_step(
    backend: Backend, derivative: Callable, cost: Callable, *, length: float, max_steps: int
) -> Callable:
    """(moving, *args) -> moving, for derivative(y, at [n], *args) -> dy.

    Args:
        cost: (error of y, y, dy, at, *args) -> [n], at the step's end, not negative.
        length: of the way from 0.
        max_steps: no step is shorter than two of so many parts of the way. Steps of that length
            are kept whatever they cost, which `cost` tells.
    """
    b, ops = backend, backend.ops
    least = 2.0 * length / max_steps

    def weighted(weights: Array, slopes: dict) -> dict:
        return {k: ops.einsum("s,s...->...", weights, v) for k, v in slopes.items()}

    def moved(y: dict, h: Array, dy: dict) -> dict:
        return {k: v + ops.reshape(h, (-1, *[1] * (v.ndim - 1))) * dy[k] for k, v in y.items()}

    def step(now: Moving, *args: Any) -> Moving:
        left = length - now.at
        is_last = now.h >= left
        h = ops.where(is_last, left, now.h)  # 0 for who has arrived

        def stage(carry: tuple[dict, dict], row: tuple) -> tuple[tuple[dict, dict], None]:
            slopes, _ = carry
            weights, reach, place = row
            y = moved(now.y, h, weighted(weights, slopes))
            slope = derivative(y, now.at + reach * h, *args)
            put = {
                k: v + ops.reshape(place, (-1, *[1] * (v.ndim - 1))) * slope[k]
                for k, v in slopes.items()
            }
            return (put, y), None

        first = {k: ops.stack([v, *[0.0 * v] * STAGES]) for k, v in now.slope.items()}
        rows = tuple(b.asarray(v) for v in (TABLEAU, REACH, np.eye(STAGES + 1)[1:]))
        (slopes, y), _ = b.scan(stage, (first, now.y), rows)
        last = {k: v[STAGES] for k, v in slopes.items()}
        error = moved({k: 0.0 * v for k, v in y.items()}, h, weighted(b.asarray(ERROR), slopes))
        at = ops.where(is_last, 0.0 * left + length, now.at + h)
        price = cost(error, y, last, at, *args)
        whole = cost(moved({k: 0.0 * v for k, v in y.items()}, h, last), y, last, at, *args)
        allowed = now.tolerance * h / length + ROUNDING * whole
        is_kept = (price <= allowed) | (h <= least)
        # The price goes as h^5, what is allowed as h.
        tiny = 1e-12 * now.tolerance
        factor = SAFETY * (ops.maximum(allowed, tiny) / ops.maximum(price, tiny)) ** 0.25
        factor = ops.where(ops.isfinite(factor), ops.clip(factor, SHRINK, GROW), SHRINK)

        def kept(new: Array, old: Array) -> Array:
            return ops.where(ops.reshape(is_kept, (-1, *[1] * (new.ndim - 1))), new, old)

        return Moving(
            kept(at, now.at), ops.maximum(h * factor, 0.0 * h + least),
            {k: kept(v, now.y[k]) for k, v in y.items()},
            {k: kept(v, now.slope[k]) for k, v in last.items()},
            now.tolerance, now.cost + kept(price, 0.0 * price),
            now.tries + ops.where(left > 0.0, 1.0, 0.0),
        )  # fmt: skip

    return step


def solve_adaptively(
    backend: Backend, step: Callable, start: Moving, length: float, max_steps: int, *args: Any
) -> Moving:
    """All data at the end of their ways; `step` is one of `adaptive_step`, or compiled.

    At most `max_steps` steps, and none once all have arrived.
    """
    ops = backend.ops

    def one(now: Moving, _: Any) -> tuple[Moving, None]:
        some = ops.any(now.at < length)
        return backend.cond(some, lambda s: step(s, *args), lambda s: s, now), None

    return backend.scan(one, start, length=max_steps)[0]
