"""A Gaussian about a mode: mean u*, covariance the inverse of the curvature there, at all data.

    f(u) = log p(y, T(u)) + log |det dT/du|,    H = -f''(u*),    q = N(u*, H^-1)

With g the latents that all data share and u_i those of datum i, H has the blocks A of g, D_i of
u_i, B_i between them, and none between two data, so that q is drawn datum by datum:

    q(g)       = N(g*, (A - sum_i B_i^T D_i^-1 B_i)^-1)
    q(u_i | g) = N(u_i* - D_i^-1 B_i (g - g*), D_i^-1)

One direction serves a number of all data at once. f is what samplers climb
(`probgen.engine.posterior`), summed over the data a chunk at a time. No search for the mode here: a
fit has found it, and how far it still is, is told by the length of a Newton step in standard
deviations, sqrt(f'^T H^-1 f'): of g, or of the datum that is farthest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.engine.auto_guide import AutoGuide, Settled
from probgen.engine.bound import Bound
from probgen.engine.posterior import Posterior
from probgen.errors import AlgorithmError
from probgen.language.run import DATA_PLATE, ROW
from probgen.language.series import moved
from probgen.trees import tree_map

Array = Any
log = logging.getLogger("probgen")
FAR = 0.1  # standard deviations from the optimum at which a fit is called unfinished
FLAT = 1e-6  # of the largest curvature, below which float32 cannot tell it from none


class _Derivatives(NamedTuple):
    """At the point, float64: f' and the blocks of H, with G shared numbers and d of a datum."""

    slope: np.ndarray  # [G]
    shared: np.ndarray  # [G, G]
    own_slope: np.ndarray  # [N, d]
    own: np.ndarray  # [N, d, d]
    across: np.ndarray  # [N, d, G]


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
    locs = {n: np.asarray(numbers[f"guide/{n}/loc"]["value"], float) for n in bound.latents}
    local = [n for n in locs if bound.structure.sites[n].is_local]
    shared = [n for n in locs if n not in local]
    found, seen = _derivatives(bound, params, locs, shared, local, chunks)
    own = _factor(bound, found.own, _owner(locs, local))
    # By how much the mean of a datum's latents moves with the shared ones.
    pull = -own @ np.swapaxes(own, -1, -2) @ found.across
    marginal = found.shared + np.einsum("nig,nih->gh", found.across, pull)
    tril = _factor(bound, marginal, _owner(locs, shared))
    across = pull @ tril
    steps = np.einsum("nij,ni->nj", own, found.own_slope)
    step = tril.T @ found.slope + np.einsum("nig,ni->g", across, found.own_slope)
    far = float(max(np.linalg.norm(step), *np.linalg.norm(steps, axis=1), 0.0))
    numbers |= _parameters(locs, shared, tril)
    numbers |= _parameters(locs, local, np.concatenate([across, own], axis=-1))
    size = "one value of each site" if bound.is_once else f"all {seen} data"
    words = (
        f"AutoLaplaceApproximation: covariance by the curvature at {size}, {far:.2g} standard "
        f"deviations from the optimum{' where it is farthest' if local else ''}; elbo was the log "
        "density at a point, and no bound"
    )
    if far > FAR:
        log.warning(
            "fit: %s. Fit longer, with a step size that falls (pg.CosineDecay) and batch_size=None"
            ", by ELBO() with kl_weight=1.", words,
        )  # fmt: skip
    return Settled(guide, numbers, words)


def _derivatives(
    bound: Bound, params: Mapping, locs: Mapping[str, np.ndarray], shared: list[str],
    local: list[str], chunks: Callable,
) -> tuple[_Derivatives, int]:  # fmt: skip
    """(sums over the data and blocks of each, how many data)."""
    b = bound.backend
    names = [*shared, *local]
    num_shared, num_own = (sum(locs[n].shape[-1] for n in part) for part in (shared, local))
    total, size = num_shared + num_own, len(locs[local[0]]) if local else 0
    found = _Derivatives(
        np.zeros(num_shared), np.zeros((num_shared, num_shared)), np.zeros((size, num_own)),
        np.zeros((size, num_own, num_own)), np.zeros((size, num_own, num_shared)),
    )  # fmt: skip
    functions: dict[int, Callable] = {}
    times = np.zeros(size, int)
    seen = 0
    for chunk in chunks():
        num_rows = len(next(iter(chunk.values())))
        at = np.asarray(chunk[ROW]) if local else np.zeros(0, int)
        apart = len(at)
        np.add.at(times, at, 1)
        rows = bound.values_of({k: b.asarray(v) for k, v in chunk.items()})
        if num_rows not in functions:
            functions[num_rows] = b.compile(_products(bound, num_rows, names), num_calls=total)
        run = functions[num_rows]
        point = {n: b.asarray(np.float32(v[at] if n in local else v)) for n, v in locs.items()}
        share = num_rows / (bound.num_data or num_rows)
        for i in range(total):
            parts = np.split(np.eye(total)[i], np.cumsum([locs[n].shape[-1] for n in names])[:-1])
            unit = {
                n: b.asarray(np.float32(np.tile(v, (num_rows, 1)) if n in local else v))
                for n, v in zip(names, parts, strict=True)
            }
            slopes, column = run(point, unit, params, rows)
            if i < num_shared:
                found.shared[i] -= share * _flat(b, column, shared)
                found.across[at, :, i] = -share * _flat(b, column, local, apart)
            else:
                found.own[at, :, i - num_shared] = -share * _flat(b, column, local, apart)
        found.slope[:] += share * _flat(b, slopes, shared)
        found.own_slope[at] = share * _flat(b, slopes, local, apart)
        seen += num_rows
    if (times != 1).any():
        bad = int(np.argmax(times != 1))
        raise AlgorithmError(
            f"AutoLaplaceApproximation: {times[bad]} of the data have the row {bad}, expected each "
            f"of the rows 0 to {size - 1} once, since each datum has latents of its own; leave "
            f"{ROW!r} out, which fit then counts."
        )
    symmetric = [0.5 * (h + np.swapaxes(h, -1, -2)) for h in (found.shared, found.own)]
    return found._replace(shared=symmetric[0], own=symmetric[1]), seen


def _products(bound: Bound, num_rows: int, names: list[str]) -> Callable:
    """(u, direction, params, rows) -> (f', f'' direction) of rows that stand for all data."""
    b, ops = bound.backend, bound.backend.ops
    posterior = Posterior(bound, None if bound.is_once else num_rows)
    forms: dict[str, tuple[int, ...]] = {}
    sites = bound.structure.sites

    def formed(name: str, u: Array) -> Array:
        """[size] or [data, size] as the posterior has it, [*plates, *event]."""
        form = forms[name]
        if not sites[name].is_local:
            return ops.reshape(u, form)
        axis = sites[name].plates[::-1].index(DATA_PLATE)
        return moved(ops.reshape(u, (num_rows, *form[:axis], *form[axis + 1 :])), 0, axis)

    def density(u: Mapping, params: Mapping, rows: Mapping) -> Array:
        if not forms:  # within the trace: by itself each operation would be compiled
            start = posterior.point(params, rows, key=b.key(0), strategy="init_to_feasible")
            forms.update({n: tuple(v.shape) for n, v in start.free.items()})
        free = {n: formed(n, v) for n, v in u.items()}
        return posterior.point(params, rows, free).log_density

    slope = b.grad(density)

    def along(u: Mapping, direction: Mapping, params: Mapping, rows: Mapping) -> Array:
        found = slope(u, params, rows)
        parts = [ops.sum(found[n] * direction[n]) for n in names]
        return sum(parts[1:], parts[0])

    def both(u: Mapping, direction: Mapping, params: Mapping, rows: Mapping) -> tuple:
        return slope(u, params, rows), b.grad(along)(u, direction, params, rows)

    return both


def _factor(bound: Bound, curvature: np.ndarray, owner: list[str]) -> np.ndarray:
    """L with L L^T the inverse of the curvature, which must be positive definite: [d, d], or one a
    datum [N, d, d]."""
    if not owner:
        return curvature
    blocks = curvature.reshape(-1, len(owner), len(owner))
    whose = "" if curvature.ndim == 2 else " of datum {}"
    name = bound.model.name
    finite = np.isfinite(blocks).all(-1)
    if not finite.all():
        datum, at = np.argwhere(~finite)[0]
        raise AlgorithmError(
            f"AutoLaplaceApproximation: the curvature of {name!r} by latent {owner[at]!r}"
            f"{whose.format(datum)} is NaN or infinite where the fit ended, expected a finite one; "
            "use AutoNormal."
        )
    # Of the correlations, so that latents of different scales are judged alike.
    diagonal = np.diagonal(blocks, axis1=-2, axis2=-1)
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    scales = scale[:, :, None] * scale[:, None, :]
    values, vectors = np.linalg.eigh(blocks / scales)
    bad = (diagonal <= 0).any(-1) | (values[:, 0] <= FLAT * values[:, -1])
    if bad.any():
        n = int(np.argmax(bad))
        below = (diagonal[n] <= 0).any()
        at = int(np.argmin(diagonal[n]) if below else np.argmax(abs(vectors[n, :, 0])))
        least = diagonal[n, at] if below else values[n, 0] * scale[n, at] ** 2
        raise AlgorithmError(
            f"AutoLaplaceApproximation: the curvature of -log p{whose.format(n)} at the point "
            f"where the fit of {name!r} ended is not positive definite ({least:.2g} along latent "
            f"{owner[at]!r}), expected a maximum, about which a Gaussian has a covariance; "
            "fit longer where it is none yet, give the latent a prior where the data leave it "
            "free, or use AutoMultivariateNormal."
        )
    inverse = (vectors / values[:, None, :]) @ np.swapaxes(vectors, -1, -2) / scales
    return np.linalg.cholesky(inverse).reshape(curvature.shape)


def _parameters(
    locs: Mapping[str, np.ndarray], names: list[str], rows: np.ndarray
) -> dict[str, dict]:
    """Rows of L, [d, before + d] or one a datum, by latent as `AutoMultivariateNormal` has them."""
    out, first = {}, 0
    before = rows.shape[-1] - rows.shape[-2]
    for name in names:
        last = first + locs[name].shape[-1]
        below = rows[..., first:last, : before + last].copy()
        scale = np.diagonal(below[..., before + first :], axis1=-2, axis2=-1).copy()
        below /= scale[..., None]
        below[..., before + first :] -= np.eye(last - first)
        for what, value in (("log_scale", np.log(scale)), ("below", below)):
            out[f"guide/{name}/{what}"] = {"value": value.astype(np.float32)}
        first = last
    return out


def _owner(locs: Mapping[str, np.ndarray], names: list[str]) -> list[str]:
    """The latent of each number."""
    return [n for n in names for _ in range(locs[n].shape[-1])]


def _flat(b: Any, tree: Mapping, names: list[str], *lead: int) -> np.ndarray:
    """[*lead, numbers of these latents]"""
    parts = [np.float64(b.to_numpy(tree[n])).reshape(*lead, -1) for n in names]
    return np.concatenate([np.zeros((*lead, 0)), *parts], axis=-1)
