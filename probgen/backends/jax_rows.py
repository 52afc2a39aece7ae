"""One optimisation for each datum, on JAX: a map of loops, or batches of them by `vmap`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SMALL = 2**16  # parameters from which on a CPU takes one copy at a time


def minimise_rows(
    optimizer: Any, loss: Callable, init: Callable, finish: Callable, num_steps: int, keep_at: int,
    rows_at_once: int,
) -> Callable:  # fmt: skip
    """See `Backend.minimise_rows`."""
    gradient = jax.grad(loss)

    def one(shared: Any, x: Any, key: Any) -> Any:
        # What comes from `shared` unbatched must not be tied to it by the loop's carry.
        start = jax.tree.map(jnp.asarray, init(shared, x))

        def step(t: Any, carry: Any) -> Any:
            params, state = carry
            grads = gradient(params, shared, x, jax.random.fold_in(key, t))
            return optimizer.update(grads, state, params)

        carry = jax.lax.fori_loop(0, keep_at, step, (start, optimizer.init(start)))
        kept = carry[0]
        carry = jax.lax.fori_loop(keep_at, num_steps, step, carry)
        return finish(carry[0], kept, shared, x, key)

    @jax.jit
    def run(shared: Any, xs: Any, keys: Any) -> Any:
        size = None if rows_at_once == 1 else rows_at_once
        return jax.lax.map(lambda a: one(shared, *a), (xs, keys), batch_size=size)

    return run


def rows_at_once(platform: str, num_parameters: int) -> int:
    """On a CPU large copies one at a time, so that one stays in the cache; else 2 GiB's worth."""
    if platform == "cpu":
        return 1 if num_parameters >= SMALL else 64
    return max(1, min(256, 2**31 // max(16 * num_parameters, 1)))
