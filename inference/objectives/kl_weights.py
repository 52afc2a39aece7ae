"""Schedules for the weight beta of a KL term: functions of the number of finished updates.

    linear      beta = start + (final - start) t / T                  for t < T, then final
    cyclical    beta = final min(1, frac(t / T) / ratio)
    sigmoid     beta = s((t - T/2) / (T/10))                          for t < T, then 1

A constant beta is a plain number, `ELBO(kl_weight=4.0)`; a beta moved by feedback is in `control`.
"""

from __future__ import annotations

from typing import Annotated, Any

from probgen.inference.objectives.scalars import clip, floor, sigmoid, where
from probgen.language.declared import declaration
from probgen.language.kinds import Count, NonNegative, within

Array = Any


@declaration
class KLWeight:
    """Base of schedules: `at(count)` is the weight of the update after `count` finished ones.

    `count` may be a number or a backend's array. `target` is the weight that the schedule is
    heading for; a fit that ends elsewhere says so in its report.
    """

    @property
    def target(self) -> float:
        return 1.0

    def at(self, count: Array) -> Array:
        raise NotImplementedError  # abstract: every schedule below defines it


@declaration
class LinearWarmup(KLWeight):
    """beta from `start` to `final` along a line over `num_steps` updates, constant after."""

    num_steps: Count
    start: NonNegative = 0.0
    final: NonNegative = 1.0

    @property
    def target(self) -> float:
        return self.final

    def at(self, count: Array) -> Array:
        return self.start + (self.final - self.start) * clip(count / self.num_steps, 0.0, 1.0)


@declaration
class CyclicalWarmup(KLWeight):
    """beta climbs from 0 to `final` in the first `ratio` of each cycle and rests there.

    A cycle lasts `period` updates; with frac the part of it that is over, beta is
    final min(1, frac / ratio), so ratio 1/2 is min(1, 2 frac).

    Source: Fu et al. 2019, arXiv:1903.10145.
    """

    period: Count
    ratio: Annotated[float, within(0, 1, "(]")] = 0.5  # the part of a cycle that climbs
    final: NonNegative = 1.0

    @property
    def target(self) -> float:
        return self.final

    def at(self, count: Array) -> Array:
        # The half keeps a compiler that divides by way of the reciprocal on the right side.
        cycle = floor((count + 0.5) / self.period)
        frac = (count - cycle * self.period) / self.period
        return self.final * clip(frac / self.ratio, 0.0, 1.0)


@declaration
class SigmoidWarmup(KLWeight):
    """Cost annealing: beta = sigmoid((t - T/2) / (T/10)) for t < T, then 1; T is `num_steps`.

    Source: Bowman et al. 2016, arXiv:1511.06349, with the constants of ControlVAE's baseline.
    """

    num_steps: Count

    def at(self, count: Array) -> Array:
        t = self.num_steps
        return where(count < t, sigmoid((count - t / 2) / (t / 10)), count * 0.0 + 1.0)
