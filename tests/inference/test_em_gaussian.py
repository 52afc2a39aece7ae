"""Exact E-steps of linear-Gaussian models, and the regression that is their M-step."""

import numpy as np
import pytest
from floats import float64
from learner_cases import factor_data, factor_model, ppca

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError
from probgen.inference import EM, ExactGaussian, Langevin
from probgen.inference.learn.em import _m_step
from probgen.inference.learn.gaussian_step import GaussianPosterior
from probgen.models import Generator, likelihoods

X = factor_data(120)


def fit(b, model, algorithm, num_steps, x=X, **options):
    options = {"seed": 0, "backend": b, "progress_bar": False, "batch_size": None, **options}
    return pg.fit(model, x, algorithm, num_steps=num_steps, **options)


def scale_of(params, least=1e-3):
    return least + np.log1p(np.exp(np.float64(params["likelihood"]["value"])))


def covariance(params):
    w = np.float64(params["decoder"]["out"]["weight"])
    return w.T @ w + scale_of(params) ** 2 * np.eye(w.shape[1])


def log_likelihood(x, mean, cov):
    """Per datum, nats."""
    off = x - mean
    distance = np.einsum("ni,ij,nj->n", off, np.linalg.inv(cov), off)
    return -0.5 * (distance + np.linalg.slogdet(2 * np.pi * cov)[1]).mean()


def test_exact_em_is_probabilistic_pca_in_closed_form(b):
    """Tipping & Bishop 1999, equations 7 and 8, to 1e-6; the likelihood never falls, and is that
    of the Gaussian."""
    x = np.float64(X)
    with float64(b):
        fitted = fit(b, factor_model(), EM(ExactGaussian()), 150, x)
    params = fitted.params
    np.testing.assert_allclose(covariance(params), ppca(x, 1), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(params["decoder"]["out"]["bias"], x.mean(0), atol=1e-6)
    curve = fitted.history["log_likelihood"]
    assert (np.diff(curve) > -1e-12).all() and curve[-1] > curve[0] + 0.1
    best = log_likelihood(x, x.mean(0), ppca(x, 1))
    np.testing.assert_allclose(curve[-1], best, rtol=1e-9)
    assert "the exact posterior of 'z', Gaussian given a datum" in fitted.report.text()


def test_a_closed_m_step_after_chains_moves_about_the_maximum(b):
    """Stochastic EM, averaged: twice the loss of likelihood is chi-squared of 7 degrees of freedom
    for parameters that are off by their own standard errors, mean 7; these are off by less."""
    em = EM(Langevin(0.3, num_steps=4, metropolis=True), m_step="closed")
    params = fit(b, factor_model(), em, 250, ema_decay=0.98).params
    cov, mean = covariance(params), params["decoder"]["out"]["bias"]
    loss = log_likelihood(X, X.mean(0), ppca(X, 1)) - log_likelihood(X, mean, cov)
    assert -1e-4 < 2 * len(X) * loss < 2.0


@pg.model
def line():
    """x_i = a z + e, y = a z' + e with two latents of a datum, of which one has two numbers."""
    a, s = pg.net("a", nets.Parameter(value=0.8))(), pg.net("s", nets.Parameter(value=0.5))()
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0.5, 1.0))
        w = pg.sample("w", dist.Normal(ops.stack([z, z], axis=-1), 2.0).to_event(1))
        pg.sample("x", dist.Normal(a * w + z[..., None], ops.exp(s)).to_event(1))


def test_the_posterior_of_any_linear_gaussian_program_is_found(b):
    """log p(x) of x ~ N((a + 1) / 2, (a + 1)^2 11^T + (4 a^2 + e^2s) I)."""
    x = X[:, :2]
    bound, params = bind(line, b, data={"x": x[:1]})
    e_step = GaussianPosterior(bound)

    def parts(params, rows):
        expected, told = e_step.posterior(bound, params, rows)
        joint = _m_step(bound, params, rows, None, expected)[1]["log_joint"]
        return told["log_likelihood"], joint + told["entropy"]

    found = (b.compile(parts) if b.name == "jax" else parts)(params, {"x": b.asarray(x)})
    cov = 1.8**2 * np.ones((2, 2)) + (4 * 0.64 + np.exp(1.0)) * np.eye(2)
    want = log_likelihood(x, np.full(2, 0.9), cov)
    np.testing.assert_allclose([float(v) for v in found], want, rtol=1e-5)


def two_causes(law):
    """Beside a cause of that law one whose gradient is large."""

    @pg.model
    def model():
        s = pg.net("s", nets.Parameter(value=0.5))()
        with pg.data_plate():
            z, w = pg.sample("z", dist.Normal(0.0, 1e-3)), pg.sample("w", law)
            pg.sample("x", dist.Normal(z + w, ops.exp(s)))

    return model


def test_what_is_not_linear_gaussian_is_refused(b):
    prior = dist.Normal(0, 1).expand([1]).to_event(1)
    bent = Generator(prior, nets.MLP((4,), out=3, in_ndim=1), likelihoods.Normal(1.0))
    with pytest.raises(AlgorithmError, match=r"not quadratic in the latents \['z'\]"):
        fit(b, bent, EM(ExactGaussian()), 1)
    with pytest.raises(AlgorithmError, match=r"support {'w': 'positive'}.*linear-Gaussian"):
        fit(b, two_causes(dist.HalfNormal(1.0)), EM(ExactGaussian()), 1, X[:, 0])
    with pytest.raises(AlgorithmError, match=r"not quadratic in the latents \['z', 'w'\]"):
        fit(b, two_causes(dist.StudentT(3.0)), EM(ExactGaussian()), 1, X[:, 0])
    with pytest.raises(AlgorithmError, match='m_step="closed" for .* knows no such M-step'):
        fit(b, bent, EM(Langevin(0.1), m_step="closed"), 1)
