"""Automatic guides: exact where the posterior is in their family, and densities of their draws."""

import numpy as np
import pytest
from arviz_stats import loo
from auto_guide_cases import COV, MEAN, C, Y, bent, regression
from scipy import stats
from scipy.special import logsumexp

import probgen as pg
from probgen import dist
from probgen.engine.bind import bind
from probgen.engine.fitted import Fitted
from probgen.errors import AlgorithmError
from probgen.inference import (
    ELBO,
    IWAE,
    SVI,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    Guide,
)

GUIDES = [AutoNormal(), AutoMultivariateNormal(), AutoLowRankMultivariateNormal(rank=1)]
NAMES = ["normal", "full", "low rank"]


def fitted_to(model, data, b, num_steps=600, **options):
    optimizer = pg.Adam(pg.CosineDecay(0.05, num_steps))
    return pg.fit(model, data, SVI(ELBO(), optimizer), num_steps=num_steps, backend=b, seed=0,
                  progress_bar=False, **options)  # fmt: skip


def exact_params(guide):
    """Parameters at which a joint guide is the posterior N(MEAN, COV) of `regression`."""
    params = {f"guide/{n}/loc": MEAN[i : i + 1] for i, n in enumerate("ab")}
    if isinstance(guide, AutoMultivariateNormal):
        tril = np.linalg.cholesky(COV)
        for i, n in enumerate("ab"):
            params[f"guide/{n}/log_scale"] = np.log(tril[i, i : i + 1])
            params[f"guide/{n}/below"] = (
                tril[i : i + 1, : i + 1] / tril[i, i] * (1 - np.eye(2)[i, : i + 1])
            )
        return params
    w = np.sqrt(-COV[0, 1]) * np.array([1.0, -1.0])
    for i, n in enumerate("ab"):
        start = 0.1 * np.sqrt(0.5) * np.random.default_rng(i).standard_normal((1, 1))
        params[f"guide/{n}/factor"] = w[i] - start
        params[f"guide/{n}/log_scale"] = 0.5 * np.log(COV[i, i] - w[i : i + 1] ** 2)
    return params


@pytest.mark.parametrize("guide", GUIDES[1:], ids=NAMES[1:])
def test_joint_guides_hold_a_correlated_gaussian_posterior(b, guide):
    """There every draw has log p(y, w) - log q(w) = log p(y), and draws have its covariance."""
    params = {n: {"value": v.astype("float32")} for n, v in exact_params(guide).items()}
    draws = pg.infer(
        Fitted(regression.with_guide(guide), params), {"y": Y}, Guide(num_samples=2000), backend=b,
        inputs={"c": C}, seed=1, progress_bar=False,
    )  # fmt: skip
    evidence = stats.multivariate_normal(np.zeros(20), np.eye(20) + C @ C.T).logpdf(Y)
    np.testing.assert_allclose(draws.sample_stats["log_weight"].values, evidence, atol=1e-3)
    found = np.stack([draws.posterior[n].values[0] for n in "ab"], -1)
    assert (np.abs(found.mean(0) - MEAN) < 5 * np.sqrt(np.diag(COV) / 2000)).all()
    # Var of an estimated covariance: (c_ii c_jj + c_ij^2) / n.
    error = np.sqrt((np.outer(np.diag(COV), np.diag(COV)) + COV**2) / 2000)
    assert (np.abs(np.cov(found.T) - COV) < 5 * error).all()


def test_of_shared_latents_evaluate_says_what_else_is_known(b):
    """Data that share latents have no log p(x) each. What the refusal names is right: log p(y), and
    log p(y_i | the others) by arviz of infer's log_likelihood, here in closed form."""
    guide, how = AutoMultivariateNormal(), {"inputs": {"c": C}, "seed": 1, "progress_bar": False}
    params = {n: {"value": v.astype("float32")} for n, v in exact_params(guide).items()}
    fitted = Fitted(regression.with_guide(guide), params)
    for measure in (ELBO(), IWAE(10)):
        with pytest.raises(
            AlgorithmError, match=r"\['a', 'b'\] .* log_likelihood=True\), then arv"
        ):
            pg.evaluate(fitted, {"y": Y}, [measure], backend=b, **how)
    draws = pg.infer(fitted, {"y": Y}, Guide(2000), backend=b, log_likelihood=True, **how)
    weights = draws.sample_stats["log_weight"].values
    evidence = stats.multivariate_normal(np.zeros(20), np.eye(20) + C @ C.T).logpdf(Y)
    assert abs(logsumexp(weights) - np.log(2000) - evidence) < 1e-3
    found = loo(draws, pointwise=True).elpd_i.values
    # y_i | the others is normal, with precision and residual off the inverse of the covariance.
    inverse = np.linalg.inv(np.eye(20) + C @ C.T)
    exact = stats.norm(Y - inverse @ Y / np.diag(inverse), np.diag(inverse) ** -0.5).logpdf(Y)
    # Weights 1 / p(y_i | w) spread by about exp of the pull of y_i: a tenth of a nat is ample.
    np.testing.assert_allclose(found, exact, atol=0.1)


# That SVI finds what a guide can hold is seen of mean field, below.
@pytest.mark.repeated("test_joint_guides_hold_a_correlated_gaussian_posterior")
def test_svi_finds_the_correlated_posterior(b):
    """Within a fifth of its standard deviations, which is the noise of 600 steps of one draw."""
    model = regression.with_guide(AutoMultivariateNormal())
    fitted = fitted_to(model, {"y": Y}, b, inputs={"c": C}, batch_size=None)
    draws = pg.infer(fitted, {"y": Y}, Guide(num_samples=4000), inputs={"c": C}, seed=1,
                     progress_bar=False)  # fmt: skip
    found = np.stack([draws.posterior[n].values[0] for n in "ab"], -1)
    sd = np.sqrt(np.diag(COV))
    assert (np.abs(found.mean(0) - MEAN) < 0.2 * sd).all()
    np.testing.assert_allclose(np.cov(found.T) / np.outer(sd, sd), COV / np.outer(sd, sd), atol=0.3)
    predicted = pg.generate(fitted, 2000, inputs={"c": np.tile(C[:1], (2000, 1))}, seed=2)
    want = np.sqrt(1 + C[0] @ COV @ C[0])
    assert abs(predicted["y"].std() / want - 1) < 0.1
    assert "posterior predictive" in predicted.note


# A low rank is inverted by the same bijections, and its density is that of weights, above.
LOW_RANK = pytest.param(
    GUIDES[2], marks=pytest.mark.repeated("test_joint_guides_hold_a_correlated_gaussian_posterior")
)


@pytest.mark.parametrize("guide", [GUIDES[1], LOW_RANK], ids=NAMES[1:])
def test_density_of_draws_is_that_of_values(b, guide):
    """log q at a guide's own draws is log q of these values given anew, inverted by the bijection;
    q's draws lie in supports that depend on other latents."""
    x = np.zeros(3, "float32")
    bound, params = bind(bent.with_guide(guide), b, data={"x": x, "row": np.arange(3)}, num_data=3)
    rng = np.random.default_rng(0)
    params = {
        n: {"value": b.asarray(0.3 * rng.normal(size=p["value"].shape))} for n, p in params.items()
    }
    rows = {"x": b.asarray(x), "row": b.asarray(np.arange(3))}

    def run(params, rows, key):
        drawn = bound.trace_guide(params, rows, key=key)
        values = {n: s.value for n, s in drawn.items()}
        again = bound.trace_guide(params, rows, latents={n: v + 0.0 for n, v in values.items()})
        model = bound.trace(params, rows, values)
        return values, *({n: s.log_prob for n, s in t.items()} for t in (drawn, again, model))

    values, drawn, again, model = b.tree_map(b.to_numpy, b.compile(run)(params, rows, b.key(1)))
    assert set(values) == {"rate", "top", "low", "share", "z"}
    assert 0 < float(values["low"]) < float(values["top"])
    for name, log_q in drawn.items():
        np.testing.assert_allclose(again[name], log_q, atol=2e-4, err_msg=name)
    assert again["z"].shape == (3,)
    assert all(np.isfinite(log_p).all() for log_p in model.values())


def test_mean_field_of_a_positive_latent_is_lognormal(b):
    @pg.model
    def positive():
        with pg.data_plate():
            pg.sample("x", dist.Normal(0.0, pg.sample("s", dist.HalfNormal(1.0))))

    @pg.model
    def outside():
        s = pg.sample("s", dist.HalfNormal(1.0))
        with pg.data_plate():
            pg.sample("x", dist.Normal(0.0, s))

    bound, params = bind(outside.with_guide(AutoNormal(init_scale=0.5)), b, data={"x": Y})
    got = bound.trace_guide(params, {"x": b.asarray(Y)}, latents={"s": b.asarray(1.7)})["s"]
    want = stats.lognorm(0.5).logpdf(1.7)
    np.testing.assert_allclose(b.to_numpy(got.log_prob), want, rtol=1e-5)
    with pytest.raises(AlgorithmError, match=r"inputs=\{'row': np.arange\(n\)\}"):
        bind(positive.with_guide(AutoNormal()), b, data={"x": Y})


def test_latents_of_single_data_have_parameters_of_their_own(b):
    """z_n ~ N(0, 1), x_n ~ N(z_n, 1): q(z_n) = N(x_n / 2, 1 / 2), from minibatches."""

    @pg.model
    def local():
        with pg.data_plate():
            pg.sample("x", dist.Normal(pg.sample("z", dist.Normal(0, 1)), 1.0))

    fitted = fitted_to(local.with_guide(AutoNormal()), Y, b, num_steps=800, batch_size=10)
    loc, scale = (fitted.params[f"guide/z/{k}"]["value"] for k in ("loc", "log_scale"))
    np.testing.assert_allclose(loc, Y / 2, atol=0.1)
    np.testing.assert_allclose(np.exp(scale), np.sqrt(0.5), atol=0.1)
    bounds = pg.evaluate(fitted, Y, [ELBO(200)], inputs={"row": np.arange(20)}, seed=0)
    found = bounds["ELBO(200)"]
    exact = stats.norm(0, np.sqrt(2)).logpdf(Y)
    assert (np.abs(found["estimate"].values - exact) < 0.05).all()


def test_what_has_no_automatic_guide_is_refused_in_words(b):
    @pg.model
    def discrete():
        with pg.data_plate():
            pg.sample("x", dist.Normal(pg.sample("k", dist.Poisson(0.5)), 1.0))

    with pytest.raises(AlgorithmError, match="latent 'k' of 'discrete' is discrete"):
        bind(discrete.with_guide(AutoNormal()), b, data={"x": Y}, num_data=20)
