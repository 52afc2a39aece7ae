"""Adaptive steps of `ops.solve_ode` on JAX: diffrax, an optional part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from probgen.errors import BackendError
from probgen.language.odes import NO_SOLVER


def solve_ode(
    slope: Callable, y0: Any, times: Any, rtol: float, atol: float, max_steps: int
) -> Any:
    """See `probgen.language.odes`."""
    try:
        import diffrax
    except ImportError as error:
        raise BackendError(NO_SOLVER.format(package="diffrax")) from error
    found = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, _: slope(t, y)), diffrax.Dopri5(),
        t0=times[0], t1=times[-1], dt0=None, y0=y0, saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps, throw=False,
    )  # fmt: skip
    return jnp.where(found.result == diffrax.RESULTS.successful, found.ys, jnp.nan)
