"""log Z without a path: by importance sampling, and by quadrature in one and two dimensions.

    importance    log Z_hat = log (1/N) sum_j f(x_j),  x_j ~ p_0      f the factors, p_0 the base
    quadrature    log Z_hat = log sum_i w_i p~(u_i)                   the trapezoid rule on a grid

E[Z_hat] = Z, so importance sampling is a lower bound in expectation, as annealing is; quadrature is
exact but for its grid. What they are made of is in `partition_paths`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
from scipy.special import logsumexp

from probgen.engine.bound import Bound
from probgen.engine.spaces import total
from probgen.errors import AlgorithmError
from probgen.inference.learn.negative import ImportanceSampling
from probgen.inference.likelihood.importance import importance_estimate
from probgen.inference.likelihood.interval import has_interval
from probgen.inference.likelihood.partition_paths import Gaussian, path_of
from probgen.language.declared import declaration
from probgen.language.kinds import Positive, between

Array = Any
Values = dict[str, Any]
AT_ONCE = 10_000  # draws, for memory
COLLAPSED = 1e-3  # effective share of the draws below which a handful of them is the estimate


def by_importance(
    method: ImportanceSampling, bound: Bound, params: Mapping, base: Gaussian | None, key: Any,
    samples: Any,
) -> Values:  # fmt: skip
    """What `LogPartition` has of importance sampling; see `log_partition`."""
    refuse_samples(samples, method.name)
    num_draws = method.num_draws
    log_w = _log_weights(num_draws, bound, params, base, key)
    found = {k: float(v[0]) for k, v in importance_estimate(log_w[None]).items()}
    share, tail = found["effective_particles"] / num_draws, found["khat"]
    error = found.get("standard_error", math.nan)
    out = {"estimate": found["estimate"], "standard_error": error, "effective_share": share}
    out |= {"lower_bound": found["lower_bound"], "khat": tail, "num_weights": num_draws}
    if bool(has_interval(np.array([tail]), num_draws)[0]):
        out["upper_bound"] = found["estimate"] + 1.96 * error
    return out | {"warnings": _on_weights(share, num_draws)}


def _log_weights(
    num_draws: int, bound: Bound, params: Mapping, base: Gaussian | None, key: Any
) -> np.ndarray:
    b = bound.backend
    size = min(AT_ONCE, num_draws)
    count = -(-num_draws // size)
    draw = _from_model(bound) if base is None else _from_gaussian(bound, base)
    run = b.compile(lambda params, key: draw(params, key, size), num_calls=count)
    parts = [b.to_numpy(run(params, b.fold_in(key, i))) for i in range(count)]
    return np.concatenate(parts).astype(np.float64)[:num_draws]


def _from_model(bound: Bound) -> Callable:
    """(params, key, n) -> log of the factors at n draws of the model without them, [n]."""
    bound.require_short("log_partition")
    names = []
    for name, site in bound.structure.sites.items():
        if site.kind == "deterministic":
            continue
        if not site.is_local:
            raise AlgorithmError(
                f"log_partition: site {name!r} of {bound.model.name!r} lies outside the data "
                "plate, expected local ones, of one datum; put it inside pg.data_plate()."
            )
        if not getattr(site.declaration, "has_draw", True):
            raise AlgorithmError(
                f"log_partition: site {name!r} of {bound.model.name!r} has a base without draws of "
                "a law (a flat density, perhaps with a start), expected one to weight draws of; "
                "give base=Gaussian(loc, scale), by Quadrature() or AIS()."
            )
        if site.kind == "sample" and not site.is_fixed:
            names.append(name)

    def draw(params: Mapping, key: Any, size: int) -> Array:
        sites = bound.trace(params, {}, key=key, batch_size=size, condition=False)
        return total(sites, leave=names)

    return draw


def _from_gaussian(bound: Bound, base: Gaussian) -> Callable:
    path = path_of(bound, base)

    def draw(params: Mapping, key: Any, size: int) -> Array:
        return path.terms(path.init(params, {}, key, size), params, {})[1][:, 0]

    return draw


def _on_weights(share: float, num_draws: int) -> tuple[str, ...]:
    if share >= COLLAPSED:
        return ()
    return (
        f"the importance weights have collapsed: {share * num_draws:.1f} of {num_draws:,} draws "
        "carry them, so that log Z is likely too low by more than its error; use AIS(), or a base "
        "nearer to the density.",
    )


@declaration
class Quadrature:
    """log Z by the trapezoid rule on a grid, for densities over one or two numbers.

    In noise space the grid is [-extent, extent] in each direction, in standard deviations of the
    base; with `base=Gaussian(loc, scale)` it is loc +- extent scale in data space. For smooth
    densities that vanish at its edge the rule converges faster than any power of the spacing. The
    error is what every second point alone would give otherwise, and the share of the mass in the
    outermost cells.

    Args:
        num_points: in each direction, odd.
        extent: of the grid.
    """

    num_points: Annotated[int, between(5, 100_001)] = 401
    extent: Positive = dataclasses.field(default=8.0, kw_only=True)

    direction = "exact up to its error"

    @property
    def name(self) -> str:
        return f"Quadrature({self.num_points})"

    def estimate(
        self, bound: Bound, params: Mapping, base: Gaussian | None, key: Any, samples: Any
    ) -> Values:
        """What `LogPartition` has of it; see `log_partition`."""
        refuse_samples(samples, self.name)
        b, path = bound.backend, path_of(bound, base)
        start = path.init(params, {}, key, 1)
        shapes = {n: tuple(v.shape[2:]) for n, v in start.items()}
        size = sum(math.prod(s) for s in shapes.values())
        if size > 2:
            raise AlgorithmError(
                f"log_partition: {bound.model.name!r} has {size} numbers to integrate over, "
                f"expected one or two by {self.name}, whose grid has num_points^{size} points; use "
                "AIS() or ImportanceSampling()."
            )
        axis = np.linspace(-self.extent, self.extent, 2 * (self.num_points // 2) + 1)
        loc, scale = (0.0, 1.0) if base is None else (base.loc, base.scale)
        flat = np.stack(np.meshgrid(*[axis] * size, indexing="ij"), -1).reshape(-1, size)
        run = b.compile(lambda x, params: path.log_density(x, params, {})[:, 0])  # type: ignore[misc]
        values = []
        for part in np.array_split(flat, -(-len(flat) // 50_000)):
            x, first = {}, 0
            for name, shape in shapes.items():
                u = part[:, first : first + math.prod(shape)].reshape(len(part), 1, *shape)
                x[name], first = b.asarray(loc + scale * u), first + math.prod(shape)
            values.append(b.to_numpy(run(x, params)))
        log_p = np.concatenate(values).astype(np.float64).reshape([len(axis)] * size)
        widths = np.broadcast_to(np.asarray(scale, np.float64), _event(shapes, base)).reshape(-1)
        return _of_grid(log_p + float(np.log(widths).sum()), axis[1] - axis[0], self)


def _event(shapes: Mapping[str, tuple[int, ...]], base: Gaussian | None) -> tuple[int, ...]:
    """The shape over which a base's scale is one Jacobian; in noise space there is none."""
    return next(iter(shapes.values())) if base is not None else (1,)


def _of_grid(log_p: np.ndarray, step: float, method: Quadrature) -> Values:
    every_second = (slice(None, None, 2),) * log_p.ndim
    whole, half = _trapezoid(log_p, step), _trapezoid(log_p[every_second], 2 * step)
    inner = log_p[(slice(1, -1),) * log_p.ndim]
    edge = max(-math.expm1(logsumexp(inner) - logsumexp(log_p)), 0.0)
    # Single precision leaves some 1e-6 of every density.
    error = abs(whole - half) + edge + 1e-6
    said = (
        f"{edge:.1%} of the mass lies at the edge of the grid, and more may lie beyond; widen "
        f"extent, now {method.extent:g}, or give base=Gaussian(...) about the mass.",
    )
    return {
        "estimate": whole, "standard_error": error, "num_weights": log_p.size,
        "lower_bound": whole - 1.96 * error, "upper_bound": whole + 1.96 * error,
        "warnings": said if edge > COLLAPSED else (),
    }  # fmt: skip


def _trapezoid(log_p: np.ndarray, step: float) -> float:
    """log of the integral of exp(log_p) over a grid of this spacing."""
    log_w = log_p + log_p.ndim * math.log(step)
    for axis in range(log_p.ndim):
        index: list[Any] = [slice(None)] * log_p.ndim
        index[axis] = [0, -1]
        log_w[tuple(index)] -= math.log(2.0)
    return float(logsumexp(log_w))


def refuse_samples(samples: Any, who: str) -> None:
    """Samples are for the reverse run of AIS alone."""
    if samples is not None:
        raise AlgorithmError(
            f"log_partition: got samples with {who}, expected them with AIS() and a base, whose "
            "reverse run starts at them; leave them out."
        )
