"""The No-U-Turn Sampler, one leapfrog at a time: every chain wherever it is in its own tree.

A transition doubles a trajectory forwards or backwards until it turns back on itself, and draws one
of its points with weights exp(H_0 - H). Here it is a state machine: `step` makes the next leapfrog
of each chain and, where that ends a subtree or a tree, what follows from it, down to the first
momentum of the next transition. So no chain waits for another's tree.

Positions are seen through a root A of the inverse mass matrix, M^-1 = A A', so that momenta are
standard normal and no product needs M: x' = A p, p' = A' grad log p(x), H = p'p / 2 - log p(x).

A subtree of 2^k points is checked by its corners: of every half, quarter... that is still open,
momentum and sum of momenta at its first point, one slot each, so memory grows with the depth alone.
The slot of a point is the number of ones in its binary number; those that a point closes lie below.

Sources: Hoffman & Gelman 2014, arXiv:1111.4246; Betancourt 2017, arXiv:1701.02434, appendix A
(multinomial weights, biased between subtrees, the generalised criterion); Phan, Pradhan &
Jankowiak 2019, arXiv:1912.11554 (bounded memory). Across the seam of two halves the criterion is
asked twice more, as in Stan since 2.21.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from probgen.inference.sample.machine import (
    DIVERGED,
    End,
    Machine,
    Noise,
    Place,
    choose,
    dot,
    leapfrog,
    started,
)

Array = Any


class Tree(NamedTuple):
    """Where each chain is in its trajectory; [chain] or [chain, d] but for `corners`.

    Attributes:
        best: the draw so far; sub: that of the subtree which grows.
        head, tail: the end that grows, and the other.
        total, sub_total: sums of the momenta of the tree, and of the subtree so far.
        seam, first: momenta on the two sides of where they meet.
        corners: [chain, slot, 3, d], of open halves: momentum at the first point, sum of those of
            the subtree before it, and momentum at the point before it.
        energy: H_0; log_weight, sub_log_weight: log sums of exp(H_0 - H).
        size: points of the tree, and of the subtree when whole; leaf, slot: of the next point.
        way: 1 forwards in time, -1 backwards.
        rates, steps: sum of acceptance probabilities, and leapfrogs, in this transition.
    """

    best: Place
    sub: Place
    head: End
    tail: End
    total: Array
    sub_total: Array
    seam: Array
    first: Array
    corners: Array
    energy: Array
    log_weight: Array
    sub_log_weight: Array
    size: Array
    leaf: Array
    slot: Array
    way: Array
    rates: Array
    steps: Array


def no_u_turn(ops: Any, climb: Callable, max_depth: int) -> Machine:
    """NUTS as a state machine.

    Args:
        climb: (x [chain, d], *args) -> (log density [chain], its gradient [chain, d]).
        max_depth: a tree has at most 2^max_depth points.
    """
    largest = 2.0**max_depth

    def begin(place: Place, noise: Noise, length: Array) -> Tree:
        """A tree of one point, of which nothing has grown yet."""
        p, zero = noise.normal, ops.zeros_like(place.log_density)
        energy = 0.5 * dot(ops, p, p) - place.log_density
        place = place._replace(energy=energy)
        end = End(place.x, p, place.score)
        none = ops.zeros_like(p)
        corners = ops.stack([ops.stack([none] * 3, axis=1)] * max_depth, axis=1)
        return Tree(
            place, place, end, end, p, none, p, p, corners, energy, zero, zero - float("inf"),
            zero + 1.0, zero, zero, _way(ops, noise), zero, zero,
        )  # fmt: skip

    def step(s: Tree, noise: Noise, size: Array, scale: Any, length: Array, *args: Any) -> tuple:
        end, here = leapfrog(ops, climb, s.head, s.way * size, scale, *args)
        p, gain = end.p, started(ops, s.energy, here)
        # The new point joins the subtree.
        sub_log_weight = _log_add(ops, s.sub_log_weight, gain)
        sub = choose(ops, ops.log(noise.uniform[:, 0]) < gain - sub_log_weight, here, s.sub)
        sub_total, first = s.sub_total + p, choose(ops, s.leaf == 0, p, s.first)
        corners = _noted(ops, s, p)
        leaf = s.leaf + 1.0
        closed = _halves_closed(ops, leaf, max_depth)
        diverging = gain < -DIVERGED
        stopped = diverging | _turned_within(ops, s, corners, closed, p, sub_total)
        # A whole subtree joins the tree.
        whole = ~stopped & (leaf >= s.size)
        total = s.total + sub_total
        turned = (
            _turned(ops, s.tail.p, p, total)
            | _turned(ops, s.tail.p, first, s.total + first)
            | _turned(ops, s.seam, p, sub_total + s.seam)
        )
        swap = whole & (ops.log(noise.uniform[:, 1]) < sub_log_weight - s.log_weight)
        best = choose(ops, swap, sub, s.best)
        done = stopped | (whole & (turned | (2.0 * s.size >= largest)))
        rates = s.rates + ops.exp(ops.minimum(gain, ops.zeros_like(gain)))
        told = {
            "done": done, "x": best.x, "lp": best.log_density, "energy": best.energy,
            "acceptance_rate": rates / (s.steps + 1.0), "n_steps": s.steps + 1.0,
            "diverging": diverging,
        }  # fmt: skip
        # What grows next: the same subtree, another, or another tree.
        grown, way = whole & ~done, _way(ops, noise)
        flip = grown & (way != s.way)
        head, tail = choose(ops, flip, s.tail, end), choose(ops, flip, end, s.tail)
        log_weight = ops.where(whole, _log_add(ops, s.log_weight, sub_log_weight), s.log_weight)
        fresh, zero, none = whole | done, ops.zeros_like(gain), ops.zeros_like(p)
        on = Tree(
            best, sub, head, tail, choose(ops, grown, total, s.total),
            choose(ops, fresh, none, sub_total), choose(ops, grown, head.p, s.seam), first,
            corners, s.energy, log_weight, ops.where(fresh, -float("inf"), sub_log_weight),
            ops.where(grown, 2.0 * s.size, s.size), ops.where(fresh, zero, leaf),
            ops.where(fresh, zero, s.slot - closed + 1.0), ops.where(fresh, way, s.way), rates,
            s.steps + 1.0,
        )  # fmt: skip
        return _next(ops, done, noise.normal, on), told

    return Machine(begin, step)


def _next(ops: Any, done: Array, p: Array, s: Tree) -> Tree:
    """Where a transition is done, the tree of the next one."""
    energy = 0.5 * dot(ops, p, p) - s.best.log_density
    start, zero = End(s.best.x, p, s.best.score), ops.zeros_like(energy)
    return s._replace(
        best=s.best._replace(energy=ops.where(done, energy, s.best.energy)),
        head=choose(ops, done, start, s.head), tail=choose(ops, done, start, s.tail),
        total=choose(ops, done, p, s.total), seam=choose(ops, done, p, s.seam),
        energy=ops.where(done, energy, s.energy), log_weight=ops.where(done, zero, s.log_weight),
        size=ops.where(done, zero + 1.0, s.size), rates=ops.where(done, zero, s.rates),
        steps=ops.where(done, zero, s.steps),
    )  # fmt: skip


def _way(ops: Any, noise: Noise) -> Array:
    u = noise.uniform[:, 2]
    return ops.where(u < 0.5, -1.0, ops.ones_like(u))


def _log_add(ops: Any, a: Array, b: Array) -> Array:
    """log(e^a + e^b); b may be -inf, and a."""
    top = ops.maximum(ops.maximum(a, b), -1e30)
    return top + ops.log(ops.exp(a - top) + ops.exp(b - top))


def _turned(ops: Any, a: Array, b: Array, total: Array) -> Array:
    """Whether the ends of a piece of trajectory go apart no more."""
    return (dot(ops, a, total) <= 0) | (dot(ops, b, total) <= 0)


def _noted(ops: Any, s: Tree, p: Array) -> Array:
    """The corners with the new point in its slot: of an odd point the one above all open halves."""
    slots = ops.arange_like(s.corners.shape[1], s.slot)
    is_here = ops.expand_dims(slots, 0) == ops.expand_dims(s.slot, -1)
    new = ops.expand_dims(ops.stack([p, s.sub_total, s.head.p], axis=1), 1)
    return ops.where(ops.reshape(is_here, (*is_here.shape, 1, 1)), new, s.corners)


def _halves_closed(ops: Any, count: Array, max_depth: int) -> Array:
    """How often 2 divides the number of points so far: so many pairs of halves are whole now."""
    if max_depth == 1:
        return ops.zeros_like(count)
    powers = ops.asarray_like([0.5**k for k in range(1, max_depth)], count)
    parts = ops.expand_dims(count, -1) * powers
    return ops.sum(ops.where(ops.floor(parts) == parts, 1.0, ops.zeros_like(parts)), axis=-1)


def _turned_within(
    ops: Any, s: Tree, corners: Array, closed: Array, p: Array, total: Array
) -> Array:
    """Whether any pair of halves that the new point makes whole has turned."""
    if corners.shape[1] == 1:
        return closed > 0
    slots, slot = ops.arange_like(corners.shape[1] - 1, s.slot), ops.expand_dims(s.slot, -1)
    is_closed = (slots < slot) & (slots >= slot - ops.expand_dims(closed, -1))
    # A half's slot, and in the slot above it the other half's: its first point, and that before.
    a, before_a = corners[:, :-1, 0], corners[:, :-1, 1]
    mid, before_mid, last = corners[:, 1:, 0], corners[:, 1:, 1], corners[:, 1:, 2]
    p, total = ops.expand_dims(p, 1), ops.expand_dims(total, 1)
    turned = (
        _turned(ops, a, p, total - before_a)
        | _turned(ops, a, mid, before_mid - before_a + mid)
        | _turned(ops, last, p, total - before_mid + last)
    )
    return ops.any(is_closed & turned, axis=-1)
