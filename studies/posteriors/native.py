"""The same posteriors as NumPyro programs, written as their users write them.

Each takes the arrays of its data set by name; names of sites are those of `models`. Discrete
latents are summed out by hand, recursions are JAX's, differential equations are solved by
`jax.experimental.ode`: nothing here is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as nd
from jax.experimental.ode import odeint
from numpyro.distributions import constraints

Array = Any


def flat(support: Any, shape: tuple[int, ...] = ()) -> nd.Distribution:
    """1 everywhere in the support."""
    return nd.ImproperUniform(support, (), shape)


def schools_centred(y: Array, scale: Array) -> None:
    """theta is a latent itself: a funnel."""
    mu = numpyro.sample("mu", nd.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", nd.HalfCauchy(5.0))
    with numpyro.plate("school", len(y)):
        theta = numpyro.sample("theta", nd.Normal(mu, tau))
        numpyro.sample("y", nd.Normal(theta, scale), obs=y)


def schools_noncentred(y: Array, scale: Array) -> None:
    """theta = mu + tau z."""
    mu = numpyro.sample("mu", nd.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", nd.HalfCauchy(5.0))
    with numpyro.plate("school", len(y)):
        z = numpyro.sample("z", nd.Normal(0.0, 1.0))
        numpyro.sample("y", nd.Normal(mu + tau * z, scale), obs=y)


def kidiq(y: Array, x: Array) -> None:
    """A linear regression."""
    beta = numpyro.sample("beta", flat(constraints.real_vector, (4,)))
    sigma = numpyro.sample("sigma", nd.HalfCauchy(2.5))
    numpyro.sample("y", nd.Normal(x @ beta, sigma), obs=y)


def wells(y: Array, x: Array) -> None:
    """A logistic regression."""
    beta = numpyro.sample("beta", flat(constraints.real_vector, (3,)))
    numpyro.sample("y", nd.Bernoulli(logits=x @ beta), obs=y)


def gp(y: Array, x: Array) -> None:
    """A Gaussian process whose function is integrated out."""
    rho = numpyro.sample("rho", nd.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", nd.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", nd.HalfNormal(1.0))
    kernel = alpha**2 * jnp.exp(-((x[:, None] - x[None]) ** 2) / (2 * rho**2))
    cov = kernel + sigma**2 * jnp.eye(len(x))
    numpyro.sample("y", nd.MultivariateNormal(jnp.zeros(len(x)), covariance_matrix=cov), obs=y)


def lkj(y: Array) -> None:
    """A covariance of scales and correlations."""
    scale = numpyro.sample("scale", nd.LogNormal(0.0, 1.0).expand([3]).to_event(1))
    factor = numpyro.sample("factor", nd.LKJCholesky(3, 2.0))
    cov = jnp.diag(scale) @ factor @ factor.T @ jnp.diag(scale)
    numpyro.sample("y", nd.MultivariateNormal(jnp.zeros(3), covariance_matrix=cov), obs=y)


def ar(y: Array, first: Array) -> None:
    """A regression on lags."""
    order = len(first)
    alpha = numpyro.sample("alpha", nd.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", nd.Normal(0.0, 10.0).expand([order]).to_event(1))
    sigma = numpyro.sample("sigma", nd.HalfCauchy(2.5))
    whole = jnp.concatenate([first[::-1], y])
    lags = jnp.stack([whole[order - k : len(whole) - k] for k in range(1, order + 1)], -1)
    numpyro.sample("y", nd.Normal(alpha + lags @ beta, sigma), obs=y)


def garch(y: Array) -> None:
    """Variances by a scan, then all data at once."""
    mu = numpyro.sample("mu", flat(constraints.real))
    alpha0 = numpyro.sample("alpha0", flat(constraints.positive))
    alpha1 = numpyro.sample("alpha1", nd.Uniform(0.0, 1.0))
    beta1 = numpyro.sample("beta1", nd.Uniform(0.0, 1.0 - alpha1))

    def step(v: Array, y: Array) -> tuple[Array, Array]:
        return alpha0 + alpha1 * (y - mu) ** 2 + beta1 * v, v

    _, variance = jax.lax.scan(step, 0.25 + 0.0 * alpha0, y)
    numpyro.sample("y", nd.Normal(mu, jnp.sqrt(variance)), obs=y)


def hmm(y: Array) -> None:
    """The forward algorithm in logarithms."""
    mu = numpyro.sample("mu", flat(constraints.ordered_vector, (2,)))
    numpyro.factor("prior", nd.Normal(jnp.array([3.0, 6.0]), 1.0).log_prob(mu).sum())
    stay = numpyro.sample("stay", nd.Uniform(0.0, 1.0).expand([2]).to_event(1))
    log_moves = jnp.log(jnp.array([[stay[0], 1 - stay[0]], [1 - stay[1], stay[1]]]))
    seen = nd.Normal(mu, 1.0).log_prob(y[:, None])

    def step(forward: Array, seen: Array) -> tuple[Array, None]:
        return jax.nn.logsumexp(forward[:, None] + log_moves, axis=0) + seen, None

    forward, _ = jax.lax.scan(step, seen[0] + jnp.log(0.5), seen[1:])
    numpyro.factor("y", jax.nn.logsumexp(forward))


def mixture(y: Array) -> None:
    """NumPyro's own mixture of Gaussians."""
    mu = numpyro.sample("mu", flat(constraints.ordered_vector, (2,)))
    numpyro.factor("prior", nd.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", nd.HalfNormal(2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", nd.Beta(5.0, 5.0))
    kinds = nd.Categorical(probs=jnp.array([theta, 1 - theta]))
    numpyro.sample("y", nd.MixtureSameFamily(kinds, nd.Normal(mu, sigma)), obs=y)


def lotka_volterra(pelts: Array) -> None:
    """Adaptive steps on the scale of the animals."""
    above = {"low": 0.0}
    alpha, gamma = (
        numpyro.sample(n, nd.TruncatedNormal(1.0, 0.5, **above)) for n in ("alpha", "gamma")
    )
    beta, delta = (
        numpyro.sample(n, nd.TruncatedNormal(0.05, 0.05, **above)) for n in ("beta", "delta")
    )
    start = numpyro.sample("start", nd.LogNormal(jnp.log(10.0), 1.0).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", nd.LogNormal(-1.0, 1.0).expand([2]).to_event(1))

    def field(z: Array, _: Array, alpha: Array, beta: Array, gamma: Array, delta: Array) -> Array:
        return jnp.array([(alpha - beta * z[1]) * z[0], (delta * z[0] - gamma) * z[1]])

    times = jnp.arange(21.0)
    z = odeint(field, start, times, alpha, beta, gamma, delta, rtol=1e-7, atol=1e-6, mxstep=1000)
    numpyro.sample("pelts", nd.LogNormal(jnp.log(jnp.clip(z, 1e-10)), sigma).to_event(2), obs=pelts)


NATIVE: dict[str, Callable] = {
    "eight_schools_centred": schools_centred, "eight_schools_noncentred": schools_noncentred,
    "kidiq": kidiq, "wells": wells, "gp": gp, "lkj": lkj, "ar": ar, "garch": garch, "hmm": hmm,
    "mixture": mixture, "lotka_volterra": lotka_volterra,
}  # fmt: skip
