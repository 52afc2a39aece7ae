"""Keys and draws on JAX: one key, or row keys, one for each datum, whose axis then comes first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from probgen.backends.jax.devices import placing
from probgen.errors import ShapeError

# One call of a compiled program: by itself each goes through dozens of Python's, seventy times as
# long with row keys.
_fold_in = jax.jit(jax.random.fold_in)
_fold_in_rows = jax.jit(jax.vmap(jax.random.fold_in, (0, None)))
row_keys = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))


def fold_in(key: Any, data: Any) -> Any:
    """The key of that number, or of it in each row."""
    own = _fold_in_rows if key.ndim else _fold_in
    return own(key, np.uint32(data) if isinstance(data, int) else data)


def draw(how: Callable, key: Any, shape: tuple[int, ...]) -> jax.Array:
    """A draw from a key; with row keys the leading axis is the data's, each from its own key."""
    if not key.ndim:
        return placing.get().spread(how(key, shape))
    if not shape or shape[0] != key.shape[0]:
        raise ShapeError(
            f"draw: got the shape {tuple(shape)} and one key for each of {key.shape[0]} data, "
            "expected the data's axis first."
        )
    return jax.vmap(lambda k: how(k, tuple(shape[1:])))(key)
