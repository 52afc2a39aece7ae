"""Variational bounds against closed forms: linear-Gaussian models, and enumeration.

    z ~ N(0, I),  x | z ~ N(W z + c, s^2 I):    p(x) = N(c, W W' + s^2 I), the posterior is Gaussian

Data are repeated along the batch where many independent draws are wanted, so that one compiled call
gives a mean and its standard error.
"""

import numpy as np
import pytest
from scipy import stats

import probgen as pg
from probgen import dist, nets
from probgen.bound import bind
from probgen.errors import AlgorithmError
from probgen.history import History
from probgen.inference import (
    ELBO,
    SVI,
    CapacityELBO,
    ImportanceWeightedELBO,
    LinearWarmup,
)
from probgen.inference.collapse import collapse_report
from probgen.inference.terms import compute, log_weights, per_datum
from probgen.trees import tree_map

W = np.array([[1.0, 0.5], [-0.3, 0.8], [0.2, -0.6]], np.float32)
C = np.array([0.1, -0.2, 0.3], np.float32)
S = 0.7
X = np.array([[0.3, -1.0, 0.8], [2.0, 0.4, -0.5], [-1.2, 0.1, 0.6]], np.float32)
COV = np.linalg.inv(np.eye(2) + W.T @ W / S**2)
EXACT = stats.multivariate_normal(C, W @ W.T + S**2 * np.eye(3)).logpdf(X)


@pytest.fixture(scope="module")
def b(backend_name):
    """The backend without inductor, whose compilation these short computations do not earn back."""
    options = {"compile": "graph"} if backend_name == "torch" else {}
    return pg.backends.load(backend_name, "cpu", **options)


@pg.model
def story():
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        w = pg.ops.asarray_like(W, z)
        mean = pg.ops.einsum("...i,ji->...j", z, w) + pg.ops.asarray_like(C, z)
        pg.sample("x", dist.Normal(mean, S).to_event(1))


def posterior_mean(x):
    gain = pg.ops.asarray_like((COV @ W.T / S**2).astype(np.float32), x)
    return pg.ops.einsum("...i,ji->...j", x - pg.ops.asarray_like(C, x), gain)


@story.with_guide
def exact(x):
    with pg.data_plate():
        root = pg.ops.asarray_like(np.linalg.cholesky(COV).astype(np.float32), x)
        pg.sample("z", dist.MultivariateNormal(posterior_mean(x), scale_tril=root))


@story.with_guide
def off(x):
    """Off the posterior in mean and scale, and wider, so that weights have a variance."""
    with pg.data_plate():
        pg.sample("z", dist.Normal(posterior_mean(x) + 0.3, 0.8).to_event(1))


@story.with_guide
def learned(x):
    with pg.data_plate():
        loc = pg.net("loc", nets.Parameter((2,), 0.4))()
        scale = pg.ops.exp(pg.net("log_scale", nets.Parameter((2,), -0.2))())
        pg.sample("z", dist.Normal(posterior_mean(x) * 0.5 + loc, scale).to_event(1))


def bound_to(b, model, x, **fields):
    bound, params = bind(model, b, data={"x": x}, seed=0, num_data=len(x), **fields)
    return bound, params, {"x": b.asarray(x)}


def weights(b, model, x, num_particles, seed=0):
    """[K, batch] log importance weights."""
    bound, params, batch = bound_to(b, model, x)

    def draw(params, batch, key):
        terms = compute(bound, params, batch, key, num_particles=num_particles, analytic_kl=False)
        return log_weights(terms)

    return b.to_numpy(b.compile(draw, 8)(params, batch, b.key(seed))).astype(np.float64)


def mean_and_error(values, axis=0):
    values = np.asarray(values, np.float64)
    return values.mean(axis), values.std(axis, ddof=1) / np.sqrt(values.shape[axis])


def gradients(b, model, loss, x, num_keys):
    """Gradients of a loss, one for each key: dict of net -> [num_keys, ...]."""
    bound, params, batch = bound_to(b, model, x)
    state = tree_map(b.asarray, loss.init(bound))

    def value(params, batch, key):
        return loss.loss(bound, params, state, b.asarray(0.0), batch, key)[0]

    both = b.compile(b.value_and_grad(value), 100)
    found = [both(params, batch, b.key(k))[1] for k in range(num_keys)]
    return {n: np.stack([b.to_numpy(g[n]["value"]) for g in found]) for n in found[0]}


# ---- the bounds ----------------------------------------------------------------------------------


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

        key = jax.random.key(0)
        loss = Trace_ELBO(num_particles=3000).loss(key, {}, model, guide, X)
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
    parts = [
        float(b.to_numpy(ELBO().evaluate(bound, params, {"x": batch["x"][i : i + 4]}, key)["elbo"]))
        for i in (0, 4, 8)
    ]
    full = float(b.to_numpy(ELBO().evaluate(bound, params, batch, key)["elbo"]))
    assert np.mean(parts) == pytest.approx(full, rel=1e-5)
    kl = float(b.to_numpy(ELBO().evaluate(bound, params, batch, key)["kl"]))
    exact_kl = np.log(2 / 0.3) + (0.3**2 + 0.25) / (2 * 4) - 0.5
    assert kl == pytest.approx(exact_kl / 12, rel=1e-5)


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


# ---- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_particles", [1, 8])
def test_the_doubly_reparametrised_gradient_is_unbiased(b, num_particles):
    plain = gradients(b, learned, ImportanceWeightedELBO(num_particles), np.tile(X, (400, 1)), 30)
    doubly = ImportanceWeightedELBO(num_particles, doubly_reparametrized=True)
    other = gradients(b, learned, doubly, np.tile(X, (400, 1)), 30)
    for name in ("loc", "log_scale"):
        (one, e1), (two, e2) = mean_and_error(plain[name]), mean_and_error(other[name])
        assert np.all(np.abs(one - two) < 5 * np.hypot(e1, e2))


def test_the_doubly_reparametrised_gradient_has_the_lower_variance(b):
    plain = gradients(b, learned, ImportanceWeightedELBO(64), X, 100)
    doubly = ImportanceWeightedELBO(64, doubly_reparametrized=True)
    other = gradients(b, learned, doubly, X, 100)
    for name in ("loc", "log_scale"):
        assert np.all(other[name].var(0) < 0.5 * plain[name].var(0))


@pg.model
def with_parameters():
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        shift = pg.net("shift", nets.Parameter((2,), 0.2))()
        pg.sample("x", dist.Normal(z + shift, 1.0).to_event(1))


@with_parameters.with_guide
def with_both(x):
    with pg.data_plate():
        loc = pg.net("loc", nets.Parameter((2,), 0.4))()
        pg.sample("z", dist.Normal(0.5 * x + loc, 0.8).to_event(1))


def test_the_models_own_gradient_is_the_plain_one_in_both_estimators(b):
    x = X[:, :2]
    plain = gradients(b, with_both, ImportanceWeightedELBO(6), x, 3)["shift"]
    doubly = ImportanceWeightedELBO(6, doubly_reparametrized=True)
    np.testing.assert_allclose(gradients(b, with_both, doubly, x, 3)["shift"], plain, atol=1e-5)


@pg.model
def switches():
    with pg.data_plate():
        one = pg.sample("one", dist.Bernoulli(probs=0.4)) * 1.0
        two = pg.sample("two", dist.Bernoulli(logits=1.5 * one - 0.5)) * 1.0
        pg.sample("x", dist.Normal(one - 2.0 * two, 0.8))


@switches.with_guide
def switches_guided(x):
    with pg.data_plate():
        two = pg.sample("two", dist.Bernoulli(logits=pg.net("a", nets.Parameter((), 0.3))())) * 1.0
        first = pg.net("c", nets.Parameter((), -0.4))()
        pg.sample("one", dist.Bernoulli(logits=first + 0.7 * two))


def enumerated(beta, x):
    """The gradient of R + beta K by (a, c), by enumeration and central differences, float64."""

    def loss(a, c):
        total = 0.0
        for two in (0, 1):
            for one in (0, 1):
                log_q = stats.bernoulli.logpmf(two, 1 / (1 + np.exp(-a)))
                log_q += stats.bernoulli.logpmf(one, 1 / (1 + np.exp(-c - 0.7 * two)))
                log_p = stats.bernoulli.logpmf(one, 0.4)
                log_p += stats.bernoulli.logpmf(two, 1 / (1 + np.exp(0.5 - 1.5 * one)))
                likelihood = stats.norm.logpdf(x, one - 2.0 * two, 0.8).mean()
                total += np.exp(log_q) * (beta * (log_q - log_p) - likelihood)
        return total

    h = 1e-5
    return (
        (loss(0.3 + h, -0.4) - loss(0.3 - h, -0.4)) / (2 * h),
        (loss(0.3, -0.4 + h) - loss(0.3, -0.4 - h)) / (2 * h),
    )


@pytest.mark.parametrize("analytic_kl", [True, False])
@pytest.mark.parametrize("beta, num_particles", [(1.0, 1), (3.0, 1), (3.0, 4)])
def test_the_score_function_gradient_is_the_exact_one(b, beta, num_particles, analytic_kl):
    x = np.array([0.5, -1.0], np.float32)
    loss = ELBO(num_particles=num_particles, kl_weight=beta, analytic_kl=analytic_kl)
    found = gradients(b, switches_guided, loss, np.tile(x, 6000), 30)
    for name, exact_gradient in zip("ac", enumerated(beta, x), strict=True):
        mean, error = mean_and_error(found[name])
        assert abs(mean - exact_gradient) < 5 * error
        assert error < 0.1 * max(abs(exact_gradient), 0.1)


def test_particles_lower_the_variance_of_the_score_function_gradient(b):
    """Four particles with each other as baselines do better than four times the data."""
    one = gradients(b, switches_guided, ELBO(), np.zeros(800, np.float32), 60)["a"]
    four = gradients(
        b, switches_guided, ELBO(num_particles=4), np.zeros(200, np.float32), 60
    )["a"]  # fmt: skip
    assert four.var() < 0.7 * one.var()


def test_accumulated_parts_give_the_whole_batchs_gradient(b):
    """With a deterministic guide, so that no noise differs; a fit of 5 steps ends alike."""

    @with_parameters.with_guide
    def deterministic(x):
        with pg.data_plate():
            loc = pg.net("loc", nets.Parameter((2,), 0.4))()
            pg.sample("z", dist.Delta(0.5 * x + loc).to_event(1))

    x = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    ends = [
        pg.fit(
            deterministic, x, SVI(ELBO(analytic_kl=False), pg.SGD(0.1)), num_steps=5,
            batch_size=16, seed=0, backend=b, gradient_accumulation=parts, progress_bar=False,
        ).params
        for parts in (1, 4)
    ]  # fmt: skip
    for name in ("loc", "shift"):
        np.testing.assert_allclose(ends[1][name]["value"], ends[0][name]["value"], rtol=1e-5)


# ---- weights on the KL ---------------------------------------------------------------------------


def loss_of(b, model, loss, x, count=0.0, seed=0):
    bound, params, batch = bound_to(b, model, x)

    def value(params, batch, key):
        return loss.loss(bound, params, {}, b.asarray(count), batch, key)

    (total, (_, metrics)), grads = b.compile(b.value_and_grad(value, has_aux=True), 8)(
        params, batch, b.key(seed)
    )
    return float(b.to_numpy(total)), tree_map(b.to_numpy, metrics), tree_map(b.to_numpy, grads)


def test_free_bits_leave_units_below_them_alone(b):
    """sum_j max(K_j, lambda), K_j the batch mean; at its own mean a guide's KL is not pushed."""
    units = loss_of(b, learned, ELBO(), X)[1]["kl_units/z"]
    between = float(units.mean())
    total, metrics, _ = loss_of(b, learned, ELBO(free_bits=between), X)
    expected = np.maximum(units, between).sum() - metrics["log_prob"]
    assert total == pytest.approx(expected, rel=1e-5)
    assert metrics["elbo"] == pytest.approx(metrics["log_prob"] - units.sum(), rel=1e-5)
    # All below: the gradient is that of the reconstruction alone.
    _, _, free = loss_of(b, learned, ELBO(free_bits=100.0), X)
    _, _, alone = loss_of(b, learned, ELBO(kl_weight=0.0), X)
    np.testing.assert_allclose(free["loc"]["value"], alone["loc"]["value"], rtol=1e-4, atol=1e-6)


def test_the_weight_multiplies_the_kl_alone_and_follows_its_schedule(b):
    for loss, count, beta in (
        (ELBO(kl_weight=2.5), 0.0, 2.5),
        (ELBO(kl_weight=LinearWarmup(10)), 4.0, 0.4),
    ):
        total, m, _ = loss_of(b, learned, loss, X, count)
        assert m["kl_weight"] == pytest.approx(beta)
        assert total == pytest.approx(beta * m["kl"] - m["log_prob"], rel=1e-5)


@pytest.mark.parametrize(
    "model, loss, match",
    [
        (exact, ELBO(free_bits=0.1), "does not split"),
        (switches_guided, ELBO(free_bits=0.1), "does not split"),
        (switches_guided, ImportanceWeightedELBO(3), "have no gradient"),
    ],
)
def test_what_a_loss_cannot_do_is_refused(b, model, loss, match):
    x = X if model is exact else X[:, 0]
    with pytest.raises(AlgorithmError, match=match):
        loss_of(b, model, loss, x)


def test_importance_weights_refuse_a_site_outside_the_data_plate(b):
    @pg.model
    def shared():
        pg.factor("penalty", pg.net("w", nets.Parameter(()))() * 1.0)
        with pg.data_plate():
            z = pg.sample("z", dist.Normal(0, 1))
            pg.sample("x", dist.Normal(z, 1.0))

    @shared.with_guide
    def model(x):
        with pg.data_plate():
            pg.sample("z", dist.Normal(0.5 * x, 0.7))

    with pytest.raises(AlgorithmError, match=r"penalty.*outside the data plate"):
        loss_of(b, model, ImportanceWeightedELBO(3), X[:, 0])


def test_the_capacity_loss_pulls_towards_its_capacity_from_both_sides(b):
    """d/dphi gamma |K - C| = +- gamma dK/dphi."""
    _, m, plain = loss_of(b, learned, ELBO(kl_weight=7.0), X)
    for capacity in (100.0, 1e-3):
        loss = CapacityELBO(gamma=7.0, capacity=capacity, num_steps=1)
        total, _, got = loss_of(b, learned, loss, X, count=1.0)
        assert total == pytest.approx(7.0 * abs(m["kl"] - capacity) - m["log_prob"], rel=1e-4)
        _, _, alone = loss_of(b, learned, ELBO(kl_weight=0.0), X)
        sign = 1.0 if m["kl"] > capacity else -1.0
        push = sign * (plain["loc"]["value"] - alone["loc"]["value"])
        np.testing.assert_allclose(got["loc"]["value"], alone["loc"]["value"] + push, rtol=1e-4)


# ---- the report at the end -----------------------------------------------------------------------


def reported(b, model, x, loss=None, history=None, seed=0):
    bound, params, batch = bound_to(b, model, x)
    loss, history = loss or ELBO(), history or History()
    return collapse_report(bound, loss, params, batch, b.key(seed), history)


def drawn(size, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(size, 2))
    return (z @ W.T + C + S * rng.normal(size=(size, 3))).astype(np.float32)


def test_the_information_bounds_hold_the_exact_information(b):
    """At the exact posterior I(x; z) = log det(I + W'W/s^2) / 2 and the KL is the information.

    The lower bound's bias is about (mean importance of an other datum's posterior) / M, below 0.02
    at 1000 data; both estimates have a standard error of about sd / sqrt(1000) = 0.04.
    """
    information = 0.5 * np.linalg.slogdet(np.linalg.inv(COV))[1]
    report = reported(b, exact, drawn(1000))
    low, high = report.information
    assert low <= high + 0.2
    assert high == pytest.approx(information, abs=0.2)
    assert information - 0.2 < low < information + 0.2
    assert report.active_units["z"].all() and not report.warnings
    assert "z" not in report.kl_units  # a full covariance does not split
    assert "information" in report.text() and repr(report) == report.text()


def test_the_information_lower_bound_saturates_at_log_m(b):
    @story.with_guide
    def sharp(x):
        with pg.data_plate():
            pg.sample("z", dist.Normal(x[..., :2], 1e-3).to_event(1))

    low, high = reported(b, sharp, drawn(50)).information
    assert low == pytest.approx(np.log(50), abs=1e-3) and high > 5.0


def test_a_collapsed_code_is_reported_unit_by_unit(b):
    @story.with_guide
    def half(x):
        with pg.data_plate():
            loc = pg.ops.stack([x[..., 0] * 0.5, x[..., 0] * 0.0], axis=-1)
            pg.sample("z", dist.Normal(loc, 1.0).to_event(1))

    x = drawn(500)
    report = reported(b, half, x)
    np.testing.assert_array_equal(report.active_units["z"], [True, False])
    assert report.kl_units["z"][1] == pytest.approx(0.0, abs=1e-6)
    assert report.kl_units["z"][0] == pytest.approx((x[:, 0] ** 2).mean() / 8, rel=1e-3)
    assert report.kl["z"] == pytest.approx(report.kl_units["z"].sum(), rel=1e-5)

    @story.with_guide
    def none(x):
        with pg.data_plate():
            pg.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    report = reported(b, none, x)
    assert not report.active_units["z"].any()
    assert report.information == pytest.approx((0.0, 0.0), abs=1e-5)
    assert any("collapsed" in w for w in report.warnings)


def test_units_far_down_a_hierarchy_are_not_called_active_for_their_noise(b):
    """q(low | x) follows x, q(top | low) follows noise that low adds: only Var_x E[top] counts."""

    @pg.model
    def two_layers():
        with pg.data_plate():
            pg.sample("top", dist.Normal(0, 1).expand([1]).to_event(1))
            low = pg.sample("low", dist.Normal(0, 1).expand([2]).to_event(1))
            pg.sample("x", dist.Normal(low[..., 0], 1.0))

    @two_layers.with_guide
    def model(x):
        with pg.data_plate():
            loc = pg.ops.stack([x, x * 0.0], axis=-1)
            low = pg.sample("low", dist.Normal(loc, 1.2).to_event(1))
            pg.sample("top", dist.Normal(low[..., 1:], 1.0).to_event(1))

    report = reported(b, model, drawn(1000)[:, 0])
    np.testing.assert_array_equal(report.active_units["low"], [True, False])
    assert not report.active_units["top"].any()


def test_a_warm_up_that_did_not_finish_is_reported(b):
    history = History()
    history.extend({"kl_weight": np.linspace(0, 0.2, 20)})
    report = reported(b, off, X, ELBO(kl_weight=LinearWarmup(100)), history)
    assert report.kl_weight == pytest.approx(0.2)
    assert any("warm-up" in w and "0.19 of 1" in w for w in report.warnings)
    done = History()
    done.extend({"kl_weight": np.ones(300)})
    assert not reported(b, off, X, ELBO(kl_weight=LinearWarmup(100)), done).warnings


def test_per_datum_needs_the_size_of_the_data_for_a_global_latent(b):
    @pg.model
    def regression():
        mean = pg.sample("mean", dist.Normal(0, 2))
        with pg.data_plate():
            pg.sample("x", dist.Normal(mean, 1.0))

    @regression.with_guide
    def model():
        pg.sample("mean", dist.Normal(0.5, 0.3))

    bound, params = bind(model, b, data={"x": X[:, 0]}, seed=0)
    terms = compute(bound, params, {"x": b.asarray(X[:, 0])}, b.key(0))
    with pytest.raises(AlgorithmError, match="number of data"):
        per_datum(bound, terms, terms.kl)
