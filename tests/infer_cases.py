"""Posteriors known in closed form, as (model, data, inputs, check, options), for `test_infer*.py`.

A posterior is known through means of functions of its draws: each must lie within 5 Monte Carlo
standard errors (ArviZ's, from the effective sample size) of the closed form.
"""

import numpy as np
import scipy.stats
from arviz_stats.base import array_stats

import probgen as pg
from probgen import dist
from probgen.inference import NUTS

RNG = np.random.default_rng(0)
TINY = {"num_warmup": 5, "num_samples": 10, "num_chains": 2}


def quick(name):
    """The backend without the cost of C++ compilation, which short chains do not earn back."""
    return pg.backends.load(name, "cpu", **({"compile": "graph"} if name == "torch" else {}))


def sized(kind, backend, **options):
    """Chains as long as a second or two allows; on torch their length is what costs, not their
    number."""
    sizes = {"num_warmup": 70, "num_samples": 25, "num_chains": 16}
    if backend.name == "jax":
        sizes = {"num_warmup": 200, "num_samples": 300, "num_chains": 4}
    return kind(**{**sizes, **options})


def run(model, data, backend, method=None, **options):
    method = method or sized(NUTS, backend)
    return pg.infer(
        model, data, method, **{"backend": backend, "seed": 0, "progress_bar": False, **options}
    )


def assert_mean(draws, expected, name):
    """draws: [chain, draw] of a quantity whose posterior mean is `expected`."""
    draws = np.asarray(draws, np.float64)
    error = array_stats.mcse(draws, method="mean")
    # Fewer effective draws than these, and the error bar itself is not to be believed.
    assert array_stats.ess(draws, method="mean") > 40, f"{name}: the chains hardly move"
    assert abs(draws.mean() - expected) < 5 * error, (
        f"{name}: {draws.mean():.4f} +- {error:.4f}, expected {expected:.4f}"
    )


def assert_moments(draws, mean, cov, name):
    """draws: [chain, draw, d]; every mean and covariance of a known posterior."""
    centred = np.asarray(draws, np.float64) - mean
    for i in range(len(mean)):
        assert_mean(draws[..., i], mean[i], f"{name}[{i}]")
        for j in range(i + 1):
            assert_mean(centred[..., i] * centred[..., j], cov[i, j], f"cov({name})[{i}, {j}]")


C = RNG.normal(size=(40, 3)).astype(np.float32)
Y = (C @ np.array([1.0, -1.0, 0.5]) + RNG.normal(size=40)).astype(np.float32)


@pg.model
def regression(covariates):
    weights = pg.sample("weights", dist.Normal(0, 1).expand([3]).to_event(1))
    with pg.data_plate():
        pg.sample("y", dist.Normal(covariates @ weights, 1.0))


def check_regression(draws):
    precision = np.eye(3) + C.T.astype(np.float64) @ C
    cov = np.linalg.inv(precision)
    assert_moments(draws.posterior.weights.values, cov @ C.T @ Y, cov, "weights")


@pg.model
def coin():
    p = pg.sample("p", dist.Beta(0.5, 1.5))
    with pg.data_plate():
        pg.sample("heads", dist.Binomial(2, probs=p))


HEADS = np.array([2.0, 1.0], np.float32)


@pg.model
def counts():
    rate = pg.sample("rate", dist.Gamma(2.0, 0.5))
    with pg.data_plate():
        pg.sample("events", dist.Poisson(rate))


EVENTS = np.array([1.0, 0.0], np.float32)


@pg.model
def die():
    p = pg.sample("p", dist.Dirichlet(np.array([2.0, 1.0, 1.5], np.float32)))
    with pg.data_plate():
        pg.sample("face", dist.Categorical(probs=p))


FACES = np.array([0, 2, 2], np.int32)


def check_die(draws):
    law = scipy.stats.dirichlet(np.array([2, 1, 1.5]) + np.bincount(FACES, minlength=3))
    assert_moments(draws.posterior.p.values, law.mean(), law.cov(), "p")


COV = np.array([[1.0, 1.5, 0.0], [1.5, 4.0, -0.5], [0.0, -0.5, 0.25]])


@pg.model
def correlated():
    pg.sample("a", dist.MultivariateNormal(np.array([1.0, -2.0, 0.0]), covariance_matrix=COV))


def check_correlated(draws):
    assert_moments(draws.posterior.a.values, np.array([1.0, -2.0, 0.0]), COV, "a")


@pg.model
def tank():
    most = pg.sample("most", dist.Gamma(4.0, 0.5))
    pg.sample("x", dist.Uniform(0.0, most))
    with pg.data_plate():
        pg.sample("serial", dist.Uniform(0.0, most))


SERIALS = np.array([0.02, 0.05, 0.03], np.float32)


def check_tank(draws):
    """Gamma(4, 1/2) times most^-3 above the largest serial is an exponential tail from there; of x,
    E x = E most / 2 and E x^2 = E most^2 / 3: wrong by far when the Jacobian forgets `most`."""
    most, x = (draws.posterior[n].values.astype(np.float64) for n in ("most", "x"))
    assert (most > 0.05).all() and (x < most).all()
    assert_mean(most, 2.05, "most")
    assert_mean(x, 2.05 / 2, "x")
    assert_mean(x**2, (2.05**2 + 4.0) / 3, "x^2")
    check_statistics_of_tank(draws.sample_stats, most, x)


def check_statistics_of_tank(stats, most, x):
    """They are those of the draws. lp is the density on the real line, where x is most / (1 +
    exp(-u)): log p(most, x, serials) + log most + log x (most - x) / most."""
    expected = scipy.stats.gamma(4, scale=2).logpdf(most) - 4 * np.log(most)
    expected += np.log(x) + np.log1p(-x / most) + np.log(most)
    np.testing.assert_allclose(stats.lp, expected, rtol=1e-4, atol=1e-4)
    assert (stats.energy.values >= -stats.lp.values.max() - 1.0).all()
    assert ((stats.acceptance_rate >= 0) & (stats.acceptance_rate <= 1 + 1e-5)).all()
    assert (stats.n_steps < 2**stats.tree_depth).all()
    assert (stats.step_size > 0).all()
    reached = stats.reached_max_treedepth.values
    assert reached.mean() < 0.1 and (stats.tree_depth.values[reached] == 6).all()


# Name -> (model, data, inputs, check, options of NUTS).
CASES = {
    "regression": (regression, {"y": Y}, {"covariates": C}, check_regression, {}),
    "die": (die, {"face": FACES}, None, check_die, {}),
    "correlated": (correlated, None, None, check_correlated, {"dense_mass": True}),
    "supports": (tank, {"serial": SERIALS}, None, check_tank, {"dense_mass": True}),
}
