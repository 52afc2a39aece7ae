"""One optimisation for each datum, on JAX: a map of loops, or batches of them by `vmap`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from probgen.backends.optimizer_steps import pure
from probgen.language.optim import OptimizerDeclaration

SMALL = 2**16  # parameters from which on a CPU takes one copy at a time


def minimise_rows(
    declaration: OptimizerDeclaration, loss: Callable, init: Callable, finish: Callable,
    rows_at_once: int,
) -> Callable:  # fmt: skip
    """See `Backend.minimise_rows`; to be compiled.

    Its last argument is [keep_at, num_steps]: no part of the program, which serves searches of
    every length.
    """
    gradient, optimizer = jax.grad(loss), pure(declaration)

    def one(shared: Any, x: Any, key: Any, ends: Any) -> Any:
        # What comes from `shared` unbatched must not be tied to it by the loop's carry.
        start = jax.tree.map(jnp.asarray, init(shared, x))

        def step(t: Any, carry: Any) -> Any:
            params, state = carry
            grads = gradient(params, shared, x, jax.random.fold_in(key, t))
            return optimizer.update(grads, state, params)

        def until(carry: Any, end: Any) -> Any:
            t, *state = carry
            state = jax.lax.fori_loop(t, end, step, tuple(state))
            return (end, *state), state[0]

        # One loop in a loop: two beside each other would be compiled one by one.
        begun = jnp.zeros((), ends.dtype), start, optimizer.init(start)
        (_, params, _), after = jax.lax.scan(until, begun, ends)
        return finish(params, jax.tree.map(lambda a: a[0], after), shared, x, key)

    def run(shared: Any, xs: Any, keys: Any, ends: Any) -> Any:
        # Equal stacks, the last one filled up: a shorter one would be compiled beside it.
        count = keys.shape[0]
        stacks = -(-count // rows_at_once)
        size = -(-count // stacks)
        fill = jnp.minimum(jnp.arange(stacks * size), count - 1)
        items = jax.tree.map(lambda a: a[fill], (xs, keys))
        batch = None if size == 1 else size
        out = jax.lax.map(lambda a: one(shared, a[0], a[1], ends), items, batch_size=batch)
        return jax.tree.map(lambda a: a[:count], out)

    return run


def rows_at_once(platform: str, num_parameters: int) -> int:
    """On a CPU large copies one at a time, so that one stays in the cache; else 2 GiB's worth."""
    if platform == "cpu":
        return 1 if num_parameters >= SMALL else 64
    return max(1, min(256, 2**31 // max(16 * num_parameters, 1)))
