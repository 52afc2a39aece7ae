"""The density of a diffusion's probability flow: closed forms, an independent solver, and its sum.

Gaussian data with the exact score have a linear flow, whose density, divergence and spread of a
single probe are closed forms (`flow_cases`); a mixture is held to its own noised density and to
scipy's adaptive solver of the ODE as the paper writes it.
"""

import numpy as np
import pytest
from flow_cases import (
    LinearBeta,
    MixtureDenoiser,
    draws,
    exact_diffusion,
    log_normal,
    marginal,
    measured,
)
from scipy.integrate import solve_ivp

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.engine.fitted import Fitted
from probgen.errors import AlgorithmError, DeclarationError, NonFiniteError
from probgen.inference import Denoising
from probgen.inference.likelihood.probability_flow import ProbabilityFlow
from probgen.models import VAE, Diffusion, NoiseSchedule, likelihoods


def own_variances(fitted, lam):
    """Variances of the flow's own Gaussian at the lowest level: N(0, I) brought back linearly."""
    bar = fitted.model.schedule.alphas_bar()
    return marginal(lam, bar[0]) / marginal(lam, bar[-1])


def test_the_flow_gives_the_density_of_gaussian_data(b):
    """beta from .1 to 20 in 1000 levels, D 8: below 1e-3 nats everywhere."""
    fitted, u, lam = exact_diffusion(steps=1000)
    x = draws(u, lam, 200)
    out = measured(b, ProbabilityFlow(50), fitted, x)
    assert abs(out["estimate"] - log_normal(x, u, lam)).max() < 1e-3
    assert (out["probe_error"] == 0.0).all() and out["solver_error"].max() < 1e-3
    np.testing.assert_allclose(out["standard_error"], out["solver_error"], rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(out["log_prior"] + out["log_volume"], out["estimate"], rtol=1e-6)


# That of x_0 itself is `v_prediction`'s at the last level, and of the samplers' tables.
SAMPLE = pytest.param(
    "sample",
    marks=pytest.mark.repeated("test_every_prediction_type_is_one_flow_with_its_own_density"),
)


# That of the noise has a density of its own in every other test of this file.
NOISE = pytest.param(
    "epsilon",
    marks=pytest.mark.repeated("test_the_flow_gives_the_density_of_gaussian_data"),
)


@pytest.mark.parametrize("kind", [NOISE, SAMPLE, "v_prediction"])
def test_every_prediction_type_is_one_flow_with_its_own_density(b, kind):
    """With few levels N(0, I) is not the last one's law, and the first has noise to speak of: the
    flow's density says both. Below the first, dx/dw = -(1 - 1/v_0) x for w up to -log a_0."""
    fitted, u, lam = exact_diffusion(steps=20, kind=kind)
    x = draws(u, lam, 50)
    variances = own_variances(fitted, lam)
    out = measured(b, ProbabilityFlow(50, down_to="lowest_noise"), fitted, x)
    assert abs(out["estimate"] - log_normal(x, u, variances)).max() < 5e-3  # levels interpolated
    out = measured(b, ProbabilityFlow(50), fitted, x)
    bar = fitted.model.schedule.alphas_bar()[0]
    growth = np.exp((1.0 - 1.0 / marginal(lam, bar)) * -np.log(bar))  # of variances
    assert abs(out["estimate"] - log_normal(x, u, variances * growth)).max() < 5e-3


def test_the_solver_is_of_fourth_order_and_its_error_is_told(b):
    fitted, u, lam = exact_diffusion(steps=20)
    x = 2.0 * draws(u, lam, 50)
    truth = measured(b, ProbabilityFlow(200, down_to="lowest_noise"), fitted, x)["estimate"]
    errors = []
    for num_steps in (10, 20):
        out = measured(b, ProbabilityFlow(num_steps, down_to="lowest_noise"), fitted, x)
        off = abs(out["estimate"] - truth)
        errors.append(off.mean())
        # Also for the exact trace, whose standard error was 0 however few the steps.
        assert (off < 1.96 * out["standard_error"] + 1e-4).mean() > 0.95
        assert errors[-1] < out["solver_error"].mean() < 50 * errors[-1]
    assert 8 < errors[0] / errors[1] < 40


def test_probes_are_unbiased_and_spread_as_predicted(b):
    """sd of one probe: sqrt(2 sum_{i != j} J_ij^2), J = int dF/dx = U diag(log(v_T / lam) / 2) U^T.

    J is symmetric here, and the same for all data, which therefore are repetitions.
    """
    fitted, u, lam = exact_diffusion(steps=20)
    x = draws(u, lam, 400)
    exact = measured(b, ProbabilityFlow(20), fitted, x)["estimate"]
    count = 10  # each is compiled
    flow = ProbabilityFlow(20, divergence="hutchinson", num_probes=count)
    out = measured(b, flow, fitted, x)
    off = out["estimate"] - exact
    assert abs(off.mean()) < 4 * off.std(ddof=1) / np.sqrt(len(off))
    matrix = (u * 0.5 * np.log(marginal(lam, fitted.model.schedule.alphas_bar()[-1]) / lam)) @ u.T
    predicted = np.sqrt(2 * (matrix**2).sum() - 2 * (np.diag(matrix) ** 2).sum())
    variances = count * out["probe_error"].astype(np.float64) ** 2
    error = variances.std(ddof=1) / np.sqrt(len(x))
    assert abs(variances.mean() - predicted**2) < 4 * error + 0.01 * predicted**2
    assert error < 0.1 * predicted**2 and predicted > 1.0


NUM = 30
MIXED = MixtureDenoiser(NUM)
SPREAD = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32) * 1.2


@pytest.fixture(scope="module")
def by_scipy():
    """[30] log p of `SPREAD` by dx/dt = -beta/2 (x + s), all at once."""

    def ode(t, y):
        beta, bar = 0.1 + 19.9 * t, np.exp(-(0.1 * t + 9.95 * t * t))
        y = y.reshape(3, -1)
        _, score, divergence = MIXED.log_prob(y[:2].T, bar)
        dx = -0.5 * beta * (y[:2] + score.T)
        return np.concatenate([dx, -0.5 * beta * (2.0 + divergence)[None]]).ravel()

    start = np.concatenate([SPREAD.T, np.zeros((1, 30))]).ravel()
    y = solve_ivp(ode, (1 / NUM, 1.0), start, rtol=1e-6, atol=1e-6).y[:, -1].reshape(3, -1)
    return -0.5 * (y[:2] ** 2).sum(0) - np.log(2 * np.pi) + y[2]


def test_the_flow_agrees_with_an_adaptive_solver_of_the_paper_s_ode(b, by_scipy):
    """By RK45 with rtol = atol = 1e-6, also far from the data."""
    num, net, x = NUM, MIXED, SPREAD
    model = Diffusion(net, (2,), LinearBeta(num))
    flow = ProbabilityFlow(200, down_to="lowest_noise")
    out = measured(b, flow, Fitted(model, {"denoiser": {}}, shapes={"x": (2,)}), x)
    assert (abs(out["estimate"] - by_scipy) < 5e-3 + 2 * out["solver_error"]).all()
    # The last level's law is not quite N(0, I): log p_T(x_T) - log N(x_T) is about a_T m . x_T.
    bar, last = np.exp(-(0.1 / num + 9.95 / num**2)), np.exp(-0.5 * 10.05)
    radius = np.sqrt(-2.0 * (out["log_prior"] + np.log(2 * np.pi)))
    off = abs(out["estimate"] - net.log_prob(x.astype(np.float64), bar)[0])
    assert (off < 2e-3 + 2 * out["solver_error"] + 1.5 * last * radius).all()


@pytest.mark.repeated("test_the_flow_agrees_with_an_adaptive_solver_of_the_paper_s_ode")
def test_a_learned_density_integrates_to_one_and_is_near_the_truth(b):
    """Two moons learned by `Denoising`: the sum of exp(estimate) over a grid is 1 within .02."""
    truth = pg.data.two_moons(0.15)
    model = Diffusion(nets.MLPDenoiser(out=2, hidden=(64, 64)), (2,), NoiseSchedule.rescaled(50))
    learn = Denoising(pg.Adam(pg.CosineDecay(5e-3, num_steps=600)))
    fitted = pg.fit(
        model, truth.sample(8000, seed=0), learn, num_steps=600, batch_size=256, seed=0,
        ema_decay=0.99, progress_bar=False, backend=b,
    )  # fmt: skip
    edge = np.linspace(-3.0, 3.0, 31)
    grid = np.stack(np.meshgrid(edge, edge), -1).reshape(-1, 2).astype(np.float32)
    measure = ProbabilityFlow(40)
    table = pg.evaluate(
        fitted, grid, [measure], seed=0, chunk_size=len(grid), backend=b, progress_bar=False
    )[measure.name]
    density = np.exp(np.asarray(table["estimate"], np.float64))
    assert abs(density.sum() * (edge[1] - edge[0]) ** 2 - 1.0) < 0.02
    assert (density * table["solver_error"]).sum() / density.sum() < 0.01
    log_p, estimate = truth.log_prob(grid), np.asarray(table["estimate"], np.float64)
    gap = float(np.sum(np.exp(log_p) * (log_p - estimate)) / np.exp(log_p).sum())
    # KL(truth || model): positive, and small for a model that has learned.
    assert -0.02 < gap < 0.5


def test_images_are_flattened_and_wide_data_get_probes(b):
    flat, u, lam = exact_diffusion(steps=20)
    shaped = exact_diffusion(steps=20, shape=(2, 2, 2))[0]
    x = draws(u, lam, 6)
    a = measured(b, ProbabilityFlow(10), flat, x)
    c = measured(b, ProbabilityFlow(10), shaped, x.reshape(-1, 2, 2, 2))
    np.testing.assert_allclose(a["estimate"], c["estimate"], rtol=1e-5)
    probed = ProbabilityFlow(10, exact_up_to=7)
    assert not probed.is_exact(8) and probed.is_exact(7)
    auto = measured(b, probed, flat, x)
    assert (auto["probe_error"] > 0).all()
    assert (abs(auto["estimate"] - a["estimate"]) < 6 * auto["probe_error"]).all()


def test_probes_belong_to_the_datum_however_the_data_are_cut(b):
    fitted, u, lam = exact_diffusion(steps=20)
    x = draws(u, lam, 10)
    measure = ProbabilityFlow(4, divergence="hutchinson", num_probes=2)
    tables = [
        pg.evaluate(fitted, x, [measure], seed=3, chunk_size=c, backend=b, progress_bar=False)
        for c in (4, 10)
    ]
    for quantity in ("estimate", "probe_error", "solver_error"):
        first, second = (t[measure.name][quantity] for t in tables)
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=2e-5)


def test_a_score_that_is_nan_is_an_error_not_an_answer(b):
    fitted, u, lam = exact_diffusion(steps=3)
    fitted.params["denoiser"]["lam"][0] = np.nan
    with pytest.raises(NonFiniteError, match="ProbabilityFlow"):
        pg.evaluate(fitted, draws(u, lam, 3), [ProbabilityFlow(4)], seed=0, backend=b)


def test_what_has_no_flow_is_refused(b):
    vae = VAE(
        latent=dist.Normal(0, 1).expand([1]).to_event(1), decoder=nets.MLP(hidden=(), out=(3,)),
        likelihood=likelihoods.Normal(scale=1.0),
        encoder=nets.MLP(hidden=(), out=1, heads=("loc", "log_scale")),
    )  # fmt: skip
    bound, _ = bind(vae, b, data={"x": np.zeros((1, 3), np.float32)})
    with pytest.raises(AlgorithmError, match=r"no denoiser.*expected a Diffusion.*use IWAE"):
        ProbabilityFlow().device_function(bound)
    wide = Fitted(
        Diffusion(nets.MLPDenoiser(out=65, hidden=(4,)), (65,), NoiseSchedule(3)), {},
        shapes={"x": (65,)},
    ).bind(b)[0]  # fmt: skip
    with pytest.raises(AlgorithmError, match=r"65 dimensions.*at most 64.*hutchinson"):
        ProbabilityFlow(divergence="exact").device_function(wide)
    ProbabilityFlow(divergence="exact", exact_up_to=65).device_function(wide)
    short = exact_diffusion(steps=1)[0].bind(b)[0]
    with pytest.raises(AlgorithmError, match=r"1 noise level.*two or more"):
        ProbabilityFlow().device_function(short)


@pytest.mark.parametrize(
    "options",
    [
        {"num_steps": 0}, {"num_steps": 5}, {"divergence": "skilling"}, {"num_probes": 1},
        {"down_to": "noise"}, {"exact_up_to": -1},
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(options):
    with pytest.raises(DeclarationError, match="ProbabilityFlow: got .*expected"):
        ProbabilityFlow(**options)


def test_names_hold_the_settings():
    flows = [
        ProbabilityFlow(), ProbabilityFlow(50), ProbabilityFlow(divergence="exact"),
        ProbabilityFlow(divergence="hutchinson"), ProbabilityFlow(down_to="lowest_noise"),
        ProbabilityFlow(divergence="hutchinson", num_probes=9), ProbabilityFlow(exact_up_to=9),
    ]  # fmt: skip
    names = [f.name for f in flows]
    assert len(set(names)) == len(names) and not any("/" in n for n in names)
