"""Variational bounds against closed forms: linear-Gaussian models, and enumeration.

    z ~ N(0, I),  x | z ~ N(W z + c, s^2 I):    p(x) = N(c, W W' + s^2 I), the posterior is Gaussian

Data are repeated along the batch where many independent draws are wanted, so that one compiled call
gives a mean and its standard error.
"""

import numpy as np
import pytest
from elbo_cases import (
    COV,
    EXACT,
    C,
    S,
    W,
    X,
    bound_to,
    exact,
    learned,
    mean_and_error,
    off,
    weights,
)
from scipy import stats

import probgen as pg
from probgen import dist
from probgen.inference import (
    ELBO,
    ImportanceWeightedELBO,
)
from probgen.inference.objectives.terms import compute


def test_elbo_below_iwae_below_log_p(b):
    """Law 4, each within 5 standard errors; the slack of the ELBO is KL(q || posterior)."""
    log_w = weights(b, off, X, 40_000)
    elbo, error = mean_and_error(log_w)
    q = 0.64 * np.eye(2)
    shift = np.full(2, 0.3)
    slack = 0.5 * (
        np.trace(np.linalg.solve(COV, q)) + shift @ np.linalg.solve(COV, shift) - 2
        + np.log(np.linalg.det(COV) / np.linalg.det(q))
    )  # fmt: skip
    assert np.all(np.abs(elbo - (EXACT - slack)) < 5 * error)
    last = elbo, error
    for k in (2, 8, 64):
        groups = log_w.reshape(-1, k, len(X))
        bounds, error = mean_and_error(np.logaddexp.reduce(groups, axis=1) - np.log(k))
        assert np.all(bounds > last[0] - 5 * np.hypot(error, last[1]))
        assert np.all(bounds < EXACT + 5 * error)
        last = bounds, error
    assert np.all(EXACT - last[0] < 0.1 * slack)


def test_every_weight_is_log_p_when_the_guide_is_the_posterior(b):
    np.testing.assert_allclose(weights(b, exact, X, 7), np.tile(EXACT, (7, 1)), atol=1e-4)
    bound, params, batch = bound_to(b, exact, X)
    for loss in (ImportanceWeightedELBO(5), ImportanceWeightedELBO(1)):
        found = b.compile(lambda *a, loss=loss: loss.evaluate(bound, *a), 8)(
            params, batch, b.key(3)
        )
        assert float(b.to_numpy(found["iwae"])) == pytest.approx(EXACT.mean(), abs=1e-4)
        assert float(b.to_numpy(found["effective_particles"])) == pytest.approx(
            loss.num_particles, rel=1e-4
        )


@pytest.mark.parametrize("num_particles", [1, 3])
def test_elbo_in_closed_form_and_its_parts_add_up(b, num_particles):
    bound, params, batch = bound_to(b, learned, np.tile(X, (3000, 1)))
    found = {}
    for analytic in (True, False):
        loss = ELBO(num_particles=num_particles, analytic_kl=analytic)
        evaluate = b.compile(lambda *a, loss=loss: loss.evaluate(bound, *a), 8)
        m = {k: b.to_numpy(v) for k, v in evaluate(params, batch, b.key(1)).items()}
        assert m["elbo"] == pytest.approx(m["log_prob"] - m["kl"], rel=1e-5)
        assert m["kl_units/z"].sum() == pytest.approx(m["kl/z"], rel=1e-5)
        assert m["log_prob/x"] == m["log_prob"] and m["kl/z"] == m["kl"]
        found[analytic] = m
    loc = 0.5 * (X - C) @ (COV @ W.T / S**2).T + 0.4
    units = (0.5 * (loc**2 + np.exp(-0.4) - 1 + 0.4)).mean(0)
    np.testing.assert_allclose(found[True]["kl_units/z"], units, rtol=1e-4)
    # One unit's log q - log p has sd below 2 nats here; 9000 data and more carry the mean.
    assert np.all(np.abs(found[False]["kl_units/z"] - units) < 5 * 2 / np.sqrt(9000))


def test_native_trace_elbo_gives_the_same_number(backend_name, b):
    """Pyro's and NumPyro's own Trace_ELBO on their own model, within 5 standard errors."""
    model, guide = _native(backend_name)
    if backend_name == "torch":
        import pyro
        import torch
        from pyro.infer import Trace_ELBO

        with pyro.poutine.seed(rng_seed=0), torch.no_grad():
            loss = Trace_ELBO(num_particles=3000, vectorize_particles=True).loss(
                model, guide, torch.tensor(X)
            )
    else:
        import jax
        from numpyro.infer import Trace_ELBO

        native = Trace_ELBO(num_particles=3000)
        loss = jax.jit(lambda key: native.loss(key, {}, model, guide, X))(jax.random.key(0))
    ours, error = mean_and_error(weights(b, off, X, 3000).sum(1))
    assert abs(-float(loss) - ours) < 5 * np.sqrt(2) * error


def _native(backend_name):
    if backend_name == "torch":
        import pyro as p
        import pyro.distributions as d
        import torch

        array = torch.tensor
    else:
        import jax.numpy as jnp
        import numpyro as p
        import numpyro.distributions as d

        array = jnp.asarray

    def model(x):
        with p.plate("data", 3, dim=-1):
            z = p.sample("z", d.Normal(array(0.0), array(1.0)).expand([2]).to_event(1))
            p.sample("x", d.Normal(z @ array(W.T) + array(C), S).to_event(1), obs=x)

    def guide(x):
        gain = array((COV @ W.T / S**2).T.astype(np.float32))
        with p.plate("data", 3, dim=-1):
            p.sample("z", d.Normal((x - array(C)) @ gain + 0.3, array(0.8)).to_event(1))

    return model, guide


def test_minibatches_average_to_the_full_objective(b):
    """A global latent counts once for the whole data set: each minibatch carries its share."""

    @pg.model
    def regression():
        mean = pg.sample("mean", dist.Normal(0, 2))
        with pg.data_plate():
            pg.sample("x", dist.Normal(mean, 1.0))

    @regression.with_guide
    def with_guide():
        pg.sample("mean", dist.Normal(0.5, 0.3))

    x = np.arange(12, dtype=np.float32) / 4
    bound, params, batch = bound_to(b, with_guide, x)
    key = b.key(4)  # one key: the same draw of the global latent in every minibatch
    run = b.compile(lambda params, batch, key: ELBO().evaluate(bound, params, batch, key), 3)
    parts = [run(params, {"x": b.asarray(x[i : i + 4])}, key)["elbo"] for i in (0, 4, 8)]
    full = b.tree_map(b.to_numpy, run(params, batch, key))
    assert np.mean([b.to_numpy(p) for p in parts]) == pytest.approx(full["elbo"], rel=1e-5)
    exact_kl = np.log(2 / 0.3) + (0.3**2 + 0.25) / (2 * 4) - 0.5
    assert full["kl"] == pytest.approx(exact_kl / 12, rel=1e-5)


@pytest.mark.parametrize("analytic", [True, False])
def test_particles_of_what_all_data_share_run_side_by_side(b, analytic):
    """A program written for one value of a global latent, a @ w: 4,000 draws of it give the bound
    within 5 standard errors, by numpy's own draws of the same guide."""
    rng = np.random.default_rng(0)
    a = np.array([0.7, -0.4], np.float32)
    x = rng.normal(size=12).astype(np.float32)

    @pg.model
    def regression():
        w = pg.sample("w", dist.Normal(0, 1).expand([2]).to_event(1))
        with pg.data_plate():
            z = pg.sample("z", dist.Normal(a @ w, 0.5))
            pg.sample("x", dist.Normal(z, 0.5))

    @regression.with_guide
    def with_guide():
        pg.sample("w", dist.Normal(0.5, 0.3).expand([2]).to_event(1))
        with pg.data_plate():
            pg.sample("z", dist.Normal(0.1, 0.4))

    bound, params, batch = bound_to(b, with_guide, x)
    loss = ELBO(num_particles=4000, analytic_kl=analytic)
    run = b.compile(lambda params, batch, key: loss.evaluate(bound, params, batch, key), 1)
    got = run(params, batch, b.key(4))
    w, z = rng.normal(0.5, 0.3, (4000, 2)), rng.normal(0.1, 0.4, (4000, 12))
    log_p = stats.norm(w @ a[:, None], 0.5).logpdf(z).sum(1) + stats.norm(z, 0.5).logpdf(x).sum(1)
    log_w = log_p + stats.norm(0, 1).logpdf(w).sum(1) - stats.norm(0.5, 0.3).logpdf(w).sum(1)
    each = (log_w - stats.norm(0.1, 0.4).logpdf(z).sum(1)) / 12
    error = np.sqrt(2) * each.std() / np.sqrt(4000)
    assert abs(float(b.to_numpy(got["elbo"])) - each.mean()) < 5 * error
    one = 2 * (np.log(1 / 0.3) + (0.09 + 0.25) / 2 - 0.5) / 12  # KL of w alone, in closed form
    spread = 0 if analytic else 5 * np.sqrt(2 / 4000)
    assert abs(float(b.to_numpy(got["kl/w"])) - one) < spread + 1e-5


def test_a_bottom_up_guide_keeps_the_bound_a_bound(b):
    """q(z1 | x) q(z2 | z1) under p(z2) p(z1 | z2): KL(q(z1 | x) || p(z1 | z2)) is no closed form.

    With z2 tied to z1 in the guide that "KL" would come out too small and the bound above log p.
    """

    @pg.model
    def two_layers():
        with pg.data_plate():
            top = pg.sample("top", dist.Normal(0, 1))
            low = pg.sample("low", dist.Normal(top, 0.1))
            pg.sample("x", dist.Normal(low, 1.0))

    @two_layers.with_guide
    def model(x):
        with pg.data_plate():
            low = pg.sample("low", dist.Normal(0.5 * x, 0.7))
            pg.sample("top", dist.Normal(low, 0.1))

    x = np.tile(np.array([0.4, -1.0], np.float32), 10_000)
    bound, params, batch = bound_to(b, model, x)

    def draw(params, batch, key):
        terms = compute(bound, params, batch, key, analytic_kl=True)
        return sum(terms.log_prob.values()) - sum(terms.kl.values())

    values = b.to_numpy(b.compile(draw, 8)(params, batch, b.key(0))).reshape(-1, 2)
    elbo, error = mean_and_error(values)
    x = x[:2]
    # E_q log p(x | low) + log p(low | top) + log p(top) - log q, term by term.
    low2 = (0.5 * x) ** 2 + 0.49
    expected = stats.norm.logpdf(x, 0.5 * x) - 0.49 / 2
    expected += -np.log(0.1) - 0.5 - 0.5 * np.log(2 * np.pi)
    expected += -0.5 * (low2 + 0.01) - 0.5 * np.log(2 * np.pi)
    expected += np.log(0.7 * 0.1) + 1 + np.log(2 * np.pi)
    assert np.all(np.abs(elbo - expected) < 5 * error)
    assert np.all(elbo < stats.norm.logpdf(x, 0, np.sqrt(2.01)))
