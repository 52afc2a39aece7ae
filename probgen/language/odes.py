"""Ordinary differential equations in `ops`: dy/dt = f(t, y) at given times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from probgen.errors import DeclarationError, ShapeError
from probgen.language.declared import argument
from probgen.language.kinds import Positive, Width
from probgen.language.ops_modules import ops_for
from probgen.language.recursions import looping

Array = Any


def solve_ode(
    field: Callable[[Any, Any], Any], y0: Any, times: Any, *, num_steps: int | None = None,
    rtol: float = 1e-5, atol: float = 1e-6, max_steps: int = 4096,
) -> Array:  # fmt: skip
    """y(t_0), y(t_1), ... of dy/dt = field(t, y), y(t_0) = y0, differentiable in all it reads.

    Steps are adaptive, Dormand and Prince's of order five, by diffrax on JAX and torchdiffeq on
    torch (pip install 'probgen[ode]'); one step size serves a whole batch of y0. With `num_steps`
    they are that many of Runge and Kutta's, of order four, from each time to the next, which needs
    no package. On torch adaptive steps ask numbers how to go on, so a function that holds them is
    not traced: it runs live, and chains one by one, as `info["routes"]` and `fallbacks` say.

    Args:
        field: (t [], y) -> dy/dt of the shape of y, of `ops`; it declares no sites.
        y0: [*shape] floats, the value at times[0].
        times: [n] increasing, n at least 2.
        num_steps: fixed steps between two times; None for adaptive ones.
        rtol, atol: the error of an adaptive step is below atol + rtol |y|. float32 has 1e-7 |y|.
        max_steps: adaptive steps in all, beyond which the result is NaN.

    Returns:
        [n, *shape], the first of which is y0; NaN where adaptive steps ran out or became nothing.

    Raises:
        BackendError: adaptive steps without their package.
        ShapeError: times that are no vector of two or more, or a field of another shape than y.
        DeclarationError: a site inside of the field, or a y0 of integers.

    Source: Dormand & Prince 1980; Hairer, Norsett & Wanner 1993, chapter II.
    """
    argument("solve_ode", Positive, rtol=rtol)
    argument("solve_ode", Positive, atol=atol)
    argument("solve_ode", Width, max_steps=max_steps)
    if num_steps is not None:
        argument("solve_ode", Width, num_steps=num_steps)
    module = ops_for(y0, times)
    y0, times = module.asarray(y0), module.asarray(times)
    if "float" not in str(y0.dtype):
        raise DeclarationError(
            f"solve_ode: got y0 of type {y0.dtype}, expected floats; write 1.0 for 1."
        )
    if len(times.shape) != 1 or times.shape[0] < 2:
        raise ShapeError(
            f"solve_ode: got times of shape {tuple(times.shape)}, expected [n] with n of at least "
            "2, the first of which is that of y0."
        )

    def slope(t: Array, y: Array) -> Array:
        token = looping.set(True)
        try:
            out = module.asarray(field(t, y))
        finally:
            looping.reset(token)
        if tuple(out.shape) != tuple(y.shape):
            raise ShapeError(
                f"solve_ode: the field gives {tuple(out.shape)} for y of shape {tuple(y.shape)}, "
                "expected that shape; give y0 all its axes, those of the data and chains too."
            )
        return out

    times = module.cast(times, str(y0.dtype).removeprefix("torch."))
    if num_steps is None:
        return module.solve_ode(slope, y0, times, rtol, atol, max_steps)
    return _runge_kutta(module, slope, y0, times, num_steps)


def _runge_kutta(module: Any, slope: Callable, y0: Array, times: Array, num_steps: int) -> Array:
    """Steps of (t_{i + 1} - t_i) / num_steps, in a loop within a loop."""

    def step(carry: Any, _: Any) -> tuple[Any, None]:
        t, y, h = carry
        a = slope(t, y)
        b = slope(t + h / 2, y + h / 2 * a)
        c = slope(t + h / 2, y + h / 2 * b)
        d = slope(t + h, y + h * c)
        return (t + h, y + h / 6 * (a + 2 * b + 2 * c + d), h), None

    def leg(y: Array, ends: Array) -> tuple[Array, Array]:
        h = (ends[1] - ends[0]) / num_steps
        y = module.scan(step, (ends[0], y, h), None, num_steps)[0][1]
        return y, y

    ends = module.stack([times[:-1], times[1:]], axis=-1)
    _, later = module.scan(leg, y0, ends, times.shape[0] - 1)
    return module.concatenate([y0[None], later], axis=0)


NO_SOLVER = (
    "solve_ode: adaptive steps need {package}, which could not be imported; install it with: pip "
    "install 'probgen[ode]', or give num_steps= for fixed ones."
)
