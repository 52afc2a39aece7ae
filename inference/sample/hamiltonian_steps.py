"""What chains of NUTS and HMC compute on the backend, without data: starts, noise, leapfrogs.

A step is one leapfrog of every chain with all that follows from it (`machine`); data, step sizes
and mass matrices are its arguments, so that one compilation serves a run and the next one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from probgen.backends.chains import WarmStart
from probgen.backends.layout import Layout
from probgen.backends.protocol import Backend, Loop
from probgen.engine.posterior import Posterior
from probgen.inference.sample.adaptation import Learned, learned
from probgen.inference.sample.hamiltonian_plan import NUM_PIECES
from probgen.inference.sample.machine import Machine, Noise, Place, choose
from probgen.inference.sample.mass import Mass
from probgen.trees import tree_map

Array = Any
LEAPFROGS = 8  # of a usual transition, to judge whether compilation pays
NOISY = 128  # leapfrogs whose noise is drawn at a time, at most
NOISE = 2**20  # numbers that are drawn at a time, at most


class Sizes(NamedTuple):
    """Of each chain: the step size that a window starts from, what it learns (a factor on it), and
    how many transitions do, [] (0: none)."""

    base: Array
    factor: Learned
    window: Array


class Compiled(NamedTuple):
    """What a run computes, without data: see `compiled`."""

    begin: Callable
    noise_of_one: Callable
    noise: Callable
    loop: Loop


def compiled(
    posterior: Posterior, layout: Layout, mass: Mass, method: Any, machine: Callable,
    num_chains: int, num_transitions: int, name: Any,
) -> Compiled:  # fmt: skip
    """The functions of one posterior and method, for so many chains of so many transitions."""
    b = posterior.bound.backend
    ops = b.ops

    def density(x: Array, params: Any, rows: Any) -> Array:
        return posterior.point(params, rows, layout.unpack(x, ops.reshape)).log_density

    each = posterior.each(density)

    def summed(x: Array, params: Any, rows: Any) -> tuple[Array, Array]:
        value = each(x, params, rows)
        return ops.sum(value), value

    gradient = b.value_and_grad(summed, has_aux=True)

    def climb(x: Array, params: Any, rows: Any) -> tuple[Array, Array]:
        (_, value), grad = gradient(x, params, rows)
        return value, grad

    made: Machine = machine(ops, climb)
    goal, adapts = method.target_accept_prob, method.adapt_step_size

    def begin(x: Array, noise: Noise, size: Array, scale: Any, length: Array, *args: Any) -> tuple:
        """(state, log density and its gradient at x, gain of a leapfrog from there)."""
        roots = mass.root(ops, scale)
        value, grad = climb(x, *args)
        place = Place(x, roots[1](grad), value, value)
        state = made.begin(place, noise, length)
        _, told = made.step(state, noise, size, roots, length, *args)
        return state, value, grad, ops.log(told["acceptance_rate"])

    def noise(num: int, key: Any) -> Noise:
        """[step, chain, ...] of `num` steps, each chain's from its own key."""
        k_normal, k_uniform = b.split(key, 2)
        drawn = (
            b.normal(k_normal, (num_chains, num, layout.dim)),
            b.uniform(k_uniform, (num_chains, num, 3)),
        )
        return Noise(*(ops.transpose(v, (1, 0, 2)) for v in drawn))

    def step(carry: tuple, noise: Noise, scale: Any, length: Array, *args: Any) -> tuple:
        state, sizes = carry
        size = sizes.base * ops.exp(sizes.factor.log_factor)
        state, told = made.step(state, noise, size, mass.root(ops, scale), length, *args)
        if adapts:
            new = learned(
                ops, sizes.factor, told["acceptance_rate"], goal=goal, num_warmup=sizes.window
            )
            sizes = sizes._replace(factor=choose(ops, told["done"], new, sizes.factor))
        told = {**told, "step_size": size, **sizes.factor._asdict()}
        return (state, sizes), told

    per_step = num_chains * (layout.dim + 3)

    def drawing(num: int) -> Callable:
        return b.compile(partial(noise, num), over="steps", token=name and (name, "noise", num))

    calls = num_transitions * LEAPFROGS
    loop = b.loop(step, num_calls=calls, token=name and (name, "loop"))
    rows = loop.steps * min(max(1, NOISE // (per_step * loop.steps)), max(1, NOISY // loop.steps))
    return Compiled(
        b.compile(begin, num_calls=NUM_PIECES, token=name and (name, "begin")),
        drawing(1), drawing(rows), loop,
    )  # fmt: skip


def what_is_compiled(method: Any) -> str:
    """The part of a method that changes what is compiled: neither how long its chains are, nor
    where they and their step sizes start."""
    same = dict.fromkeys(("num_samples", "thinning", "num_chains"), 1)
    plain = {"init_strategy": "init_to_uniform", "find_heuristic_step_size": None}
    return repr(dataclasses.replace(method, num_warmup=0, step_size=1.0, **same, **plain))


def starting(
    posterior: Posterior, method: Any, params: Any, rows: Any, given: Mapping, key: Any,
    numbers: range, name: Any, warm: WarmStart | None = None,
) -> Callable:  # fmt: skip
    """i -> (latents on the real line, log densities of sites, counts of values outside their
    supports) at the i-th try of a start, numpy, [chain, ...] by site.

    Args:
        given: values by site to start from, [chain, ...]; the others start by the strategy.
        numbers: of the chains.
        warm: where the chains go on from instead.
    """
    b = posterior.bound.backend
    strategy = method.init_strategy if isinstance(method.init_strategy, str) else "init_to_uniform"

    def point(params: Any, rows: Any, key: Any, given: Any) -> tuple:
        p = posterior.point(params, rows, key=key, given=given, strategy=strategy)
        return p.free, p.site_log_prob, p.outside

    def told(params: Any, rows: Any, free: Any) -> tuple:
        p = posterior.point(params, rows, free)
        return p.free, p.site_log_prob, p.outside

    if warm is not None:
        again = b.compile(told, num_calls=1, token=name and (name, "told"))
        return lambda i: _stacked(
            b, (again(params, rows, {n: b.asarray(v[at]) for n, v in warm.free.items()})
                for at in range(len(numbers)))
        )  # fmt: skip
    compiled = b.compile(point, num_calls=1, token=name and (name, "point", strategy))

    def start(i: int) -> tuple:
        tried = []
        for at, chain in enumerate(numbers):
            own = {n: v[at] for n, v in given.items()}
            k = b.fold_in(b.fold_in(key, chain), i)
            tried.append(compiled(params, rows, k, own))
        return _stacked(b, tried)

    return start


def _stacked(b: Backend, each: Iterable[Any]) -> Any:
    return tree_map(lambda *v: np.stack([b.to_numpy(x) for x in v]), *each)
