"""Transition kernels on a log density: init(x) -> state, step(key, state) -> (state, info).

A position is a dict of arrays with the chains on the leading axis; a density gives one number a
chain. Arguments that a density needs besides the position (parameters, data) are handed through, so
that a compiled density serves every update of a fit. NUTS is not here: it is the backend's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.bound import Bound
from probgen.inference.sample.spaces import bind_space
from probgen.language.declared import declaration, require
from probgen.language.kinds import Many, NonNegative, Positive

Array = Any
Tree = Any
_DIVERGED = 1000.0  # nats, the energy error at which NUTS and HMC call a transition divergent


class ChainState(NamedTuple):
    """Position, its log density [chains] and gradient: a step costs one new gradient."""

    x: Tree
    log_density: Array
    grad: Tree


class Kernel(NamedTuple):
    """init(x, *args) -> state;  step(key, state, *args) -> (state, info); info is not fed back.

    log_ratio(state, proposed) -> [chains], the log of the Metropolis-Hastings ratio of a step.
    """

    init: Callable
    step: Callable
    log_ratio: Callable


@declaration
class Langevin:
    """Langevin dynamics: x' = x + h grad log p(x) + s sqrt(2 h) xi, with xi ~ N(0, I).

    Args:
        step_size: h.
        num_steps: steps of one chain.
        noise_scale: s; 1 targets p (with a bias of order h), other values target p^(1/s^2)
            and the result says so; 0 is gradient ascent.
        metropolis: corrects every step by an accept-reject test (MALA), which removes the bias;
            needs noise_scale = 1.

    Without the correction the stationary law of x^2 / 2 has variance 1 / (1 - h / 2). Sites of
    constrained support move on the real line, under the density there (`inference.spaces`); h is a
    step of theirs.

    Sources: Roberts & Tweedie 1996, Bernoulli 2(4); Nijkamp et al. 2019, arXiv:1904.09770
    (short-run chains).
    """

    step_size: Positive
    num_steps: Many = 20
    noise_scale: NonNegative = 1.0
    metropolis: bool = False

    def __post_init__(self) -> None:
        require(
            self.noise_scale == 1.0 or not self.metropolis, self,
            "noise_scale 1: the correction is for the density itself; leave the noise scale out",
            "metropolis", "noise_scale",
        )  # fmt: skip

    def note(self, stats: Mapping[str, np.ndarray] | None = None) -> str:
        """What the chain targets and, of the `stats` of its run, how it went.

        Diverged chains are those of which a step was not finite or had a log Metropolis ratio
        below -1000, as when an energy blows up.
        """
        steps = f"{self.num_steps} steps of {self.step_size:g}"
        heat = f", temperature {self.noise_scale**2:g}" if self.noise_scale != 1.0 else ""
        text = f"MALA, {steps}" if self.metropolis else f"short-run Langevin, {steps}{heat}"
        if not stats:
            return text
        if "acceptance_rate" in stats:
            rate = f"acceptance {float(np.mean(stats['acceptance_rate'])):.2f}"
            text += f", {rate}" if self.metropolis else f", {rate} had steps been tested"
        diverged = stats["diverged"]
        return f"{text}, {int(diverged.sum())} of {len(diverged)} chains diverged"

    def cure(self) -> str:
        """What to do where chains end at NaN or infinity."""
        text = f"lower the sampler's step_size, now {self.step_size:g}"
        return text if self.metropolis else f"{text}, or test every step with metropolis=True"

    def generate(
        self, bound: Bound, params: Any, batch: Any, key: Any, num_samples: int,
        space: str | None = None, *, keep_chain: bool = False,
    ) -> tuple[dict, Tree, dict]:  # fmt: skip
        """(every site's value at the chains' ends, values of the sites that move along the chains
        or None, statistics of each chain); for `pg.generate`.

        The space is "noise" for a model with latents and "data" without, unless it is given; along
        a chain in noise space the noise is kept. `batch` holds the inputs with one row a sample.
        """
        b, ops = bound.backend, bound.backend.ops
        where = bind_space(bound, space or ("noise" if bound.latents else "data"))
        kernel = self.kernel(b, where.log_density, num_calls=self.num_steps)
        judged = self.noise_scale > 0

        def run(params: Any, batch: Any, key: Any) -> tuple[dict, Tree, dict]:
            k_start, k_chain = b.split(key, 2)
            first = kernel.init(where.init(params, batch, k_start, num_samples), params, batch)

            def shown(x: Tree) -> Tree:
                return x if where.kind == "noise" else where.values(x, params, batch)

            def step(carry: tuple, k: Any) -> tuple[tuple, Tree]:
                state, rate, diverged = carry
                new, info = kernel.step(k, state, params, batch)
                ratio = info.get("log_ratio")
                if ratio is None:
                    ratio = kernel.log_ratio(state, new) if judged else new.log_density * 0.0
                # NaN compares as False: a step that is not a number diverged, and is not accepted.
                diverged = ops.where(ratio > -_DIVERGED, diverged, 1.0)
                carry = (new, rate + acceptance(ops, ratio), diverged)
                return carry, shown(new.x) if keep_chain else None

            zero = ops.zeros_like(first.log_density)
            keys = b.split(k_chain, self.num_steps)
            (end, rate, diverged), chain = b.scan(step, (first, zero, zero), keys)
            sites = where.sites(end.x, params, batch)
            values = {n: s.value for n, s in sites.items() if s.kind != "factor"}
            stats = {"acceptance_rate": rate / self.num_steps} if judged else {}
            return values, chain, {**stats, "diverged": diverged}

        return b.loop(run)(params, batch, key)

    def kernel(
        self, backend: Backend, log_density: Callable, num_calls: int | None = None
    ) -> Kernel:
        """The kernel for `log_density(x, *args) -> [chains]`; `num_calls` helps `compile`."""
        b, ops = backend, backend.ops
        h, noise = self.step_size, self.noise_scale * math.sqrt(2.0 * self.step_size)

        def summed(x: Tree, *args: Any) -> tuple[Array, Array]:
            value = log_density(x, *args)
            return ops.sum(value), value

        gradient = b.compile(b.value_and_grad(summed, has_aux=True), num_calls=num_calls)

        def init(x: Tree, *args: Any) -> ChainState:
            (_, value), grad = gradient(x, *args)
            return ChainState(x, value, grad)

        def propose(key: Any, state: ChainState) -> Tree:
            names = sorted(state.x)
            keys = dict(zip(names, b.split(key, len(names)), strict=True))
            return {
                n: state.x[n]
                + h * state.grad[n]
                + (noise * b.normal(keys[n], tuple(state.x[n].shape)) if noise else 0.0)
                for n in names
            }

        def plain(key: Any, state: ChainState, *args: Any) -> tuple[ChainState, dict]:
            new = init(propose(key, state), *args)
            return new, {"log_density": new.log_density}

        def forward(x: Tree, y: Tree, grad: Tree) -> Array:
            """log q(y | x) up to a constant, [chains]."""
            out: Any = 0.0
            for n in x:
                d = ops.reshape(y[n] - x[n] - h * grad[n], (x[n].shape[0], -1))
                out = out - ops.sum(d * d, axis=-1) / (4.0 * h)
            return out

        heat = self.noise_scale**2

        def log_ratio(state: ChainState, new: ChainState) -> Array:
            """Of p^(1 / s^2), which the chain would keep were its steps tested."""
            change = new.log_density - state.log_density
            back = forward(new.x, state.x, new.grad) - forward(state.x, new.x, state.grad)
            return (change + back) / heat

        def corrected(key: Any, state: ChainState, *args: Any) -> tuple[ChainState, dict]:
            key_step, key_accept = b.split(key, 2)
            new = init(propose(key_step, state), *args)
            ratio = log_ratio(state, new)
            u = b.uniform(key_accept, tuple(ratio.shape))
            accept = ops.log(u) < ratio

            def choose(a: Array, c: Array) -> Array:
                flags = ops.reshape(accept, (*accept.shape, *([1] * (a.ndim - 1))))
                return ops.where(flags, a, c)

            kept = b.tree_map(choose, new, state)
            info = {"log_ratio": ratio, "acceptance_rate": acceptance(ops, ratio)}
            return kept, {"log_density": kept.log_density, **info}

        return Kernel(init, corrected if self.metropolis else plain, log_ratio)


def acceptance(ops: Any, log_ratio: Array) -> Array:
    """min(1, exp(log ratio)), and 0 where the ratio is NaN."""
    nothing = ops.zeros_like(log_ratio)
    rate = ops.exp(ops.minimum(log_ratio, nothing))
    return ops.where(ops.isnan(rate), nothing, rate)


def run_chain(
    backend: Backend, kernel: Kernel, x: Tree, key: Any, num_steps: int, *args: Any
) -> tuple[ChainState, dict]:
    """`num_steps` steps from x: the last state, and each step's info stacked on axis 0."""

    def step(state: ChainState, k: Any) -> tuple[ChainState, dict]:
        return kernel.step(k, state, *args)

    return backend.scan(step, kernel.init(x, *args), backend.split(key, num_steps))
