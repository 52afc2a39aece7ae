"""Gradients of the bounds, and weights on their KL: against enumeration and closed forms."""

import numpy as np
import pytest
from elbo_cases import (
    X,
    bound_to,
    exact,
    gradients,
    learned,
    mean_and_error,
)
from scipy import stats

import probgen as pg
from probgen import dist, nets
from probgen.errors import AlgorithmError
from probgen.inference import (
    ELBO,
    SVI,
    CapacityELBO,
    ImportanceWeightedELBO,
    LinearWarmup,
)
from probgen.trees import tree_map

# ---- gradients -----------------------------------------------------------------------------------


def test_the_doubly_reparametrised_gradient_is_unbiased_and_of_lower_variance(b):
    x = np.tile(X, (100, 1))
    plain = gradients(b, learned, ImportanceWeightedELBO(32), x, 60)
    doubly = ImportanceWeightedELBO(32, doubly_reparametrized=True)
    other = gradients(b, learned, doubly, x, 60)
    for name in ("loc", "log_scale"):
        (one, e1), (two, e2) = mean_and_error(plain[name]), mean_and_error(other[name])
        assert np.all(np.abs(one - two) < 5 * np.hypot(e1, e2))
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


@pytest.mark.parametrize("beta, num_particles, analytic_kl", [(3.0, 1, True), (3.0, 4, False)])
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


@pytest.mark.repeated("test_fit.py::test_accumulated_parts_give_the_gradient_of_the_whole_batch")
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
