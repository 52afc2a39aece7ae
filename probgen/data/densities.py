"""Densities on the plane that one can both draw from and evaluate: the yardsticks of every sampler
and density model.

Each is *defined* by its density, never by a simulator whose density would have to be guessed, so
`log_prob` is exact, in nats, constants included. Mixtures, rings and pinwheels are smooth; the
checkerboard is flat with edges, log 0 = -inf outside.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp, ndtr

from probgen.errors import DataError, ShapeError


@dataclass(frozen=True, eq=False)
class Density2D:
    """A normalised density p(x) on the plane.

    Attributes:
        name: what to call it.
        extent: all but a negligible mass lies in [-extent, extent]^2, for plots and grids.
        draw: (rng, count) -> [count, 2] float64.
        log_density: [n, 2] float64 -> [n] float64, nats.
    """

    name: str
    extent: float
    draw: Callable[[np.random.Generator, int], np.ndarray]
    log_density: Callable[[np.ndarray], np.ndarray]

    def sample(self, count: int, seed: int) -> np.ndarray:
        """[count, 2] float32 independent exact draws; the same seed gives the same draws."""
        if count < 1:
            raise DataError(f"{self.name}.sample: got count={count}, expected a positive count.")
        return self.draw(np.random.default_rng(seed), count).astype(np.float32)

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """log p(x) in nats, float64, for x of shape [*batch, 2].

        Raises:
            ShapeError: the last axis is not of length 2.
        """
        points = np.asarray(x, dtype=np.float64)
        if points.ndim == 0 or points.shape[-1] != 2:
            raise ShapeError(
                f"{self.name}.log_prob: got x of shape {points.shape}, expected [*batch, 2]: the "
                f"two coordinates of a point on the last axis."
            )
        return self.log_density(points.reshape(-1, 2)).reshape(points.shape[:-1])


def gaussian_mixture(
    means: np.ndarray | None = None,
    *,
    covariances: np.ndarray | float = 0.04,
    weights: np.ndarray | None = None,
    name: str = "gaussian_mixture",
) -> Density2D:
    """sum_k w_k N(x; mean_k, cov_k); by default eight round Gaussians on a circle of radius 2.

    Args:
        means: [k, 2].
        covariances: [k, 2, 2] or [2, 2]; a number v stands for v times the identity.
        weights: [k] positive, rescaled to sum to one; equal when None.
        name: what to call it.

    Raises:
        DataError: shapes that do not fit, weights not positive, covariances not positive definite.
    """
    if means is None:
        angles = np.arange(8) * np.pi / 4
        means = 2.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    means = np.asarray(means, dtype=np.float64)
    w = np.ones(len(means)) if weights is None else np.asarray(weights, dtype=np.float64)
    if means.ndim != 2 or means.shape[1] != 2 or w.shape != (len(means),) or not (w > 0).all():
        raise DataError(
            f"{name}: got means of shape {means.shape} and weights {w}, expected [k, 2] and k "
            f"positive numbers."
        )
    roots = _roots(covariances, len(means), name)  # [k, 2, 2] lower triangular
    log_w = np.log(w / w.sum())
    log_norm = np.log(2 * np.pi) + np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(axis=1)
    whiten = np.linalg.inv(roots)

    def draw(rng: np.random.Generator, count: int) -> np.ndarray:
        k = rng.choice(len(w), size=count, p=w / w.sum())
        return means[k] + np.einsum("nij,nj->ni", roots[k], rng.standard_normal((count, 2)))

    def log_density(x: np.ndarray) -> np.ndarray:
        total = np.full(len(x), -np.inf)
        # One component at a time: [n, k, 2] would be gigabytes for the moons on a fine grid.
        for k in range(len(w)):
            z = (x - means[k]) @ whiten[k].T
            total = np.logaddexp(total, log_w[k] - log_norm[k] - 0.5 * (z**2).sum(axis=1))
        return total

    widest = np.sqrt((roots**2).sum(axis=(1, 2)).max())
    return Density2D(name, float(abs(means).max() + 6 * widest), draw, log_density)


def two_moons(scale: float = 0.1) -> Density2D:
    """Two interleaved half circles of radius 1, each blurred by a Gaussian of deviation `scale`.

    The arcs are (cos t, sin t) and (1 - cos t, 1/2 - sin t), t in (0, pi), moved by (-1/2, -1/4)
    so that the mean is zero. Each is a mixture of Gaussians at most scale / 2 apart; that spacing
    makes it equal to the continuous arc but for a ripple of relative size exp(-2 pi^2 4) = 1e-34.
    """
    _check_positive("two_moons", scale=scale)
    num = max(32, int(np.ceil(2 * np.pi / scale)))
    t = (np.arange(num) + 0.5) * np.pi / num
    outer = np.stack([np.cos(t), np.sin(t)], axis=1)
    inner = np.stack([1 - np.cos(t), 0.5 - np.sin(t)], axis=1)
    means = np.concatenate([outer, inner]) - [0.5, 0.25]
    return gaussian_mixture(means, covariances=scale**2, name="two_moons")


def rings(
    radii: tuple[float, ...] = (1.0, 2.0, 3.0), *, scale: float = 0.12, weights: object = None
) -> Density2D:
    """Concentric rings: p(x) = sum_k w_k exp(-(|x| - R_k)^2 / 2 s^2) / Z_k.

    Z_k = 2 pi [s^2 exp(-R^2 / 2 s^2) + R s sqrt(2 pi) Phi(R / s)], by integrating r dr from 0.

    Args:
        radii: R_k > 0.
        scale: s, the standard deviation across a ring.
        weights: [k] mass of each ring, rescaled to sum to one; equal when None.
    """
    center = np.asarray(radii, dtype=np.float64)
    w = np.ones(len(center)) if weights is None else np.asarray(weights, dtype=np.float64)
    if center.ndim != 1 or w.shape != center.shape or not center.size or not (w > 0).all():
        raise DataError(
            f"rings: got radii {radii} and weights {weights}, expected as many of each."
        )
    _check_positive("rings", scale=scale, radii=float(center.min()))
    w = w / w.sum()
    ratio = center / scale
    z = np.exp(-0.5 * ratio**2) + ratio * np.sqrt(2 * np.pi) * ndtr(ratio)
    log_z = np.log(2 * np.pi * scale**2 * z)

    def draw(rng: np.random.Generator, count: int) -> np.ndarray:
        a = ratio[rng.choice(len(w), size=count, p=w)]
        r, angle = scale * _radius(rng, a), rng.uniform(0, 2 * np.pi, count)
        return r[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def log_density(x: np.ndarray) -> np.ndarray:
        r = np.hypot(x[:, 0], x[:, 1])[:, None]  # [n, 1]
        return logsumexp(np.log(w) - log_z - 0.5 * ((r - center) / scale) ** 2, axis=1)

    return Density2D("rings", float(center.max() + 7 * scale), draw, log_density)


def pinwheel(
    num_arms: int = 5, *, radial_scale: float = 0.3, tangential_scale: float = 0.1,
    rate: float = 0.25, radius: float = 1.0,
) -> Density2D:  # fmt: skip
    """A mixture of stretched Gaussians, each twisted about the origin by rate * exp(|x|).

    p(x) = (1/K) sum_k N(T_k(x); (radius, 0), diag(radial^2, tangential^2)), where T_k turns x by
    -(2 pi k / K + rate exp(|x|)). A turn by an angle that depends on |x| only keeps areas, so the
    change of variables costs nothing. (The usual simulator twists by exp of the first coordinate,
    whose density has no closed form.)

    Source: Johnson et al. 2016, arXiv:1603.06277, figure 1, after the change just named.
    """
    _check_positive("pinwheel", num_arms=num_arms, radial=radial_scale, tangential=tangential_scale)
    spread = np.array([radial_scale, tangential_scale])
    arms = np.arange(num_arms) * 2 * np.pi / num_arms
    log_norm = np.log(2 * np.pi * spread.prod() * num_arms)

    def turn(x: np.ndarray, angle: np.ndarray) -> np.ndarray:
        c, s = np.cos(angle), np.sin(angle)
        return np.stack([c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1]], axis=1)

    def twist(x: np.ndarray) -> np.ndarray:
        return rate * np.exp(np.hypot(x[:, 0], x[:, 1]))

    def draw(rng: np.random.Generator, count: int) -> np.ndarray:
        x = rng.standard_normal((count, 2)) * spread + [radius, 0.0]
        return turn(x, rng.choice(arms, size=count) + twist(x))

    def log_density(x: np.ndarray) -> np.ndarray:
        angle = twist(x)
        z = np.stack(
            [(turn(x, -arm - angle) - [radius, 0.0]) / spread for arm in arms]
        )  # [k, n, 2]
        return logsumexp(-0.5 * (z**2).sum(axis=2), axis=0) - log_norm

    extent = abs(radius) + 6 * float(spread.max())
    return Density2D("pinwheel", extent, draw, log_density)


def checkerboard(num_cells: int = 4, *, extent: float = 4.0) -> Density2D:
    """Uniform on every second cell of num_cells x num_cells over [-extent, extent)^2.

    The cell at the lower left is filled; log_prob is -inf on the others and outside.
    """
    _check_positive("checkerboard", num_cells=num_cells, extent=extent)
    side = 2 * extent / num_cells
    i, j = np.meshgrid(np.arange(num_cells), np.arange(num_cells), indexing="ij")
    filled = np.stack([i, j], axis=-1)[(i + j) % 2 == 0]  # [cells, 2]
    log_height = -np.log(len(filled) * side**2)

    def draw(rng: np.random.Generator, count: int) -> np.ndarray:
        corner = filled[rng.integers(len(filled), size=count)]
        x = (corner + rng.random((count, 2))) * side - extent
        # A float32 rounding up would land in the next, empty cell.
        top = ((corner + 1) * side - extent).astype(np.float32)
        return np.minimum(x, np.nextafter(top, np.float32(-np.inf)))

    def log_density(x: np.ndarray) -> np.ndarray:
        cell = np.floor((x + extent) / side)
        inside = ((cell >= 0) & (cell < num_cells)).all(axis=1)
        return np.where(inside & (cell.sum(axis=1) % 2 == 0), log_height, -np.inf)

    return Density2D("checkerboard", extent, draw, log_density)


def _radius(rng: np.random.Generator, a: np.ndarray) -> np.ndarray:
    """Draw r = a + u > 0 with density proportional to (a + u) phi(u), by rejection.

    (a + u) phi(u) <= a phi(u) + max(u, 0) phi(u): a mixture of a normal (mass a) and a Rayleigh
    (mass phi(0)), accepted with probability (a + u) / (a + max(u, 0)); nearly always for large a.
    """
    u = np.full(a.shape, np.nan)
    left = np.arange(a.size)
    while left.size:
        at = a[left]
        from_normal = rng.random(left.size) * (at + 1 / np.sqrt(2 * np.pi)) < at
        trial = np.where(from_normal, rng.standard_normal(left.size), rng.rayleigh(size=left.size))
        kept = rng.random(left.size) * (at + np.maximum(trial, 0)) < at + trial
        u[left[kept]] = trial[kept]
        left = left[~kept]
    return a + u


def _roots(covariances: np.ndarray | float, num: int, name: str) -> np.ndarray:
    """Cholesky factors [num, 2, 2]."""
    given = np.asarray(covariances, dtype=np.float64)
    full = given * np.eye(2) if given.ndim == 0 else given
    try:
        full = np.broadcast_to(full, (num, 2, 2))
        if not np.allclose(full, np.swapaxes(full, 1, 2)):
            raise ValueError("not symmetric")
        return np.linalg.cholesky(full)
    except (ValueError, np.linalg.LinAlgError) as error:
        raise DataError(
            f"{name}: got covariances of shape {given.shape} ({error}), expected a positive number "
            f"or symmetric positive definite matrices [{num}, 2, 2]."
        ) from error


def _check_positive(where: str, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise DataError(f"{where}: got {name}={value}, expected a positive number.")
