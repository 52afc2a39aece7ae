"""Hamiltonian dynamics on any target: what annealing and HMC's own kernel share.

    H(x, r) = -log p(x) + r'r / 2,     leapfrog steps of h,     accept by exp(H_0 - H_1)

All chains move at once, with a mass of one or a diagonal that is given. The backends' native
samplers, which learn a mass matrix, are in `mcmc`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.target import Kernel, Target, acceptance, climb, require_density, step_sizes
from probgen.errors import AlgorithmError
from probgen.inference.sample.adaptation import Learned, learned, unlearned
from probgen.inference.sample.preconditioner import check_diagonal, diagonal

Array = Any
Tree = Any


class Moved(NamedTuple):
    """A trajectory: its end, what `visit` gave at its first and last place, and H_0 - H_1."""

    x: Tree
    first: Tree
    last: Tree
    log_ratio: Array


def trajectory(
    backend: Backend, visit: Callable, x: Tree, r: Tree, h: Array | Mapping[str, Array],
    num_leapfrog: int, root: Mapping[str, Any] | None = None,
) -> Moved:  # fmt: skip
    """Leapfrog steps from position x with momentum r.

    Args:
        visit: x -> ((log density, and what else of the place), direction to climb in).
        h: step size, [*lead] as the log density is, [] or by name.
        root: sqrt(M) by name, of each coordinate: x = sqrt(M) u, and the steps are in u.
    """
    kicks = np.ones(num_leapfrog + 1)
    kicks[[0, -1]] = 0.5
    drifts = np.ones(num_leapfrog + 1)
    drifts[-1] = 0.0  # the last place is where the trajectory ends
    names = sorted(x)
    size = h if isinstance(h, Mapping) else dict.fromkeys(names, h)
    root = dict.fromkeys(names, 1.0) if root is None else root

    def step(carry: tuple, weights: tuple) -> tuple[tuple, Tree]:
        x, r = carry
        seen, grad = visit(x)
        kick, drift = weights
        r = {
            n: r[n] + leading(backend.ops, kick * size[n], r[n]) * (root[n] * grad[n])
            for n in names
        }
        x = {
            n: x[n] + leading(backend.ops, drift * size[n], x[n]) * (root[n] * r[n]) for n in names
        }
        return (x, r), seen

    # The half kicks are joined: each of the num_leapfrog + 1 places is seen once.
    weights = (backend.asarray(kicks), backend.asarray(drifts))
    (end, s), seen = backend.scan(step, (x, r), weights)
    first = backend.tree_map(lambda v: v[0], seen)
    last = backend.tree_map(lambda v: v[-1], seen)
    lead = first[0].ndim
    before = kinetic(backend.ops, r, lead) - first[0]
    return Moved(end, first, last, before - (kinetic(backend.ops, s, lead) - last[0]))


def kinetic(ops: Any, r: Tree, lead: int) -> Array:
    """r'r / 2 over all but the first `lead` axes."""
    parts = [ops.sum(ops.reshape(v * v, (*v.shape[:lead], -1)), axis=-1) for v in r.values()]
    return 0.5 * sum(parts[1:], parts[0])


def leading(ops: Any, factor: Array, like: Array) -> Array:
    """A factor of the first axes, with an axis of one for each further axis of `like`."""
    return ops.reshape(factor, (*factor.shape, *([1] * (like.ndim - factor.ndim))))


def normals(backend: Backend, key: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """xi ~ N(0, I) by site, each [n, ...]: of several sites by one call, since a call of JAX's
    generator costs a chain of small numbers more than the numbers themselves."""
    names, num = sorted(shapes), min(s[0] for s in shapes.values())
    if len(names) == 1:
        return {names[0]: backend.normal(backend.split(key, 1)[0], shapes[names[0]])}
    ends = np.cumsum([0, *(math.prod(shapes[n][1:]) for n in names)])
    flat = backend.normal(key, (num, int(ends[-1])))
    return {
        n: backend.ops.reshape(flat[:, int(start) : int(stop)], shapes[n])
        for n, start, stop in zip(names, ends, ends[1:], strict=False)
    }


def choose(ops: Any, accept: Array, new: Tree, old: Tree) -> Tree:
    """Of each chain the new position where it is accepted; NaN in a ratio compares as False."""
    return {n: ops.where(leading(ops, accept, new[n]), new[n], old[n]) for n in new}


class State(NamedTuple):
    """Position, log density [n], and the factor on the step size where it is learned."""

    x: Tree
    log_density: Array
    size: Learned | None = None


def hamiltonian(
    backend: Backend, target: Target, *, step_size: float | Mapping[str, float], num_leapfrog: int,
    num_warmup: int, target_accept_prob: float, jitter: float = 0.0, preconditioner: Any = None,
    num_calls: int | None = None,
) -> Kernel:  # fmt: skip
    """HMC of all chains at once, whose common step size is learned in the first `num_warmup` steps.

    A step size by site is learned as one factor of them all, by the mean acceptance of the chains.
    With `jitter` each chain's transition has a step of its own, uniform in (1 - jitter, 1 + jitter)
    times that: trajectories of many lengths, so that none of them is a period of the target's. The
    preconditioner is M of `preconditioner`, an inverse mass.

    Sources: `adaptation`; for the jitter Neal 2011, arXiv:1206.1901, section 5.4.2.2.
    """
    b, ops = backend, backend.ops
    require_density(target, "HMC")
    start = step_sizes(step_size, target, "HMC")
    names, up = sorted(target.names), climb(b, target)
    m = diagonal(b, preconditioner, target, "HMC")
    root = {n: v**0.5 for n, v in m.items()}

    def init(x: Tree, *args: Any) -> State:
        check_diagonal(m, x, "HMC")
        value = target.log_density(x, *args)  # type: ignore[misc]
        return State(x, value, unlearned(ops, value) if num_warmup else None)

    def factor(state: State, key: Any = None) -> Array:
        """On the step sizes, [] or one a chain."""
        size = ops.exp(state.size.log_factor) if state.size is not None else 1.0
        if not jitter:
            return size + ops.sum(ops.zeros_like(state.log_density))
        u = b.uniform(key, tuple(state.log_density.shape))
        return size * (1.0 + jitter * (2.0 * u - 1.0))

    def step(key: Any, state: State, *args: Any) -> tuple[State, dict]:
        k_momentum, k_accept, *k_jitter = b.split(key, 3 if jitter else 2)
        r = normals(b, k_momentum, {n: tuple(state.x[n].shape) for n in names})
        size = factor(state, *k_jitter)

        def visit(x: Tree) -> tuple[tuple, Tree]:
            value, grad = up(x, *args)
            return (value,), grad

        sizes = {n: start[n] * size for n in names}
        moved = trajectory(b, visit, state.x, r, sizes, num_leapfrog, root)
        ratio = moved.log_ratio
        accept = ops.log(b.uniform(k_accept, tuple(ratio.shape))) < ratio
        x = choose(ops, accept, moved.x, state.x)
        value = ops.where(accept, moved.last[0], moved.first[0])
        kept = state.size
        if kept is not None:
            rate = ops.mean(acceptance(ops, ratio))
            kept = learned(ops, kept, rate, goal=target_accept_prob, num_warmup=num_warmup)
        return State(x, value, kept), {"noise": r, "log_ratio": ratio}

    return Kernel(init, b.compile(step, num_calls=num_calls))


def of_chains(stats: Mapping[str, np.ndarray] | None, *, tested: bool) -> str:
    """How chains went, in words that follow a sampler's own; `stats` are [n] by name."""
    if not stats:
        return ""
    text = ""
    if "acceptance_rate" in stats:
        rate = f"acceptance {float(np.mean(stats['acceptance_rate'])):.2f}"
        text = f", {rate}" if tested else f", {rate} had steps been tested"
    if "clipped" in stats:
        text += f", the drift clipped in {float(np.mean(stats['clipped'])):.0%} of steps"
    if "diverged" in stats:
        diverged = stats["diverged"]
        text += f", {int(diverged.sum())} of {len(diverged)} chains diverged"
    return text


def fixed_length(num_steps: int | None) -> int:
    """The number of leapfrog steps.

    Raises:
        AlgorithmError: only the trajectory's length is given.
    """
    if num_steps is None:
        raise AlgorithmError(
            "HMC: got a trajectory_length, expected num_steps=10, say, where many chains move at "
            "once (pg.generate and learners): a fixed number of leapfrog steps."
        )
    return num_steps
