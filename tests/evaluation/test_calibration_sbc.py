"""Simulation-based calibration accepts the right sampler and rejects four wrong ones."""

import numpy as np
import pytest

import probgen as pg
from probgen import dist
from probgen.errors import (
    AlgorithmError,
    DataError,
    DeclarationError,
    MissingSeed,
    NonFiniteError,
    ShapeError,
    UnknownName,
)
from probgen.evaluation.calibration import Guide, sbc, sbc_from, vsbc
from probgen.evaluation.calibration.thinning import lag_one, thinning_from
from probgen.inference import NUTS

NUM_DATA = 5


# ---- numpy: theta ~ N(0, 1), y_i ~ N(theta, 1)


def prior(rng):
    return rng.normal()


def simulate(rng, theta):
    return theta + rng.normal(size=NUM_DATA)


def exact(rng, y, num_draws, scale=1.0, prior_weight=1):
    precision = prior_weight + len(y)
    return y.sum() / precision + scale * rng.normal(size=num_draws) / np.sqrt(precision)


def log_likelihood(theta, y):
    return -0.5 * ((y - theta) ** 2).sum()


def langevin(rng, y, num_draws, metropolis, step=0.15):
    """A chain of MALA or ULA on the posterior, started at a draw of it; large steps."""

    def log_p(t):
        return -0.5 * t**2 - 0.5 * ((y - t) ** 2).sum()

    def grad(t):
        return -t + (y - t).sum()

    x, out = exact(rng, y, 1)[0], np.empty(num_draws)
    noise, accept = rng.normal(size=num_draws), np.log(rng.random(num_draws))
    for i in range(num_draws):
        new = x + step * grad(x) + np.sqrt(2 * step) * noise[i]
        back = (x - new - step * grad(new)) ** 2 - (new - x - step * grad(x)) ** 2
        if not metropolis or accept[i] < log_p(new) - log_p(x) - back / (4 * step):
            x = new
        out[i] = x
    return out


def run(method, **options):
    settings = {"num_simulations": 300, "seed": 0, "quantities": {"ll": log_likelihood}}
    return sbc_from(prior, simulate, method, **{**settings, **options})


def test_the_right_posterior_is_accepted():
    result = run(exact)
    assert result.adjusted.min() > 0.001 and result.accepted
    assert result.names == ("theta", "ll") and result.ranks.shape == (300, 2)


@pytest.mark.parametrize(
    "method",
    [
        lambda rng, y, n: exact(rng, y, n, scale=0.8),
        lambda rng, y, n: exact(rng, y, n, prior_weight=3),  # the prior used three times
    ],
)
def test_a_wrong_posterior_is_rejected(method):
    assert "theta" in run(method, num_simulations=600).rejected


def test_the_prior_used_twice_is_rejected():
    """With one datum: sd 1/sqrt(3) for 1/sqrt(2), and pulled to zero."""
    result = sbc_from(
        prior, lambda rng, t: t + rng.normal(size=1), lambda r, y, n: exact(r, y, n, 1.0, 2),
        quantities={"ll": log_likelihood}, num_simulations=1000, seed=0,
    )  # fmt: skip
    assert result.rejected


def test_only_a_quantity_that_looks_at_the_data_sees_that_they_are_ignored():
    result = run(lambda rng, y, num: rng.normal(size=num))
    assert result.rejected == ("ll",)
    blind = run(lambda rng, y, num: rng.normal(size=num), quantities=None)
    assert blind.accepted


def test_a_missing_accept_step_is_rejected_and_correlated_draws_are_thinned():
    right = run(lambda r, y, n: langevin(r, y, n, True), thinning="auto", num_simulations=200)
    assert right.adjusted.min() > 0.001 and right.thinning > 1
    assert right.autocorrelation.max() < 0.15
    wrong = run(lambda r, y, n: langevin(r, y, n, False), thinning="auto", num_simulations=200)
    assert "theta" in wrong.rejected


def test_unthinned_chains_raise_a_false_alarm_that_is_explained():
    def slow(r, y, n):
        return langevin(r, y, n, True, step=0.004)

    result = run(slow, thinning=1, num_simulations=200, num_draws=49)
    assert result.rejected and result.autocorrelation.max() > 0.5
    assert "thin further" in result.verdict()


def stuck(rng, y, num_draws):
    """A chain that rejects everything, from a draw of the posterior: each draw is right."""
    return np.repeat(exact(rng, y, 1), num_draws)


def test_chains_that_never_move_teach_no_thinning_and_are_said_to():
    with pytest.raises(DataError, match="never move in at least half of 10 pilot"):
        run(stuck, thinning="auto")
    result = run(stuck, num_simulations=40)
    assert (result.still == 1.0).all() and np.isnan(result.autocorrelation).all()
    assert "Some chains never move (theta in 100.0%, ll in 100.0%" in result.verdict()
    assert (result.to_pandas()["still"] == 1.0).all()


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_a_chain_that_sticks_now_and_then_is_counted(share):
    def sticky(rng, y, num_draws):
        return (stuck if rng.random() < share else exact)(rng, y, num_draws)

    result = run(sticky, num_simulations=400)
    assert abs(result.still[0] - share) < 4 * np.sqrt(share * (1 - share) / 400)
    assert abs(result.autocorrelation[0]) < 0.02  # of the chains that move
    assert f"theta in {result.still[0]:.1%}" in result.verdict()
    assert "never move" not in run(exact, num_simulations=40).verdict()


def test_of_a_chain_that_never_moves_there_is_no_autocorrelation():
    """Also where the mean of equal numbers is not that number, by rounding."""
    moving = np.random.default_rng(0).normal(size=(1, 99))
    for value in (0.0, 0.1, 1e9 / 3):
        still = np.full((1, 99), value)
        assert np.isnan(lag_one(still))
        assert lag_one(np.concatenate([moving, still])) == lag_one(moving)


def test_thinning_is_the_autocorrelation_time():
    """AR(1) with phi: time (1 + phi) / (1 - phi), lag-1 autocorrelation phi."""
    rng, phi = np.random.default_rng(0), 0.8
    x = rng.normal(size=(40, 1, 2000))
    for t in range(1, 2000):
        x[..., t] = phi * x[..., t - 1] + np.sqrt(1 - phi**2) * x[..., t]
    assert abs(thinning_from([{"x": v} for v in x]) - 9) <= 1
    assert abs(np.mean([lag_one(v[:, :100]) for v in x]) - phi) < 0.05
    white = rng.normal(size=(40, 1, 99))
    assert thinning_from([{"x": v} for v in white]) == 1
    # What never moves has no time of its own, and leaves that of the others alone.
    pilots = [{"x": v, "certain": np.full((1, 2000), 0.1)} for v in x]
    assert thinning_from(pilots) == thinning_from([{"x": v} for v in x])
    assert abs(np.mean([lag_one(v) for v in white])) < 4 * 0.1 / np.sqrt(40)


# ---- models


@pg.model
def normal():
    mu = pg.sample("mu", dist.Normal(0.0, 1.0))
    with pg.data_plate():
        pg.sample("x", dist.Normal(mu, 1.0))


def closed_form(data, num_draws, seed):
    rng = np.random.default_rng(seed)
    return {"mu": exact(rng, data["x"].astype(np.float64), num_draws)}


def ignoring(data, num_draws, seed):
    return {"mu": np.random.default_rng(seed).normal(size=num_draws)}


# A method that ignores the data is rejected by the same ranks above, in numpy.
@pytest.mark.repeated("test_inputs_and_vectors_take_part")
def test_a_models_closed_form_is_accepted_and_its_prior_is_not(b):
    options = {"num_data": NUM_DATA, "num_simulations": 200, "seed": 1, "backend": b, "thinning": 1}
    right = sbc(normal, closed_form, **options)
    assert right.names == ("mu", "log likelihood", "log joint")
    assert right.adjusted.min() > 0.001
    wrong = sbc(normal, ignoring, **options)
    assert set(wrong.rejected) == {"log likelihood", "log joint"}


@pg.model
def regression(covariates):
    weights = pg.sample("weights", dist.Normal(0, 1).expand([2]).to_event(1))
    pg.deterministic("double", 2 * weights)
    with pg.data_plate():
        pg.sample("y", dist.Normal(covariates @ weights, 0.5))


C = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)


def test_inputs_and_vectors_take_part(b):
    """The ranks are those of the closed form only if covariates and data reach the right places."""
    cov = np.linalg.inv(np.eye(2) + 4 * C.T @ C)
    densities = []

    def posterior(data, num_draws, seed):
        mean = 4 * cov @ C.T @ data["y"]
        return {"weights": np.random.default_rng(seed).multivariate_normal(mean, cov, num_draws)}

    def log_p(theta, data):
        """By hand; ranks of the built-in log likelihood must be the same."""
        densities.append(1)
        return -2.0 * ((data["y"] - C @ theta["weights"]) ** 2).sum()

    result = sbc(
        regression, posterior, observed=("y",), num_data=6, inputs={"covariates": C},
        quantities={"by hand": log_p}, num_simulations=60, num_draws=39, thinning=1, seed=2,
        backend=b,
    )  # fmt: skip
    assert result.names[:2] == ("weights[0]", "weights[1]")
    assert result.adjusted.min() > 0.001 and densities
    ours, theirs = (result.ranks[:, result.names.index(n)] for n in ("log likelihood", "by hand"))
    assert abs(ours - theirs).max() <= 1  # float32 against float64


@pg.model
def coins():
    p = pg.sample("p", dist.Beta(0.7, 1.5))
    with pg.data_plate():
        pg.sample("heads", dist.Binomial(3, probs=p))


@pytest.mark.slow
def test_nuts_is_calibrated():
    """A Beta's Jacobian takes part. Of another bounded law asks `*_side_by_side.py`, on both."""
    jax = pytest.importorskip("jax") and pg.backends.load("jax", "cpu")
    method = NUTS(num_warmup=100, num_chains=1)
    result = sbc(
        coins,
        method,
        observed=("heads",),
        num_data=2,
        num_simulations=40,
        num_draws=49,
        thinning=4,
        seed=3,
        backend=jax,
    )
    assert result.adjusted.min() > 0.001, result
    assert result.autocorrelation.max() < 0.15


@pytest.mark.slow
def test_a_sampler_of_pyro_is_calibrated_too():
    pytest.importorskip("pyro")
    small = pg.backends.load("torch", "cpu", compile="graph")
    method = NUTS(num_warmup=20, num_chains=1, max_tree_depth=4)
    result = sbc(
        normal, method, num_data=2, num_simulations=20, num_draws=9, thinning=2, seed=4,
        backend=small,
    )  # fmt: skip
    assert result.ranks.shape == (20, 3) and result.adjusted.min() > 0.001


@pg.model
def local():
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0.0, 1.0))
        pg.sample("x", dist.Normal(z, 0.5))


def guided(shift):
    """z | x ~ N(0.8 x, 0.2), spoilt."""

    def guide(x):
        with pg.data_plate():
            pg.sample("z", dist.Normal(0.8 * x + shift, 0.2**0.5))

    return local.with_guide(guide)


def test_guides_are_judged(b):
    options = {"num_data": 2, "num_simulations": 150, "seed": 5, "backend": b}
    right = sbc(guided(0.0), Guide(), **options)
    assert right.adjusted.min() > 0.001 and right.names[:2] == ("z[0]", "z[1]")
    assert not vsbc(right).biased
    wrong = sbc(guided(-0.4), Guide(), **options)
    assert not wrong.accepted
    low = vsbc(wrong)
    assert low.biased == ("z[0]", "z[1]")  # the densities are left out
    assert all(r.bias > 5 * r.bias_error for r in low.results)


def test_the_same_seed_gives_the_same_ranks(b):
    options = {"num_data": 2, "num_simulations": 20, "num_draws": 9, "backend": b}
    first, second, other = (sbc(guided(0.0), Guide(), **options, seed=s).ranks for s in (6, 6, 7))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


@pg.model
def tilted():
    z = pg.sample("z", dist.Normal(0.0, 1.0))
    pg.factor("energy", -(z**4))
    with pg.data_plate():
        pg.sample("x", dist.Normal(z, 1.0))


@pg.model
def answers():
    mu = pg.sample("mu", dist.Normal(0.0, 1.0))
    with pg.data_plate():
        pg.sample("y", dist.Normal(mu, 1.0))


def nan_draws(data, num_draws, seed):
    return {"mu": np.full(num_draws, np.nan)}


@pytest.mark.parametrize(
    ("model", "method", "options", "kind", "words"),
    [
        (normal, closed_form, {"seed": None}, MissingSeed, "got no seed"),
        (normal, closed_form, {"seed": -1}, MissingSeed, "seed=-1"),
        (normal, "nuts", {}, DeclarationError, "expected NUTS"),
        (normal, closed_form, {"num_simulations": 5}, DeclarationError, "at least 20"),
        (normal, closed_form, {"thinning": 0}, DeclarationError, "thinning=0"),
        (normal, closed_form, {"observed": ("y",)}, UnknownName, "'mu', 'x'"),
        (
            normal,
            closed_form,
            {"observed": "x"},
            DeclarationError,
            "observed='x', expected a tuple",
        ),
        (normal, closed_form, {"observed": ("mu", "x")}, AlgorithmError, "at least one latent"),
        (normal, lambda d, n, s: {"nu": 0}, {}, AlgorithmError, "draws of"),
        (normal, lambda d, n, s: {"mu": np.zeros(3)}, {}, ShapeError, "at least 9"),
        (normal, lambda d, n, s: {"mu": np.zeros((n, 2))}, {}, ShapeError, "one value for each"),
        (normal, nan_draws, {}, NonFiniteError, "'mu'"),
        (normal, Guide(), {}, AlgorithmError, "no guide"),
        (tilted, closed_form, {}, AlgorithmError, "no prior draws"),
        (prior, closed_form, {}, DeclarationError, "@pg.model"),
        # What the user did not say is not quoted, and hides no other fault.
        (
            answers,
            NUTS(),
            {},
            UnknownName,
            r"no observed=, and 'answers' has no site 'x'.*\('y',\)",
        ),
        (answers, NUTS(), {"num_simulations": 5}, DeclarationError, "num_simulations=5"),
        (answers, NUTS(), {"num_draws": True}, DeclarationError, "num_draws=True"),
        (answers, NUTS(), {"alpha": 2.0}, DeclarationError, "alpha=2.0"),
        (answers, NUTS, {}, DeclarationError, "it is a class: call it"),
        (answers, NUTS(), {"quantities": {"t": 3}}, DeclarationError, "quantities="),
    ],
)
def test_what_cannot_be_calibrated_is_refused(model, method, options, kind, words):
    pytest.importorskip("jax")
    settings = {"num_simulations": 20, "num_draws": 9, "thinning": 1, "seed": 0, "backend": "jax"}
    with pytest.raises(kind, match=words):
        sbc(model, method, **{**settings, **options})


def test_draws_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match="expected \\(9,\\)"):
        run(lambda rng, y, num: np.zeros(3), num_simulations=20, num_draws=9)
    with pytest.raises(MissingSeed):
        run(exact, seed=None)
