"""Lotka and Volterra's posterior by importance weights: eight dimensions are too many for a grid.

    E f = sum_i w_i f(u_i) / sum_i w_i,   w_i = p(u_i) / q(u_i)

with u_i of Student's t around the mode, of five degrees. Standard errors are the delta method's,
sqrt(sum_i w_i^2 (f(u_i) - E f)^2) for weights that sum to 1. In numpy alone.
"""

from __future__ import annotations

import numpy as np

from probgen.evaluation.posteriors import Moments
from studies.posteriors.quadrature import CHUNK, Array, laplace

DRAWS, DEGREES, STEPS = 200_000, 5, 20  # steps of Runge and Kutta's a year
NAMES = ("alpha", "beta", "gamma", "delta", "start[0]", "start[1]", "sigma[0]", "sigma[1]")
START = np.log([0.55, 0.028, 0.8, 0.024, 34.0, 5.9, 0.25, 0.25])


def animals(values: Array, years: int) -> Array:
    """[years, n, 2] of each [alpha, beta, gamma, delta, hare, lynx, ...] in [n, 8]."""
    alpha, beta, gamma, delta = values.T[:4]
    z, h = values[:, 4:6].T, 1.0 / STEPS
    field = lambda z: np.stack([(alpha - beta * z[1]) * z[0], (delta * z[0] - gamma) * z[1]])  # noqa: E731
    found = [z]
    for _ in range(years - 1):
        for _ in range(STEPS):
            a = field(z)
            b = field(z + h / 2 * a)
            c = field(z + h / 2 * b)
            z = z + h / 6 * (a + 2 * b + 2 * c + field(z + h * c))
        found.append(z)
    return np.moveaxis(np.array(found), 1, 2)


def log_density(u: Array, pelts: Array) -> Array:
    """[n] of logarithms [n, 8] of all parameters; -inf where the animals are no numbers."""
    values = np.exp(u)
    with np.errstate(all="ignore"):
        miss = np.log(pelts)[:, None] - np.log(animals(values, len(pelts)))
        sigma = values[:, 6:]
        likelihood = -0.5 * ((miss / sigma) ** 2).sum((0, 2)) - len(pelts) * u[:, 6:].sum(1)
    rates = -0.5 * ((values[:, :4] - [1, 0.05, 1, 0.05]) / [0.5, 0.05, 0.5, 0.05]) ** 2 + u[:, :4]
    others = -0.5 * (u[:, 4:] - [*[np.log(10)] * 2, -1, -1]) ** 2
    total = likelihood + rates.sum(1) + others.sum(1)
    return np.where(np.isfinite(total), total, -np.inf)


def weighted(pelts: Array) -> tuple[Moments, str]:
    """Moments with their errors, and how good the weights are."""
    rng = np.random.default_rng(0)
    mode, scale = laplace(lambda u: log_density(u, pelts), START)
    noise = rng.normal(size=(DRAWS, len(mode)))
    noise *= np.sqrt(DEGREES / rng.chisquare(DEGREES, DRAWS))[:, None]
    u = mode + 1.05 * noise @ scale.T
    log_q = -0.5 * (DEGREES + len(mode)) * np.log1p((noise**2).sum(1) / DEGREES)
    parts = [log_density(u[i : i + CHUNK], pelts) for i in range(0, DRAWS, CHUNK)]
    log_w = np.concatenate(parts) - log_q
    w = np.exp(log_w - log_w.max())
    w /= w.sum()
    values = np.exp(u)
    mean = w @ values
    var = w @ (values - mean) ** 2
    mean_error = np.sqrt(w**2 @ (values - mean) ** 2)
    sd_error = np.sqrt(w**2 @ ((values - mean) ** 2 - var) ** 2) / (2 * np.sqrt(var))
    ess = np.full(len(mode), 1 / (w**2).sum())
    how = f"importance weights, {DRAWS} draws worth {ess[0]:.0f}, the largest weight {w.max():.1e}"
    return Moments(NAMES, mean, mean_error, np.sqrt(var), sd_error, ess, np.nan * ess), how
