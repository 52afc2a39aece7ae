"""Schedules for the weight beta of a KL term: functions of the number of finished updates."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from probgen import ops
from probgen.errors import DeclarationError

Array = Any


@dataclasses.dataclass(frozen=True)
class KLWeight:
    """Base of schedules: `at(count)` inside a step, `value(count)` on a plain number.

    `target` is the weight that the schedule is heading for; a fit that ends below it says so.
    """

    @property
    def target(self) -> float:
        return 1.0

    def at(self, count: Array) -> Array:
        raise NotImplementedError  # abstract: every schedule below defines it

    def value(self, count: float) -> float:
        raise NotImplementedError  # abstract: every schedule below defines it


def _positive(who: str, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise DeclarationError(f"{who}: got {name}={value!r}, expected more than 0.")


@dataclasses.dataclass(frozen=True)
class LinearWarmup(KLWeight):
    """beta from `start` to `final` along a line over `num_steps` updates, constant after."""

    num_steps: int
    start: float = 0.0
    final: float = 1.0

    def __post_init__(self) -> None:
        _positive("LinearWarmup", num_steps=self.num_steps)

    @property
    def target(self) -> float:
        return self.final

    def at(self, count: Array) -> Array:
        part = ops.clip(count / self.num_steps, 0.0, 1.0)
        return self.start + (self.final - self.start) * part

    def value(self, count: float) -> float:
        part = min(max(count / self.num_steps, 0.0), 1.0)
        return self.start + (self.final - self.start) * part


@dataclasses.dataclass(frozen=True)
class CyclicalWarmup(KLWeight):
    """beta climbs from 0 to `final` in the first `ratio` of each cycle and rests there.

    The weight is min(1, frac / ratio) final, with frac the place in a cycle of `period` updates;
    ratio 1/2 is min(1, 2 frac). Source: Fu et al. 2019, arXiv:1903.10145.
    """

    period: int
    ratio: float = 0.5
    final: float = 1.0

    def __post_init__(self) -> None:
        _positive("CyclicalWarmup", period=self.period, ratio=self.ratio)

    @property
    def target(self) -> float:
        return self.final

    def at(self, count: Array) -> Array:
        turns = count / self.period
        frac = turns - ops.floor(turns)
        return self.final * ops.clip(frac / self.ratio, 0.0, 1.0)

    def value(self, count: float) -> float:
        frac = count / self.period % 1.0
        return self.final * min(frac / self.ratio, 1.0)


@dataclasses.dataclass(frozen=True)
class SigmoidWarmup(KLWeight):
    """Cost annealing: beta = sigmoid((t - T/2) / (T/10)) for t < T, then 1; T is `num_steps`.

    Source: Bowman et al. 2016, arXiv:1511.06349, with the constants of ControlVAE's baseline.
    """

    num_steps: int

    def __post_init__(self) -> None:
        _positive("SigmoidWarmup", num_steps=self.num_steps)

    def at(self, count: Array) -> Array:
        t = self.num_steps
        return ops.where(count < t, ops.sigmoid((count - t / 2) / (t / 10)), count * 0.0 + 1.0)

    def value(self, count: float) -> float:
        t = self.num_steps
        return 1.0 / (1.0 + math.exp(-(count - t / 2) / (t / 10))) if count < t else 1.0
