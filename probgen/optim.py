"""Optimiser declarations and learning-rate schedules; backends run them (optax, fused torch).

A learning rate is a number or a schedule, a declaration whose `at(count)` gives the rate of the
update that follows `count` finished ones, written with `ops` so that it works inside a graph.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from probgen import ops
from probgen.errors import DeclarationError


def _positive(who: str, **values: Any) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise DeclarationError(f"{who}: got {name}={value!r}, expected a number above 0.")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate as a function of the number of finished updates."""

    def at(self, count: Any) -> Any:
        raise NotImplementedError  # abstract: every schedule below defines it


@dataclasses.dataclass(frozen=True)
class CosineDecay(Schedule):
    """Linear warm-up over `warmup_steps`, then half a cosine, `peak` to `final` at `num_steps`."""

    peak: float
    num_steps: int
    warmup_steps: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        _positive("CosineDecay", peak=self.peak, num_steps=self.num_steps)
        if self.final < 0 or not 0 <= self.warmup_steps <= self.num_steps:
            raise DeclarationError(
                f"CosineDecay: got final={self.final}, warmup_steps={self.warmup_steps}, expected "
                f"final >= 0 and warmup_steps from 0 to num_steps={self.num_steps}."
            )

    def at(self, count: Any) -> Any:
        warm = self.peak * (count + 1.0) / max(self.warmup_steps, 1)
        span = max(self.num_steps - self.warmup_steps, 1)
        part = ops.clip((count - self.warmup_steps) / span, 0.0, 1.0)
        cosine = self.final + (self.peak - self.final) * 0.5 * (1.0 + ops.cos(math.pi * part))
        return ops.where(count < self.warmup_steps, warm, cosine)


@dataclasses.dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """`start * rate ** (count / every)`."""

    start: float
    rate: float
    every: int

    def __post_init__(self) -> None:
        _positive("ExponentialDecay", start=self.start, rate=self.rate, every=self.every)

    def at(self, count: Any) -> Any:
        return self.start * ops.exp(math.log(self.rate) * count / self.every)


@dataclasses.dataclass(frozen=True)
class LinearWarmup(Schedule):
    """From `peak / num_steps` to `peak` in `num_steps` updates, constant after."""

    peak: float
    num_steps: int

    def __post_init__(self) -> None:
        _positive("LinearWarmup", peak=self.peak, num_steps=self.num_steps)

    def at(self, count: Any) -> Any:
        return self.peak * ops.clip((count + 1.0) / max(self.num_steps, 1), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class OptimizerDeclaration:
    """Base of optimisers: a learning rate (a number or a `Schedule`) and a clip of the norm."""

    learning_rate: float | Schedule = 1e-3
    clip_norm: float | None = dataclasses.field(default=None, kw_only=True)
    weight_decay: float = dataclasses.field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        rate = self.learning_rate
        if not isinstance(rate, Schedule) and not (math.isfinite(rate) and rate > 0):
            raise DeclarationError(f"learning_rate: got {rate!r}, expected a positive number.")
        if self.clip_norm is not None:
            _positive(type(self).__name__, clip_norm=self.clip_norm)
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise DeclarationError(
                f"weight_decay: got {self.weight_decay!r}, expected a number of at least 0."
            )

    def learning_rate_at(self, count: Any) -> Any:
        """The rate of the next update after `count` finished ones."""
        rate = self.learning_rate
        return rate.at(count) if isinstance(rate, Schedule) else rate

    @property
    def num_moments(self) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class Adam(OptimizerDeclaration):
    """Adam: m/(1-b1^t) / (sqrt(v/(1-b2^t)) + eps); `weight_decay` is added to the gradient.

    Source: Kingma & Ba 2015, arXiv:1412.6980.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    decoupled: bool = dataclasses.field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(type(self).__name__, eps=self.eps)
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
            raise DeclarationError(
                f"{type(self).__name__}: got b1={self.b1}, b2={self.b2}, expected 0 <= b < 1."
            )

    @property
    def num_moments(self) -> int:
        return 2


@dataclasses.dataclass(frozen=True)
class AdamW(Adam):
    """Adam whose weight decay acts on the parameters, not on the gradient.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """

    decoupled: bool = dataclasses.field(default=True, init=False, repr=False)


@dataclasses.dataclass(frozen=True)
class SGD(OptimizerDeclaration):
    """Stochastic gradient descent, with momentum (m = momentum m + g) or Nesterov's look-ahead."""

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1 or (self.nesterov and not self.momentum):
            raise DeclarationError(
                f"SGD: got momentum={self.momentum}, nesterov={self.nesterov}, expected "
                "0 <= momentum < 1, and more than 0 for Nesterov's look-ahead."
            )

    @property
    def num_moments(self) -> int:
        return 1 if self.momentum else 0
