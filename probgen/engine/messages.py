"""Discrete latents along a loop over time, summed out by messages: the forward algorithm.

    a_t(k) = log sum_j exp [a_(t-1)(j) + l_t(j, k)],        log p(x) = log sum_k exp a_T(k)

with l_t(j, k) the log density of all that the loop declares at the moment t where the latents have
the value j before it and k at it. The program is not taken apart for l but run along C^2 paths,

    z_t = a at even t, b at odd t        for all pairs (a, b) of the C values,

in which every pair of neighbours (j, k) stands at every moment: T C^2 steps for C^T paths. What
comes after the loop may hang on the last pair and is counted with it.

That is the sum where a moment knows of the latents' past what they were just before it, and no
more (a hidden Markov model). One path beside, of values at random, tells: where its densities are
not those of the pairs the sum is NaN, and `engine.explain` says why. Who runs it: `engine.along`.

Source: Rabiner 1989, "A tutorial on hidden Markov models", section III.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.combinations import MOST, Table, log_count, table_of, too_many
from probgen.engine.structure import Structure
from probgen.errors import AlgorithmError
from probgen.language.series import moved

Array = Any
CLOSE = 1e-3  # of densities that are one, by two paths of a program; nats


def in_loops(structure: Structure, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of some latents that are summed out along their loop: where all have too many
    combinations of values to go through."""
    if sum(log_count(structure, n) for n in names) <= math.log(MOST):
        return ()
    return tuple(n for n in names if structure.sites[n].scan is not None)


class Paths(NamedTuple):
    """The paths that a program is run along.

    Attributes:
        table: of the C values of one moment.
        states: [C^2 + 1, T] rows of the table; the last path is the one at random.
    """

    table: Table
    states: np.ndarray

    @property
    def size(self) -> int:
        return self.table.size

    @property
    def length(self) -> int:
        return self.states.shape[1]

    @property
    def alike(self) -> np.ndarray:
        """[T] of which path the moment is that of the last path, from the moment before on."""
        now, before = self.states[-1], np.roll(self.states[-1], 1)
        odd = np.arange(self.length) % 2 == 1
        return np.where(odd, before * self.size + now, now * self.size + before)


def paths_of(structure: Structure, names: tuple[str, ...], who: str) -> Paths:
    """The paths for latents of one loop.

    Raises:
        AlgorithmError: they stand in several loops, or partly in the data plate, or have more than
            100 values together at one moment.
    """
    sites = structure.sites
    loops = sorted({sites[n].scan[0] for n in names})  # type: ignore[index]
    if len(loops) > 1 or len({sites[n].is_local for n in names}) > 1:
        raise AlgorithmError(
            f"{who}: the discrete latents {list(names)} stand in the loops {loops}, expected one "
            "loop, in the data plate or outside of it, since they are too many to go through all "
            "their values; declare them in one step."
        )
    table = table_of(at_moment(structure, names), names, who)
    if table.size**2 > MOST:
        counts = {n: (c.num_values, c.places.shape[1]) for n, c in table.choices.items()}
        raise AlgorithmError(
            too_many(who, counts, "at one moment", math.isqrt(MOST), "the step is run at each pair")
        )
    length = sites[names[0]].scan[1]  # type: ignore[index]
    a, b = np.divmod(np.arange(table.size**2), table.size)
    odd = np.arange(length) % 2 == 1
    pairs = np.where(odd, b[:, None], a[:, None])
    other = np.random.default_rng(0).integers(table.size, size=(1, length))
    return Paths(table, np.concatenate([pairs, other]))


def at_moment(structure: Structure, names: tuple[str, ...]) -> Structure:
    """The structure with these sites as they are at one moment."""
    new = {
        n: s._replace(event_shape=s.event_shape[1:]) if n in names else s
        for n, s in structure.sites.items()
    }
    return structure._replace(sites=new)


def values_along(
    b: Backend, structure: Structure, name: str, paths: Paths, num_rows: int | None
) -> Array:
    """[paths, *plates, T, *event] of a latent, on the backend."""
    values = paths.table.choices[name].values[paths.table.which[name]][paths.states]
    plates = structure.plate_shape(name, num_rows or 1)
    values = np.moveaxis(values, 1, 1 + len(plates))
    wanted = (len(values), *plates, *values.shape[1 + len(plates) :])
    return b.ops.broadcast_to(b.asarray(values), wanted)


def pairs_of(ops: Any, paths: Paths, x: Array) -> Array:
    """[T, C^2, ...] along paths as [T, before, now, ...]."""
    square = ops.reshape(x, (paths.length, paths.size, paths.size, *x.shape[2:]))
    turned = moved(square, 2, 1)
    odd = ops.asarray_like(np.arange(paths.length) % 2, x)
    return ops.where(odd.reshape((-1, *(1,) * (square.ndim - 1))) > 0, square, turned)


def log_sum(ops: Any, paths: Paths, weights: Array) -> Array:
    """[...] log of the sum over all C^T paths, of log densities [T, C^2, ...]."""
    pairs = pairs_of(ops, paths, weights)
    if paths.length == 1:
        return log_sum_exp(ops, pairs[0][0])

    def step(alpha: Array, at: Array) -> tuple[Array, Array]:
        new = log_sum_exp(ops, alpha[:, None] + at)
        top = ops.stop_gradient(ops.max(new, axis=0))
        top = ops.where(top == -math.inf, 0.0, top)
        return new - top, top  # near 0, where a float is exact

    # What stands before the first moment is no value of the latents: any row will do.
    alpha, tops = ops.scan(step, pairs[0][0], pairs[1:], paths.length - 1)
    return log_sum_exp(ops, alpha) + ops.sum(tops, axis=0)


def log_sum_exp(ops: Any, x: Array) -> Array:
    """Over the first axis; where all is impossible the gradient is 0 and not NaN."""
    is_nothing = ops.max(ops.stop_gradient(x), axis=0) == -math.inf
    total = ops.logsumexp(ops.where(is_nothing, 0.0, x), axis=0)
    return ops.where(is_nothing, -math.inf, total)


def densities_told(ops: Any, paths: Paths, x: Array) -> Array:
    """[...] whether the path at random has the log density of its pairs; see `_at_random`."""
    here, there = _at_random(ops, paths, x)
    return _all_near(ops, here, there, CLOSE + 1e-5 * ops.abs(there))


def values_told(ops: Any, paths: Paths, x: Array) -> Array:
    """[...] the same of values, which have a unit: near is what is so beside their spread."""
    here, there = _at_random(ops, paths, x)
    spread = ops.max(x, axis=1) - ops.min(x, axis=1)
    spread = ops.where(ops.isfinite(spread), spread, 0.0)
    return _all_near(ops, here, there, CLOSE * spread + 1e-6 * ops.abs(there))


def _at_random(ops: Any, paths: Paths, x: Array) -> tuple[Array, Array]:
    """What the path at random has, and what the path of its pair has, of [T or 1, C^2 + 1, ...]:
    at all moments, or at the last alone."""
    flat = ops.reshape(x, (-1, *x.shape[2:]))
    index = np.arange(x.shape[0]) * x.shape[1] + paths.alike[-x.shape[0] :]
    return x[:, -1], flat[index]


def _all_near(ops: Any, here: Array, there: Array, within: Array) -> Array:
    # Equal first: of two infinities the difference would be NaN, which is near nothing. Less than,
    # since infinity is far from a number.
    is_near = (here == there) | (ops.abs(here - there) < within)
    return ops.all(is_near | ops.isnan(here) | ops.isnan(there), axis=0)
