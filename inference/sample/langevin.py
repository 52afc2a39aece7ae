"""Langevin dynamics, plain or with a Metropolis test (MALA), on any target.

    x' = x + h grad log p(x) + s sqrt(2 h) xi,     xi ~ N(0, I)

Where a target has a drift of its own, it stands for the gradient. Hamiltonian dynamics are in
`hamiltonian`, the backends' own NUTS and HMC in `mcmc`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.target import (
    Kernel,
    Target,
    climb,
    require_density,
    step_sizes,
    transitions,
)
from probgen.inference.sample.hamiltonian import of_chains
from probgen.language.declared import declaration, require
from probgen.language.kinds import CountOrZero, Many, NonNegative, StepSize

Array = Any
Tree = Any


class ChainState(NamedTuple):
    """Position, its log density [n] (None under a drift alone) and the direction to climb in."""

    x: Tree
    log_density: Array | None
    grad: Tree


@declaration
class Langevin:
    """Langevin dynamics: x' = x + h grad log p(x) + s sqrt(2 h) xi, with xi ~ N(0, I).

    Args:
        step_size: h, one number or one of each site that moves, such as {"z": 0.1, "w": 0.01}.
        num_steps: steps of one chain, after `num_warmup`: `infer` keeps them all as draws (or every
            `thinning`-th), `generate` and learners take the chain's end.
        noise_scale: s; 1 targets p (with a bias of order h), other values target p^(1/s^2)
            and the result says so; 0 is gradient ascent.
        metropolis: corrects every step by an accept-reject test (MALA), which removes the bias;
            needs noise_scale = 1.
        num_warmup: first steps, whose draws `infer` leaves out. Nothing is adapted in them.
        num_chains: of `infer`; `generate` and learners run one chain a sample.
        thinning: every `thinning`-th step of `infer` is kept: num_steps // thinning draws.

    Without the correction the stationary law of x^2 / 2 has variance 1 / (1 - h / 2). Sites of
    constrained support move on the real line, under the density there (`probgen.engine.spaces`); h
    is a step of theirs. `infer` starts its chains uniform in (-2, 2) there.

    `sample_stats` of `infer`: `lp`, `acceptance_rate` (without the correction: what a test would
    have accepted), `diverging` (a log ratio below -1000, or none).

    Sources: Roberts & Tweedie 1996, Bernoulli 2(4); Nijkamp et al. 2019, arXiv:1904.09770
    (short-run chains).
    """

    step_size: StepSize
    num_steps: Many = 20
    noise_scale: NonNegative = 1.0
    metropolis: bool = False
    num_warmup: CountOrZero = dataclasses.field(default=0, kw_only=True)
    num_chains: Many = dataclasses.field(default=4, kw_only=True)
    thinning: Many = dataclasses.field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        require(
            self.noise_scale == 1.0 or not self.metropolis, self,
            "noise_scale 1: the correction is for the density itself; leave the noise scale out",
            "metropolis", "noise_scale",
        )  # fmt: skip
        expected = "at most num_steps, to keep a draw"
        require(self.thinning <= self.num_steps, self, expected, "thinning", "num_steps")

    @property
    def num_draws(self) -> int:
        """Draws that `infer` keeps of each chain."""
        return self.num_steps // self.thinning

    def note(self, stats: Mapping[str, np.ndarray] | None = None) -> str:
        """What the chain targets and, of the `stats` of its run, how it went.

        Diverged chains are those of which a step was not finite or had a log Metropolis ratio
        below -1000, as when an energy blows up.
        """
        warmup = f"{self.num_warmup} + " if self.num_warmup else ""
        steps = f"{warmup}{self.num_steps} steps of {self._size()}"
        heat = f", temperature {self.noise_scale**2:g}" if self.noise_scale != 1.0 else ""
        text = f"MALA, {steps}" if self.metropolis else f"short-run Langevin, {steps}{heat}"
        return text + of_chains(stats, tested=self.metropolis)

    def cure(self) -> str:
        """What to do where chains end at NaN or infinity."""
        text = f"lower the sampler's step_size, now {self._size()}"
        return text if self.metropolis else f"{text}, or test every step with metropolis=True"

    def _size(self) -> str:
        given = self.step_size
        each = given.items() if isinstance(given, Mapping) else [("", given)]
        return ", ".join(f"{h:g} {n}".strip() for n, h in each)

    def kernel(self, backend: Backend, target: Target, num_calls: int | None = None) -> Kernel:
        """The kernel on a target."""
        b, ops = backend, backend.ops
        h = step_sizes(self.step_size, target, "Langevin")
        scale = {n: self.noise_scale * math.sqrt(2.0 * v) for n, v in h.items()}
        names = sorted(target.names)
        if self.metropolis:
            require_density(target, "Langevin(metropolis=True)")
        up = climb(b, target)
        is_judged = self.noise_scale > 0 and target.log_density is not None

        def init(x: Tree, *args: Any) -> ChainState:
            return ChainState(x, *up(x, *args))

        def propose(key: Any, state: ChainState) -> tuple[Tree, Tree]:
            keys = dict(zip(names, b.split(key, len(names)), strict=True))
            still = {n: state.x[n] + h[n] * state.grad[n] for n in names}
            if not self.noise_scale:
                return still, {}
            noise = {n: b.normal(keys[n], tuple(still[n].shape)) for n in names}
            return {n: still[n] + scale[n] * noise[n] for n in names}, noise

        def forward(x: Tree, y: Tree, grad: Tree) -> Array:
            """log q(y | x) up to a constant, [n]."""
            out: Any = 0.0
            for n in names:
                d = ops.reshape(y[n] - x[n] - h[n] * grad[n], (x[n].shape[0], -1))
                out = out - ops.sum(d * d, axis=-1) / (4.0 * h[n])
            return out

        def log_ratio(state: ChainState, new: ChainState) -> Array:
            """Of p^(1 / s^2), which the chain would keep were its steps tested."""
            change: Any = new.log_density - state.log_density  # type: ignore[operator]
            back = forward(new.x, state.x, new.grad) - forward(state.x, new.x, state.grad)
            return (change + back) / self.noise_scale**2

        def plain(key: Any, state: ChainState, *args: Any) -> tuple[ChainState, dict]:
            x, noise = propose(key, state)
            new = init(x, *args)
            return new, {"noise": noise} | (
                {"log_ratio": log_ratio(state, new)} if is_judged else {}
            )

        def corrected(key: Any, state: ChainState, *args: Any) -> tuple[ChainState, dict]:
            key_step, key_accept = b.split(key, 2)
            x, noise = propose(key_step, state)
            new = init(x, *args)
            ratio = log_ratio(state, new)
            accept = ops.log(b.uniform(key_accept, tuple(ratio.shape))) < ratio

            def choose(a: Array, c: Array) -> Array:
                return ops.where(ops.reshape(accept, (*accept.shape, *([1] * (a.ndim - 1)))), a, c)

            return b.tree_map(choose, new, state), {"noise": noise, "log_ratio": ratio}

        starts = None if num_calls is None else max(1, num_calls // transitions(self))
        step = corrected if self.metropolis else plain
        return Kernel(b.compile(init, num_calls=starts), b.compile(step, num_calls=num_calls))
