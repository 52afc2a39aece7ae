"""Automatic guides: an approximate posterior over all continuous latents of any program.

    AutoNormal                       u_i ~ N(m_i, s_i^2), each by itself (mean field)
    AutoMultivariateNormal           u ~ N(m, L L^T)
    AutoLowRankMultivariateNormal    u ~ N(m, W W^T + diag(s^2))
    AutoLaplaceApproximation         u ~ N(m, H^-1), m the mode and H the curvature there

u are the latents on the real line, by the bijections of their supports. The joint ones are written
as a chain, q(u_1) q(u_2 | u_1) ..., so that each latent is a site with its own density:

    u_k = m_k + sum_{j <= k} L_kj eps_j,    eps ~ N(0, I)

Global latents have one joint q; latents inside the data plate have a joint q for each datum, with
parameters of its own (`num_data` times their number). q factorises over data and between them and
the globals, but for `conditional=True` and the Laplace approximation: there the eps_j of a datum's
sum begin with those of the globals, q(u_i | globals). Names and defaults are NumPyro's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from probgen.engine.auto_guide import AutoGuide, Settled
from probgen.engine.bound import Bound
from probgen.engine.guide_walk import LatentPlace
from probgen.engine.structure import Structure
from probgen.errors import AlgorithmError
from probgen.inference.learn.laplace import laplace
from probgen.language import dist, ops
from probgen.language.declared import declaration
from probgen.language.kinds import Positive, Width
from probgen.language.model import Model
from probgen.language.series import moved

Array = Any


@declaration
class AutoNormal(AutoGuide):
    """Independent Gaussians on the real line: `model.with_guide(AutoNormal())`.

    Its posteriors are too narrow where latents depend on each other; `AutoMultivariateNormal` is
    exact where the posterior is Gaussian.

    Args:
        init_scale: s_i at the start; m_i starts at 0.

    Raises (when bound):
        AlgorithmError: a discrete latent, or one whose support has no map from the real line.

    Source: Kucukelbir et al. 2017, arXiv:1603.00788.
    """

    init_scale: Positive = 0.1

    def base(self, place: LatentPlace, state: dict) -> tuple[Any, Callable | None]:
        loc = place.spread(place.parameter("loc", place.shape, 0.0))
        start = math.log(self.init_scale)
        scale = ops.exp(place.spread(place.parameter("log_scale", place.shape, start)))
        return dist.Normal(loc, scale).to_event(len(place.free_event)), None


class _Joint(AutoGuide):
    """q as a chain over the numbers of all latents of a group (the globals, or those of a datum).

    A family says what the rows of L are for the next ones.

    Attributes:
        conditional: the chain of a datum goes on from that of the globals.
    """

    conditional = False

    def rows(self, place: LatentPlace, size: int, state: dict) -> Array:
        """[*batch, size, before + size] the next rows of L, positive on the diagonal."""
        raise NotImplementedError  # abstract: each family defines it

    def base(self, place: LatentPlace, state: dict) -> tuple[Any, Callable | None]:
        size = math.prod(place.shape)
        if place.data_axis is None:
            group = state.setdefault("global", {})
        else:
            shared = state.get("global", {}) if self.conditional else {}
            known = {k: shared[k] for k in ("noise", "size") if k in shared}
            group = state.setdefault("local", known)
        loc, tril = place.parameter("loc", (size,), 0.0), self.rows(place, size, group)
        chain = _Chain(place, loc, tril, group)
        plates = place.plates_of(loc)
        noise = dist.Normal(0.0, 1.0).expand([*plates, *place.free_event])
        q = dist.Transformed(noise.to_event(len(place.free_event)), chain)
        return q, chain.keep


@declaration
class AutoMultivariateNormal(_Joint):
    """One Gaussian of full covariance over the latents on the real line.

    Args:
        init_scale: standard deviations at the start; means start at 0.
        conditional: a datum's latents have a mean that is linear in the global ones, so that
            q(globals) prod_i q(u_i | globals) is any Gaussian under which data are independent
            given the globals, as in the posterior. The program draws the globals first.

    Raises (when bound):
        as `AutoNormal`; AlgorithmError: `conditional` and a global latent after one of a datum.

    Source: Kucukelbir et al. 2017, arXiv:1603.00788, section 2.6; of the conditional form Tan &
    Nott 2018, doi:10.1007/s11222-017-9729-7.
    """

    init_scale: Positive = 0.1
    conditional: bool = False

    def rows(self, place: LatentPlace, size: int, state: dict) -> Array:
        before = state.get("size", 0)
        below = place.parameter("below", (size, before + size), 0.0)
        scale = ops.exp(place.parameter("log_scale", (size,), math.log(self.init_scale)))
        return scale[..., None] * (ops.tril(below, before - 1) + _last_eye(below, before))

    def program_of(
        self, model: Model, structure: Structure, observed: tuple[str, ...], num_data: int | None
    ) -> Callable:
        if self.conditional:
            _require_globals_first(repr(self), model, structure, observed)
        return super().program_of(model, structure, observed, num_data)


@declaration
class AutoLowRankMultivariateNormal(_Joint):
    """A Gaussian whose covariance is W W^T + diag(s^2), W of a few columns.

    Args:
        rank: number of columns; None: the square root of the number of latents, rounded.
        init_scale: standard deviations at the start; means start at 0.

    Parameters are few, but the density takes the Cholesky factor of the whole covariance: memory
    grows with the square of the number of latents.

    Source: Ong, Nott & Smith 2018, arXiv:1701.03208.
    """

    rank: Width | None = None
    init_scale: Positive = 0.1

    def rows(self, place: LatentPlace, size: int, state: dict) -> Array:
        rank = self.rank or max(1, round(math.sqrt(place.total)))
        start = self.init_scale * math.sqrt(0.5)
        # Columns that start alike would stay alike.
        rng = np.random.default_rng(state.get("size", 0))
        apart = rng.standard_normal((size, rank)) * start / math.sqrt(rank)
        factor = place.parameter("factor", (size, rank), 0.0)
        factor = factor + ops.asarray_like(apart, factor)
        scale = ops.exp(place.parameter("log_scale", (size,), math.log(start)))
        parts = [*state.get("parts", []), (factor, scale)]
        state["parts"] = parts
        w = ops.concatenate([p[0] for p in parts], axis=-2)
        s = ops.concatenate([p[1] for p in parts], axis=-1)
        cov = ops.matmul(w, ops.transpose(w, (*range(w.ndim - 2), w.ndim - 1, w.ndim - 2)))
        cov = cov + s[..., None] * s[..., None] * ops.eye_like(s.shape[-1], s)
        return ops.cholesky(cov)[..., -size:, :]


@declaration
class AutoLaplaceApproximation(AutoGuide):
    """The Laplace approximation: a Gaussian about the mode of the posterior, on the real line.

        u* = argmax_u log p(y, T(u)) + log |det dT/du|,    q(u) = N(u*, H^-1),
        H = -d^2/du^2 of the same, at u* and all data

    Of latents inside the data plate, given the globals g each datum's are independent of the
    others': with the blocks A (globals), D_i (datum i) and B_i (between) of H,

        q(g)       = N(g*, (A - sum_i B_i^T D_i^-1 B_i)^-1)
        q(u_i | g) = N(u_i* - D_i^-1 B_i (g - g*), D_i^-1)

    T maps the real line onto the supports. So u* is the mode of u's density, Jacobian included, as
    in NumPyro and Pyro: T(u*) is not the mode of the latents' own density, but in one map of
    coordinates and another the same approximation.

    `SVI(ELBO())` climbs to u*; its `elbo` is the log density there over the number of data, and no
    bound. Where it ends the curvature is taken at all data, a thousand at a time, and the `Fitted`
    has the guide `AutoMultivariateNormal()` with that mean and covariance (load it with that one;
    with `conditional=True` where there are latents of both kinds): `infer`, `generate` and
    `evaluate` draw from it, and a fit that goes on from it is a variational one that starts there.
    The history says how far, in standard deviations, u* still was from the optimum (the farthest
    datum's); from a tenth on it is a warning.

    Raises (when bound):
        as `AutoNormal`; AlgorithmError: no latent at all; a global latent after one of a datum.
    Raises (at the end of a fit):
        AlgorithmError: H is not positive definite; it names the datum where a D_i is not.

    Source: MacKay 2003, Information Theory, Inference, and Learning Algorithms, chapter 27; of the
    blocks Rue, Martino & Chopin 2009, doi:10.1111/j.1467-9868.2008.00700.x.
    """

    is_point = True

    def base(self, place: LatentPlace, state: dict) -> tuple[Any, Callable | None]:
        loc = place.parameter("loc", (math.prod(place.shape),), 0.0)
        axes = tuple(range(-len(place.free_event), 0))

        def nothing(u: Array) -> Array:
            return 0.0 * (ops.sum(u, axis=axes) if axes else u)

        def point(noise: Array) -> Array:
            at = ops.reshape(loc, (*loc.shape[:-1], *place.shape))
            return place.spread(at) + 0.0 * noise

        plates = place.plates_of(loc)
        q = dist.Density(nothing, draw=point, event_shape=place.free_event)
        return q.expand(plates) if plates else q, None

    def program_of(
        self, model: Model, structure: Structure, observed: tuple[str, ...], num_data: int | None
    ) -> Callable:
        drawn = [n for n, s in structure.sites.items() if s.kind == "sample" and not s.is_fixed]
        if set(drawn) <= set(observed):
            raise AlgorithmError(
                f"AutoLaplaceApproximation: the data observe all of {drawn} of {model.name!r}, "
                "expected latents to approximate the posterior of; SVI(ELBO()) of the model "
                "without a guide is maximum likelihood."
            )
        _require_globals_first(repr(self), model, structure, observed)
        return super().program_of(model, structure, observed, num_data)

    def settled(
        self, bound: Bound, params: Mapping, chunks: Callable[[], Iterable[Mapping]]
    ) -> Settled:
        """The Gaussian about where the fit ended."""
        kinds = {bound.structure.sites[n].is_local for n in bound.latents}
        return laplace(bound, params, chunks, AutoMultivariateNormal(conditional=len(kinds) > 1))


def _require_globals_first(
    who: str, model: Model, structure: Structure, observed: tuple[str, ...]
) -> None:
    """Refuses a global latent that the program draws after one of a datum."""
    local: list[str] = []
    for name, site in structure.sites.items():
        if site.kind != "sample" or name in observed or site.is_fixed or site.is_discrete:
            continue
        if not site.is_local and local:
            raise AlgorithmError(
                f"{who}: {model.name!r} draws {name!r}, which all data share, after {local}, one a "
                "datum, expected the shared ones first, since the latents of a datum are drawn "
                f"given them; declare {name!r} before the data plate, or use AutoNormal or NUTS."
            )
        if site.is_local:
            local.append(name)


class _Chain:
    """u of one site given the noise of the sites before it, for `dist.Transformed`."""

    def __init__(self, place: LatentPlace, loc: Array, tril: Array, group: dict):
        self.place, self.loc, self.tril, self.group = place, loc, tril, group
        self.before, self.size = group.get("noise"), loc.shape[-1]
        self.event_ndim = len(place.free_event)

    def forward(self, noise: Array) -> Array:
        every = self._after(self._flat(noise))
        u = self.loc + ops.sum(self.tril * every[..., None, :], axis=-1)
        return self._unflat(u, noise)

    def _noise(self, u: Array) -> Array:
        left = self._flat(u) - self.loc
        if self.before is not None:
            known, before = self.tril[..., : -self.size], self._after(left)[..., : -self.size]
            left = left - ops.sum(known * before[..., None, :], axis=-1)
        own = self.tril[..., -self.size :]
        own = ops.broadcast_to(own, (*left.shape[:-1], *own.shape[-2:]))
        return ops.solve_triangular(own, left[..., None])[..., 0]

    def inverse_and_log_det(self, u: Array) -> tuple[Array, Array]:
        scale = self.place.spread(
            ops.reshape(
                ops.log(ops.diagonal(self.tril[..., -self.size :])),
                (*self.loc.shape[:-1], *self.place.shape),
            )
        )
        axes = tuple(range(-self.event_ndim, 0))
        log_det = -(ops.sum(scale, axis=axes) if axes else scale)
        lead = tuple(u.shape[: u.ndim - self.event_ndim])
        return self._unflat(self._noise(u), u), ops.broadcast_to(log_det, lead)

    def keep(self, u: Array) -> None:
        """Remembers the noise of this site for those after it."""
        every = self._after(self._noise(u))
        self.group["noise"], self.group["size"] = every, every.shape[-1]

    def _after(self, flat: Array) -> Array:
        """Numbers of this site after those of the noise before it, which may be the globals'."""
        if self.before is None:
            return flat
        before = self.before if self.before.ndim == flat.ndim else self.before[..., None, :]
        before = ops.broadcast_to(before, (*flat.shape[:-1], before.shape[-1]))
        return ops.concatenate([before, flat], axis=-1)

    def _flat(self, x: Array) -> Array:
        """[*lead, *plates, *free_event] as [particles, (data,) size]."""
        place = self.place
        lead = x.ndim - len(place.plates) - self.event_ndim
        if place.data_axis is not None:
            x = moved(x, lead + place.data_axis, lead)
            return ops.reshape(x, (math.prod(x.shape[:lead]), x.shape[lead], self.size))
        return ops.reshape(x, (math.prod(x.shape[:lead]), self.size))

    def _unflat(self, flat: Array, like: Array) -> Array:
        place = self.place
        lead = like.ndim - len(place.plates) - self.event_ndim
        if place.data_axis is None:
            return ops.reshape(flat, tuple(like.shape))
        x = ops.reshape(flat, (*like.shape[:lead], flat.shape[-2], *place.shape))
        return moved(x, lead, lead + place.data_axis)


def _last_eye(like: Array, before: int) -> Array:
    """[size, before + size] zeros, then the identity."""
    size = like.shape[-2]
    return ops.eye_like(before + size, like)[before:, :]
