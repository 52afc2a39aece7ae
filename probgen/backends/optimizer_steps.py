"""Optimiser declarations as pure updates in `ops`: for steps that are compiled or mapped whole.

A long fit uses the backends' own (optax, torch's fused kernels); what is optimised for each datum
apart wants the update inside the step's graph. The formulas are those of `probgen.optim`.
"""

from __future__ import annotations

import math
from typing import Any

from probgen.backends.protocol import Optimizer
from probgen.language import ops, optim
from probgen.trees import tree_leaves, tree_like, tree_map

Array = Any


def pure(declaration: optim.OptimizerDeclaration) -> Optimizer:
    """init(params) -> state; update(grads, state, params) -> (params, state), nothing in place.

    The state holds what the next update multiplies by, so that these few scalars are computed once
    a step and not, by a compiler that fuses them, once an entry.
    """
    d = declaration
    is_adam = isinstance(d, optim.Adam)

    def factors(count: Array) -> dict[str, Array]:
        """Of the update that follows `count` finished ones."""
        rate = ops.asarray_like(d.learning_rate_at(count), count)
        if not is_adam:
            return {"rate": rate}
        t = count + 1.0
        return {
            "rate": rate,
            "size": rate / _unbias(d.b1, t),  # type: ignore[attr-defined]
            "scale": 1.0 / ops.sqrt(_unbias(d.b2, t)),  # type: ignore[attr-defined]
        }

    def init(params: Any) -> dict:
        def zeros() -> Any:
            return tree_map(lambda p: ops.full_like(p, 0.0), params)

        count = ops.asarray_like(0.0, tree_leaves(params)[0])
        moments = [zeros() for _ in range(d.num_moments)]
        return {"count": count, "factors": factors(count), "moments": moments}

    def update(grads: Any, state: dict, params: Any) -> tuple[Any, dict]:
        ps, gs = tree_leaves(params), tree_leaves(grads)
        ms = [tree_leaves(m) for m in state["moments"]]
        if is_adam and d.clip_by_moment is not None:  # type: ignore[attr-defined]
            bounds = moment_bounds(d, state["count"], ms[1])
            gs = [ops.maximum(-c, ops.minimum(g, c)) for g, c in zip(gs, bounds, strict=True)]
        if d.clip_norm is not None:
            squares: Any = sum(ops.sum(g * g) for g in gs)
            gs = [g * ops.minimum(d.clip_norm / ops.sqrt(squares), 1.0) for g in gs]
        if d.weight_decay and not getattr(d, "decoupled", False):
            gs = [g + d.weight_decay * p for g, p in zip(gs, ps, strict=True)]
        new, ms = (_adam if is_adam else _sgd)(d, ps, gs, ms, state["factors"])
        count = state["count"] + 1.0
        moments = [tree_like(params, m) for m in ms]
        state = {"count": count, "factors": factors(count), "moments": moments}
        return tree_like(params, new), state

    return Optimizer(init, update)


def _adam(d: Any, ps: list, gs: list, ms: list, by: dict) -> tuple[list, list]:
    first = [m + (1 - d.b1) * (g - m) for m, g in zip(ms[0], gs, strict=True)]
    second = [d.b2 * v + (1 - d.b2) * (g * g) for v, g in zip(ms[1], gs, strict=True)]
    new = []
    for p, m, v in zip(ps, first, second, strict=True):
        # One division and one root an entry: on a CPU this line is much of a step's time.
        move = by["size"] * (m / (ops.sqrt(v) * by["scale"] + d.eps))
        if d.decoupled and d.weight_decay:
            move = move + by["rate"] * d.weight_decay * p
        new.append(p - move)
    return new, [first, second]


def moment_bounds(d: Any, count: Array, seconds: list) -> list:
    """a sqrt(v / (1 - b2^count)) + b for each element; no bound where no moment is known yet.

    Args:
        d: an `optim.Adam` with `clip_by_moment`.
        count: finished updates.
        seconds: the second moments v after them.
    """
    slope, floor = d.clip_by_moment
    known = count > 0.0
    scale = slope / ops.sqrt(ops.where(known, _unbias(d.b2, count), 1.0))
    least = ops.where(known, floor, math.inf)
    return [ops.sqrt(v) * scale + least for v in seconds]


def _unbias(b: float, t: Array) -> Array:
    """1 - b^t by expm1: in float32 the plain difference is off by 5e-5 at the first steps."""
    return -ops.expm1(t * math.log(b)) if b else 1.0 + 0.0 * t


def _sgd(d: Any, ps: list, gs: list, ms: list, by: dict) -> tuple[list, list]:
    if d.momentum:
        ms = [[d.momentum * m + g for m, g in zip(ms[0], gs, strict=True)]]
        gs = [g + d.momentum * m for g, m in zip(gs, ms[0], strict=True)] if d.nesterov else ms[0]
    return [p - by["rate"] * g for p, g in zip(ps, gs, strict=True)], ms
