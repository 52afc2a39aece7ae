"""One optimisation for each datum, on torch: a compiled step one by one, or stacks of them.

One by one, gradient and update are one compiled graph and a copy of the parameters stays in the
cache: best for large copies on a CPU. In stacks the gradients are those of `vmap` and the update is
elementwise, so a stack of copies is as good as copies apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from probgen.backends import keys
from probgen.backends.optimizer_steps import pure
from probgen.backends.torch import random
from probgen.errors import NotByRow
from probgen.language import optim
from probgen.trees import tree_leaves, tree_map

LARGE, SMALL = 2**18, 2**16  # parameters: on a CPU one copy at a time, a few, or many


def rows_at_once(device: str, num_parameters: int) -> int:
    """On a CPU what stays in the cache; else 2 GiB's worth."""
    if device == "cpu":
        return 1 if num_parameters >= LARGE else 8 if num_parameters >= SMALL else 64
    return max(1, min(256, 2**31 // max(16 * num_parameters, 1)))


def minimise_rows(
    backend: Any, declaration: optim.OptimizerDeclaration, loss: Callable, init: Callable,
    finish: Callable, num_steps: int, keep_at: int, rows_at_once: int, num_rows: int,
) -> Callable:  # fmt: skip
    """See `Backend.minimise_rows`."""
    # A step is some hundred times a small compiled call: inductor earns its time back later.
    calls = num_rows * num_steps // 8
    one = _one_by_one(backend, declaration, loss, init, finish, num_steps, keep_at, calls, num_rows)
    if rows_at_once == 1:
        return one
    stacks = -(-num_rows // rows_at_once)
    stacked = _stacked(backend, declaration, loss, init, finish, num_steps, keep_at, calls, stacks)

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
    keep_at: int, calls: int, num_rows: int,
) -> Callable:  # fmt: skip
    optimizer, gradient = pure(declaration), b.grad(loss)

    def step(params: Any, state: Any, shared: Any, x: Any, key: Any) -> torch.Tensor:
        new = optimizer.update(gradient(params, shared, x, key), state, params)
        # In place, so that one set of buffers stays in the cache from step to step.
        for old, fresh in zip(tree_leaves((params, state)), tree_leaves(new), strict=True):
            old.copy_(fresh)
        return new[1]["count"]

    compiled, ended = b.compile(step, calls), b.compile(finish, num_rows)
    begun = b.compile(init, 8)

    def run(shared: Any, xs: Any, key: keys.Key) -> Any:
        rows = []
        with torch.no_grad():
            for i in range(len(key.seed)):  # type: ignore[arg-type]
                x, k = tree_map(lambda a, i=i: a[i], xs), keys.row(key, i)
                # Contiguous, or a graph would be handed copies, and write into those.
                params = kept = tree_map(
                    lambda p: p.clone(memory_format=torch.contiguous_format), begun(shared, x)
                )
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
    keep_at: int, calls: int, stacks: int,
) -> Callable:  # fmt: skip
    def over_rows(fn: Callable, rows: int) -> Callable:
        """`fn` over the leading axis of its first `rows` arguments; the last is one key a row."""

        def call(*args: Any) -> Any:
            *trees, key = args
            axes = (*([0] * rows), *([None] * (len(trees) - rows)))

            def one(*items: Any) -> Any:
                with random.rows_of_vmap():
                    return fn(*items, key)

            return torch.func.vmap(one, in_dims=axes, randomness="error")(*trees)

        return call

    # Elementwise updates are the same on a stack, by torch's fused kernels; a norm is not.
    whole = declaration.clip_norm is None
    optimizer = b.optimizer(declaration) if whole else pure(declaration)
    grads = over_rows(lambda p, x, shared, key: b.grad(loss)(p, shared, x, key), 2)
    gradient = b.compile(grads, calls)
    ended = b.compile(
        over_rows(lambda p, kept, x, shared, key: finish(p, kept, shared, x, key), 3), stacks
    )
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
