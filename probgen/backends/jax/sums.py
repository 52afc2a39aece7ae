"""Sums over many data, mapped over chains, as products.

XLA's own sum over the data of many chains is of values that it first transposes, one by one, which
costs a fifth of a logistic regression's transition.
"""

from typing import Any

import jax
import jax.numpy as jnp

MANY = 128  # numbers from which a sum is taken as a product


def total(x: Any) -> Any:
    """The sum of all of a float array."""
    flat = jnp.ravel(x)
    if flat.size < MANY:
        return jnp.sum(flat)
    return jnp.dot(flat, jnp.ones_like(flat), precision=jax.lax.Precision.HIGHEST)
