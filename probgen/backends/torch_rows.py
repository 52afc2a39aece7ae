"""One optimisation for each datum, on torch: a compiled step one by one, or stacks of them.

One by one, gradient and update are one compiled graph and a copy of the parameters stays in the
cache: best for large copies on a CPU. In stacks the gradients are those of `vmap` and the update is
elementwise, so a stack of copies is as good as copies apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from probgen import optim
from probgen.backends import keys, torch_random
from probgen.backends.protocol import Optimizer
from probgen.errors import NotByRow
from probgen.trees import tree_leaves, tree_like, tree_map

LARGE, SMALL = 2**18, 2**16  # parameters: on a CPU one copy at a time, a few, or many


def rows_at_once(device: str, num_parameters: int) -> int:
    """On a CPU what stays in the cache; else 2 GiB's worth."""
    if device == "cpu":
        return 1 if num_parameters >= LARGE else 8 if num_parameters >= SMALL else 64
    return max(1, min(256, 2**31 // max(16 * num_parameters, 1)))


def functional(declaration: optim.OptimizerDeclaration) -> Optimizer:
    """The update as a pure function of tensors, for graphs and for `vmap`; the same formulas."""
    moments = declaration.num_moments

    def init(params: Any) -> dict:
        first = tree_leaves(params)[0]
        return {
            "count": torch.zeros((), device=first.device),
            "moments": [tree_map(torch.zeros_like, params) for _ in range(moments)],
        }

    def update(grads: Any, state: dict, params: Any) -> tuple[Any, dict]:
        d, count = declaration, state["count"]
        ps, gs = tree_leaves(params), tree_leaves(grads)
        ms = [tree_leaves(m) for m in state["moments"]]
        if d.clip_norm is not None:
            norm = torch.sqrt(sum((g * g).sum() for g in gs))
            gs = [g * torch.clamp(d.clip_norm / norm, max=1.0) for g in gs]
        rate = d.learning_rate_at(count)
        if d.weight_decay and not getattr(d, "decoupled", False):
            gs = [g + d.weight_decay * p for g, p in zip(gs, ps, strict=True)]
        if isinstance(d, optim.Adam):
            new, ms = _adam(d, ps, gs, ms, count + 1.0, rate)
        else:
            new, ms = _sgd(d, ps, gs, ms, rate)
        state = {"count": count + 1.0, "moments": [tree_like(params, m) for m in ms]}
        return tree_like(params, new), state

    return Optimizer(init, update)


def _adam(d: optim.Adam, ps: list, gs: list, ms: list, t: Any, rate: Any) -> tuple[list, list]:
    first = [m + (1 - d.b1) * (g - m) for m, g in zip(ms[0], gs, strict=True)]
    second = [d.b2 * v + (1 - d.b2) * g * g for v, g in zip(ms[1], gs, strict=True)]
    # 1 - b^t by expm1: in float32 the plain difference is off by 5e-5 at the first steps.
    c1, c2 = (-torch.expm1(t * math.log(b)) if b else t**0 for b in (d.b1, d.b2))
    # One division and one root an entry: this line is most of a step's time.
    size, scale = rate / c1, c2**-0.5
    new = []
    for p, m, v in zip(ps, first, second, strict=True):
        move = size * (m / (torch.sqrt(v) * scale + d.eps))
        if d.decoupled and d.weight_decay:
            move = move + rate * d.weight_decay * p
        new.append(p - move)
    return new, [first, second]


def _sgd(d: Any, ps: list, gs: list, ms: list, rate: Any) -> tuple[list, list]:
    if d.momentum:
        ms = [[d.momentum * m + g for m, g in zip(ms[0], gs, strict=True)]]
        gs = [g + d.momentum * m for g, m in zip(gs, ms[0], strict=True)] if d.nesterov else ms[0]
    return [p - rate * g for p, g in zip(ps, gs, strict=True)], ms


def minimise_rows(
    backend: Any, declaration: optim.OptimizerDeclaration, loss: Callable, init: Callable,
    finish: Callable, num_steps: int, keep_at: int, rows_at_once: int, num_rows: int,
) -> Callable:  # fmt: skip
    """See `Backend.minimise_rows`."""
    # A step is some hundred times a small compiled call: inductor earns its time back later.
    calls = num_rows * num_steps // 8
    one = _one_by_one(backend, declaration, loss, init, finish, num_steps, keep_at, calls)
    if rows_at_once == 1:
        return one
    stacked = _stacked(backend, declaration, loss, init, finish, num_steps, keep_at, calls)

    def run(shared: Any, xs: Any, key: keys.Key) -> Any:
        parts = []
        count = len(key.seed)  # type: ignore[arg-type]
        for i in range(0, count, rows_at_once):
            # The last stack is filled up, so that nothing is compiled twice.
            index = [min(j, count - 1) for j in range(i, i + min(rows_at_once, count))]
            rows = tree_map(lambda x, index=index: x[index], xs)
            try:
                parts.append(stacked(shared, rows, keys.pick(key, index)))
            except NotByRow:
                return one(shared, xs, key)
        return tree_map(lambda *a: torch.cat(a)[:count], *parts)

    return run


def _one_by_one(
    b: Any, declaration: Any, loss: Callable, init: Callable, finish: Callable, num_steps: int,
    keep_at: int, calls: int,
) -> Callable:  # fmt: skip
    optimizer, gradient = functional(declaration), b.grad(loss)

    def step(params: Any, state: Any, shared: Any, x: Any, key: Any) -> torch.Tensor:
        new = optimizer.update(gradient(params, shared, x, key), state, params)
        # In place, so that one set of buffers stays in the cache from step to step.
        for old, fresh in zip(tree_leaves((params, state)), tree_leaves(new), strict=True):
            old.copy_(fresh)
        return new[1]["count"]

    compiled, ended = b.compile(step, calls), b.compile(finish)
    begun = b.compile(init, 8)

    def run(shared: Any, xs: Any, key: keys.Key) -> Any:
        rows = []
        with torch.no_grad():
            for i in range(len(key.seed)):  # type: ignore[arg-type]
                x, k = tree_map(lambda a, i=i: a[i], xs), keys.row(key, i)
                params = kept = tree_map(torch.clone, begun(shared, x))
                state = optimizer.init(params)
                for t in range(num_steps):
                    if t == keep_at:
                        kept = tree_map(torch.clone, params)
                    compiled(params, state, shared, x, keys.fold_in(k, t))
                rows.append(ended(params, kept, shared, x, k))
        return tree_map(lambda *a: torch.stack(a), *rows)

    return run


def _stacked(
    b: Any, declaration: Any, loss: Callable, init: Callable, finish: Callable, num_steps: int,
    keep_at: int, calls: int,
) -> Callable:  # fmt: skip
    def over_rows(fn: Callable, rows: int) -> Callable:
        """`fn` over the leading axis of its first `rows` arguments; the last is one key a row."""

        def call(*args: Any) -> Any:
            *trees, key = args
            axes = (*([0] * rows), *([None] * (len(trees) - rows)))

            def one(*items: Any) -> Any:
                with torch_random.rows_of_vmap():
                    return fn(*items, key)

            return torch.func.vmap(one, in_dims=axes, randomness="error")(*trees)

        return call

    # Elementwise updates are the same on a stack, by torch's fused kernels; a norm is not.
    whole = declaration.clip_norm is None
    optimizer = b.optimizer(declaration) if whole else functional(declaration)
    grads = over_rows(lambda p, x, shared, key: b.grad(loss)(p, shared, x, key), 2)
    gradient = b.compile(grads, calls)
    ended = b.compile(over_rows(lambda p, kept, x, shared, key: finish(p, kept, shared, x, key), 3))
    begun = b.compile(lambda shared, xs: torch.func.vmap(lambda x: init(shared, x))(xs), 8)
    update = optimizer.update if whole else torch.func.vmap(optimizer.update)

    def run(shared: Any, xs: Any, key: keys.Key) -> Any:
        with torch.no_grad():
            params = tree_map(torch.clone, begun(shared, xs))
            state = optimizer.init(params) if whole else torch.func.vmap(optimizer.init)(params)
            kept = params
            for t in range(num_steps):
                if t == keep_at:
                    kept = b.copy(params)
                g = gradient(params, xs, shared, keys.fold_in(key, t))
                params, state = update(g, state, params)
            return ended(params, kept, xs, shared, key)

    return run
