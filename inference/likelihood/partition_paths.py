"""Where log Z is estimated from: a density that can be drawn from, and the path to the model's.

    noise    N(eps; 0, I)  to  N(eps; 0, I) exp(factors at x(eps))          the model's own base
    data     a Gaussian p_0(x)  to  p~(x)                                   one site, on the line

Positions are [chains, 1, *event]: chains that belong to no datum. What walks, draws or sums over
them is in `partition`, `annealing` and `partition_methods`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.spaces import model_target
from probgen.engine.target import Target
from probgen.errors import AlgorithmError, DataError, ShapeError
from probgen.language.declared import declaration
from probgen.language.kinds import Positive, Rule

Array = Any


@declaration(eq=False)
class Gaussian:
    """A start for annealing: independent normals of these locations and scales, by site.

    It must cover the support: where p~ has mass and the start has none, no chain will look.
    `Gaussian.covering(x)` takes them from data, the scale made wider.
    """

    loc: float | np.ndarray
    scale: Positive | Annotated[np.ndarray, Rule("above 0", lambda v: (v > 0).all())]

    @classmethod
    def covering(cls, data: Any, *, widen: float = 1.5) -> Gaussian:
        """Mean and `widen` times the standard deviation of data [n, *event], value by value.

        Values that never vary get the largest deviation of all.
        """
        x = np.asarray(data, np.float64)
        if x.ndim < 1 or len(x) < 2 or not np.isfinite(x).all():
            raise DataError(
                f"Gaussian.covering: got data of shape {x.shape}, expected [n, *event] of at least "
                "two finite data."
            )
        scale = x.std(axis=0)
        if not scale.max() > 0:
            raise DataError(
                "Gaussian.covering: got data that are all equal, expected some spread; give loc "
                "and scale."
            )
        return cls(x.mean(axis=0), widen * np.where(scale > 0, scale, scale.max()))


def path_of(bound: Bound, base: Gaussian | None) -> Target:
    """The path to a model's density: in data space from a Gaussian, else in noise space.

    Raises:
        AlgorithmError, ShapeError: see `log_partition`.
    """
    return _noise_path(bound) if base is None else _data_path(bound, base)


def _noise_path(bound: Bound) -> Target:
    """From N(eps; 0, I) to N(eps; 0, I) exp(factors at x(eps)); Z_0 = 1."""
    space = model_target(bound, "noise")
    return _of_one_datum(space, space.init, space.terms)


def _of_one_datum(space: Target, init: Callable, terms: Callable) -> Target:
    """A path of a target whose chains belong to no datum: positions [chains, 1, *event]."""

    def out(x: Mapping) -> dict:
        return {n: v[:, 0] for n, v in x.items()}

    def begin(params: Mapping, batch: Mapping, key: Any, num_chains: int) -> dict:
        return {n: v[:, None] for n, v in init(params, batch, key, num_chains).items()}

    def both(u: Mapping, params: Mapping, batch: Mapping) -> tuple[Array, Array]:
        start, delta = terms(out(u), params, batch)
        return start[:, None], delta[:, None]

    return Target(
        space.names, begin, lambda *at: sum(both(*at)), None,
        lambda u, params, batch: space.values(out(u), params, batch), False, terms=both,
    )  # fmt: skip


def _data_path(bound: Bound, base: Gaussian) -> Target:
    """From a Gaussian p_0(x) to the density itself, in data space."""
    b, ops = bound.backend, bound.backend.ops
    space = model_target(bound, "data")
    if len(space.names) != 1:
        raise AlgorithmError(
            f"log_partition: {bound.model.name!r} has the sites {list(space.names)}, expected one "
            "where a base is given; leave the base out, to start at the model without its factors."
        )
    (name,) = space.names
    site = bound.structure.sites[name]
    if "Real" not in site.support:
        raise AlgorithmError(
            f"log_partition: site {name!r} has the support {site.mass}, expected the real line, "
            "where a Gaussian lives; leave the base out, or declare the energy over a Normal."
        )
    try:
        loc = np.broadcast_to(np.asarray(base.loc, np.float64), site.event_shape)
        scale = np.broadcast_to(np.asarray(base.scale, np.float64), site.event_shape)
    except ValueError as error:
        raise ShapeError(
            f"log_partition: got a base of loc {np.shape(base.loc)} and scale "
            f"{np.shape(base.scale)}, expected numbers or shapes that broadcast to a datum's, "
            f"{site.event_shape}."
        ) from error
    constant = -float(np.log(scale).sum()) - 0.5 * loc.size * math.log(2.0 * math.pi)
    where, width = b.asarray(loc.copy()), b.asarray(scale.copy())

    def init(params: Mapping, batch: Mapping, key: Any, num_chains: int) -> dict:
        return {name: where + width * b.normal(key, (num_chains, *site.event_shape))}

    def terms(x: Mapping, params: Mapping, batch: Mapping) -> tuple[Array, Array]:
        eps = (x[name] - where) / width
        start = constant - 0.5 * ops.sum(ops.reshape(eps * eps, (eps.shape[0], -1)), axis=-1)
        return start, space.log_density(x, params, batch) - start  # type: ignore[misc]

    return _of_one_datum(space, init, terms)
