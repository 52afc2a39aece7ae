"""Discrete latents of finitely many values, summed out exactly.

    log p(x_n) = log sum_c p(x_n, z = c)        over all combinations c of values of a datum

The program is run once at every combination, by a further leading axis (`vmap`), with the latents
given. Of what is summed, each site's share is its density given the sites before it,

    log p(s_i | s_<i) = log sum_c exp w_i(c) - log sum_c exp w_(i-1)(c)

with w_i = log p(s_1 ... s_i, z = c),

so that shares add up to the marginal, a site that does not depend on z keeps its own density, and
the trace is that of a program without z. A latent that all data share couples them: then the sum is
over the density of all data together. Latents along a loop over time, too long for that, are summed
out by messages (`engine.messages`).

Who sums: `Bound.trace`, where a discrete latent is neither given nor drawn from a key, and
`Posterior.point`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from probgen.backends.protocol import Backend, Site
from probgen.engine.along import along
from probgen.engine.combinations import (
    Run,
    Summed,
    as_counted,
    check_order,
    mean_of,
    on_rows,
    probabilities,
    site_of,
    table_of,
)
from probgen.engine.messages import in_loops, log_sum_exp, paths_of, values_along
from probgen.engine.structure import Structure
from probgen.errors import AlgorithmError
from probgen.trees import tree_map

Array = Any
Tree = Any


def summed(
    b: Backend, structure: Structure, names: tuple[str, ...], run: Run, num_rows: int | None,
    who: str, *, is_whole: bool = False, is_told: bool = False,
) -> Summed:  # fmt: skip
    """A run summed over all values of the latents `names`.

    Args:
        run: values of these latents -> (sites, anything else).
        num_rows: size of the data plate.
        is_whole: the data are all there are, so that a latent which they share may be summed out.
        is_told: the posterior of the latents is wanted too (`probabilities`).

    Raises:
        AlgorithmError: too many combinations; a latent that all data share where they come in
            batches; a site outside the data plate after a latent inside it; a long loop beside
            others (see `engine.messages`).
    """
    sites = structure.sites
    names = tuple(n for n in sites if n in names)
    shared = tuple(n for n in names if not sites[n].is_local)
    local = tuple(n for n in names if sites[n].is_local)
    looped = in_loops(structure, names)
    if not shared and not looped:
        return _over(b, structure, local, run, num_rows, who)
    if shared and any(s.is_local for s in sites.values()) and not is_whole:
        raise AlgorithmError(
            f"{who}: the discrete latents {list(shared)} stand outside the data plate, expected "
            "latents of single data, since the sum over their values is one of all data together, "
            "which batches do not have; use pg.infer, or make them data or parameters."
        )

    if looped:
        rest = tuple(n for n in names if n not in looped)
        return _around(b, structure, looped, rest, run, num_rows, who, is_told)

    def inner(values: dict[str, Array]) -> tuple[dict[str, Site], Tree]:
        if not local:
            sites, extra = run(values)
            return _as_one(b, sites, extra, {}, is_told)
        found = _over(b, structure, local, lambda more: run({**values, **more}), num_rows, who)
        probs = {n: probabilities(b, structure, found, n) for n in local if is_told}
        return _as_one(b, found.sites, _one_of(b, found.extra), probs, is_told)

    return _averaged(b, structure, _over(b, structure, shared, inner, num_rows, who))


def _averaged(b: Backend, structure: Structure, found: Summed) -> Summed:
    """A sum over sums: the probabilities that these told, by those of the values of this one."""
    p, more = b.ops.softmax(found.log_weights, axis=0), found.extra
    is_local = {n: structure.sites[n].is_local for n in more["probs"]}
    probs = {n: mean_of(b.ops, structure, n, v, p, is_local[n]) for n, v in more["probs"].items()}
    # p(x_n | the others) = 1 / sum_c p(c | all) / p(x_n | c): what leave-one-out validation asks.
    log_p = b.ops.log_softmax(found.log_weights, axis=0)
    each = {}
    for name, log_prob in more.get("each", {}).items():
        lead = b.ops.reshape(log_p, (-1, *(1,) * (log_prob.ndim - 1)))
        ratio = b.ops.where(lead == -math.inf, -math.inf, lead - log_prob)
        each[name] = -b.ops.logsumexp(ratio, axis=0)
    return found._replace(extra=more["extra"], probs=probs, each=each)


def _around(
    b: Backend, structure: Structure, looped: tuple[str, ...], rest: tuple[str, ...], run: Run,
    num_rows: int | None, who: str, is_told: bool,
) -> Summed:  # fmt: skip
    """`summed`, of latents along a loop within all values of the others."""

    def one(values: dict[str, Array]) -> Summed:
        within = lambda more: run({**values, **more})  # noqa: E731
        return along(b, structure, looped, within, num_rows, who, is_told=is_told)

    if not rest:
        return one({})
    is_local = structure.sites[looped[0]].is_local
    places = {structure.sites[n].is_local for n in rest}
    if len(places) > 1 or (places == {True} and not is_local):
        raise AlgorithmError(
            f"{who}: the discrete latents {list(rest)} stand beside those of a long loop, "
            f"{list(looped)}, expected all in the data plate, or those outside the loop outside of "
            "it; move them, or give some as data."
        )

    def inner(values: dict[str, Array]) -> tuple[dict[str, Site], Tree]:
        found = one(values)
        extra = {"extra": _one_of(b, found.extra), "is_markov": found.is_markov}
        if places == {False}:
            return _as_one(b, found.sites, extra, dict(found.probs), is_told)
        return found.sites, {"extra": extra, "probs": found.probs}

    # Latents after the loop tell of its states, so that what it computes has a mean over them too.
    order = list(structure.sites)
    loop = structure.sites[looped[0]].scan
    first = next(i for i, n in enumerate(order) if structure.sites[n].scan == loop)
    found = _over(b, structure, rest, inner, num_rows, who, averaged=order[first:])
    found = _averaged(b, structure, found)
    return found._replace(**found.extra)


def _one_of(b: Backend, extra: Tree) -> Tree:
    """What is told at all values, of one of them; of what lies "outside" of a support, what does so
    by all values, and of what lies "inside", by any."""
    one = tree_map(lambda v: v[0], extra)
    if isinstance(extra, dict) and "outside" in extra:
        one["outside"] = tree_map(lambda v: b.ops.min(v, axis=0), extra["outside"])
    if isinstance(extra, dict) and "inside" in extra:
        one["inside"] = tree_map(lambda v: b.ops.max(v, axis=0), extra["inside"])
    return one


def _as_one(
    b: Backend, sites: Mapping[str, Site], extra: Tree, probs: dict[str, Array], is_told: bool
) -> tuple[dict[str, Site], Tree]:
    """Sites with the density of all their data together; what else is told."""
    densities = {n: s.log_prob for n, s in sites.items() if s.log_prob is not None}
    each = {n: v for n, v in densities.items() if sites[n].is_local and is_told}
    return {
        n: s._replace(log_prob=b.ops.sum(densities[n]), is_local=False) if n in densities else s
        for n, s in sites.items()
    }, {"extra": extra, "probs": probs, "each": each}


def _over(
    b: Backend, structure: Structure, names: tuple[str, ...], run: Run, num_rows: int | None,
    who: str, averaged: Collection[str] = (),
) -> Summed:  # fmt: skip
    """`summed`, over latents that are all local or all shared.

    Args:
        averaged: sites before the latents whose computed values hang on them nevertheless.
    """
    table = table_of(structure, names, who)
    given = {n: on_rows(b, structure, n, table, num_rows) for n in names}
    kinds: dict[str, tuple[bool, str]] = {}

    def at(latents: dict[str, Array]) -> tuple[dict, dict, Tree]:
        sites, extra = run(latents)
        kinds.update({n: (s.is_local, s.kind) for n, s in sites.items()})
        densities = {n: s.log_prob for n, s in sites.items() if s.log_prob is not None}
        values = {n: b.ops.asarray(s.value) for n, s in sites.items() if n not in names}
        return densities, values, extra

    densities, values, extra = b.vmap(at)(given)
    order = as_counted(structure, kinds, names)
    after = order[order.index(names[0]) :]
    check_order(names[0], [n for n in after if n in densities], kinds, who)
    shares, weights = _shares(b.ops, densities, after, names)
    alone = {n: v[0] for n, v in densities.items() if n not in after}
    known, out = {**alone, **shares}, {}
    for name in (n for n in kinds if n not in names):
        is_mean = (name in after or name in averaged) and kinds[name][1] == "deterministic"
        p = b.ops.softmax(weights, axis=0) if is_mean else None
        out[name] = site_of(b, structure, name, kinds[name], values[name], known.get(name), p)
    return Summed(out, weights, table, extra)


def check_supports(
    b: Backend, sites: Mapping[str, Site], latents: Collection[str], discrete: Collection[str],
    who: str,
) -> None:  # fmt: skip
    """Refuses a continuous latent whose support may hang on a discrete one that is summed out: it
    would have one position on the real line and several values.

    Raises:
        AlgorithmError: names both.
    """
    order = list(sites)
    start = min(order.index(n) for n in discrete)
    for name in latents:
        if order.index(name) > start and b.has_moving_support(sites[name].fn):
            raise AlgorithmError(
                f"{who}: latent {name!r} has a computed support and comes after the discrete "
                f"latent {order[start]!r}, which is summed out, expected a support that does "
                "not hang on it; declare it before, or give it a support of constants."
            )


def first_values(
    b: Backend, structure: Structure, names: tuple[str, ...], num_rows: int | None
) -> dict[str, Array]:
    """One value of each of these latents, for a run that only finds where others may start."""
    looped, out = in_loops(structure, names), {}
    paths = paths_of(structure, looped, "infer") if looped else None
    for name in names:
        if paths is not None and name in looped:
            out[name] = values_along(b, structure, name, paths, num_rows)[0]
        else:
            table = table_of(structure, (name,), name)
            out[name] = on_rows(b, structure, name, table, num_rows)[0]
    return out


def _shares(
    ops: Any, densities: Mapping[str, Array], after: list[str], names: tuple[str, ...]
) -> tuple[dict[str, Array], Array]:
    """(each site's share of the marginal, [C, ...] log joint); see the head of this file."""
    weights: Any = None
    before: Any = 0.0
    shares: dict[str, Array] = {}
    for name in after:
        if name not in densities:
            continue
        weights = densities[name] if weights is None else weights + densities[name]
        # Values of latents that come later are counted in each sum, until the latent's own share,
        # which is dropped, takes them out again.
        total = log_sum_exp(ops, weights)
        if name not in names:
            # What has density 0 keeps it, where a difference of infinities would be NaN.
            shares[name] = ops.where(total == -math.inf, total, total - before)
        before = total
    return shares, weights
