"""The targets of a model: where a chain lives, and the log density that it climbs there.

    data     the sites' own values:     log p~(x) = sum of all sites and factors
    latent   latents given data:        log p~(z, x) with x held
    noise    standard normal noise:     log N(eps; 0, I) + sum of factors at x(eps)

Sites of a constrained support (positive, interval, simplex...) move on the real line, as under
NUTS: with x = T(u), T the bijection of the support, the chain climbs log p~(T(u)) + log |det dT/du|
over u, so no step leaves the support and Metropolis tests and drifts are right. Sites of real
support are their own position.

In noise space every continuous site is a deterministic function of its noise, so a model tilted by
an energy has the density log N(eps; 0, I) - E(x(eps)): VAEBM's reparametrised sampling and
exponential tilting's latent sampling in one line. Densities of unnormalised models are known up to
a constant; all are nats, one per chain. What the program fixes by `obs=` does not move.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Protocol

from probgen.engine.bound import Bound
from probgen.engine.enumeration import check_supports, summed
from probgen.engine.target import Target
from probgen.errors import AlgorithmError
from probgen.language.kinds import having
from probgen.language.run import DATA_PLATE, NOT_NORMAL

Array = Any
SPACES = ("data", "latent", "noise")


class Space(Protocol):
    """A space of one's own: `target(bound)` is what chains climb there, `note()` what that is.

    Its `name` is that of the space whose positions it shares, such as "noise".
    """

    @property
    def name(self) -> str: ...

    def target(self, bound: Bound) -> Target: ...

    def note(self) -> str: ...


OwnSpace = Annotated[Space, having("a space such as Noise(as_released=True)", "target", "note")]


def space_name(space: str | Space) -> str:
    """Of a space, which of `SPACES` its positions are those of."""
    return space if isinstance(space, str) else space.name


def model_target(bound: Bound, kind: str | Space) -> Target:
    """A model's target in the space of that name; in "latent" space there is one chain a datum.

    Raises:
        AlgorithmError: unknown name, a discrete site where gradients are needed, a global site,
            a site in a further plate, or one that is not a function of normal noise.
    """
    if not isinstance(kind, str):
        return kind.target(bound)
    if kind not in SPACES:
        raise AlgorithmError(f"space: got {kind!r}, expected one of {SPACES}.")
    names = tuple(
        n
        for n, s in bound.structure.sites.items()
        if s.kind == "sample" and not s.is_fixed
        and (kind != "latent" or n not in (*bound.observed, *bound.enumerated))
    )  # fmt: skip
    computed = [n for n in names if n in bound.structure.computed]
    if computed and kind != "noise":
        raise AlgorithmError(
            f"space {kind!r}: the sites {computed} of {bound.model.name!r} are computed from "
            "latents and have no density of their own, expected chains that move what they are "
            "computed from; use space='noise'."
        )
    for name in names:
        site = bound.structure.sites[name]
        if site.is_discrete:
            raise AlgorithmError(
                f"space {kind!r}: site {name!r} is discrete ({site.distribution}), expected a "
                "continuous one, since the chain follows gradients; use a Normal likelihood, "
                "through='mean' of a Tilted, or weighted draws without chains, ImportanceSampling."
            )
        if not site.is_local:
            raise AlgorithmError(
                f"space {kind!r}: site {name!r} is global, expected sites inside the data plate "
                "(one chain a datum); use pg.infer for global latents."
            )
        inner = [p for p in site.plates if p != DATA_PLATE]
        if inner:
            raise AlgorithmError(
                f"space {kind!r}: site {name!r} stands in the plates {inner}, expected the data "
                "plate alone (one chain a datum); make those axes events with "
                ".expand([...]).to_event(n)."
            )
    return _noise(bound, names) if kind == "noise" else _values(bound, kind, names)


def _values(bound: Bound, kind: str, names: tuple[str, ...]) -> Target:
    b, condition = bound.backend, kind == "latent"
    structure = bound.structure.sites
    bent = tuple(n for n in names if "Real" not in structure[n].support)
    computed = any(s.kind != "factor" and n not in names for n, s in structure.items())

    def run(x: Mapping, params: Mapping, batch: Mapping, given: Mapping) -> tuple:
        """(sites, positions of the bent ones, their log Jacobians)."""
        some: Any = next(iter({**x, **given}.values()))
        size = some.shape[0]
        if not bent:
            return bound.trace(params, batch, x, batch_size=size, condition=condition), {}, {}
        held = {n: batch[n] for n in bound.observed if n in batch} if condition else {}

        def free(discrete: Mapping) -> tuple:
            at, *more = b.unconstrained(
                bound.model.program, params, names=bent,
                free={n: x[n] for n in bent if n in x},
                given={n: given[n] for n in bent if n in given}, strategy="init_to_feasible",
                values={
                    **held, **discrete, **{n: v for n, v in {**x, **given}.items() if n not in bent}
                },
                inputs=bound.inputs(bound.model.program, batch, f"model {bound.model.name!r}"),
                key=None, batch_size=size,
            )  # fmt: skip
            if discrete:
                check_supports(b, at, bent, bound.enumerated, f"space {kind!r}")
            return at, more

        if not (condition and bound.enumerated):
            at, more = free({})
            return at, *more
        who, hidden = f"space {kind!r}", bound.enumerated
        found = summed(b, bound.structure, hidden, free, size, who)
        return found.sites, *b.tree_map(lambda v: v[0], found.extra)

    def log_density(x: Mapping, params: Mapping, batch: Mapping) -> Array:
        at, _, log_det = run(x, params, batch, {})
        out = total(at)
        for value in log_det.values():
            out = out + value
        return out

    def enter(values: Mapping, params: Mapping, batch: Mapping) -> dict:
        if not bent:
            return {n: values[n] for n in names}
        free = run({}, params, batch, {n: values[n] for n in names})[1]
        return {n: free[n] if n in bent else values[n] for n in names}

    def init(params: Mapping, batch: Mapping, key: Any, num_chains: int) -> dict:
        drawn = bound.trace(params, batch, key=key, batch_size=num_chains, condition=condition)
        values = _sites(drawn)
        x = enter(values, params, batch)
        return {n: _inside(b.ops, v, values[n]) if n in bent else v for n, v in x.items()}

    def values(x: Mapping, params: Mapping, batch: Mapping) -> dict:
        return _sites(run(x, params, batch, {})[0]) if bent or computed else dict(x)

    return Target(names, init, log_density, None, values, bound.is_normalized, enter)


def _sites(sites: Mapping[str, Any]) -> dict[str, Array]:
    return {n: s.value for n, s in sites.items() if s.kind != "factor"}


def _inside(ops: Any, u: Array, value: Array) -> Array:
    """A start that rounding put on the edge of its support, where u is infinite, begins at 0."""
    # A value that is NaN is no edge, and stays NaN.
    nothing = 0.0 * ops.sum(ops.reshape(value, (value.shape[0], -1)), axis=-1)
    nothing = ops.reshape(nothing, (u.shape[0], *([1] * (u.ndim - 1))))
    return ops.where(ops.isfinite(u), u, nothing)


def _noise(bound: Bound, names: tuple[str, ...]) -> Target:
    b = bound.backend
    shapes = {}
    for name in names:
        site = bound.structure.sites[name]
        if site.noise_shape is None:
            raise AlgorithmError(NOT_NORMAL.format(name=name, kind=site.family))
        shapes[name] = site.noise_shape
    size = sum(math.prod(s) for s in shapes.values())

    def run(eps: Mapping, params: Mapping, batch: Mapping) -> dict:
        chains = next(iter(eps.values())).shape[0]
        return bound.trace(params, batch, noise=eps, batch_size=chains, condition=False)

    def terms(eps: Mapping, params: Mapping, batch: Mapping) -> tuple[Array, Array]:
        squares = sum(
            b.ops.sum(b.ops.reshape(e * e, (e.shape[0], -1)), axis=-1) for e in eps.values()
        )
        normal = -0.5 * squares - 0.5 * size * math.log(2.0 * math.pi)
        return normal, total(run(eps, params, batch), leave=names)

    def log_density(eps: Mapping, params: Mapping, batch: Mapping) -> Array:
        normal, factors = terms(eps, params, batch)
        return normal + factors

    def init(params: Mapping, batch: Mapping, key: Any, num_chains: int) -> dict:
        keys = b.split(key, len(names))
        return {n: b.normal(k, (num_chains, *shapes[n])) for n, k in zip(names, keys, strict=True)}

    def values(eps: Mapping, params: Mapping, batch: Mapping) -> dict:
        return _sites(run(eps, params, batch))

    return Target(names, init, log_density, None, values, bound.is_normalized, terms=terms)


def total(sites: Mapping[str, Any], leave: Collection[str] = ()) -> Array:
    """Sum of the log-probabilities of all sites and factors but those that `leave` names."""
    kept = {n: s.log_prob for n, s in sites.items() if s.kind in ("factor", "sample")}
    values = [v for n, v in kept.items() if n not in leave]
    if not values:
        return next(iter(kept.values())) * 0.0
    out = values[0]
    for value in values[1:]:
        out = out + value
    return out
