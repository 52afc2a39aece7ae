"""A diffusion as a map of normal noise, and as the prior of an inverse problem.

The exact denoiser of Gaussian data is linear, so the map's law is Gaussian by a recursion over its
steps, and the posterior of a linear measurement with normal noise is a closed form.
"""

import numpy as np
import pytest
from at_once import at_once
from compilations import Compilations
from flow_cases import exact_diffusion

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError, DataError, DeclarationError, ProbgenError
from probgen.inference import DDIM, Langevin
from probgen.models import VAE, Diffusion, DiffusionMap, InverseProblem, NoiseSchedule, likelihoods

DIM, STEPS = 3, 5


def covariance(model, u, lam, eta):
    """Of the map's law: x0 = a lam / v x_t along U, and what DDIM makes of it, from N(0, I) on."""
    bar = model.schedule.alphas_bar()
    times = np.round(np.arange(1, STEPS + 1) * (len(bar) / STEPS)).astype(int) - 1
    variance = np.ones(len(lam))
    for t, s in zip(times[::-1], [*times[-2::-1], None], strict=True):
        now, after = bar[t], 1.0 if s is None else bar[s]
        gain = np.sqrt(now) * lam / (now * lam + 1 - now)
        drawn = eta**2 * (1 - after) / (1 - now) * (1 - now / after)
        eps = (1 - np.sqrt(now) * gain) / np.sqrt(1 - now)
        variance = (np.sqrt(after) * gain + np.sqrt(1 - after - drawn) * eps) ** 2 * variance
        variance = variance + drawn
    return (u * variance) @ u.T


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_its_law_is_that_of_its_steps(b, eta):
    """It is linear: its values at the unit vectors of its noise have the law's covariance."""
    fitted, u, lam = exact_diffusion(DIM, steps=20)
    bound, params = bind(DiffusionMap(fitted, STEPS, eta), b, data={}, num_data=DIM * STEPS)
    unit = np.eye(DIM * STEPS, dtype=np.float32).reshape(-1, STEPS, DIM)
    given = {"x_20": unit[:, 0], "noise": unit[:, 1:]} if eta else {"x_20": unit[:, 0]}
    given = {n: b.asarray(v) for n, v in given.items()}

    def run(params, given):
        return bound.trace(params, {}, given, batch_size=DIM * STEPS)["x"].value

    x = at_once(b, run, params, given)
    np.testing.assert_allclose(x.T @ x, covariance(fitted.model, u, lam, eta), atol=1e-4)


# The law of the map is above; the posterior under a likelihood is that of any prior.
@pytest.mark.repeated("test_a_prior_of_another_family_and_another_site")
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_linear_measurement_has_its_exact_posterior(b, eta):
    """y = A'x + s xi with two numbers of three: mean C A (A'C A + s^2)^-1 y, in standard errors."""
    fitted, u, lam = exact_diffusion(DIM, steps=20)
    of_y, scale = np.array([[1.0, 0.3], [-0.5, 1.2], [0.4, 0.7]], np.float32), 0.2
    y = np.array([1.0, -0.5], np.float32)
    prior = covariance(fitted.model, u, lam, eta)
    gain = prior @ of_y @ np.linalg.inv(of_y.T @ prior @ of_y + scale**2 * np.eye(2))
    mean, spread = gain @ y, prior - gain @ of_y.T @ prior
    problem = InverseProblem(
        DiffusionMap(fitted, STEPS, eta),
        lambda x: dist.Normal(x @ ops.asarray_like(of_y, x), scale).to_event(1),
    )
    method = Langevin(0.2, 240, metropolis=True, adapt_step_size=True, num_warmup=80,
                      num_chains=40, thinning=2)  # fmt: skip
    draws = pg.infer(problem, {"y": y[None]}, method, seed=0, backend=b, progress_bar=False)
    if eta:
        with Compilations(b.name) as seen:
            pg.infer(problem, {"y": -y[None]}, method, seed=1, backend=b, progress_bar=False)
        assert not seen.names
    sizes = {n: v.shape[3:] for n, v in draws.posterior.items()}
    noise = {"noise": (STEPS - 1, DIM)} if eta else {}
    assert sizes == {"x_20": (DIM,), "x": (DIM,), **noise}
    x = draws.posterior["x"].values[:, :, 0].astype(np.float64)  # [chain, draw, dim]
    off = x - mean
    products = off[..., :, None] * off[..., None, :]
    for found, truth in ((x, mean), (products, spread)):
        each = found.mean(1)
        error = each.std(0, ddof=1) / np.sqrt(len(each))
        assert (abs(each.mean(0) - truth) < 4.5 * error).all()
        assert (error < 0.06).all()
    # What was measured says something: it is not the prior again.
    assert np.trace(spread) < 0.6 * np.trace(prior)


def test_its_draws_are_ddim_s(b):
    """The same noise gives what DDIM makes of it, of images too; T = 1000 binds as fast."""
    net = nets.MLPDenoiser(out=3, hidden=(8,))
    model = Diffusion(net, (3,), NoiseSchedule(1000), "v_prediction")
    bound, params = bind(model, b, data={"x": np.zeros((1, 3), np.float32)}, seed=0)
    fitted = pg.engine.fitted.Fitted(model, params, shapes={"x": (3,)})
    of_map, given = bind(DiffusionMap(fitted, 4), b, data={}, num_data=6, seed=0)

    def run(key):
        start = b.normal(b.split(key, 2)[0], (6, 3))
        found = of_map.trace(given, {}, {"x_1000": start}, batch_size=6)["x"].value
        return found, DDIM(4).draws_of(bound)(params, {}, key, 6)["x"]

    found, x = at_once(b, run, b.key(3))
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)


def test_a_prior_of_another_family_and_another_site(b):
    """x ~ N(0, 1), y ~ N(2 x, 1): the posterior's mean is 2 y / 5, its variance 1 / 5."""

    @pg.model
    def prior():
        with pg.data_plate():
            pg.sample("code", dist.Normal(0.0, 1.0))

    problem = InverseProblem(prior, lambda x: dist.Normal(2 * x, 1.0), on="code", data="seen")
    method = Langevin(0.1, 400, metropolis=True, num_warmup=50, num_chains=30, thinning=4)
    draws = pg.infer(
        problem, {"seen": np.array([1.5], np.float32)}, method, seed=0, backend=b,
        progress_bar=False,
    )  # fmt: skip
    x = draws.posterior["code"].values[..., 0]
    means = x.mean(1)
    assert abs(means.mean() - 0.6) < 4.5 * means.std(ddof=1) / np.sqrt(len(means))
    assert 0.15 < x.var() < 0.25
    with pytest.raises(ProbgenError, match=r"InverseProblem.*got on='x'.*expected.*code"):
        bind(InverseProblem(prior, lambda x: dist.Normal(x, 1.0)), b, data={}, num_data=2)


def test_what_cannot_be_is_refused(b):
    small = Diffusion(nets.MLPDenoiser(out=2, hidden=(4,)), (2,), NoiseSchedule(10))
    with pytest.raises(DeclarationError, match=r"num_steps=20.*10 steps.*lower num_steps"):
        DiffusionMap(small)
    vae = VAE(
        latent=dist.Normal(0, 1).expand([1]).to_event(1), decoder=nets.MLP(hidden=(), out=(3,)),
        likelihood=likelihoods.Normal(scale=1.0),
        encoder=nets.MLP(hidden=(), out=1, heads=("loc", "log_scale")),
    )  # fmt: skip
    with pytest.raises(
        DeclarationError, match=r"got diffusion=VAE.*expected a Diffusion, or a Fitted"
    ):
        DiffusionMap(vae)
    x = np.zeros((3, 2), np.float32)
    problem = InverseProblem(DiffusionMap(small, 4), lambda x: dist.Normal(x, 1.0).to_event(1))
    with pytest.raises(AlgorithmError, match=r"denoiser.*no parameters.*expected fitted ones"):
        pg.infer(problem, {"y": x}, Langevin(0.1), seed=0, backend=b)
    with pytest.raises(ProbgenError, match=r"data 'x': got a name that is neither"):
        pg.infer(DiffusionMap(exact_diffusion(2, steps=10)[0], 4), x, Langevin(0.1), seed=0,
                 backend=b)  # fmt: skip


def test_a_condition_is_an_input_here_too(b):
    """The posterior of each class is its own: draws with the noise of DDIM and its condition."""
    net = nets.MLPDenoiser(out=2, hidden=(4,))
    model = Diffusion(net, (2,), NoiseSchedule(20), condition=nets.ClassEmbedding(3, 4))
    y = np.array([0, 2, 1, 0])
    data = {"x": np.zeros((4, 2), np.float32), "condition": y}
    bound, params = bind(model, b, data=data, seed=0)
    given = {"condition": b.asarray(y)}
    prior = DiffusionMap(pg.Fitted(model, params), 4)
    of_map, held = bind(prior, b, data={"condition": y}, num_data=4, seed=0)

    def run(key):
        start = b.normal(b.split(key, 2)[0], (4, 2))
        found = of_map.trace(held, given, {"x_20": start}, batch_size=4)["x"].value
        return found, DDIM(4).draws_of(bound)(params, given, key, 4)["x"]

    found, x = at_once(b, run, b.key(3))
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)
    problem = InverseProblem(prior, lambda x: dist.Normal(x, 1.0).to_event(1))
    with pytest.raises(DataError, match="classes from 0 to 4"):
        problem.check_rows({"y": data["x"], "condition": 2 * y})
