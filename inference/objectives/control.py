"""Feedback controllers of the KL weight, and the set points they hold.

With e_t = C_t - K_t (positive: the KL is too small), nats, and s the logistic function,

    P_t = Kp s(-e_t)          I_t = I_{t-1} - Ki e_t          u_t = beta_min + P_t + I_t
    beta_t = clip(u_t, beta_min, beta_max)

moves the weight beta so that the KL settles at C: this is ControlVAE. Beta then is the price of a
nat: on the curve of least distortion D at rate K, beta = -dD/dK, so the ELBO grows with C while
beta > 1.

A controller is a pair of pure functions, `init() -> state` and `update(state, K, C) -> (state,
beta)`, of numbers or of a backend's arrays in any precision. The loss it steers is in `controlled`.

Sources: Shao et al. 2020, arXiv:2004.05988; 2022, arXiv:2011.01754.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from probgen.inference.objectives.scalars import clip, floor, minimum, sigmoid, where
from probgen.language.declared import declaration, require
from probgen.language.kinds import Count, Limit, NonNegative, Positive, between

Array = Any
AntiWindup = Literal["conditional", "official_freeze", "official_none"]


@declaration
class SetPoint:
    """Base of set-point schedules: `at(count)` nats at the update after `count` finished ones."""

    def at(self, count: Array) -> Array:
        raise NotImplementedError  # abstract: every schedule below defines it


def _window(count: Array, every: int) -> Array:
    # A half more than a whole number: a compiler that divides by way of the reciprocal (XLA does)
    # would else land below it now and then, and the set point would rise an update late.
    return floor((count + 0.5) / every)


@declaration
class StepSetPoint(SetPoint):
    """`start` nats, raised by `delta` after every `every` updates, up to `maximum`.

    The defaults are those of the disentangling task on dSprites.
    """

    start: NonNegative = 0.5
    delta: NonNegative = 0.15
    every: Count = 5000
    maximum: Positive = 18.0

    def at(self, count: Array) -> Array:
        return minimum(self.start + self.delta * _window(count, self.every), self.maximum)


@declaration
class RampSetPoint(SetPoint):
    """As `StepSetPoint`, with each rise spread over the first `ramp` updates of its window.

    The defaults are DynamicVAE's. Source: Shao et al. 2022, arXiv:2009.06795.
    """

    start: NonNegative = 0.5
    delta: NonNegative = 0.15
    every: Count = 6000
    ramp: Count = 1000
    maximum: Positive = 18.0

    def __post_init__(self) -> None:
        require(self.ramp <= self.every, self, "a ramp no longer than `every`", "ramp", "every")

    def at(self, count: Array) -> Array:
        window = _window(count, self.every)
        part = clip((count - window * self.every) / self.ramp, 0.0, 1.0)
        risen = self.start + self.delta * (window - 1.0 + part)
        return minimum(where(window < 1.0, count * 0.0 + self.start, risen), self.maximum)


@declaration
class PI:
    """The PI controller of ControlVAE.

    Args:
        kp, ki: gains, both positive (the paper's code passes ki with the other sign). The paper's
            tasks use kp = 0.01 and ki from 1e-4 to 1e-3.
        beta_min, beta_max: range of the weight.
        anti_windup: what keeps the integral from running away while the weight is at a limit.
            "conditional" (default) leaves out just those of its steps that would push further out.
            "official_freeze" holds it whenever the last unclipped weight was outside, which locks
            the weight at its limit for ever once one step's ki * error exceeds kp.
            "official_none" is the printed algorithm, whose test never triggers: the weight comes
            back from its limit only after as long an overshoot.
        initial_beta: where the weight starts, by way of the integral; None is beta_min.

    A set point can be held only between the KL at beta_max and that at beta_min. Linearised on a
    plant K' = K + a (K* - g (beta - beta*) - K), with 1/a its response time in updates and g =
    |dK/dbeta|, the loop is stable iff a (2 + g (kp/2 + ki)) < 4; see `is_stable`.

    Source: Shao et al. 2020, arXiv:2004.05988, section 3, and its published code.
    """

    kp: NonNegative = 0.01
    ki: NonNegative = 0.001
    beta_min: float = 0.0
    beta_max: Limit = math.inf
    anti_windup: AntiWindup = "conditional"
    initial_beta: float | None = None

    def __post_init__(self) -> None:
        _check_controller(self)

    def init(self) -> dict[str, Any]:
        """The state: the integral, and the last weight before it was clipped."""
        first = self.beta_min if self.initial_beta is None else self.initial_beta
        return {"integral": float(first - self.beta_min), "unclipped": float(first)}

    def update(self, state: Mapping, kl: Array, set_point: Array) -> tuple[dict, Array]:
        """(state, beta) after a KL of `kl` nats was measured, `set_point` being wanted."""
        error = set_point - kl
        # s(-e), since 1 / (1 + exp(e)) overflows.
        resting = self.beta_min + self.kp * sigmoid(-error) + state["integral"]
        step = -self.ki * error
        step = where(_held(self, state["unclipped"], resting + step, step), step * 0.0, step)
        u = resting + step
        return {"integral": state["integral"] + step, "unclipped": u}, _clipped(self, u)

    def is_stable(self, response: float, slope: float) -> bool:
        """Whether the linearised loop is stable: `response` is a and `slope` g of the plant."""
        return response * (2.0 + slope * (self.kp / 2.0 + self.ki)) < 4.0


@declaration
class IncrementalPI:
    """DynamicVAE's incremental form of the controller, the smooth preset.

        u_t = u_{t-1} + Kp [s(-e_t) - s(-e_{t-1})] - Ki e_t

    K is the mean of the last `window` measured values (of all, while they are fewer). The weight
    starts high, at 50 for dSprites and at 100 for MNIST, and comes down.

    Args:
        kp, ki, beta_min, beta_max, anti_windup: as in `PI`; the published code is
            "official_freeze", which leaves out the term in ki while u_{t-1} lies below beta_min.
        initial_beta: u before the first update.
        window: how many values of the KL are averaged.

    Source: Shao et al. 2022, arXiv:2009.06795, and its published code.
    """

    kp: NonNegative = 0.01
    ki: NonNegative = 0.005
    beta_min: float = 0.1
    beta_max: Limit = math.inf
    anti_windup: AntiWindup = "conditional"
    initial_beta: float = 50.0
    window: Annotated[int, between(1, 10_000)] = 5

    def __post_init__(self) -> None:
        _check_controller(self)

    def init(self) -> dict[str, Any]:
        """The state: u, s(-e) of the update before, and the KLs that are averaged."""
        first, zeros = float(self.initial_beta), [0.0] * self.window
        return {"unclipped": first, "proportional": 0.0, "seen": 0.0, "kls": zeros}

    def update(self, state: Mapping, kl: Array, set_point: Array) -> tuple[dict, Array]:
        """(state, beta) after a KL of `kl` nats was measured, `set_point` being wanted."""
        kls = [kl, *state["kls"][:-1]]  # newest first; places not yet filled hold 0
        seen = minimum(state["seen"] + 1.0, float(self.window))
        error = set_point - sum(kls[1:], start=kls[0]) / seen
        now = sigmoid(-error)
        before = where(state["seen"] < 0.5, now, state["proportional"])
        resting = state["unclipped"] + self.kp * (now - before)
        step = -self.ki * error
        step = where(_held(self, state["unclipped"], resting + step, step), step * 0.0, step)
        u = resting + step
        new = {"unclipped": u, "proportional": now, "seen": seen, "kls": kls}
        return new, _clipped(self, u)


def _held(controller: PI | IncrementalPI, last: Array, wanted: Array, step: Array) -> Array:
    """Whether the integral's step is left out, by the controller's `anti_windup`."""
    low, high = controller.beta_min, controller.beta_max
    if controller.anti_windup == "conditional":
        return ((wanted < low) & (step < 0)) | ((wanted > high) & (step > 0))
    if controller.anti_windup == "official_freeze":
        return (last < low) | (last > high)
    return step != step  # never; NaN is found by the fit's guard


def _clipped(controller: PI | IncrementalPI, u: Array) -> Array:
    high = controller.beta_max if math.isfinite(controller.beta_max) else None
    return clip(u, controller.beta_min, high)


def _check_controller(controller: PI | IncrementalPI) -> None:
    c = controller
    order = "beta_min below beta_max"
    require(c.beta_min < c.beta_max, c, order, "beta_min", "beta_max")
    require(
        c.initial_beta is None or c.beta_min <= c.initial_beta <= c.beta_max, c,
        "a first weight inside the range; widen the range, or start inside it",
        "initial_beta", "beta_min", "beta_max",
    )  # fmt: skip
