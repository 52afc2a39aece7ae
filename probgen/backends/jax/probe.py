"""What JAX finds on this machine: devices, whether it compiles, and who sums on the CPU."""

from __future__ import annotations

import functools
import time
import warnings

import jax
import jax.numpy as jnp
import numpyro  # noqa: F401 - that it can be imported is part of the finding

from probgen.backends import xla_flags


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


@functools.cache
def reductions() -> str:
    """Who sums on the CPU: "XLA", or "YNNPACK", which sums broadcasts wrongly now and then.

    Read from a compiled sum and not from XLA_FLAGS, which say nothing once the client has started.
    """
    if not xla_flags.is_touched():
        return "XLA"
    form = jax.ShapeDtypeStruct((1024, 1), jnp.float32)
    cpu = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    total = jax.jit(lambda a: jnp.sum(jnp.broadcast_to(a, (2, 1024, 1024))), out_shardings=cpu)
    return "YNNPACK" if "ynn_fusion" in total.lower(form).compile().as_text() else "XLA"


@functools.cache
def warn_of_unsafe_sums() -> None:
    """Warns, once a process, where sums on the CPU are not XLA's own."""
    if reductions() == "YNNPACK":
        warnings.warn(xla_flags.unsafe(), stacklevel=2)


def sums() -> tuple[bool, str]:
    """Whether the sums of this process can be trusted."""
    if reductions() == "YNNPACK":
        return False, str(xla_flags.unsafe())
    return True, "by XLA" + (" (XLA_FLAGS keeps YNNPACK out)" if xla_flags.is_touched() else "")


LOOKS = (("devices", devices), ("compiles", compiles), ("sums", sums))
