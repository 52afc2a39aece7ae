"""Optimiser declarations and learning-rate schedules; backends run them (optax, fused torch).

A learning rate is a number or a schedule, a declaration whose `at(count)` gives the rate of the
update that follows `count` finished ones, written with `ops` so that it works inside a graph.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from probgen.language import ops
from probgen.language.declared import argument, declaration, require
from probgen.language.kinds import BelowOne, Count, CountOrZero, NonNegative, Positive, Rule, Text


@declaration
class Schedule:
    """A learning rate as a function of the number of finished updates."""

    def at(self, count: Any) -> Any:
        raise NotImplementedError  # abstract: every schedule below defines it


@declaration
class CosineDecay(Schedule):
    """Linear warm-up over `warmup_steps`, then half a cosine, `peak` to `final` at `num_steps`."""

    peak: Positive
    num_steps: Count
    warmup_steps: CountOrZero = 0
    final: NonNegative = 0.0

    def __post_init__(self) -> None:
        fits = self.warmup_steps <= self.num_steps
        require(fits, self, "a warm-up of at most num_steps", "warmup_steps", "num_steps")

    def at(self, count: Any) -> Any:
        warm = self.peak * (count + 1.0) / max(self.warmup_steps, 1)
        span = max(self.num_steps - self.warmup_steps, 1)
        part = ops.clip((count - self.warmup_steps) / span, 0.0, 1.0)
        cosine = self.final + (self.peak - self.final) * 0.5 * (1.0 + ops.cos(math.pi * part))
        return ops.where(count < self.warmup_steps, warm, cosine)


@declaration
class ExponentialDecay(Schedule):
    """`start * rate ** (count / every)`."""

    start: Positive
    rate: Positive
    every: Count

    def at(self, count: Any) -> Any:
        return self.start * ops.exp(math.log(self.rate) * count / self.every)


@declaration
class LinearWarmup(Schedule):
    """From `peak / num_steps` to `peak` in `num_steps` updates, constant after."""

    peak: Positive
    num_steps: Count

    def at(self, count: Any) -> Any:
        return self.peak * ops.clip((count + 1.0) / max(self.num_steps, 1), 0.0, 1.0)


@declaration
class OptimizerDeclaration:
    """Base of optimisers: a learning rate (a number or a `Schedule`) and a clip of the norm."""

    learning_rate: Positive | Schedule = 1e-3
    clip_norm: Positive | None = dataclasses.field(default=None, kw_only=True)
    weight_decay: NonNegative = dataclasses.field(default=0.0, kw_only=True)

    def learning_rate_at(self, count: Any) -> Any:
        """The rate of the next update after `count` finished ones."""
        rate = self.learning_rate
        return rate.at(count) if isinstance(rate, Schedule) else rate

    @property
    def num_moments(self) -> int:
        return 0


@declaration
class Adam(OptimizerDeclaration):
    """Adam: m/(1-b1^t) / (sqrt(v/(1-b2^t)) + eps); `weight_decay` is added to the gradient.

    Args:
        clip_by_moment: (a, b) holds each element of the gradient within +-(a sqrt(vhat) + b), vhat
            = v/(1-b2^t) as the updates before left it; the first update has none and is not
            clipped. (3.0, 0.1) is customary for energies. It comes before `clip_norm`.

    Sources: Kingma & Ba 2015, arXiv:1412.6980; the clip: Du & Mordatch 2019, arXiv:1903.08689,
    and Xiao et al. 2021, arXiv:2010.00654.
    """

    b1: BelowOne = 0.9
    b2: BelowOne = 0.999
    eps: Positive = 1e-8
    clip_by_moment: tuple[NonNegative, Positive] | None = dataclasses.field(
        default=None, kw_only=True
    )
    decoupled: bool = dataclasses.field(default=False, init=False, repr=False)

    @property
    def num_moments(self) -> int:
        return 2


@declaration
class AdamW(Adam):
    """Adam whose weight decay acts on the parameters, not on the gradient.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """

    decoupled: bool = dataclasses.field(default=True, init=False, repr=False)


@declaration
class SGD(OptimizerDeclaration):
    """Stochastic gradient descent, with momentum (m = momentum m + g) or Nesterov's look-ahead."""

    momentum: BelowOne = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        fits = self.momentum > 0 or not self.nesterov
        require(fits, self, "momentum for Nesterov's look-ahead", "momentum", "nesterov")

    @property
    def num_moments(self) -> int:
        return 1 if self.momentum else 0


@declaration
class Groups:
    """Another optimiser for some nets: `Groups({"decoder": Adam(1e-3), "encoder": SGD(1e-2)})`.

    A name stands for the net of that name and for all nets of the part of that name ("prior" for
    "prior/energy"); of several that fit, the longest. Each group clips the norm of its own gradient
    and has its own moments; nets of one optimiser may be named one by one.

    Attributes:
        groups: optimisers by name.
        rest: the optimiser of all other nets; None where there are none.
    """

    groups: Mapping[str, OptimizerDeclaration] | tuple[tuple[Text, OptimizerDeclaration], ...]
    rest: OptimizerDeclaration | None = None

    def __post_init__(self) -> None:
        pairs = self.groups.items() if isinstance(self.groups, Mapping) else self.groups
        kept = tuple(
            (n, argument("Groups", OptimizerDeclaration, **{f"groups[{n!r}]": o})) for n, o in pairs
        )
        require(kept or self.rest, self, "an optimiser for at least one net", "groups")
        object.__setattr__(self, "groups", kept)

    def optimizers(self) -> dict[str, OptimizerDeclaration]:
        """Optimisers by name; "*" is the name of all other nets."""
        return dict(self.groups) | ({} if self.rest is None else {"*": self.rest})


AnyOptimizer = Annotated[
    OptimizerDeclaration | Groups,
    Rule("an optimiser such as pg.Adam(1e-3), or pg.Groups of them", alone=True),
]


def stands_for(names: Iterable[str], net: str) -> str | None:
    """Which of the names, of nets or of parts with several, means this net; the longest that does.

    Examples:
        >>> stands_for(("prior", "decoder"), "prior/energy")
        'prior'
    """
    fits = [n for n in names if net == n or net.startswith(f"{n}/")]
    return max(fits, key=len, default=None)
