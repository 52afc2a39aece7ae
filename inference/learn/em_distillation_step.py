"""The M-step of EM distillation, by the ends of its chains, and what the history says of them.

    L = E w / (2 sigma^2) |sg[alpha g(z_K) + sigma eps*] - alpha g(z_K)|^2
    grad L = -E w (alpha / sigma) J(z_K)^T eps*

    full        eps* = push_K, the drift alone          last    without the last noise only
    none        eps* = eps_K, with all noise in it
    anchored    none, less what the injected noise a = eps_K - push_K gives at the first z:
                grad L = -E w (alpha / sigma) [J(z_K)^T eps_K - J(z_0)^T a]

a has mean zero and does not know z_0, so that `anchored` has the mean of `none` whatever z does;
`full` takes away J(z_K)^T a, which z_K knows of: a bias of the order of gz / ge (ours; see
docs/systems/emd.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from probgen.engine.bound import Bound
from probgen.inference.learn.em_distillation_chain import Ends, Generator
from probgen.inference.learn.em_distillation_scores import Scores
from probgen.inference.sample.hamiltonian import leading
from probgen.trees import tree_leaves

Array = Any
Tree = Any
LITTLE = 1e-3  # of z's mobility; below it z is as good as still


def weight_of(ops: Any, given: Any, level: Mapping, x: Array, clean: Callable) -> Array:
    """w(t), [n, 1, ...], or [n, ...] ones of it; `clean` is asked for the teacher's estimate of x_0
    by "l1" alone."""
    kind, signal, noise = given.weighting, level["signal"], level["noise"]
    if callable(kind):
        return kind(signal, noise) + 0.0 * signal
    if kind == "uniform":
        return ops.ones_like(signal)
    weight = (noise / signal) ** 2
    if kind == "l1":
        off = ops.mean(ops.reshape(ops.abs(x - clean()), (x.shape[0], -1)), axis=-1)
        weight = weight / leading(ops, ops.maximum(off, 1e-4 + 0.0 * off), weight)
    return weight


def shortened(ops: Any, ends: Ends, longest: float | None) -> Ends:
    """The ends with |push| of at most that, the noise kept."""
    if longest is None:
        return ends
    size = ops.maximum(norm(ops, ends.push), longest + 0.0 * norm(ops, ends.push))
    push = ends.push * leading(ops, longest / size, ends.push)
    return ends._replace(push=push, eps=ends.eps - ends.push + push)


def norm(ops: Any, x: Array) -> Array:
    """[n] length of each datum."""
    flat = ops.reshape(x, (x.shape[0], -1))
    return ops.sqrt(ops.sum(flat * flat, axis=-1) + 1e-30)


def directions(ends: Ends, kind: str, gamma: float) -> tuple[Array, Array | None]:
    """(eps* at z_K, what is taken away at z_0 or None)."""
    if kind == "full":
        return ends.push, None
    if kind == "last":
        return ends.push + (1.0 - gamma) * ends.before, None
    return ends.eps, ends.eps - ends.push if kind == "anchored" else None


def objective(bound: Bound, given: Any, g: Generator) -> Callable:
    """(trainable, frozen, (ends, level, weight), batch, key) -> (a number whose gradient is that of
    L, {"loss": L itself}); the ends are held."""
    ops = bound.backend.ops

    def loss(trainable: Any, frozen: Any, held: Any, batch: Any, key: Any) -> tuple[Array, dict]:
        ends, level, weight = held
        params = {**trainable, **frozen}
        at_end, at_start = directions(ends, given.noise_cancellation, given.gamma_eps)
        scale = weight * level["signal"] / level["noise"]
        value = _along(ops, scale * at_end, g(params, batch, ends.z))
        if at_start is not None:
            value = value - _along(ops, scale * at_start, g(params, batch, ends.start))
        size = 0.5 * _along(ops, weight * at_end, at_end)
        penalty = bound.penalty(trainable)
        return -value if penalty is None else penalty - value, {"loss": size}

    return loss


def _along(ops: Any, a: Array, c: Array) -> Array:
    """Mean over data of the sum of products."""
    return ops.sum(a * c) / c.shape[0]


# ---- what is looked at now and then --------------------------------------------------------------


def checks(bound: Bound, given: Any, g: Generator, scores: Scores) -> Callable:
    """(params, weights, batch, ends, level, weight, key) -> bias, z_mobility and z_drift.

    The two halves of a batch are independent, so that the product of their mean differences has no
    noise's square in it: bias^2 = <d_1, d_2> / <f_1, f_2>, d = full - anchored, f = full.
    """
    b, ops = bound.backend, bound.backend.ops

    def pulls(trainable: Any, frozen: Any, half: Any) -> tuple[Array, Array]:
        ends, level, weight, batch = half
        params, scale = {**trainable, **frozen}, weight * level["signal"] / level["noise"]
        injected, last = ends.eps - ends.push, g(params, batch, ends.z)
        moved = last - g(params, batch, ends.start)
        return _along(ops, scale * injected, moved), _along(ops, scale * ends.push, last)

    off = b.grad(lambda *args: pulls(*args)[0])
    full = b.grad(lambda *args: pulls(*args)[1])

    def bias(state: Mapping, batch: Any, ends: Ends, level: Any, weight: Any) -> Array:
        num = weight.shape[0] // 2
        parts = (ends, level, weight, dict(batch))
        halves = [b.tree_map(lambda v, i=i: v[i * num : (i + 1) * num], parts) for i in (0, 1)]
        d, f = ([fn(state["params"], state["frozen"], h) for h in halves] for fn in (off, full))
        return ops.sqrt(ops.maximum(_product(ops, *d), 0.0 * weight[0].sum())) / ops.sqrt(
            ops.abs(_product(ops, *f)) + 1e-30
        )

    def moves(weights: Any, batch: Any, ends: Ends, level: Any, key: Any) -> tuple[Array, Array]:
        x = g(weights["student"], batch, ends.z)
        probe = b.normal(key, tuple(x.shape))
        ratio, eps = level["signal"] / level["noise"], ends.eps
        seen = scores.seen(weights, batch, x)
        push = scores.push(level["signal"] * x + level["noise"] * eps, level, weights, seen)

        def pull(z: Mapping, v: Array) -> Array:
            return ops.sum(ops.stop_gradient(v) * g(weights["student"], batch, z))

        steps = given.num_steps * given.gamma_z
        back = b.grad(pull)(ends.z, level["signal"] * probe)
        force = b.grad(pull)(ends.z, ratio * push)
        count = x.shape[0] * g.size
        return steps * _product(ops, back, back) / count, steps * ops.sqrt(
            _product(ops, force, force) / count
        )

    def check(state: Any, weights: Any, batch: Any, held: Any, key: Any) -> dict:
        ends, level, weight = held
        mobility, drift = moves(weights, batch, ends, level, key)
        found = bias(state, batch, ends, level, weight)
        return {"bias": found, "z_mobility": mobility, "z_drift": drift}

    return b.compile(check, num_calls=math.ceil((bound.num_steps or 1) / given.check_every))


def _product(ops: Any, a: Tree, c: Tree) -> Array:
    """<a, c> of two trees."""
    total = 0.0
    for u, v in zip(tree_leaves(a), tree_leaves(c), strict=True):
        total = total + ops.sum(u * v)
    return total
