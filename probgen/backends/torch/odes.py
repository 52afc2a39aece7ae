"""Adaptive steps of `ops.solve_ode` on torch: torchdiffeq, an optional part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from probgen.backends.torch.routes import refuse_adaptive
from probgen.errors import BackendError
from probgen.language.odes import NO_SOLVER


def solve_ode(
    slope: Callable, y0: Any, times: Any, rtol: float, atol: float, max_steps: int
) -> Any:
    """See `probgen.language.odes`."""
    refuse_adaptive("solve_ode")
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise BackendError(NO_SOLVER.format(package="torchdiffeq")) from error
    options = {"max_num_steps": max_steps}
    try:
        return odeint(slope, y0, times, rtol=rtol, atol=atol, method="dopri5", options=options)
    except AssertionError as error:  # torchdiffeq's word for steps that ran out
        if not any(words in str(error) for words in ("max_num_steps", "underflow", "non-finite")):
            raise
        return torch.full((len(times), *y0.shape), float("nan"), device=y0.device) + 0.0 * y0
