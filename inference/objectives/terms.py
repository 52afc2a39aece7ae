"""The terms of a variational bound, read off a guide's and a model's traces.

With z ~ q(z | x) and every quantity in nats per datum:

    log_prob/s   log p of an observed site (or a factor) s
    kl/z         KL(q(z | x) || p(z)), in closed form where both sides have one and it is asked
                 for, else log q(z | x) - log p(z) at the draw

A closed form is taken over z with all else fixed, so what p(z | ...) depends on must not itself
follow z in the guide: with q(z1 | x) q(z2 | z1) the mean of KL(q(z1 | x) || p(z1 | z2)) is not the
KL, and the "bound" none. Hence it is used for a latent only if those before it in the model are
before it in the guide too.

Local terms keep their data axis, [*particles, batch]; global ones (outside the data plate) do not.
How terms become an objective is not here: see `elbo`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from probgen.backends.protocol import Site
from probgen.engine.bound import Bound
from probgen.engine.guide_draws import GuideDraws, draw_guide
from probgen.errors import AlgorithmError, DeclarationError
from probgen.language.memory import ask

Array = Any


class Terms(NamedTuple):
    """Terms of a bound.

    Attributes:
        log_prob: observed sites and factors, by name.
        kl: latent sites, by name.
        kl_units: KL per unit of a latent's last axis, [*particles, batch, d], where it splits.
        is_local: site name -> it has a data axis.
        latents: the guide's draws, by name.
        log_q: of latents whose draw carries no gradient, for the score-function estimator.
        values: what the program computes outside all plates that is one number, by name.
    """

    log_prob: dict[str, Array]
    kl: dict[str, Array]
    kl_units: dict[str, Array]
    is_local: dict[str, bool]
    latents: dict[str, Array]
    log_q: dict[str, Array]
    values: dict[str, Array]


def compute(
    bound: Bound,
    params: Mapping,
    batch: Mapping[str, Array],
    key: Any,
    *,
    num_particles: int | None = None,
    analytic_kl: bool = True,
    guide_params: Mapping | None = None,
) -> Terms:
    """Draws the latents from the guide and collects the terms of the bound.

    Args:
        guide_params: those of the guide where they are not the model's.

    Raises:
        AlgorithmError: the guide leaves a latent site of the model out.
        DeclarationError: more particles than memory holds.
    """
    q_params = params if guide_params is None else guide_params
    if num_particles is not None:
        rows = [len(v) for n, v in batch.items() if n in bound.structure.sites and v.ndim]
        size = max(rows, default=1)
        numbers = 4 * num_particles * bound.structure.count(size)
        where = f"{bound.model.name!r}: {num_particles:,} particles of {size:,} data"
        ask(where, numbers, "take fewer particles, or fewer data at a time", DeclarationError)
    draws = draw_guide(bound, q_params, batch, key, num_particles=num_particles)
    sites = bound.trace(params, batch, draws.latents, num_particles=num_particles)
    return collect(bound, draws, sites, analytic_kl=analytic_kl)


def collect(
    bound: Bound, draws: GuideDraws, sites: Mapping[str, Site], *, analytic_kl: bool
) -> Terms:
    """The terms of the bound from a guide's draws and the model's sites at them."""
    latents, drawn = draws
    log_prob, kl, units, is_local, score, values = {}, {}, {}, {}, {}, {}
    above: set[str] = set()  # latents before this one in the model
    order = list(latents)
    for name, site in sites.items():
        if site.kind == "deterministic":
            if not site.is_local and site.value.ndim == 0:
                values[name] = site.value
            continue
        is_local[name] = site.is_local
        if name not in latents:
            log_prob[name] = site.log_prob
            continue
        closed = analytic_kl and above <= set(order[: order.index(name)])
        above.add(name)
        kl[name], per_unit = _kl(bound, drawn[name], site, closed)
        if per_unit is not None:
            units[name] = per_unit
        if not bound.backend.is_reparametrised(drawn[name].fn):
            score[name] = drawn[name].log_prob
    return Terms(log_prob, kl, units, is_local, latents, score, values)


def _kl(bound: Bound, q: Site, p: Site, analytic: bool) -> tuple[Array, Array | None]:
    b = bound.backend
    (q_units, q_taken), (p_units, p_taken) = b.event_units(q.fn), b.event_units(p.fn)
    splits = q_taken == p_taken == 1 and len(q_units.event_shape) == 0
    if analytic:
        if splits:
            each = b.kl_divergence(q_units, p_units)
            if each is not None and _fits(each, q.log_prob, 1):
                return b.ops.sum(each, axis=-1), each
        whole = b.kl_divergence(q.fn, p.fn)
        if whole is not None and _fits(whole, q.log_prob, 0):
            return whole, None
    if splits:
        each = q_units.log_prob(q.value) - p_units.log_prob(q.value)
        if _fits(each, q.log_prob, 1):
            return b.ops.sum(each, axis=-1), each
    return q.log_prob - p.log_prob, None


def _fits(value: Array, log_prob: Array, extra: int) -> bool:
    """Whether a KL has just the axes of the log-probability (inner plates would be left over)."""
    return value.ndim == log_prob.ndim + extra and tuple(value.shape[: log_prob.ndim]) == tuple(
        log_prob.shape
    )


def mean_of_units(ops: Any, units: Array) -> Array:
    """Of [..., unit], over draws and data. No axes are merged: data that lie on several devices
    would be gathered by each."""
    others = tuple(range(len(units.shape) - 1))
    return ops.mean(units, axis=others) if others else units


def log_weights(terms: Terms) -> Array:
    """log p(x, z_k) - log q(z_k | x), [K, batch], nats.

    Raises:
        AlgorithmError: a site is global, so that its weight is not one datum's.
    """
    require_local(terms)
    total: Any = 0.0
    for value in terms.log_prob.values():
        total = total + value
    for value in terms.kl.values():
        total = total - value
    return total


def require_local(terms: Terms) -> None:
    """Refuses terms that are not one datum's.

    Raises:
        AlgorithmError: names the sites.
    """
    shared = sorted(n for n in {*terms.log_prob, *terms.kl} if not terms.is_local[n])
    if shared:
        raise AlgorithmError(
            f"importance weights: the sites {shared} lie outside the data plate, expected local "
            "ones only, since the weights are per datum; move them into pg.data_plate(), or use "
            "ELBO."
        )


def per_datum(bound: Bound, terms: Terms, values: Mapping[str, Array]) -> Array | float:
    """Sum over sites, in nats per datum: mean over the batch of local terms, and global / size.

    The minibatch scaling is here: a global term counts once for the whole data set, so each of its
    N data carries 1/N of it; averaged over minibatches this is the full objective divided by N.
    """
    ops = bound.backend.ops
    total: Any = 0.0
    for name, value in values.items():
        if terms.is_local[name]:
            total = total + ops.mean(value)
        else:
            total = total + ops.mean(value) / _size(bound, name)
    return total


def _size(bound: Bound, name: str) -> float:
    if bound.num_data is None:
        raise AlgorithmError(
            f"site {name!r} is global (outside the data plate) and the number of data is not "
            "known, expected it for the minibatch scaling; fit from data that have a length."
        )
    return float(bound.num_data)
