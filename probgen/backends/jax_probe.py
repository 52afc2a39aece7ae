"""What JAX finds on this machine: devices, and whether it compiles. For `doctor`."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpyro  # noqa: F401 - that it can be imported is part of the finding


def devices() -> tuple[bool, str]:
    """(True, the devices by name)."""
    return True, ", ".join(f"{d} ({d.device_kind})" for d in jax.devices())


def compiles() -> tuple[bool, str]:
    """Whether XLA compiles a small function that gives the right number."""
    x = jnp.linspace(-1.0, 1.0, 64)
    began = time.perf_counter()
    value = float(jax.jit(lambda x: jnp.tanh(2.0 * x).sum())(x))
    seconds = time.perf_counter() - began
    if abs(value) > 1e-3:  # tanh is odd
        return False, f"wrongly: got {value:g}, expected 0"
    return True, f"yes, by XLA ({seconds:.1f} s for a first small function)"
