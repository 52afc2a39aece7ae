"""Discrete latents of finitely many values, summed out exactly.

    log p(x_n) = log sum_c p(x_n, z = c)        over all combinations c of values of a datum

The program is run once at every combination, by a further leading axis (`vmap`), with the latents
given. Of what is summed, each site's share is its density given the sites before it,

    log p(s_i | s_<i) = log sum_c exp w_i(c) - log sum_c exp w_(i-1)(c)

with w_i = log p(s_1 ... s_i, z = c),

so that shares add up to the marginal, a site that does not depend on z keeps its own density, and
the trace is that of a program without z. A latent that all data share couples them: then the sum is
over the density of all data together.

Who sums: `Bound.trace`, where a discrete latent is neither given nor drawn from a key, and
`Posterior.point`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.backends.protocol import Backend, Site
from probgen.engine.structure import SiteInfo, Structure
from probgen.errors import AlgorithmError
from probgen.language.program import DATA_PLATE
from probgen.language.supports import finite_values
from probgen.trees import tree_map

Array = Any
Tree = Any
MOST = 10_000  # combinations; each is a run of the program


def values_of(site: SiteInfo) -> np.ndarray | None:
    """[K, *event of the family] all values of one element of a site; None where it is not discrete
    with finitely many."""
    if not site.is_discrete or site.declaration is None:
        return None
    return finite_values(site.declaration)


class Choices(NamedTuple):
    """All values of one latent as a whole, [*plates, *event], its data plate aside.

    Attributes:
        values: [C, *plates (1 for the data), *event].
        places: [C, elements] which value each element has.
        num_values: K, of one element.
        lead: shape of its elements within an event.
    """

    values: np.ndarray
    places: np.ndarray
    num_values: int
    lead: tuple[int, ...]


def choices_of(structure: Structure, name: str, who: str) -> Choices:
    """The values of a latent.

    Raises:
        AlgorithmError: more than `MOST` of them together.
    """
    site = structure.sites[name]
    each: Any = values_of(site)
    plates = structure.plate_shape(name, 1)
    unit = each.shape[1:]
    lead = site.event_shape[: len(site.event_shape) - len(unit)]
    count = math.prod(plates) * math.prod(lead)
    if count * math.log(len(each)) > math.log(MOST):
        raise AlgorithmError(_too_many(who, {name: (len(each), count)}, site.scan))
    index = np.arange(len(each) ** count)[:, None] // len(each) ** np.arange(count) % len(each)
    values = each[index].reshape(len(index), *plates, *lead, *unit)
    return Choices(values, index, len(each), lead)


class Table(NamedTuple):
    """All combinations of the values of some latents, C of them; the last name moves fastest."""

    choices: dict[str, Choices]
    which: dict[str, np.ndarray]  # [C] which of its values each has

    @property
    def size(self) -> int:
        return math.prod(len(c.values) for c in self.choices.values())


def table_of(structure: Structure, names: tuple[str, ...], who: str) -> Table:
    """The combinations of the values of these latents.

    Raises:
        AlgorithmError: more than `MOST`.
    """
    choices = {n: choices_of(structure, n, who) for n in names}
    sizes = [len(c.values) for c in choices.values()]
    if math.prod(sizes) > MOST:
        counts = {n: (c.num_values, c.places.shape[1]) for n, c in choices.items()}
        raise AlgorithmError(_too_many(who, counts, None))
    grid = np.indices(sizes).reshape(len(sizes), -1)
    return Table(choices, dict(zip(names, grid, strict=True)))


def _too_many(who: str, counts: Mapping[str, tuple[int, int]], scan: Any) -> str:
    shown = ", ".join(f"{k}^{n} of {name!r}" for name, (k, n) in counts.items())
    cure = (
        f"sum it out along the loop {scan[0]!r}: the forward recursion with ops.scan, and pg.factor"
        if scan is not None
        else "give some as data, draw them in a guide (score-function gradients), or make elements "
        "that do not depend on each other sites, or data, of their own"
    )
    return (
        f"{who}: the discrete latents have {shown} combinations of values, expected at most "
        f"{MOST:,}, since the program is run at each; {cure}."
    )


class Summed(NamedTuple):
    """A run with discrete latents summed out.

    Attributes:
        sites: of the program without them; deterministic ones at their mean over the latents.
        log_weights: log p(x_n, c) of the sites from the first latent on, [C, *particles, batch],
            nats; of latents that all data share, [C].
        table: of these C.
        extra: what else the run gave, [C, ...].
    """

    sites: dict[str, Site]
    log_weights: Array
    table: Table
    extra: Tree


Run = Callable[[dict[str, Array]], tuple[Mapping[str, Site], Tree]]


def summed(
    b: Backend, structure: Structure, names: tuple[str, ...], run: Run, num_rows: int | None,
    who: str, *, is_whole: bool = False,
) -> Summed:  # fmt: skip
    """A run summed over all values of the latents `names`.

    Args:
        run: values of these latents -> (sites, anything else).
        num_rows: size of the data plate.
        is_whole: the data are all there are, so that a latent which they share may be summed out.

    Raises:
        AlgorithmError: too many combinations; a latent that all data share where they come in
            batches; a site outside the data plate after a latent inside it.
    """
    sites = structure.sites
    names = tuple(n for n in sites if n in names)
    shared = tuple(n for n in names if not sites[n].is_local)
    local = tuple(n for n in names if sites[n].is_local)
    if not shared:
        return _over(b, structure, local, run, num_rows, who)
    if any(s.is_local for s in sites.values()) and not is_whole:
        raise AlgorithmError(
            f"{who}: the discrete latents {list(shared)} stand outside the data plate, expected "
            "latents of single data, since the sum over their values is one of all data together, "
            "which batches do not have; use pg.infer, or make them data or parameters."
        )

    def inner(values: dict[str, Array]) -> tuple[dict[str, Site], Tree]:
        if not local:
            return _as_one(b, *run(values))
        found = _over(b, structure, local, lambda more: run({**values, **more}), num_rows, who)
        return _as_one(b, found.sites, tree_map(lambda v: v[0], found.extra))

    return _over(b, structure, shared, inner, num_rows, who)


def _as_one(b: Backend, sites: Mapping[str, Site], extra: Tree) -> tuple[dict[str, Site], Tree]:
    """Sites with the density of all their data together."""
    return {
        n: s if s.log_prob is None else s._replace(log_prob=b.ops.sum(s.log_prob), is_local=False)
        for n, s in sites.items()
    }, extra


def _over(
    b: Backend, structure: Structure, names: tuple[str, ...], run: Run, num_rows: int | None,
    who: str,
) -> Summed:  # fmt: skip
    """`summed`, over latents that are all local or all shared."""
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
    order = list(kinds)
    after = order[order.index(names[0]) :]
    _check_order(structure, names, [n for n in after if n in densities], kinds, who)
    shares, weights = _shares(b.ops, densities, after, names)
    alone = {n: v[0] for n, v in densities.items() if n not in after}
    known, out = {**alone, **shares}, {}
    for name in (n for n in order if n not in names):
        of = weights if name in after else None
        value, share = values[name], known.get(name)
        out[name] = _site(b, structure, name, kinds[name], value, share, of)
    return Summed(out, weights, table, extra)


def on_rows(
    b: Backend, structure: Structure, name: str, table: Table, num_rows: int | None
) -> Array:
    """[C, *plates, *event] of a latent, on the backend."""
    values = table.choices[name].values[table.which[name]]
    plates = structure.plate_shape(name, num_rows or 1)
    wanted = (len(values), *plates, *values.shape[1 + len(plates) :])
    return b.ops.broadcast_to(b.asarray(values), wanted)


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
    tables = {n: table_of(structure, (n,), n) for n in names}
    return {n: on_rows(b, structure, n, tables[n], num_rows)[0] for n in names}


def _check_order(
    structure: Structure, names: tuple[str, ...], after: list[str], kinds: Mapping, who: str
) -> None:
    """A density that all data share cannot be a part of one datum's sum."""
    wrong = [n for n in after if kinds[names[0]][0] and not kinds[n][0]]
    if wrong:
        raise AlgorithmError(
            f"{who}: the site {wrong[0]!r} outside the data plate comes after the discrete latent "
            f"{names[0]!r} inside it, which is summed out for each datum, expected what all data "
            "share before it; declare it first."
        )


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
        total = ops.logsumexp(weights, axis=0)
        if name not in names:
            # What has density 0 keeps it, where a difference of infinities would be NaN.
            shares[name] = ops.where(total == -math.inf, total, total - before)
        before = total
    return shares, weights


def _site(
    b: Backend, structure: Structure, name: str, kind: tuple[bool, str], value: Array, share: Any,
    weights: Array | None,
) -> Site:  # fmt: skip
    """A site of the marginal; a computed value after a latent is its mean over the latents."""
    if kind[1] == "deterministic" and weights is not None:
        value = _mean(b.ops, structure, name, value, weights, kind[0])
    else:
        value = value[0]
    return Site(value, share, kind[0], None, kind[1])


def _mean(
    ops: Any, structure: Structure, name: str, value: Array, weights: Array, is_local: bool
) -> Array:
    """sum_c p(c | x) value(c), of values [C, *plates, *rest] where the data have an axis."""
    if not is_local or weights.ndim > 2:  # no data, or particles, of whom nothing asks for it
        if weights.ndim == 1:
            return ops.einsum("c,c...->...", ops.softmax(weights, axis=0), value)
        # Of all data together the sums over single latents give no mean: where it hangs on them
        # there is no number.
        each = 1.0 * value
        is_one = ops.max(each, axis=0) == ops.min(each, axis=0)
        return ops.where(is_one, each[0], float("nan"))
    plates = structure.plate_shape(name, int(weights.shape[1]))
    if tuple(value.shape[1 : 1 + len(plates)]) != tuple(plates):
        return value[0]  # a constant, without an axis of the data
    shape = [1] * value.ndim
    shape[0], shape[1 + len(plates) + structure.plate_axes[DATA_PLATE]] = weights.shape
    return ops.sum(ops.reshape(ops.softmax(weights, axis=0), shape) * value, axis=0)


def probabilities(b: Backend, structure: Structure, found: Summed, name: str) -> Array:
    """[*plates, *event, K] the posterior probability of each value of each element of a latent."""
    ops, choices = b.ops, found.table.choices[name]
    elements = choices.places.shape[1]
    one_hot = np.eye(choices.num_values, dtype=np.float32)[choices.places]  # [C, elements, K]
    flat = b.asarray(one_hot[found.table.which[name]].reshape(found.table.size, -1))
    p = ops.softmax(found.log_weights, axis=0)
    if p.ndim == 1:  # all data share it
        shape = structure.plate_shape(name, 1)
        return ops.reshape(ops.einsum("c,ce->e", p, flat), (*shape, *choices.lead, -1))
    each = ops.einsum("cn,ce->ne", p, flat)
    plates = structure.plate_shape(name, int(p.shape[1]))
    if elements == math.prod(choices.lead):
        return ops.reshape(each, (*plates, *choices.lead, -1))
    axis = len(plates) + structure.plate_axes[DATA_PLATE]
    inner = (*plates[:axis], *plates[axis + 1 :])
    out = ops.reshape(each, (int(p.shape[1]), *inner, *choices.lead, -1))
    axes = list(range(1, out.ndim))
    axes.insert(axis, 0)
    return ops.transpose(out, axes)
