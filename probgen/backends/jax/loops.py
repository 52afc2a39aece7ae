"""Functions at each of many places, and loops of small steps, on JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

AT_ONCE = 32  # steps, of which those past the last one wanted are thrown away


def each(fn: Callable) -> Callable:
    """`fn(x, *rest)` at each x along a leading axis."""
    return lambda x, *rest: jax.vmap(fn, in_axes=(0, *[None] * len(rest)))(x, *rest)


def looped(step: Callable) -> Callable:
    """(carry, xs, *args) -> (carry, ys): the scan of step(carry, x, *args)."""

    def run(carry: Any, xs: Any, *args: Any) -> Any:
        return jax.lax.scan(lambda carry, x: step(carry, x, *args), carry, xs)

    return run
