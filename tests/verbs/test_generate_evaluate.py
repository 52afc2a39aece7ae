"""The verbs `generate` and `evaluate`, on models whose truth is a closed form."""

import math

import numpy as np
import pytest

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.engine.fitted import Fitted
from probgen.errors import (
    AlgorithmError,
    MissingSeed,
    NonFiniteError,
    SupportError,
    UnknownName,
)
from probgen.inference import ELBO, IWAE, Langevin
from probgen.models import EBM, VAE, Generator, likelihoods

W = np.array([[1.0, -0.5, 0.3]], np.float32)  # x = z W + b + s eps
B = np.array([0.2, 0.0, -1.0], np.float32)
S = 0.5


def linear_vae(scale=1.0):
    """A linear-Gaussian VAE whose guide is the exact posterior, its spread times `scale`."""
    variance = 1.0 / (1.0 + float((W**2).sum()) / S**2)
    gain = variance * W.T / S**2  # posterior mean = (x - b) gain
    encoder = {
        "weight": np.concatenate([gain, np.zeros_like(gain)], 1).astype(np.float32),
        "bias": np.array([-(B @ gain)[0], 0.5 * math.log(variance) + math.log(scale)], np.float32),
    }
    model = VAE(
        latent=dist.Normal(0, 1).expand([1]).to_event(1),
        decoder=nets.MLP(hidden=(), out=(3,)),
        likelihood=likelihoods.Normal(scale=S),
        encoder=nets.MLP(hidden=(), out=1, heads=("loc", "log_scale")),
    )
    params = {"decoder": {"out": {"weight": W, "bias": B}}, "encoder": {"out": encoder}}
    return Fitted(model, params, shapes={"x": (3,)})


def data(count=20):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(count, 1))
    return (z @ W + B + S * rng.normal(size=(count, 3))).astype(np.float32)


def exact_log_prob(x):
    cov = W.T @ W + S**2 * np.eye(3)
    d = x - B
    squares = np.einsum("ni,ij,nj->n", d, np.linalg.inv(cov), d)
    return -0.5 * squares - 0.5 * np.linalg.slogdet(2 * math.pi * cov)[1]


@pytest.fixture(scope="module")
def table(backend):
    return pg.evaluate(
        linear_vae(), data(), [IWAE(30, particles_at_once=8), ELBO(num_particles=4)], seed=0,
        backend=backend, chunk_size=7,
    )  # fmt: skip


def test_every_estimate_is_exact_where_the_guide_is_the_posterior(table):
    x = data()
    for name in ("ELBO(4)", "IWAE(30)"):
        np.testing.assert_allclose(table[name]["estimate"], exact_log_prob(x), rtol=2e-5)
        assert table[name]["standard_error"].max() < 1e-3
    np.testing.assert_allclose(table["IWAE(30)"]["effective_particles"], 30.0, rtol=1e-4)
    assert table.num_data == 20 and not table.larger_is_stranger["IWAE(30)"]


@pytest.mark.repeated("test_evaluation_exact.py::test_a_thousand_particles_give_log_p")
def test_estimates_are_ordered_and_within_their_errors(backend):
    """ELBO <= IWAE_K <= log p with a guide 1.5 times too wide; the ELBO's gap is a closed form."""
    x, scale = data(300), 1.5
    exact = exact_log_prob(x)
    table = pg.evaluate(
        linear_vae(scale), x, [ELBO(num_particles=200), IWAE(5), IWAE(500)], seed=1,
        backend=backend,
    )  # fmt: skip
    gap = 0.5 * (scale**2 - 1.0) - math.log(scale)  # KL(N(m, s^2 v) || N(m, v))
    for name, truth in (("ELBO(200)", exact - gap), ("IWAE(500)", exact)):
        off = table[name]["estimate"] - truth
        assert abs(off.mean()) < 5 * off.std() / math.sqrt(len(off))
        # The reported variance is the variance seen over data, to the 30 % that 300 of them allow.
        assert 0.7 < (table[name]["standard_error"] ** 2).mean() / off.var() < 1.4
    means = [table.mean(n)[0] for n in ("ELBO(200)", "IWAE(5)", "IWAE(500)")]
    assert means == sorted(means)


def test_the_table_reads_well(table):
    frame = table.to_pandas()
    assert frame.columns[0].startswith("IWAE(30)/") and len(frame) == 20
    assert "nats, larger is likelier" in repr(table) and "(20 data)" in repr(table)
    with pytest.raises(UnknownName, match="did you mean 'IWAE"):
        table["IWAE(100)"]


def test_ancestral_draws_have_the_moments_of_the_model(backend):
    draws = pg.generate(linear_vae(), 20_000, seed=0, backend=backend, chunk_size=6000)
    x, cov = draws["x"].astype(np.float64), W.T @ W + S**2 * np.eye(3)
    assert x.shape == (20_000, 3) and draws["z"].shape == (20_000, 1)
    error = np.sqrt(np.diag(cov) / len(x))
    assert (np.abs(x.mean(0) - B) < 5 * error).all()
    assert np.abs(np.cov(x.T) - cov).max() < 5 * 2.0 * cov.max() / math.sqrt(len(x))
    again = pg.generate(linear_vae(), 20_000, seed=0, backend=backend, chunk_size=6000)
    np.testing.assert_array_equal(draws["x"], again["x"])


def test_a_hierarchy_is_generated_from_the_top(backend):
    top = Generator(
        latent=dist.Normal(0, 1).expand([2]).to_event(1),
        decoder=nets.MLP(hidden=(4,), out=(3,)),
        likelihood=likelihoods.Normal(scale=0.1),
    )
    model = Generator(
        latent=top,
        decoder=nets.MLP(hidden=(4,), out=(5,)),
        likelihood=dist.Bernoulli,
    )
    _, params = bind(model, backend, seed=0)
    numpy = backend.tree_map(backend.to_numpy, params)
    draws = pg.generate(Fitted(model, numpy), 10, seed=0, backend=backend)
    assert {k: v.shape[1:] for k, v in draws.items()} == {"prior/z": (2,), "z": (3,), "x": (5,)}


def test_an_unnormalised_density_needs_a_method(backend):
    model = EBM(nets.MLPEnergy(hidden=(4,)), dist.Normal(0, 1).expand([2]).to_event(1))
    _, params = bind(model, backend, seed=0)
    numpy = backend.tree_map(backend.to_numpy, params)
    fitted = Fitted(model, numpy, shapes={"x": (2,)})
    with pytest.raises(AlgorithmError, match="known up to a constant"):
        pg.generate(fitted, 3, seed=0, backend=backend)
    method = Langevin(0.1, num_steps=4)
    draws = pg.generate(fitted, 6, seed=0, backend=backend, method=method, return_chain=True)
    assert draws["x"].shape == (6, 2) and draws.chain["x"].shape == (4, 6, 2)
    np.testing.assert_array_equal(draws.chain["x"][-1], draws["x"])
    with pytest.raises(AlgorithmError, match="known up to a constant|guide"):
        pg.evaluate(fitted, data()[:, :2], [IWAE(10)], seed=0, backend=backend)


def test_what_cannot_be_asked_is_refused(backend):
    fitted = linear_vae()
    with pytest.raises(MissingSeed, match="generate"):
        pg.generate(fitted, 3, backend=backend)
    with pytest.raises(MissingSeed, match="evaluate"):
        pg.evaluate(fitted, data(), [IWAE(10)], backend=backend)
    with pytest.raises(AlgorithmError, match="have no parameters, expected fitted ones"):
        pg.generate(fitted.model, 3, seed=0, backend=backend)
    with pytest.raises(AlgorithmError, match="measures"):
        pg.evaluate(fitted, data(), ["IWAE"], seed=0, backend=backend)
    broken = Fitted(fitted.model, {**fitted.params}, shapes=fitted.shapes)
    broken.params["decoder"] = {"out": {"weight": W * np.nan, "bias": B}}
    with pytest.raises(NonFiniteError, match="is NaN for 20 data"):
        pg.evaluate(broken, data(), [IWAE(10)], seed=0, backend=backend)


def test_data_outside_the_support_are_refused(backend):
    model = VAE(
        latent=dist.Normal(0, 1).expand([1]).to_event(1),
        decoder=nets.MLP(hidden=(), out=(3,)),
        likelihood=dist.Bernoulli,
        encoder=nets.MLP(hidden=(), out=1, heads=("loc", "log_scale")),
    )
    params = linear_vae().params
    with pytest.raises(SupportError, match="outside the support"):
        fitted = Fitted(model, params, shapes={"x": (3,)})
        pg.evaluate(fitted, data(), [IWAE(10)], seed=0, backend=backend)
