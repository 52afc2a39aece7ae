"""Annealed importance sampling: from a density that can be drawn from to one that cannot.

The path log f_b = log f_0 + b (log f_1 - log f_0) is walked from b_0 = 0 to b_T = 1:

    forward   u ~ f_0; for t = 1..T:  log w += log f_t(u) - log f_{t-1}(u), u moves, keeping f_t
    reverse   u ~ f_1; for t = T..1:  u moves, keeping f_t, log v += log f_{t-1}(u) - log f_t(u)

E[w] = Z_1 / Z_0 and E[v] = Z_0 / Z_1, whatever the number of temperatures. u moves by Hamiltonian
Monte Carlo, whose step sizes a pilot run finds and a table then freezes, one for each temperature
and datum: a step size that follows the chain it moves would no longer keep f_t.

What is annealed is a `Target` with `terms`: its `init` draws exactly from f_0. Positions are dicts
of arrays [chains, data, *event] on the real line. Walks are here; what their weights mean is in
`ais`, `bracket` and `partition`. Source: Neal 2001, Statistics and
Computing 11; the schedule is that of Wu et al. 2017, arXiv:1611.04273.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.target import Target, acceptance
from probgen.inference.sample.hamiltonian import choose, trajectory
from probgen.language.declared import declaration
from probgen.language.kinds import BelowOne, Many, OpenShare, Positive

Array = Any
Tree = Any

_WARMUP = 20  # transitions at the start's own density, in which the step size finds its scale
_SMOOTH = 3.0  # half-width, in pilot temperatures, over which the table is averaged


@declaration(kw_only=True)
class Settings:
    """How a path is walked; `AIS` says what each means."""

    num_steps: Many
    num_chains: Many
    num_leapfrog: Many
    target_accept_prob: OpenShare
    num_pilot_steps: Many
    initial_step_size: Positive
    jitter: BelowOne


def schedule(num_steps: int) -> np.ndarray:
    """[num_steps + 1] temperatures b_0 = 0 ... b_T = 1, closest together at both ends.

    b_t = (g_t - g_0) / (g_T - g_0) with g_t = sigmoid(4 (2 t / T - 1)).
    """
    t = np.arange(num_steps + 1) / num_steps
    g = 1.0 / (1.0 + np.exp(-4.0 * (2.0 * t - 1.0)))
    return (g - g[0]) / (g[-1] - g[0])


class Weights(NamedTuple):
    """What a walk gives.

    Attributes:
        log_w: [data, chains] log weights, nats; forward's w or reverse's v.
        log_w_rest: [data, chains] what their sum in single precision left over: add it in double.
        acceptance_rate: [data] mean over temperatures and chains.
    """

    log_w: Array
    log_w_rest: Array
    acceptance_rate: Array


def transition(backend: Backend, path: Target, settings: Settings) -> Callable:
    """One Hamiltonian transition that keeps f_beta, for all chains and data.

    (key, u, beta [], step_size [data], params, batch) -> (u, log f_1 - log f_0, acceptance), the
    latter two [chains, data]. Each chain's step size is spread by a uniform factor 1 +- jitter,
    drawn anew and blind to the chain's place: else a trajectory that is a multiple of a direction's
    period returns to its start and never mixes.

    Source: Neal 2011, arXiv:1206.1901, section 3.2 for the jitter.
    """
    b, ops = backend, backend.ops
    low, width = 1.0 - settings.jitter, 2.0 * settings.jitter

    def density(u: Tree, beta: Array, params: Any, batch: Any) -> tuple[Array, tuple]:
        base, delta = path.terms(u, params, batch)
        value = base + beta * delta
        return ops.sum(value), (value, delta)

    gradient = b.value_and_grad(density, has_aux=True)

    def move(
        key: Any, u: Tree, beta: Array, step_size: Array, params: Any, batch: Any
    ) -> tuple[Tree, Array, Array]:
        names = sorted(u)
        chains, data = u[names[0]].shape[:2]
        k_momentum, k_uniform = b.split(key, 2)

        def chains_first(x: Array) -> Array:
            # Noise is drawn with the data in front, so that each datum may have a key of its own.
            return ops.transpose(x, (1, 0, *range(2, x.ndim)))

        r = {
            n: chains_first(b.normal(k, (data, chains, *u[n].shape[2:])))
            for n, k in zip(names, b.split(k_momentum, len(names)), strict=True)
        }
        uniform = chains_first(b.uniform(k_uniform, (data, chains, 2)))
        h = step_size * (low + width * uniform[..., 0])

        def visit(x: Tree) -> tuple[tuple, Tree]:
            (_, seen), grad = gradient(x, beta, params, batch)
            return seen, grad

        moved = trajectory(b, visit, u, r, h, settings.num_leapfrog)
        # A trajectory that left the support, or overflowed, is refused: NaN compares as False.
        accept = ops.log(uniform[..., 1]) < moved.log_ratio
        delta = ops.where(accept, moved.last[1], moved.first[1])
        return choose(ops, accept, moved.x, u), delta, acceptance(ops, moved.log_ratio)

    return move


class Annealer:
    """A path with its walks, on one backend; every method is a pure function of its arguments.

    Wrap what calls them in `backend.compile(over="steps")`; on torch the transition is compiled by
    itself and the loop over temperatures is Python's.
    """

    def __init__(self, backend: Backend, path: Target, settings: Settings):
        self.backend, self.path, self.settings = backend, path, settings
        calls = settings.num_steps + settings.num_pilot_steps + _WARMUP
        self.transition = backend.compile(transition(backend, path, settings), num_calls=calls)
        self.terms = backend.compile(path.terms, num_calls=1)

    def step_sizes(self, params: Mapping, batch: Mapping, key: Any) -> Array:
        """[num_steps, data] the table of step sizes that a pilot run finds.

        The pilot walks forward on a coarser schedule, log h += rate (acceptance - target) after
        each transition. The table is its geometric mean over neighbouring temperatures.
        """
        b, s, ops = self.backend, self.settings, self.backend.ops
        k_start, k_run = b.split(key, 2)
        u = self.path.init(params, batch, k_start, s.num_chains)
        count = s.num_pilot_steps
        betas = np.concatenate([np.full(_WARMUP, schedule(count)[1]), schedule(count)[1:]])
        rates = np.concatenate([np.full(_WARMUP, 1.0), np.full(count, 0.5)])
        some = next(iter(u.values()))
        zeros = ops.zeros_like(ops.sum(ops.reshape(some, (*some.shape[:2], -1)), axis=(0, 2)))

        def step(carry: tuple, x: tuple) -> tuple[tuple, Array]:
            u, log_h = carry
            key, beta, rate = x
            u, _, accepted = self.transition(key, u, beta, ops.exp(log_h), params, batch)
            log_h = log_h + rate * (ops.mean(accepted, axis=0) - s.target_accept_prob)
            return (u, log_h), log_h

        keys = b.split(k_run, len(betas))
        start = (u, zeros + float(np.log(s.initial_step_size)))
        _, log_h = b.scan(step, start, (keys, b.asarray(betas), b.asarray(rates)))
        mix = b.asarray(_averages(s.num_steps, count))
        return ops.exp(ops.matmul(mix, log_h[_WARMUP:]))

    def forward(self, params: Mapping, batch: Mapping, key: Any, table: Array) -> Weights:
        """Weights of chains from f_0 to f_1: E[w] = Z_1 / Z_0."""
        k_start, k_run = self.backend.split(key, 2)
        u = self.path.init(params, batch, k_start, self.settings.num_chains)
        _, delta = self.terms(u, params, batch)

        def step(carry: tuple, x: tuple) -> tuple[tuple, Array]:
            u, delta, total = carry
            key, beta, increment, h = x
            total = add_exactly(self.backend.ops, total, increment * delta)
            u, delta, rate = self.transition(key, u, beta, h, params, batch)
            return (u, delta, total), self.backend.ops.mean(rate, axis=0)

        return self._walk(step, u, delta, k_run, table, reverse=False)

    def reverse(self, params: Mapping, batch: Mapping, key: Any, table: Array, u: Tree) -> Weights:
        """Weights of chains from positions `u`, exact draws of f_1, to f_0: E[v] = Z_0 / Z_1.

        Mirrors `forward` exactly: the same temperatures and step sizes in the opposite order, and
        each transition before, not after, the increment that it stood behind.
        """
        _, delta = self.terms(u, params, batch)

        def step(carry: tuple, x: tuple) -> tuple[tuple, Array]:
            u, delta, total = carry
            key, beta, increment, h = x
            u, delta, rate = self.transition(key, u, beta, h, params, batch)
            total = add_exactly(self.backend.ops, total, -increment * delta)
            return (u, delta, total), self.backend.ops.mean(rate, axis=0)

        return self._walk(step, u, delta, key, table, reverse=True)

    def _walk(
        self, step: Callable, u: Tree, delta: Array, key: Any, table: Array, reverse: bool
    ) -> Weights:
        b, ops = self.backend, self.backend.ops
        betas = schedule(self.settings.num_steps)
        rows = [b.asarray(betas[1:]), b.asarray(np.diff(betas)), table]
        if reverse:
            rows = [ops.flip(r, axis=0) for r in rows]
        keys = b.split(key, self.settings.num_steps)
        zero = ops.zeros_like(delta)
        (_, _, (high, low)), rates = b.scan(step, (u, delta, (zero, zero)), (keys, *rows))
        return Weights(ops.transpose(high), ops.transpose(low), ops.mean(rates, axis=0))


def add_exactly(ops: Any, total: tuple[Array, Array], x: Array) -> tuple[Array, Array]:
    """(high, low) + x without loss: low gathers what rounding drops from high.

    Thousands of increments to a sum of hundreds of nats would otherwise lose digits in single
    precision. Source: Knuth, TAOCP 2, section 4.2.2, theorem B.
    """
    high, low = total
    out = high + x
    added = out - high
    lost = (high - (out - added)) + (x - added)
    # A weight of zero (log w = -inf) has no remainder.
    return out, low + ops.where(ops.isfinite(out), lost, ops.zeros_like(lost))


def _averages(num_steps: int, num_pilot: int) -> np.ndarray:
    """[num_steps, num_pilot] rows of triangular weights about the same fraction of the path."""
    place = np.arange(1, num_steps + 1) / num_steps * num_pilot
    distance = np.abs(place[:, None] - np.arange(1, num_pilot + 1))
    weights = np.maximum(0.0, 1.0 - distance / _SMOOTH)
    return weights / weights.sum(axis=1, keepdims=True)
