"""A Gaussian about a mode: mean u*, covariance the inverse of the curvature there, at all data.

    f(u) = log p(y, T(u)) + log |det dT/du|,    H = -f''(u*),    q = N(u*, H^-1)

f is what samplers climb (`probgen.engine.posterior`), summed over the data a chunk at a time. No
search for the mode here: a fit has found it, and how far it still is, is told by the length of a
Newton step in standard deviations, sqrt(g^T H^-1 g) with g = f'(u*).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from probgen.engine.auto_guide import AutoGuide, Settled
from probgen.engine.bound import Bound
from probgen.engine.posterior import Posterior
from probgen.errors import AlgorithmError
from probgen.trees import tree_map

Array = Any
log = logging.getLogger("probgen")
FAR = 0.1  # standard deviations from the optimum at which a fit is called unfinished
FLAT = 1e-6  # of the largest curvature, below which float32 cannot tell it from none


def laplace(
    bound: Bound, params: Mapping, chunks: Callable[[], Iterable[Mapping]], guide: AutoGuide
) -> Settled:
    """The Gaussian at `guide/<latent>/loc`, as parameters of `AutoMultivariateNormal`.

    Args:
        chunks: all data with their inputs, some rows at a time, numpy.
        guide: the automatic guide that these are parameters of.

    Raises:
        AlgorithmError: the curvature is not positive definite.
    """
    numbers: dict[str, Any] = tree_map(bound.backend.to_numpy, dict(params))
    locs = {n: np.float64(numbers[f"guide/{n}/loc"]["value"]).reshape(-1) for n in bound.latents}
    gradient, curvature, size = _derivatives(bound, params, locs, chunks)
    tril = _factor(bound, curvature, locs)
    step = float(np.linalg.norm(tril.T @ gradient))
    names = list(locs)
    ends = np.cumsum([0, *(len(locs[n]) for n in names)])
    for i, name in enumerate(names):
        rows = tril[ends[i] : ends[i + 1], : ends[i + 1]]
        scale = rows[:, ends[i] :].diagonal()
        below = rows / scale[:, None]
        below[:, ends[i] :] -= np.eye(len(scale))
        for what, value in (("log_scale", np.log(scale)), ("below", below)):
            numbers[f"guide/{name}/{what}"] = {"value": value.astype(np.float32)}
    words = (
        f"AutoLaplaceApproximation: covariance by the curvature at {size}, {step:.2g} standard "
        "deviations from the optimum; elbo was the log density at a point, and no bound"
    )
    if step > FAR:
        log.warning(
            "fit: %s. Fit longer, with a step size that falls (pg.CosineDecay) and batch_size=None"
            ", by ELBO() with kl_weight=1.", words,
        )  # fmt: skip
    return Settled(guide, numbers, words)


def _derivatives(
    bound: Bound, params: Mapping, locs: Mapping[str, np.ndarray], chunks: Callable
) -> tuple[np.ndarray, np.ndarray, str]:
    """(f', -f'', how many data) at the point, float64 sums over the data."""
    b, ops = bound.backend, bound.backend.ops
    shapes = {n: tuple(params[f"guide/{n}/loc"]["value"].shape) for n in locs}
    total = sum(len(v) for v in locs.values())
    gradient, hessian = np.zeros(total), np.zeros((total, total))
    functions: dict[int, Callable] = {}
    forms: dict[str, tuple[int, ...]] = {}
    seen = 0

    def products(num_rows: int, rows: Mapping) -> Callable:
        """(u, direction) -> (f', -f'' direction) of so many rows that stand for all data."""
        posterior = Posterior(bound, None if bound.is_once else num_rows)
        if not forms:
            start = posterior.point(params, rows, key=b.key(0), strategy="init_to_feasible")
            forms.update({n: tuple(v.shape) for n, v in start.free.items()})

        def density(u: Mapping, params: Mapping, rows: Mapping) -> Array:
            free = {n: ops.reshape(v, forms[n]) for n, v in u.items()}
            return posterior.point(params, rows, free).log_density

        slope = b.grad(density)

        def along(u: Mapping, direction: Mapping, params: Mapping, rows: Mapping) -> Array:
            found = slope(u, params, rows)
            parts = [ops.sum(found[n] * direction[n]) for n in locs]
            return sum(parts[1:], parts[0])

        def both(u: Mapping, direction: Mapping, params: Mapping, rows: Mapping) -> tuple:
            return slope(u, params, rows), b.grad(along)(u, direction, params, rows)

        return b.compile(both, num_calls=total)

    at = {n: b.asarray(v.astype(np.float32)) for n, v in locs.items()}
    for chunk in chunks():
        num_rows = len(next(iter(chunk.values())))
        rows = bound.values_of({k: b.asarray(v) for k, v in chunk.items()})
        if num_rows not in functions:
            functions[num_rows] = products(num_rows, rows)
        run = functions[num_rows]
        share = num_rows / (bound.num_data or num_rows)
        for i in range(total):
            unit = _split(np.eye(total)[i].astype(np.float32), shapes)
            slopes, column = run(at, {n: b.asarray(v) for n, v in unit.items()}, params, rows)
            hessian[i] -= share * _flat(b, column, locs)
        gradient += share * _flat(b, slopes, locs)
        seen += num_rows
    size = "one value of each site" if bound.is_once else f"all {seen} data"
    return gradient, 0.5 * (hessian + hessian.T), size


def _factor(bound: Bound, curvature: np.ndarray, locs: Mapping[str, np.ndarray]) -> np.ndarray:
    """L with L L^T the inverse of the curvature, which must be positive definite."""
    owner = [n for n, v in locs.items() for _ in range(len(v))]
    if not np.isfinite(curvature).all():
        bad = owner[int(np.argmax(~np.isfinite(curvature).all(1)))]
        raise AlgorithmError(
            f"AutoLaplaceApproximation: the curvature of {bound.model.name!r} by latent {bad!r} is "
            "NaN or infinite where the fit ended, expected a finite one; use AutoNormal."
        )
    # Of the correlations, so that latents of different scales are judged alike.
    diagonal = np.diag(curvature)
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    values, vectors = np.linalg.eigh(curvature / np.outer(scale, scale))
    if (diagonal <= 0).any() or values[0] <= FLAT * values[-1]:
        at = int(np.argmin(diagonal)) if (diagonal <= 0).any() else np.argmax(abs(vectors[:, 0]))
        least = diagonal[at] if (diagonal <= 0).any() else values[0] * scale[at] ** 2
        raise AlgorithmError(
            f"AutoLaplaceApproximation: the curvature of -log p at the point where the fit of "
            f"{bound.model.name!r} ended is not positive definite ({least:.2g} along latent "
            f"{owner[int(at)]!r}), expected a maximum, about which a Gaussian has a covariance; "
            "fit longer where it is none yet, give the latent a prior where the data leave it "
            "free, or use AutoMultivariateNormal."
        )
    inverse = (vectors / values) @ vectors.T / np.outer(scale, scale)
    return np.linalg.cholesky(inverse)


def _split(x: np.ndarray, shapes: Mapping[str, tuple]) -> dict[str, np.ndarray]:
    ends = np.cumsum([math.prod(s) for s in shapes.values()])[:-1]
    return dict(zip(shapes, np.split(x, ends), strict=True))


def _flat(b: Any, tree: Mapping, names: Iterable[str]) -> np.ndarray:
    return np.concatenate([np.float64(b.to_numpy(tree[n])).reshape(-1) for n in names])
