"""A model without latents needs no guide: its bound is log p(x), and SVI is maximum likelihood."""

import numpy as np
import pytest
from scipy import stats

import probgen as pg
from probgen import dist, nets, ops
from probgen.errors import AlgorithmError
from probgen.inference import (
    ELBO,
    SVI,
    ImportanceWeightedELBO,
    Langevin,
    MaximumLikelihood,
)

X = np.random.default_rng(0).normal(2.0, 3.0, 200).astype("float32")


@pg.model
def normal():
    mu, log_sigma = pg.net("mu", nets.Parameter())(), pg.net("log_sigma", nets.Parameter())()
    with pg.data_plate():
        pg.sample("x", dist.Normal(mu, ops.exp(log_sigma)))


def test_svi_without_a_guide_finds_the_maximum_of_the_likelihood(b):
    """mu and sigma are mean and standard deviation of the data; the bound is log p(x) itself."""
    fitted = pg.fit(
        normal, X, SVI(ELBO(), pg.Adam(0.05)), num_steps=300, batch_size=None, backend=b, seed=0,
        progress_bar=False,
    )  # fmt: skip
    mu, sigma = fitted.params["mu"]["value"], np.exp(fitted.params["log_sigma"]["value"])
    np.testing.assert_allclose([mu, sigma], [X.mean(), X.std()], rtol=5e-3)
    assert fitted.report is None  # there is no latent code to report on
    found = pg.evaluate(fitted, X[:5], [ELBO()], seed=0)["ELBO(1)"]["estimate"].values
    np.testing.assert_allclose(found, stats.norm(mu, sigma).logpdf(X[:5]), rtol=1e-5)


def test_latents_without_a_guide_are_refused_still(b):
    @pg.model
    def hidden():
        with pg.data_plate():
            pg.sample("x", dist.Normal(pg.sample("z", dist.Normal(0, 1)), 1.0))

    for loss in (ELBO(), ImportanceWeightedELBO(2)):
        with pytest.raises(AlgorithmError, match="no guide"):
            pg.fit(hidden, X, SVI(loss), num_steps=1, backend=b, seed=0)


def test_maximum_likelihood_by_chains_is_for_densities_without_a_constant(b):
    """Of a normalised one the words say that SVI(ELBO()) is maximum likelihood, as it is above."""
    chains = MaximumLikelihood(Langevin(0.1, num_steps=2))
    with pytest.raises(
        AlgorithmError, match=r"'normal' has its constant .* use SVI\(ELBO\(\)\), wh"
    ):
        pg.fit(normal, X, chains, num_steps=1, backend=b, seed=0)
