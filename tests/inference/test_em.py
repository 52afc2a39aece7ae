"""EM against maximum likelihood in closed form, and what it keeps for each datum."""

import warnings

import numpy as np
import pytest
from fit_cases import assert_same_bits, leaves
from learner_cases import factor_data, factor_model, ppca
from sklearn.datasets import load_iris
from sklearn.mixture import GaussianMixture as mixture_of_sklearn

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.codes import codes
from probgen.errors import AlgorithmError, DataError, ShapeError
from probgen.inference import ELBO, EM, SVI, Enumerate, Langevin
from probgen.models import GaussianMixture

CHAINS = Langevin(0.3, num_steps=4, metropolis=True)


def fit(b, model, data, algorithm, **options):
    options = {"seed": 0, "backend": b, "progress_bar": False, **options}
    return pg.fit(model, data, algorithm, **options)


# ---- chains ----


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


# What the chains of all data teach is there by a closed M-step, and here by gradients.
@pytest.mark.repeated(
    "test_em_gaussian.py::test_a_closed_m_step_after_chains_moves_about_the_maximum"
)
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
    said = fitted.report.text()
    assert "MALA, 4 steps of 0.3, " in said and "one chain a datum, kept from one visit" in said


def test_em_stopped_and_resumed_is_the_uninterrupted_run(b, tmp_path):
    x, algorithm = factor_data(60), EM(CHAINS, pg.Adam(1e-2), num_m_steps=2)
    options = {"batch_size": 10, "checkpoint_every": 3}
    fit(b, factor_model(), x, algorithm, num_steps=3, checkpoint=tmp_path, **options)
    resumed = fit(b, factor_model(), x, algorithm, num_steps=9, checkpoint=tmp_path, **options)
    whole = fit(b, factor_model(), x, algorithm, num_steps=9, **options)
    assert_same_bits(whole.params, resumed.params)
    assert_same_bits(whole.extras, resumed.extras)
    for name in whole.history:
        np.testing.assert_array_equal(whole.history[name], resumed.history[name])


def test_a_chain_starts_at_its_first_visit_and_goes_on_with_a_fitted_model(b):
    x, algorithm = factor_data(60), EM(CHAINS, pg.Adam(1e-2), num_m_steps=2)
    first = fit(b, factor_model(), x, algorithm, num_steps=3, batch_size=10)
    assert first.extras["visited"].sum() == 30
    assert (first.extras["chains"]["z"] != 0).sum() == 30
    said = first.report.text()
    assert "MALA, 4 steps of 0.3, " in said and "one chain a datum, kept from one visit" in said
    again = fit(b, first, x, algorithm, num_steps=3, batch_size=10)
    moved = again.extras["chains"]["z"] != first.extras["chains"]["z"]
    assert 15 < moved.sum() <= 30 and again.extras["visited"].sum() >= 30
    with pytest.raises(ShapeError, match=r"extras\['chains'\].*\[60, 1\], expected f.30, 1"):
        fit(b, first, x[:30], algorithm, num_steps=1, batch_size=10)


# ---- exact ----


def iris(covariance):
    """(data, the declaration, its start, scikit-learn's mixture from the same start)."""
    x = load_iris().data.astype("float32")
    mixture = GaussianMixture(3, 4, covariance=covariance)
    start = mixture.start(x, seed=1)
    cov = np.cov(x.T, bias=True) + 1e-6 * np.eye(4)
    one = {"full": np.linalg.inv(cov), "diagonal": 1 / np.diag(cov)}[covariance]
    theirs = mixture_of_sklearn(
        3, covariance_type={"full": "full", "diagonal": "diag"}[covariance], tol=0, max_iter=20,
        weights_init=np.ones(3) / 3, means_init=start["means"]["table"], precisions_init=[one] * 3,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged
        return x, mixture, start, theirs.fit(x)


# A diagonal covariance is held to scikit-learn's numbers below, and by a gradient step.
DIAGONAL = pytest.param(
    "diagonal", marks=pytest.mark.repeated("test_what_is_summed_out_is_known_after_a_fit")
)


@pytest.mark.parametrize("covariance", ["full", DIAGONAL])
def test_exact_em_is_scikit_learns_on_iris_and_never_falls(b, covariance):
    x, mixture, start, theirs = iris(covariance)
    options = {"init": start, "batch_size": None, "num_steps": 20}
    fitted = fit(b, mixture, x, EM(Enumerate()), validation=x, eval_every=20, **options)
    found = fitted.params
    np.testing.assert_allclose(np.exp(found["weights"]["value"]), theirs.weights_, atol=1e-3)
    np.testing.assert_allclose(found["means"]["table"], theirs.means_, atol=1e-3)
    curve = fitted.history["log_likelihood"]
    assert (np.diff(curve) > -1e-6 * np.abs(curve[1:])).all() and curve[-1] > curve[0] + 1
    parts = fitted.history["log_joint"] + fitted.history["entropy"]
    np.testing.assert_allclose(parts, curve, rtol=1e-5)
    held_out = fitted.history.validation["log_likelihood"][-1]
    np.testing.assert_allclose(held_out, theirs.score(x), rtol=1e-4)
    assert "the exact posterior of 'z', over 3 values" in fitted.report.text()


def test_what_is_summed_out_is_known_after_a_fit(b):
    """log p(x), the shares of the components and the mean of x: scikit-learn's."""
    x, mixture, _, theirs = iris("diagonal")
    covs = [np.diag(v) for v in theirs.covariances_]
    fitted = pg.Fitted(mixture, mixture.params_of(theirs.weights_, theirs.means_, covs))
    scores = pg.evaluate(fitted, x, [ELBO()], seed=0, backend=b)["ELBO(1)"]["estimate"]
    np.testing.assert_allclose(scores, theirs.score_samples(x), rtol=1e-4, atol=1e-4)
    shares = codes(fitted, b, x, None, is_back=False)["z"]
    np.testing.assert_allclose(shares, theirs.predict_proba(x), atol=1e-4)
    means = codes(fitted, b, x, None, is_back=True)["x"]
    np.testing.assert_allclose(means, shares @ theirs.means_, rtol=1e-5)


def test_a_gradient_m_step_climbs_the_likelihood_itself(b):
    """Fisher's identity: one such step is one step of maximum likelihood, z summed out."""
    x, mixture, start, _ = iris("diagonal")
    options = {"init": start, "batch_size": 50, "num_steps": 1}
    em = fit(b, mixture, x, EM(Enumerate(), pg.SGD(1e-2), m_step="gradient"), **options)
    svi = fit(b, mixture, x, SVI(ELBO(), pg.SGD(1e-2)), **options)
    for name, value in leaves(svi.params).items():
        np.testing.assert_allclose(leaves(em.params)[name], value, rtol=1e-4, atol=1e-6)
        assert (leaves(start)[name] != value).any()


@pg.model
def coins():
    log_odds = pg.net("log_odds", nets.Parameter((2,)))()
    with pg.data_plate():
        z = pg.sample("z", dist.Categorical(probs=np.array([0.5, 0.5])))
        pg.sample("x", dist.Binomial(total_count=10, logits=log_odds[z]))


def test_many_m_steps_at_one_e_step_are_the_published_first_iteration(b):
    """0.71 and 0.58 of heads after one M-step from 0.6 and 0.5. Do & Batzoglou 2008, figure 1."""
    init = {"log_odds": {"value": np.log(np.float32([0.6 / 0.4, 1.0]))}}
    em = EM(Enumerate(), pg.SGD(0.3), num_m_steps=60)
    heads = np.float32([5, 9, 8, 4, 7])
    fitted = fit(b, coins, heads, em, init=init, batch_size=None, num_steps=1)
    p = 1 / (1 + np.exp(-fitted.params["log_odds"]["value"]))
    np.testing.assert_allclose(p, [0.71, 0.58], atol=6e-3)


@pg.model
def hidden_markov():
    start, move = (pg.net(n, nets.Parameter(s))() for n, s in (("start", (2,)), ("move", (2, 2))))
    level = pg.net("level", nets.Embedding(2, 1))

    def step(logits, _):
        z = pg.sample("z", dist.Categorical(logits=logits))
        pg.sample("x", dist.Normal(level(z)[..., 0], 0.5))
        return ops.take(move, z), None

    with pg.data_plate():
        pg.scan("t", step, start, length=5)


def baum_welch(params, batch, latents, weights):
    """The M-step of a hidden Markov model in closed form. Rabiner 1989, section III C."""
    z = ops.one_hot(latents["z"], 2, weights)  # [C, n, T, 2]
    pairs = ops.einsum("cn,cnti,cntj->ij", weights, z[:, :, :-1], z[:, :, 1:])
    share = ops.einsum("cn,cntk->ntk", weights, z)
    level = ops.einsum("ntk,nt->k", share, batch["x"]) / ops.sum(share, axis=(0, 1))
    return {
        "start": {"value": ops.log(ops.mean(share[:, 0], axis=0))},
        "move": {"value": ops.log(pairs / ops.sum(pairs, axis=1)[:, None])},
        "level": {"table": level[:, None]},
    }


def test_baum_welch_as_an_m_step_of_ones_own_never_falls(b):
    rng = np.random.default_rng(0)
    z = np.cumsum(rng.random((60, 5)) < 0.2, axis=1) % 2
    x = (2.0 * z + 0.5 * rng.normal(size=z.shape)).astype("float32")
    init = {"level": {"table": np.float32([[0.5], [1.0]])}}
    em = EM(Enumerate(), m_step=baum_welch)
    fitted = fit(b, hidden_markov, x, em, init=init, batch_size=None, num_steps=25)
    assert (np.diff(fitted.history["log_likelihood"]) > -1e-5).all()
    np.testing.assert_allclose(fitted.params["level"]["table"][:, 0], [0, 2], atol=0.15)
    move = np.exp(fitted.params["move"]["value"])
    np.testing.assert_allclose(move, [[0.8, 0.2], [0.2, 0.8]], atol=0.12)


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


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 2}, "batches of 2 of 4 data, expected all of them at once .* batch_size=N"),
        ({"batch_size": None, "freeze": ("means",)}, "nets .'means'. are frozen, expected all fr"),
    ],
)
def test_a_closed_m_step_wants_all_data_and_all_nets(b, options, match):
    with pytest.raises(AlgorithmError, match=match):
        fit(b, GaussianMixture(2, 3), factor_data(4), EM(Enumerate()), num_steps=1, **options)


def test_a_mixture_starts_at_data():
    mixture = GaussianMixture(3, 3)
    x = factor_data(20)
    start = mixture.start(x, seed=0)
    assert all((x == m).all(1).any() for m in start["means"]["table"])
    with pytest.raises(DataError, match=r"shape \(2, 3\), expected .n, 3. with at least 3 rows"):
        mixture.start(x[:2], seed=0)


@pg.model
def left_to_right():
    """What z = 1 forbids has density 0 there."""
    s = pg.net("s", nets.Parameter((1,)))()
    with pg.data_plate():
        z = pg.sample("z", dist.Categorical(probs=np.array([0.5, 0.5])))
        y = pg.sample("y", dist.Bernoulli(probs=ops.where(z > 0, 1.0, 0.5)))
        pg.sample("x", dist.Normal(1.0 * (z + y) + s[0], 1.0))


def test_what_is_impossible_has_no_share_in_an_m_step(b):
    """The mean of x - y - E z is climbed to, where half of the data leave z no choice."""
    rng = np.random.default_rng(0)
    z = rng.integers(0, 2, 200)
    y = np.maximum(z, rng.integers(0, 2, 200)).astype(np.float32)
    x = (z + y + 0.7 + rng.normal(size=200)).astype(np.float32)
    fit = pg.fit(
        left_to_right, {"x": x, "y": y}, EM(Enumerate(), pg.Adam(0.1)), num_steps=60,
        batch_size=200, seed=0, backend=b, progress_bar=False,
    )  # fmt: skip
    assert np.isfinite(fit.history["loss"]).all()
    assert abs(fit.params["s"]["value"][0] - 0.7) < 4 * 1.2 / 200**0.5
