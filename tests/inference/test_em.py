"""EM against maximum likelihood in closed form, and what it keeps for each datum."""

import numpy as np
import pytest
from fit_cases import assert_same_bits, leaves
from learner_cases import factor_data, factor_model

import probgen as pg
from probgen import dist, nets
from probgen.errors import AlgorithmError, ShapeError
from probgen.inference import EM, Langevin

CHAINS = Langevin(0.3, num_steps=4, metropolis=True)


def fit(b, model, data, algorithm, **options):
    options = {"seed": 0, "backend": b, "progress_bar": False, **options}
    return pg.fit(model, data, algorithm, **options)


# ---- chains ----


def ppca(x, num_factors):
    """Covariance of the maximum-likelihood factor model. Tipping & Bishop 1999, equations 7, 8."""
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    noise = values[:-num_factors].mean()
    top = vectors[:, -num_factors:] * (values[-num_factors:] - noise)
    return top @ vectors[:, -num_factors:].T + noise * np.eye(len(values))


def covariance(params):
    w = params["decoder"]["out"]["weight"]
    return w.T @ w + np.log1p(np.exp(params["likelihood"]["value"])) ** 2 * np.eye(3)


def loss_of_likelihood(x, params):
    """How much less likely the data are than under the best factor model, nats in all."""
    centred = x - x.mean(0)

    def log_likelihood(shift, cov):
        z = np.einsum("ni,ij,nj->n", shift, np.linalg.inv(cov), shift)
        return -0.5 * (z + np.linalg.slogdet(cov)[1]).sum()

    found = log_likelihood(x - params["decoder"]["out"]["bias"], covariance(params))
    return log_likelihood(centred, ppca(x, 1)) - found


def test_chains_find_the_maximum_likelihood_factor_model(b):
    """Twice the loss of likelihood is chi-squared of 7 degrees of freedom for parameters that are
    off by their own standard errors, mean 7; these are off by far less."""
    x = factor_data()
    algorithm = EM(CHAINS, pg.Adam(pg.CosineDecay(4e-2, 360, final=1e-3)))
    fitted = fit(b, factor_model(), x, algorithm, num_steps=360, batch_size=100, ema_decay=0.95)
    assert -1e-2 < 2 * loss_of_likelihood(x, fitted.params) < 1.0
    assert fitted.extras["chains"]["z"].shape == (300, 1)
    assert (fitted.extras["visited"] == 1).all()
    assert 0.6 < fitted.history["acceptance"][-30:].mean() < 0.9
    assert fitted.history["movement"][-30:].mean() > 0.5
    assert "MALA, 4 steps of 0.3, one chain a datum" in fitted.report.text()


def test_em_stopped_and_resumed_is_the_uninterrupted_run(b, tmp_path):
    x, algorithm = factor_data(40), EM(CHAINS, pg.Adam(1e-2), num_m_steps=2)
    options = {"batch_size": 10, "checkpoint_every": 4}
    fit(b, factor_model(), x, algorithm, num_steps=6, checkpoint=tmp_path, **options)
    resumed = fit(b, factor_model(), x, algorithm, num_steps=9, checkpoint=tmp_path, **options)
    whole = fit(b, factor_model(), x, algorithm, num_steps=9, **options)
    assert_same_bits(whole.params, resumed.params)
    assert_same_bits(whole.extras, resumed.extras)
    for name in whole.history:
        np.testing.assert_array_equal(whole.history[name], resumed.history[name])


def test_a_chain_starts_at_its_first_visit_and_goes_on_with_a_fitted_model(b):
    x, algorithm = factor_data(40), EM(CHAINS, pg.Adam(1e-2), num_m_steps=2)
    first = fit(b, factor_model(), x, algorithm, num_steps=2, batch_size=10)
    assert first.extras["visited"].sum() == 20
    assert (first.extras["chains"]["z"] != 0).sum() == 20
    again = fit(b, first, x, algorithm, num_steps=2, batch_size=10)
    moved = again.extras["chains"]["z"] != first.extras["chains"]["z"]
    assert 10 < moved.sum() <= 20 and again.extras["visited"].sum() >= 20
    with pytest.raises(ShapeError, match=r"extras\['chains'\].*\[40, 1\], expected f.30, 1"):
        fit(b, first, x[:30], algorithm, num_steps=1, batch_size=10)


def test_several_m_steps_are_several_steps_at_one_set_of_latents(b):
    """Latents held where they are, by chains that do not move: the joint density is all there is
    to climb, and k M-steps of a plain gradient are k such fits."""
    x, still = factor_data(40), Langevin(1e-30, num_steps=1, noise_scale=0.0)
    options = dict(batch_size=40, ema_decay=None)
    one, three = (EM(still, pg.SGD(1e-2), num_m_steps=k) for k in (1, 3))
    together = fit(b, factor_model(), x, three, num_steps=1, **options)
    apart = fit(b, factor_model(), x, one, num_steps=3, **options)
    for name, value in leaves(apart.params).items():
        np.testing.assert_allclose(leaves(together.params)[name], value, rtol=1e-5, atol=1e-6)


# ---- refusals ----


@pg.model
def shared_mean():
    mean = pg.sample("mean", dist.Normal(0.0, 1.0))
    scale = pg.net("scale", nets.Parameter(value=1.0))()
    with pg.data_plate():
        pg.sample("x", dist.Normal(mean, scale))


@pg.model
def no_nets():
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0.0, 1.0))
        pg.sample("x", dist.Normal(z, 1.0))


@pytest.mark.parametrize(
    ("model", "data", "options", "match"),
    [
        (shared_mean, np.zeros(4, "float32"), {}, "latents .'mean'. .* outside the data plate"),
        (no_nets, np.zeros(4, "float32"), {}, "no net that may move, expected parameters"),
        (factor_model(), {"x": factor_data(4), "z": factor_data(4)[:, :1]}, {}, "observe all"),
        (factor_model(), factor_data(4), {"gradient_accumulation": 2}, "gradient_accumulation=2"),
        (factor_model(), lambda: iter([factor_data(4)]), {}, "EM: got a stream, expected data"),
    ],
)  # fmt: skip
def test_what_em_cannot_learn_is_refused(b, model, data, options, match):
    with pytest.raises(AlgorithmError, match=match):
        fit(b, model, data, EM(CHAINS), num_steps=1, **options)
