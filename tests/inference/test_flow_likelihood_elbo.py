"""The bound of a diffusion's chain: closed forms for Gaussian data with the exact denoiser.

The denoiser is linear, x0 = M_t x_t, so each term of the bound is a quadratic form, and the chain's
own marginal is Gaussian, by recursion over its steps.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from flow_cases import TYPES, draws, exact_diffusion, log_normal, marginal, measured

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.engine.fitted import Fitted
from probgen.errors import AlgorithmError, DeclarationError
from probgen.inference.likelihood.denoising_elbo import DenoisingELBO
from probgen.inference.likelihood.probability_flow import ProbabilityFlow
from probgen.models import VAE, Diffusion, NoiseSchedule, likelihoods


def gain(model, lam):
    """M_t along the eigenvectors, [T, dim]."""
    bar = model.schedule.alphas_bar()[:, None]
    return np.sqrt(bar) * lam / marginal(lam, bar)


def exact_bound(model, x, u, lam):
    """[n] the bound itself: E |x - M(a x + sigma eps)|^2 = |(1 - a M) x|^2 + sigma^2 tr M^2."""
    y2, table, m = (x.astype(np.float64) @ u) ** 2, model.table(), gain(model, lam)
    value = -0.5 * len(lam) * np.log(2 * np.pi * table["std"][0] ** 2) * np.ones(len(x))
    for t in range(len(m)):
        a, sigma = table["signal"][t], table["noise"][t]
        squares = (y2 * (1.0 - a * m[t]) ** 2).sum(1) + sigma**2 * (m[t] ** 2).sum()
        value -= 0.5 * (table["of_x0"][t] / table["std"][t]) ** 2 * squares
    bar = table["signal"][-1] ** 2
    return value - 0.5 * (bar * y2 - bar - np.log1p(-bar)).sum(1)


def chain_log_prob(model, x, u, lam):
    """[n] log p(x) of the program: variances from x_T down, v <- (c M + c')^2 v + std^2."""
    table, m, v = model.table(), gain(model, lam), np.ones(len(lam))
    for t in reversed(range(len(m))):
        v = (table["of_x0"][t] * m[t] + table["of_xt"][t]) ** 2 * v + table["std"][t] ** 2
    return log_normal(x, u, v)


# What a prediction says of x_0 is asked of the flow's density too.
OTHERS = [
    pytest.param(
        kind,
        marks=pytest.mark.repeated(
            "test_flow_likelihood.py::test_every_prediction_type_is_one_flow_with_its_own_density"
        ),
    )
    for kind in TYPES[1:]
]


@pytest.mark.parametrize("kind", [TYPES[0], *OTHERS])
def test_the_bound_is_its_closed_form_and_below_the_chain_s_density(b, kind):
    fitted, u, lam = exact_diffusion(4, steps=20, kind=kind)
    x = draws(u, lam, 2000)
    out = measured(b, DenoisingELBO(num_draws=3), fitted, x)
    off = out["estimate"] - exact_bound(fitted.model, x, u, lam)
    assert abs(off.mean()) < 5 * off.std() / np.sqrt(len(x))
    # The reported error is the error.
    assert 0.7 < (out["standard_error"].astype(np.float64) ** 2).mean() / off.var() < 1.4
    slack = chain_log_prob(fitted.model, x, u, lam) - out["estimate"]
    assert (slack > -5 * out["standard_error"]).all()
    assert slack.mean() > 3 * slack.std() / np.sqrt(len(slack))


@dataclass(frozen=True)
class Nothing:
    def init(self, key, *shapes):
        return {}

    def apply(self, params, x, t):
        return 0.0 * x


def test_a_chain_that_forgets_little_pays_for_its_prior(b):
    """x0 = 0 always: no term depends on noise, and alpha_bar_T = .25 gives KL(q(x_T | x) || N)."""
    model = Diffusion(Nothing(), (2, 3), NoiseSchedule(5, "linear", 0.2, 0.4), "sample")
    bar, table = model.schedule.alphas_bar()[-1], model.table()
    x = np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float32)
    out = measured(b, DenoisingELBO(), Fitted(model, {"denoiser": {}}, shapes={"x": (2, 3)}), x)
    squares = (x.astype(np.float64) ** 2).sum((1, 2))
    prior_kl = 0.5 * (bar * squares - 6 * (bar + np.log1p(-bar)))
    weight = 0.5 * ((table["of_x0"] / table["std"]) ** 2).sum()
    value = -3 * np.log(2 * np.pi * table["std"][0] ** 2) - weight * squares - prior_kl
    assert 0.1 < bar < 0.4 and prior_kl.min() > 0.05
    np.testing.assert_allclose(out["prior_kl"], prior_kl, rtol=1e-4)
    np.testing.assert_allclose(out["estimate"], value, rtol=1e-5)
    assert out["standard_error"].max() < 1e-4


# What is a closed form there is below the data's density by Gibbs' inequality.
@pytest.mark.repeated("test_the_bound_is_its_closed_form_and_below_the_chain_s_density")
def test_the_exact_bound_is_below_the_data_s_density_on_average(b):
    """E ELBO <= E log p_chain <= E log p_data for x of the data: Gibbs' inequality, twice."""
    fitted, u, lam = exact_diffusion(4, steps=100)
    x = draws(u, lam, 2000)
    bound, chain = (f(fitted.model, x, u, lam) for f in (exact_bound, chain_log_prob))
    truth = log_normal(x, u, lam)
    assert (bound <= chain).all() and chain.mean() < truth.mean()
    out = measured(b, DenoisingELBO(num_steps=25), fitted, x)
    flow = measured(b, ProbabilityFlow(20), fitted, x[:50])
    difference = truth - out["estimate"]
    assert difference.mean() > -3 * difference.std() / np.sqrt(len(x))
    assert (bound[:50] < flow["estimate"]).all()


ONE_STEP = pytest.param(
    1, marks=pytest.mark.repeated("test_a_few_steps_stand_for_all_without_bias")
)


@pytest.mark.parametrize("num_steps", [ONE_STEP, 7])
def test_a_few_steps_stand_for_all_without_bias(b, num_steps):
    """Strata that do not divide the chain's 20 steps: every step keeps its weight."""
    fitted, u, lam = exact_diffusion(4, steps=20)
    x = draws(u, lam, 4000)
    out = measured(b, DenoisingELBO(num_draws=2, num_steps=num_steps), fitted, x)
    off = out["estimate"] - exact_bound(fitted.model, x, u, lam)
    assert abs(off.mean()) < 4 * off.std() / np.sqrt(len(x))
    assert 0.8 < (out["standard_error"].astype(np.float64) ** 2).mean() / off.var() < 1.25


def test_more_steps_than_the_chain_has_are_all_of_them(b):
    fitted, u, lam = exact_diffusion(4, steps=6)
    x = draws(u, lam, 5)
    every, more = (measured(b, DenoisingELBO(num_steps=n), fitted, x) for n in (None, 99))
    np.testing.assert_array_equal(every["estimate"], more["estimate"])


# Of the keys that a cut brings there; that data have noise of their own here is told by its error.
@pytest.mark.repeated(
    "test_flow_likelihood.py::test_probes_belong_to_the_datum_however_the_data_are_cut"
)
def test_noise_belongs_to_the_datum_however_the_data_are_cut(b):
    fitted, u, lam = exact_diffusion(4, steps=6)
    x, measure = draws(u, lam, 10), DenoisingELBO(num_steps=4)
    tables = [
        pg.evaluate(fitted, x, [measure], seed=3, chunk_size=c, backend=b, progress_bar=False)
        for c in (4, 10)
    ]
    first, second = (t[measure.name]["estimate"] for t in tables)
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)


def test_another_family_is_refused(b):
    vae = VAE(
        latent=dist.Normal(0, 1).expand([1]).to_event(1), decoder=nets.MLP(hidden=(), out=(3,)),
        likelihood=likelihoods.Normal(scale=1.0),
        encoder=nets.MLP(hidden=(), out=1, heads=("loc", "log_scale")),
    )  # fmt: skip
    bound, _ = bind(vae, b, data={"x": np.zeros((1, 3), np.float32)})
    with pytest.raises(AlgorithmError, match=r"DenoisingELBO: .*expected a Diffusion.*use IWAE"):
        DenoisingELBO().device_function(bound)


@pytest.mark.parametrize("options", [{"num_draws": 1}, {"num_steps": 0}])
def test_settings_that_mean_nothing_are_refused(options):
    with pytest.raises(DeclarationError, match="DenoisingELBO: got .*expected"):
        DenoisingELBO(**options)
