"""A program with discrete latents along a loop over time summed out, by `engine.messages`.

The paths are given to the program as values; the log density of each moment is what the loop leaves
in `language.program.moments`. Each site's share of the sum is its density given the sites before
it, as in `engine.enumeration`, the latents themselves being counted first.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.backends.protocol import Backend, Site
from probgen.engine.combinations import (
    Run,
    Summed,
    check_order,
    mean_of,
    probabilities_of,
    site_of,
)
from probgen.engine.messages import (
    Paths,
    at_moment,
    densities_told,
    log_sum,
    pairs_of,
    paths_of,
    values_along,
    values_told,
)
from probgen.engine.structure import Structure
from probgen.language.run import moments
from probgen.language.series import moved
from probgen.trees import tree_map

Array = Any


def along(
    b: Backend, structure: Structure, names: tuple[str, ...], run: Run, num_rows: int | None,
    who: str, *, is_told: bool,
) -> Summed:  # fmt: skip
    """A run summed over all values of latents of one loop.

    Args:
        run: values of these latents -> (sites, anything else).
        is_told: the posterior of the latents is wanted too.

    Raises:
        AlgorithmError: see `paths_of`; a site outside the data plate after latents inside it.
    """
    ops, paths = b.ops, paths_of(structure, names, who)
    given = {n: values_along(b, structure, n, paths, num_rows) for n in names}
    ran = _run_along(b, structure, names, run, given, who, paths)
    is_markov, now, densities, kinds, after = (
        ran.is_markov, ran.now, ran.densities, ran.kinds, ran.after,
    )  # fmt: skip
    inside = [n for n in kinds if structure.sites[n].scan == structure.sites[names[0]].scan]
    shares, weights = _shares(ops, paths, now, densities, after, names)
    shares = {n: ops.where(is_markov, v, float("nan")) for n, v in shares.items()}

    @functools.cache
    def posterior() -> Array:
        """[T, C^2, ...] the probability of each pair, the one of whose paths it is."""
        total = lambda w: ops.sum(log_sum(ops, paths, w))  # noqa: E731
        return ops.where(is_markov, ops.grad(total)(weights), float("nan"))

    out: dict[str, Site] = {}
    for name in (n for n in kinds if n not in names):
        value, share = ran.values[name], shares.get(name)
        if kinds[name][1] == "deterministic" and name in inside:
            mean = _mean_in_time(b, structure, name, value, paths, posterior(), kinds[name][0])
            out[name] = Site(mean, None, kinds[name][0], None, "deterministic")
            continue
        p = None
        if kinds[name][1] == "deterministic" and name in after:
            value, p = _last(ops, paths, value), posterior()[-1]
        if name not in after and name in densities:
            share = densities[name][0]
        out[name] = site_of(b, structure, name, kinds[name], value, share, p)
    pairs = posterior() if is_told else None
    probs = {n: _probabilities(b, structure, paths, pairs, n, names) for n in names if is_told}
    extra = tree_map(lambda v: v[:-1], ran.extra)
    return Summed(out, None, paths.table, extra, probs, pairs=pairs, is_markov=is_markov)


def expected_sites(
    b: Backend, structure: Structure, names: tuple[str, ...], run: Run, latents: dict[str, Array],
    pairs: Array, who: str,
) -> dict[str, Site]:  # fmt: skip
    """The sites of a program, each with its expected log density.

    Args:
        latents: values along C^2 paths, [C^2, *plates, T, *event] by site.
        pairs: [T, C^2, ...] what `Summed.pairs` is, at any parameters.
    """
    ran, out = _run_along(b, structure, names, run, latents, who), {}
    for name, each in ran.densities.items():
        if name in ran.now:
            mean = _expected(b.ops, pairs, ran.now[name], (0, 1))
        elif name in ran.after:
            mean = _expected(b.ops, pairs[-1], each, (0,))
        else:
            mean = each[0]
        out[name] = Site(None, mean, ran.kinds[name][0], None, ran.kinds[name][1])
    return out


def _expected(ops: Any, p: Array, log_prob: Array, axis: tuple[int, ...]) -> Array:
    # What is impossible has no weight, and -inf times 0 would be NaN.
    return ops.sum(p * ops.where(p == 0, 0.0, log_prob), axis=axis)


class _Ran(NamedTuple):
    """A program along paths.

    Attributes:
        now: [T, paths, ...] log density of each moment, of sites in the loop.
        densities: [paths, ...] by site; kinds: (is_local, kind) by site, in order.
        values: [paths, ...] of the other sites; extra: what else the run gave.
        after: names from the loop's first on.
        is_markov: [...] whether each density knows of the moment before alone, where it is asked.
    """

    now: dict[str, Array]
    densities: dict[str, Array]
    kinds: dict[str, tuple[bool, str]]
    values: dict[str, Array]
    extra: Any
    after: list[str]
    is_markov: Any


def _run_along(
    b: Backend, structure: Structure, names: tuple[str, ...], run: Run, given: dict[str, Array],
    who: str, paths: Paths | None = None,
) -> _Ran:  # fmt: skip
    ops, loop = b.ops, structure.sites[names[0]].scan
    kinds: dict[str, tuple[bool, str]] = {}

    def at(latents: dict[str, Array]) -> tuple:
        in_time: dict[str, Array] = {}
        token = moments.set(in_time)
        try:
            sites, extra = run(latents)
        finally:
            moments.reset(token)
        kinds.update({n: (s.is_local, s.kind) for n, s in sites.items()})
        now = {n: v for n, v in in_time.items() if structure.sites[n].scan == loop}
        densities = {n: s.log_prob for n, s in sites.items() if s.log_prob is not None}
        values = {n: ops.asarray(s.value) for n, s in sites.items() if n not in names}
        return now, densities, values, extra

    now, densities, values, extra = b.vmap(at)(given)
    order = list(kinds)
    first = next(i for i, n in enumerate(order) if structure.sites[n].scan == loop)
    after = order[first:]
    # Each by itself, and of each datum: beside the sum of all a difference may be small.
    at_end = [densities[n][None] for n in after if n in densities and n not in now]
    in_time = [moved(v, 1, 0) for v in now.values()]
    told = [densities_told(ops, paths, x) for x in (*in_time, *at_end) if paths is not None]
    if structure.sites[names[0]].is_local:
        check_order(names[0], [n for n in after if n in densities], kinds, who)
    else:  # of all data together
        told = [ops.all(x) for x in told]
        now = {n: _summed(ops, v, 2) for n, v in now.items()}
        densities |= {n: _summed(ops, densities[n], 1) for n in after if n in densities}
        kinds |= {n: (False, kinds[n][1]) for n in after}
    now = {n: moved(v, 1, 0) for n, v in now.items()}
    is_markov = functools.reduce(operator.and_, told, True)
    return _Ran(now, densities, kinds, values, extra, after, is_markov)


def _summed(ops: Any, x: Array, ndim: int) -> Array:
    rest = tuple(range(ndim, x.ndim))
    return ops.sum(x, axis=rest) if rest else x


def _shares(
    ops: Any, paths: Paths, now: Mapping[str, Array], densities: Mapping[str, Array],
    after: list[str], names: tuple[str, ...],
) -> tuple[dict[str, Array], Array]:  # fmt: skip
    """(each site's share of the marginal, [T, C^2, ...] log density of each moment)."""
    weights: Any = sum(now[n] for n in names)
    # One over all paths, unless moments are masked, of which each value counts one.
    before = log_sum(ops, paths, weights[:, :-1])
    before = ops.where(before == -math.inf, 0.0, before)
    shares: dict[str, Array] = {}
    is_last = np.arange(paths.length) == paths.length - 1
    for name in after:
        if name in names or name not in densities:
            continue
        if name in now:
            weights = weights + now[name]
        else:
            each = densities[name][None]
            at_end = ops.asarray_like(is_last, each).reshape((-1, *(1,) * (each.ndim - 1)))
            weights = weights + ops.where(at_end > 0, each, 0.0)
        total = log_sum(ops, paths, weights[:, :-1])
        # What has density 0 keeps it, where a difference of infinities would be NaN.
        shares[name] = ops.where(total == -math.inf, total, total - before)
        before = total
    return shares, weights[:, :-1]


def _last(ops: Any, paths: Paths, value: Array) -> Array:
    """[C^2, ...] of what comes after the loop; NaN where it hangs on more than the last pair."""
    value = 1.0 * value
    return ops.where(values_told(ops, paths, value[None]), value[:-1], float("nan"))


def _mean_in_time(
    b: Backend, structure: Structure, name: str, value: Array, paths: Paths, pairs: Array,
    is_local: bool,
) -> Array:  # fmt: skip
    """The posterior mean of what the step computes, [*plates, T, *event]."""
    ops, site = b.ops, structure.sites[name]
    rows = int(pairs.shape[-1]) if pairs.ndim > 2 else 1
    depth = len(structure.plate_shape(name, rows))
    # Of what has no axes of the plates the time comes first (`language.series`).
    lead = depth if len(site.shape) > depth and site.shape[depth] == paths.length else 0
    in_time = 1.0 * moved(value, 1 + lead, 0)
    in_time = ops.where(values_told(ops, paths, in_time), in_time[:, :-1], float("nan"))
    one = lambda v, p: mean_of(ops, structure, name, v, p, is_local)  # noqa: E731
    return moved(b.vmap(one)(in_time, pairs), 0, lead)


def _probabilities(
    b: Backend, structure: Structure, paths: Paths, pairs: Array, name: str, names: tuple[str, ...]
) -> Array:
    """[*plates, T, *event, K] the posterior probability of each value at each moment."""
    ops, small = b.ops, at_moment(structure, names)
    each = ops.sum(pairs_of(ops, paths, pairs), axis=1)  # [T, C, ...]
    found = b.vmap(lambda p: probabilities_of(b, small, paths.table, p, name))(each)
    rows = int(pairs.shape[-1]) if pairs.ndim > 2 else 1
    return moved(found, 0, len(structure.plate_shape(name, rows)))
