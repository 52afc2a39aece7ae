"""Means and standard deviations of small posteriors by quadrature in float64, in numpy alone.

    E f = sum_i w_i f(u_i) p(u_i) / sum_i w_i p(u_i)

over a grid. On the real line the trapezoidal rule converges faster than any power of its step where
the density and its tails are smooth (Trefethen & Weideman 2014, SIAM Review 56(3)), so grids are
coarse; what is linear and Gaussian given the rest is integrated in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from scipy import optimize

Array = np.ndarray
Pairs = dict[str, tuple[Array, Array]]
CHUNK = 20_000
EDGE = 1e-5  # the most that the outermost points of a grid may weigh


class Grid:
    """Points [n, d] of a product grid and their weights, which sum to one with the density."""

    def __init__(self, axes: list[Array], log_density: Callable[[Array], Array], move: Callable):
        steps = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], -1)
        self.points = move(steps)
        parts = [log_density(self.points[i : i + CHUNK]) for i in range(0, len(self.points), CHUNK)]
        log_p = np.nan_to_num(np.concatenate(parts), nan=-np.inf)
        self.weights = np.exp(log_p - log_p.max())
        self.weights /= self.weights.sum()
        ends = np.array([[a[0], a[-1]] for a in axes])
        outermost = ((steps == ends[:, 0]) | (steps == ends[:, 1])).any(1)
        if (mass := self.weights[outermost].sum()) > EDGE:
            raise ValueError(f"the edge of the grid weighs {mass:.2g}, expected < {EDGE:g}")

    def moments(self, mean: Array, var: Array | float = 0.0) -> tuple[Array, Array]:
        """Mean and sd of what has `mean` and `var` [n, *event] given each point."""
        weigh = lambda v: np.tensordot(self.weights, v, 1)  # noqa: E731
        centre = weigh(mean)
        return centre, np.sqrt(weigh((mean - centre) ** 2 + var))


def plain(axes: list[Array], log_density: Callable[[Array], Array]) -> Grid:
    """A grid along the axes themselves."""
    return Grid(axes, log_density, lambda steps: steps)


def laplace(log_density: Callable[[Array], Array], start: Array) -> tuple[Array, Array]:
    """The mode [d] and a factor [d, d] of the covariance there."""

    def gradient(u: Array, h: float = 1e-4) -> Array:
        moves = h * np.concatenate([np.eye(len(u)), -np.eye(len(u))])
        ahead, behind = np.split(-log_density(u + moves), 2)
        return (ahead - behind) / (2 * h)

    mode, small = np.asarray(start, float), 1e-3 * np.eye(len(start))
    for _ in range(3):  # a second start forgets the first one's idea of the curvature
        mode = optimize.minimize(
            lambda u: -log_density(u[None])[0], mode, jac=gradient, method="BFGS"
        ).x
    curvature = np.stack([(gradient(mode + e) - gradient(mode - e)) / 2e-3 for e in small])
    return mode, np.linalg.cholesky(np.linalg.inv((curvature + curvature.T) / 2))


def whitened(log_density: Callable[[Array], Array], start: Array, num: int, width: float) -> Grid:
    """A grid of `num` points an axis, `width` standard deviations to either side of the mode, along
    the axes of Laplace's approximation."""
    mode, scale = laplace(log_density, start)
    axis = np.linspace(-width, width, num)
    return Grid([axis] * len(mode), log_density, lambda steps: mode + steps @ scale.T)


# ---- eight schools ----


def schools(y: Array, scale: Array) -> Pairs:
    """theta given (mu, tau) is Gaussian, and so is y."""

    def log_density(u: Array) -> Array:
        mu, tau = u[:, :1], np.exp(u[:, 1:])
        total = tau**2 + scale**2
        likelihood = -0.5 * ((y - mu) ** 2 / total + np.log(total)).sum(1)
        prior = -0.5 * (u[:, 0] / 5) ** 2 - np.log1p((tau[:, 0] / 5) ** 2)
        return likelihood + prior + u[:, 1]

    grid = plain([np.linspace(-30, 40, 281), np.linspace(-25, 8, 661)], log_density)
    mu, tau = grid.points[:, :1], np.exp(grid.points[:, 1:])
    share = tau**2 / (tau**2 + scale**2)
    theta, rest = mu + share * (y - mu), 1 - share
    return {
        "mu": grid.moments(mu[:, 0]), "tau": grid.moments(tau[:, 0]),
        "theta": grid.moments(theta, rest * tau**2),
        "z": grid.moments(tau * (y - mu) / (tau**2 + scale**2), rest),
    }  # fmt: skip


# ---- regressions ----


def linear(x: Array, y: Array, precision: float) -> tuple[tuple, tuple]:
    """(moments of beta, of sigma) of y ~ N(x beta, sigma^2), beta ~ N(0, 1 / precision) or flat
    (0), sigma ~ HalfCauchy(2.5): beta is Gaussian given sigma."""
    n, d = x.shape
    gram, mixed = x.T @ x, x.T @ y

    def given(u: Array) -> tuple[Array, Array, Array]:
        sigma2 = np.exp(2 * u)[:, :, None]
        inner = gram / sigma2 + precision * np.eye(d)
        mean = np.linalg.solve(inner, np.broadcast_to(mixed, (len(u), d))[..., None] / sigma2)
        return inner, mean[..., 0], sigma2[:, 0, 0]

    def log_density(u: Array) -> Array:
        inner, mean, sigma2 = given(u)
        left = y @ y / sigma2 - np.einsum("ni,nij,nj->n", mean, inner, mean)
        prior = u[:, 0] - np.log1p(sigma2 / 2.5**2)
        return -n * u[:, 0] - 0.5 * np.linalg.slogdet(inner)[1] - 0.5 * left + prior

    middle = 0.5 * math.log(np.mean((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2))
    grid = plain([middle + np.linspace(-12, 16, 1121) / math.sqrt(2 * n)], log_density)
    inner, mean, _ = given(grid.points)
    var = np.diagonal(np.linalg.inv(inner), axis1=1, axis2=2)
    return grid.moments(mean, var), grid.moments(np.exp(grid.points[:, 0]))


def kidiq(y: Array, x: Array) -> Pairs:
    """In sigma alone."""
    beta, sigma = linear(x, y, 0.0)
    return {"beta": beta, "sigma": sigma}


def ar(y: Array, first: Array) -> Pairs:
    """In sigma alone, the lags being known."""
    order = len(first)
    whole = np.concatenate([first[::-1], y])
    lags = [whole[order - k : len(whole) - k] for k in range(1, order + 1)]
    (mean, sd), sigma = linear(np.stack([np.ones(len(y)), *lags], -1), y, 0.01)
    return {"alpha": (mean[0], sd[0]), "beta": (mean[1:], sd[1:]), "sigma": sigma}


def wells(y: Array, x: Array) -> Pairs:
    """In all three coefficients."""

    def log_density(beta: Array) -> Array:
        logits = beta @ x.T
        return logits @ y - np.logaddexp(0.0, logits).sum(1)

    grid = whitened(log_density, np.zeros(x.shape[1]), 27, 7.0)
    return {"beta": grid.moments(grid.points)}


# ---- covariances ----


def gp(y: Array, x: Array) -> Pairs:
    """In the logarithms of all three."""
    square = (x[:, None] - x) ** 2
    names, start = ("rho", "alpha", "sigma"), np.log([6.0, 1.5, 0.5])

    def log_density(u: Array) -> Array:
        rho, alpha, sigma = np.exp(u).T
        kernel = alpha[:, None, None] ** 2 * np.exp(-0.5 * square / rho[:, None, None] ** 2)
        cov = kernel + sigma[:, None, None] ** 2 * np.eye(len(x))
        column = np.broadcast_to(y, (len(u), len(x)))[..., None]
        left = np.linalg.solve(cov, column)[..., 0] @ y
        prior = 24 * u[:, 0] - 4 * rho - alpha**2 / 8 - sigma**2 / 2
        return -0.5 * (left + np.linalg.slogdet(cov)[1]) + prior + u.sum(1)

    grid = whitened(log_density, start, 49, 11.0)
    return {n: grid.moments(np.exp(grid.points[:, i])) for i, n in enumerate(names)}


def lkj(y: Array) -> Pairs:
    """In log scales and partial correlations tanh(u) along the first variable's vine."""
    second, n = y.T @ y, len(y)

    def correlations(u: Array) -> tuple[Array, Array, Array]:
        a, b, partial = np.tanh(u[:, 3:]).T
        return a, b, a * b + partial * np.sqrt((1 - a**2) * (1 - b**2))

    def log_density(u: Array) -> Array:
        a, b, c = correlations(u)
        one = np.ones_like(a)
        corr = np.stack([one, a, b, a, one, c, b, c, one], -1).reshape(-1, 3, 3)
        _, log_det = np.linalg.slogdet(corr)
        tail = np.exp(-u[:, :3])
        scaled = second * tail[:, :, None] * tail[:, None, :]
        left = np.einsum("nij,nji->n", np.linalg.inv(corr), scaled)
        likelihood = -n * u[:, :3].sum(1) - 0.5 * n * log_det - 0.5 * left
        # d rho_c = sqrt((1 - a^2)(1 - b^2)) d partial,  d tanh(u) = 1 - tanh(u)^2.
        volume = 0.5 * np.log((1 - a**2) * (1 - b**2)) + np.log1p(-(np.tanh(u[:, 3:]) ** 2)).sum(1)
        return likelihood - 0.5 * (u[:, :3] ** 2).sum(1) + log_det + volume

    grid = whitened(log_density, np.array([*np.log(y.std(0)), 0.0, 0.0, 0.0]), 13, 6.5)
    return {
        "scale": grid.moments(np.exp(grid.points[:, :3])),
        "rho": grid.moments(np.stack(correlations(grid.points), -1)),
    }


# ---- time and mixtures ----


def garch(y: Array) -> Pairs:
    """Gauss and Legendre's nodes where a range ends, (alpha1, beta1 / (1 - alpha1))."""
    nodes, share = np.polynomial.legendre.leggauss(32)
    nodes, log_share = (nodes + 1) / 2, np.log(share)

    def log_density(u: Array) -> Array:
        mu, alpha0, alpha1 = u[:, 0], np.exp(u[:, 1]), u[:, 2]
        beta1 = u[:, 3] * (1 - alpha1)
        v, total = np.full(len(u), 0.25), u[:, 1].copy()
        for each in y:
            square = (each - mu) ** 2
            total -= 0.5 * (np.log(v) + square / v)
            v = alpha0 + alpha1 * square + beta1 * v
        at = np.searchsorted(nodes, u[:, 2:] - 1e-9)
        return total + log_share[at].sum(1)

    axes = [y.mean() + np.linspace(-8, 8, 41) * y.std() / math.sqrt(len(y)), np.linspace(-7, 2, 46)]
    grid = _within(axes, nodes, log_density)
    mu, log_alpha0, alpha1, part = grid.points.T
    return {
        "mu": grid.moments(mu), "alpha0": grid.moments(np.exp(log_alpha0)),
        "alpha1": grid.moments(alpha1), "beta1": grid.moments(part * (1 - alpha1)),
    }  # fmt: skip


def _within(axes: list[Array], nodes: Array, log_density: Callable) -> Grid:
    """Two axes of the real line and two of [0, 1], whose ends are no edges of the grid."""
    ends = np.concatenate([[-1.0], nodes, [2.0]])  # where the density is nothing

    def inside(u: Array) -> Array:
        is_node = ((u[:, 2:] > 0) & (u[:, 2:] < 1)).all(1)
        out = np.full(len(u), -np.inf)
        out[is_node] = log_density(u[is_node])
        return out

    return plain([*axes, ends, ends], inside)


def hmm(y: Array) -> Pairs:
    """The forward recursion, at all points at once; mu is ordered where it has mass."""

    def log_density(u: Array) -> Array:
        mu, stay = u[:, :2], 1 / (1 + np.exp(-u[:, 2:]))
        seen = -0.5 * (y[:, None, None] - mu) ** 2
        forward, total = np.full_like(mu, 0.5), np.zeros(len(u))
        for t, each in enumerate(seen):
            if t:
                stays = forward * stay
                forward = stays + (forward * (1 - stay))[:, ::-1]
            top = each.max(1)
            forward = forward * np.exp(each - top[:, None])
            size = forward.sum(1)
            total, forward = total + np.log(size) + top, forward / size[:, None]
        prior = -0.5 * ((mu - np.array([3.0, 6.0])) ** 2).sum(1)
        is_ordered = np.where(mu[:, 0] < mu[:, 1], 0.0, -np.inf)
        return total + prior + (np.log(stay) + np.log1p(-stay)).sum(1) + is_ordered

    grid = whitened(log_density, np.array([3.0, 6.0, 1.0, 1.0]), 25, 8.0)
    return {
        "mu": grid.moments(grid.points[:, :2]),
        "stay": grid.moments(1 / (1 + np.exp(-grid.points[:, 2:]))),
    }


def mixture(y: Array) -> Pairs:
    """In means, log scales and the logit of the share; mu is ordered where it has mass."""

    def log_density(u: Array) -> Array:
        mu, scale, theta = u[:, :2], np.exp(u[:, 2:4]), 1 / (1 + np.exp(-u[:, 4]))
        logs = [
            np.log(share)[:, None] - 0.5 * ((y - mu[:, [k]]) / scale[:, [k]]) ** 2 - u[:, [2 + k]]
            for k, share in enumerate((theta, 1 - theta))
        ]
        prior = -(mu**2).sum(1) / 8 - (scale**2).sum(1) / 8 + 5 * (np.log(theta) + np.log1p(-theta))
        is_ordered = np.where(mu[:, 0] < mu[:, 1], 0.0, -np.inf)
        return np.logaddexp(*logs).sum(1) + prior + u[:, 2:4].sum(1) + is_ordered

    grid = whitened(log_density, np.array([-2.0, 2.0, -0.2, 0.2, -0.4]), 13, 6.5)
    return {
        "mu": grid.moments(grid.points[:, :2]),
        "sigma": grid.moments(np.exp(grid.points[:, 2:4])),
        "theta": grid.moments(1 / (1 + np.exp(-grid.points[:, 4]))),
    }


QUADRATURE: Mapping[str, Callable[..., Pairs]] = {
    "eight_schools_centred": schools, "eight_schools_noncentred": schools, "kidiq": kidiq,
    "wells": wells, "gp": gp, "lkj": lkj, "ar": ar, "garch": garch, "hmm": hmm, "mixture": mixture,
}  # fmt: skip
