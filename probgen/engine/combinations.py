"""The values of discrete latents, all combinations of them, and what a sum over them leaves.

Of one datum's latents, and of latents that all data share: `engine.enumeration` runs the program at
every row of a `Table`; `engine.messages` at few, for latents along a loop over time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.backends.protocol import Backend, Site
from probgen.engine.structure import SiteInfo, Structure
from probgen.errors import AlgorithmError
from probgen.language.run import DATA_PLATE
from probgen.language.supports import finite_values

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
        raise AlgorithmError(too_many(who, {name: (len(each), count)}))
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
        raise AlgorithmError(too_many(who, counts))
    grid = np.indices(sizes).reshape(len(sizes), -1)
    return Table(choices, dict(zip(names, grid, strict=True)))


def log_count(structure: Structure, name: str) -> float:
    """Log of the number of values of a latent as a whole, its data plate aside."""
    site = structure.sites[name]
    each: Any = values_of(site)
    lead = site.event_shape[: len(site.event_shape) - (each.ndim - 1)]
    return math.prod((*structure.plate_shape(name, 1), *lead)) * math.log(len(each))


def too_many(
    who: str, counts: Mapping[str, tuple[int, int]], where: str = "", most: int = MOST,
    why: str = "the program is run at each",
) -> str:  # fmt: skip
    """What is said of K^n values by site."""
    shown = ", ".join(f"{k}^{n} of {name!r}" for name, (k, n) in counts.items())
    return (
        f"{who}: the discrete latents have {shown} combinations of values"
        f"{where and ' ' + where}, expected at most {most:,}, since {why}; give some as data, draw "
        "them in a guide (score-function gradients), or make elements that do not depend on each "
        "other sites, or data, of their own."
    )


def on_rows(
    b: Backend, structure: Structure, name: str, table: Table, num_rows: int | None
) -> Array:
    """[C, *plates, *event] of a latent, on the backend."""
    values = table.choices[name].values[table.which[name]]
    plates = structure.plate_shape(name, num_rows or 1)
    wanted = (len(values), *plates, *values.shape[1 + len(plates) :])
    return b.ops.broadcast_to(b.asarray(values), wanted)


class Summed(NamedTuple):
    """A run with discrete latents summed out.

    Attributes:
        sites: of the program without them; deterministic ones at their mean over the latents.
        log_weights: log p(x_n, c) of the sites from the first latent on, [C, *particles, batch],
            nats; of latents that all data share, [C]. None of those along a loop.
        table: of these C.
        extra: what else the run gave, [C, ...].
        probs: of latents summed out within, [*plates, *event, K], where they were asked for: those
            along a loop, and of single data beside latents that all share.
        each: of sites of single data after latents that all share, [n] log density of each given
            the other data, where it was asked for.
        pairs: [T, C^2, ...] the probabilities of neighbours along it (`engine.messages`).
        is_markov: whether nothing there knows of an earlier past; None without such latents.
    """

    sites: dict[str, Site]
    log_weights: Array
    table: Table
    extra: Tree
    probs: Mapping[str, Array] = {}
    each: Mapping[str, Array] = {}
    pairs: Array | None = None
    is_markov: Array | None = None


Run = Callable[[dict[str, Array]], tuple[Mapping[str, Site], Tree]]


def site_of(
    b: Backend, structure: Structure, name: str, kind: tuple[bool, str], value: Array, share: Any,
    p: Array | None,
) -> Site:  # fmt: skip
    """A site of the marginal; a computed value after a latent is its mean, by the probabilities of
    the latents' values, [C, ...]."""
    if kind[1] == "deterministic" and p is not None:
        value = mean_of(b.ops, structure, name, value, p, kind[0])
    else:
        value = value[0]
    return Site(value, share, kind[0], None, kind[1])


def mean_of(
    ops: Any, structure: Structure, name: str, value: Array, p: Array, is_local: bool
) -> Array:
    """sum_c p(c | x) value(c), of values [C, *plates, *rest] where the data have an axis."""
    if p.ndim == 1:
        # What is told beside an impossible value may be no number, and has no weight.
        is_nothing = ops.reshape(p, (-1, *(1,) * (value.ndim - 1))) == 0
        return ops.einsum("c,c...->...", p, ops.where(is_nothing, 0.0, 1.0 * value))
    if not is_local or p.ndim > 2:  # no data, or particles, of whom nothing asks for it
        # Of all data together the sums over single latents give no mean: where it hangs on them
        # there is no number.
        each = 1.0 * value
        is_one = ops.max(each, axis=0) == ops.min(each, axis=0)
        return ops.where(is_one, each[0], float("nan"))
    plates = structure.plate_shape(name, int(p.shape[1]))
    if tuple(value.shape[1 : 1 + len(plates)]) != tuple(plates):
        return value[0]  # a constant, without an axis of the data
    shape = [1] * value.ndim
    shape[0], shape[1 + len(plates) + structure.plate_axes[DATA_PLATE]] = p.shape
    return ops.sum(ops.reshape(p, shape) * value, axis=0)


def as_counted(structure: Structure, order: Iterable[str], names: tuple[str, ...]) -> list[str]:
    """Sites in the order in which a sum over the latents `names` counts them: of a loop over time
    the latents first, since what stands before one in the step may hang on it, a moment later."""
    sites, order, out = structure.sites, list(order), []
    for name in order:
        scan = sites[name].scan
        block = [name] if scan is None else [n for n in order if sites[n].scan == scan]
        out += [n for n in sorted(block, key=lambda n: n not in names) if n not in out]
    return out


def check_order(first: str, after: list[str], kinds: Mapping, who: str) -> None:
    """A density that all data share cannot be a part of one datum's sum, that of the latent
    `first`, among the sites after it."""
    wrong = [n for n in after if kinds[first][0] and not kinds[n][0]]
    if wrong:
        raise AlgorithmError(
            f"{who}: the site {wrong[0]!r} outside the data plate comes after the discrete latent "
            f"{first!r} inside it, which is summed out for each datum, expected what all data "
            "share before it; declare it first."
        )


def probabilities(b: Backend, structure: Structure, found: Summed, name: str) -> Array:
    """[*plates, *event, K] the posterior probability of each value of each element of a latent."""
    if name in found.probs:
        return found.probs[name]
    p = b.ops.softmax(found.log_weights, axis=0)
    return probabilities_of(b, structure, found.table, p, name)


def probabilities_of(b: Backend, structure: Structure, table: Table, p: Array, name: str) -> Array:
    """`probabilities`, by those of a table's rows, [C, ...]."""
    ops, choices = b.ops, table.choices[name]
    elements = choices.places.shape[1]
    one_hot = np.eye(choices.num_values, dtype=np.float32)[choices.places]  # [C, elements, K]
    flat = b.asarray(one_hot[table.which[name]].reshape(table.size, -1))
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
