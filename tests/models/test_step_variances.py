"""The variances of a diffusion's steps: the larger one is that of x_0 ~ N(0, I), exactly.

Such data are noised in place, x_t ~ N(0, I) at every t, so that the chain back is the forward one,
x_{t-1} | x_t ~ N(sqrt(1 - beta_t) x_t, beta_t I), and every draw of log p - log q is log p(x).
"""

import math

import numpy as np
import pytest
from denoiser_cases import exact
from fit_cases import quick

import probgen as pg
from probgen.inference import ELBO, Ancestral, DenoisingELBO
from probgen.models import Diffusion, NoiseSchedule

X = np.array([[0.0, 0.0], [1.5, -0.5], [-3.0, 2.0]], "float32")
LOG_P = -0.5 * (X**2).sum(1) - math.log(2 * math.pi)


class Nothing:
    """v = a eps - s x_0 is 0 on the mean, where x_0 ~ N(0, I)."""

    def init(self, key, *shapes):
        return {}

    def apply(self, params, x, t):
        return 0.0 * x


def standard(total, kind="fixed_large"):
    schedule = NoiseSchedule(total, "vp_sde")
    return Diffusion(Nothing(), (2,), schedule, "v_prediction", variance_type=kind)


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


def test_of_normal_data_the_large_variances_have_the_exact_bound_and_the_exact_draws(b):
    fitted = pg.Fitted(standard(5), {"denoiser": {}}, shapes={"x": (2,)})
    how = {"seed": 0, "backend": b, "progress_bar": False}
    found = pg.evaluate(fitted, np.repeat(X, 300, 0), [ELBO(2), DenoisingELBO(2)], **how)
    whole, terms = found["ELBO(2)"]["estimate"], found["DenoisingELBO(2, all steps)"]["estimate"]
    np.testing.assert_allclose(whole, np.repeat(LOG_P, 300), atol=1e-5)
    each = terms.values.reshape(3, 300)
    assert (np.abs(each.mean(1) - LOG_P) < 5 * each.std(1) / math.sqrt(300)).all()
    x, n = pg.generate(fitted, 20_000, seed=0, chunk_size=20_000, backend=b)["x"], 20_000
    np.testing.assert_allclose(np.cov(x.T), np.eye(2), atol=5 * math.sqrt(2 / n))


# Whatever the table, whose larger variances the bound of all steps has above.
@pytest.mark.repeated("test_priors.py::test_a_vae_behind_a_thousand_steps_is_fitted_and_scored")
def test_one_random_step_of_the_large_variances_has_that_mean(b):
    """All weights by hand: the mean of a random step over steps and noise is log p(x)."""
    table = standard(300).table()
    a, s = table["signal"], table["noise"]
    weight = 0.5 * (table["of_x0"] / table["std"]) ** 2
    left = [(weight * ((1 - a * a) ** 2 * (x**2).sum() + 2 * (a * s) ** 2)).sum() for x in X]
    last = math.log(table["std"][0]) + 0.5 * math.log(2 * math.pi) + table["std_kl"].sum()
    end = 0.5 * (a[-1] ** 2 * (X**2).sum(1) - 2 * (a[-1] ** 2 + math.log1p(-(a[-1] ** 2))))
    np.testing.assert_allclose(-np.array(left) - 2 * last - end, LOG_P, atol=1e-9)
    fitted = pg.Fitted(standard(300), {"denoiser": {}}, shapes={"x": (2,)})
    found = pg.evaluate(fitted, X, [ELBO(500)], seed=0, backend=b, progress_bar=False)["ELBO(500)"]
    off = found["estimate"].values - LOG_P
    assert (np.abs(off) < 5 * found["standard_error"].values).all()


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large"])
def test_ancestral_has_the_variance_of_the_chain(kind):
    model = standard(7, kind)
    np.testing.assert_allclose(
        Ancestral(7).columns(model)["std"][::-1], model.table()["std"], rtol=1e-9
    )


def test_small_variances_cost_smooth_data_nats_at_the_lowest_noise():
    """What a VAE's codes lose by them, of unit variance and eight numbers: four nats and more."""
    schedule, lam = NoiseSchedule.rescaled(1000), 8 * (1.0,)
    table = exact(schedule, "epsilon", lam).table()
    bar = schedule.alphas_bar()
    left = (0.5 * (table["of_x0"] / table["std"]) ** 2 * (1 - bar)).sum()
    last = math.log(table["std"][0]) + 0.5 * math.log(2 * math.pi)
    end = 0.5 * (bar[-1] - bar[-1] - math.log1p(-bar[-1]))
    loss = 8 * (left + last + end - 0.5 * math.log(2 * math.pi * math.e))
    assert 4.0 < loss < 5.0
