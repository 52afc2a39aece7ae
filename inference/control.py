"""A feedback controller on the KL weight: ControlVAE.

With e_t = C_t - K_t (positive: the KL is too small), nats, and s the logistic function:

    P_t = Kp s(-e_t)          I_t = I_{t-1} - Ki e_t          u_t = beta_min + P_t + I_t
    beta_t = clip(u_t, beta_min, beta_max)

so that the minibatch KL settles at the set point C. The controller is a pure function of (state, K,
C): its state is saved with the fit, and beta is an array inside the compiled step.

Source: Shao et al. 2020, arXiv:2004.05988; 2022, arXiv:2011.01754.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from probgen import ops
from probgen.bound import Bound
from probgen.errors import DeclarationError
from probgen.inference.elbo import ELBO, report_terms, weighted_loss
from probgen.inference.terms import Terms, compute, per_datum

Array = Any
ANTI_WINDUP = ("conditional", "official_freeze", "official_none")


@dataclasses.dataclass(frozen=True)
class SetPoint:
    """Base of set-point schedules: `at(count)` nats at the update after `count` finished ones."""

    def at(self, count: Array) -> Array:
        raise NotImplementedError  # abstract: every schedule below defines it


@dataclasses.dataclass(frozen=True)
class StepSetPoint(SetPoint):
    """`start`, raised by `delta` at every `every`-th update up to `maximum` (disentangling)."""

    start: float = 0.5
    delta: float = 0.15
    every: int = 5000
    maximum: float = 18.0

    def at(self, count: Array) -> Array:
        return ops.minimum(
            self.start + self.delta * ops.floor(count / self.every), count * 0.0 + self.maximum
        )


@dataclasses.dataclass(frozen=True)
class RampSetPoint(SetPoint):
    """As `StepSetPoint`, with each rise spread over the first `ramp` updates of its window."""

    start: float = 0.5
    delta: float = 0.15
    every: int = 6000
    ramp: int = 1000
    maximum: float = 18.0

    def at(self, count: Array) -> Array:
        window = ops.floor(count / self.every)
        part = ops.clip((count - window * self.every) / self.ramp, 0.0, 1.0)
        risen = self.start + self.delta * (window - 1.0 + part)
        value = ops.where(window < 1.0, count * 0.0 + self.start, risen)
        return ops.minimum(value, count * 0.0 + self.maximum)


@dataclasses.dataclass(frozen=True)
class PI:
    """The PI controller of ControlVAE.

    Args:
        kp, ki: gains, both positive (the paper's code passes ki with the other sign).
        beta_min, beta_max: range of the weight.
        anti_windup: "conditional" (default) skips an integral step only when it would push a
            saturated weight further out. "official_freeze" holds the integral whenever the last
            unclipped weight was below beta_min (or above beta_max), which locks up for ever once
            ki * error > kp. "official_none" is the printed algorithm, whose test never triggers.
        initial_beta: weight of the first step at zero error, by the integral's start; None starts
            the integral at 0.

    The linearised loop on a plant K' = K + a (K* - g (beta - beta*) - K) is stable iff
    a (2 + g (kp / 2 + ki)) < 4: `is_stable(a, g)`.
    """

    kp: float = 0.01
    ki: float = 0.001
    beta_min: float = 0.0
    beta_max: float = math.inf
    anti_windup: str = "conditional"
    initial_beta: float | None = None

    def __post_init__(self) -> None:
        if self.kp < 0 or self.ki < 0 or not self.beta_min < self.beta_max:
            raise DeclarationError(
                f"PI: got kp={self.kp}, ki={self.ki}, beta range [{self.beta_min}, "
                f"{self.beta_max}], expected gains of at least 0 and beta_min < beta_max."
            )
        if self.anti_windup not in ANTI_WINDUP:
            raise DeclarationError(
                f"PI: got anti_windup={self.anti_windup!r}, expected one of {ANTI_WINDUP}."
            )

    def init(self) -> dict[str, float]:
        """State: the integral, and the last unclipped weight."""
        integral = 0.0
        if self.initial_beta is not None:
            integral = self.initial_beta - self.beta_min - self.kp * 0.5
        return {"integral": integral, "unclipped": self.beta_min + integral}

    def update(self, state: Mapping, kl: Array, set_point: Array) -> tuple[dict, Array]:
        """(state, beta) after a KL of `kl` nats was measured; arrays of any backend."""
        error = set_point - kl
        # sigmoid(-e) is stable where 1 / (1 + exp(e)) overflows.
        proportional = self.kp * ops.sigmoid(-error)
        step = -self.ki * error
        last, integral = state["unclipped"], state["integral"]
        if self.anti_windup == "conditional":
            u = self.beta_min + proportional + integral + step
            out = ((u < self.beta_min) & (step < 0)) | ((u > self.beta_max) & (step > 0))
            step = ops.where(out, step * 0.0, step)
        elif self.anti_windup == "official_freeze":
            out = (last < self.beta_min) | (last > self.beta_max)
            step = ops.where(out, step * 0.0, step)
        integral = integral + step
        u = self.beta_min + proportional + integral
        high = self.beta_max if math.isfinite(self.beta_max) else 3.0e38
        return {"integral": integral, "unclipped": u}, ops.clip(u, self.beta_min, high)

    def is_stable(self, response: float, slope: float) -> bool:
        """Whether the linearised loop on a first-order plant is stable (see above)."""
        return response * (2.0 + slope * (self.kp / 2.0 + self.ki)) < 4.0


@dataclasses.dataclass(frozen=True)
class IncrementalPI:
    """DynamicVAE's incremental form, the smooth preset.

    u_t = u_{t-1} + Kp [s(-e_t) - s(-e_{t-1})] - Ki e_t, the last term skipped when u_{t-1} lies
    below beta_min; K is the mean of the last `window` measured values (fewer at the start).

    Source: Shao et al. 2022, arXiv:2009.06795.
    """

    kp: float = 0.01
    ki: float = 0.005
    beta_min: float = 0.1
    beta_max: float = math.inf
    initial_beta: float = 50.0
    window: int = 5

    def init(self) -> dict[str, Any]:
        return {
            "unclipped": float(self.initial_beta),
            "last": 0.0,
            "seen": 0.0,
            "kls": [0.0] * self.window,
        }

    def update(self, state: Mapping, kl: Array, set_point: Array) -> tuple[dict, Array]:
        kls = [kl, *state["kls"][:-1]]
        seen = state["seen"] + 1.0
        total = kls[0]
        for age, value in enumerate(kls[1:], start=1):
            total = total + ops.where(seen > age, value, value * 0.0)
        error = set_point - total / ops.minimum(seen, seen * 0.0 + self.window)
        now = ops.sigmoid(-error)
        last = ops.where(seen > 1.5, state["last"], now)
        integral = ops.where(state["unclipped"] < self.beta_min, error * 0.0, -self.ki * error)
        u = state["unclipped"] + self.kp * (now - last) + integral
        high = self.beta_max if math.isfinite(self.beta_max) else 3.0e38
        new = {"unclipped": u, "last": now, "seen": seen, "kls": kls}
        return new, ops.clip(u, self.beta_min, high)


@dataclasses.dataclass(frozen=True)
class ControlledELBO(ELBO):
    """R_t + beta_t K_t with beta_t moved by a controller so that the KL settles at `set_point`.

    Args:
        set_point: C, nats per datum: a number, or a schedule (`StepSetPoint`, `RampSetPoint`).
        controller: `PI(...)` or `IncrementalPI(...)`.

    K_t is the batch's total KL, before any scaling, and beta_t is computed from it before the loss
    is formed. With gradient accumulation the controller moves once per update, on the mean KL of
    the parts, and the parts are weighted by the beta before it. Metrics: `kl`, `set_point`,
    `kl_weight`, and `elbo`, which is always the bound with beta = 1.
    """

    set_point: float | SetPoint = dataclasses.field(default=10.0, kw_only=True)
    controller: PI | IncrementalPI = dataclasses.field(default_factory=PI, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl_weight != 1.0:
            raise DeclarationError(
                "ControlledELBO: got a kl_weight, but the controller sets it; leave it out."
            )

    def init(self, bound: Bound) -> dict:
        state = self.controller.init()
        return {"controller": state, "beta": _first_beta(self.controller)}

    def final_weight(self, num_steps: int) -> tuple[float | None, float | None]:
        return None, None

    def loss(
        self, bound: Bound, params: Mapping, state: dict, count: Array, batch: Mapping, key: Any
    ) -> tuple[Array, tuple[dict, dict]]:
        terms = _controlled_terms(self, bound, params, batch, key)
        target = self.set_point
        c = target.at(count) if isinstance(target, SetPoint) else count * 0.0 + target
        kl = ops.stop_gradient(per_datum(bound, terms, terms.kl))
        new, beta = self.controller.update(state["controller"], kl, c)
        weight = beta if bound.accumulate == 1 else state["beta"]
        loss, metrics = weighted_loss(bound, terms, weight, self.free_bits)
        metrics |= {"kl_weight": weight, "set_point": c}
        return loss, ({"controller": new, "beta": beta}, metrics)

    def evaluate(self, bound: Bound, params: Mapping, batch: Mapping, key: Any) -> dict:
        return report_terms(bound, _controlled_terms(self, bound, params, batch, key))


def _controlled_terms(
    loss: ControlledELBO, bound: Bound, params: Mapping, batch: Mapping, key: Any
) -> Terms:
    k = loss.num_particles if loss.num_particles > 1 else None
    return compute(bound, params, batch, key, num_particles=k, analytic_kl=loss.analytic_kl)


def _first_beta(controller: PI | IncrementalPI) -> float:
    return min(max(controller.init()["unclipped"], controller.beta_min), controller.beta_max)


@dataclasses.dataclass(frozen=True)
class CapacityELBO(ELBO):
    """R + gamma |K - C_t|, C_t from 0 to `capacity` over `num_steps` updates: the capacity baseline.

    Source: Burgess et al. 2018, arXiv:1804.03599.
    """

    gamma: float = dataclasses.field(default=100.0, kw_only=True)
    capacity: float = dataclasses.field(default=15.0, kw_only=True)
    num_steps: int = dataclasses.field(default=100_000, kw_only=True)

    def final_weight(self, num_steps: int) -> tuple[float | None, float | None]:
        return None, None

    def loss(
        self, bound: Bound, params: Mapping, state: dict, count: Array, batch: Mapping, key: Any
    ) -> tuple[Array, tuple[dict, dict]]:
        k = self.num_particles if self.num_particles > 1 else None
        terms = compute(bound, params, batch, key, num_particles=k, analytic_kl=self.analytic_kl)
        c = self.capacity * ops.clip(count / self.num_steps, 0.0, 1.0)
        kl = per_datum(bound, terms, terms.kl)
        loss = -per_datum(bound, terms, terms.log_prob) + self.gamma * ops.abs(kl - c)
        return loss, (state, report_terms(bound, terms) | {"loss": loss, "set_point": c})
