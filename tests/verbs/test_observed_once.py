"""A site outside the data plate is observed by one value of its event shape, by every verb."""

import numpy as np
import pytest
from scipy import stats

import probgen as pg
from probgen import dist, nets, ops
from probgen.errors import AlgorithmError, ShapeError
from probgen.inference import ELBO, IWAE, SVI, AutoNormal, Guide
from probgen.inference.ood import Typicality

X = np.linspace(-1, 1, 6).astype("float32")
Y = np.random.default_rng(0).normal(1.0, 2.0, 6).astype("float32")


@pg.model
def series(x):
    """y = a x + noise as one vector, its scale learned: nothing is counted twice."""
    a = pg.sample("a", dist.Normal(0.0, 1.0))
    scale = ops.exp(pg.net("log_scale", nets.Parameter())())
    pg.sample("y", dist.Normal(a * x, scale).to_event(1))


# A step of SVI goes up the bound, which is held at a point below, and the evidence exactly.
@pytest.mark.repeated("test_a_program_without_data_plate_observes_all_data_as_one_value")
def test_svi_of_one_observed_vector(b):
    """q(a) is the posterior at the fitted scale, which maximises the evidence of the vector."""
    fitted = pg.fit(
        series.with_guide(AutoNormal()), {"y": Y}, SVI(ELBO(), pg.Adam(pg.CosineDecay(0.05, 500))),
        num_steps=500, inputs={"x": X}, backend=b, seed=0, progress_bar=False,
    )  # fmt: skip
    scale = float(np.exp(fitted.params["log_scale"]["value"]))

    def evidence(s):
        return stats.multivariate_normal(np.zeros(6), np.outer(X, X) + s**2 * np.eye(6)).logpdf(Y)

    grid = np.linspace(0.5, 5, 400)
    assert abs(scale / grid[np.argmax([evidence(s) for s in grid])] - 1) < 0.1
    precision = 1 + X @ X / scale**2
    loc, sd = (fitted.params[f"guide/a/{k}"]["value"] for k in ("loc", "log_scale"))
    assert abs(loc - X @ Y / scale**2 / precision) < 0.25 / np.sqrt(precision)
    assert abs(np.exp(sd) * np.sqrt(precision) - 1) < 0.15
    draws = pg.infer(fitted, {"y": Y}, Guide(50), seed=0, progress_bar=False)
    assert draws.posterior["a"].shape == (1, 50)


def test_another_shape_than_the_events_is_refused(b):
    for wrong in (Y[None], Y[:3]):
        with pytest.raises(ShapeError, match=r"expected \(6,\)"):
            pg.fit(series.with_guide(AutoNormal()), {"y": wrong}, SVI(ELBO()), num_steps=1,
                   inputs={"x": X}, backend=b, seed=0)  # fmt: skip


def guide():
    pg.sample("mu", dist.Normal(pg.net("a", nets.Parameter())(), 0.5))


def in_rows():
    mu = pg.sample("mu", dist.Normal(0, 10))
    with pg.data_plate():
        pg.sample("x", dist.Normal(mu, 2.0))


def as_one_event():
    mu = pg.sample("mu", dist.Normal(0, 10))
    pg.sample("x", dist.Normal(mu, 2.0).expand([6]).to_event(1))


def bare():
    pg.sample("x", dist.Normal(pg.sample("mu", dist.Normal(0, 10)), 2.0))


def test_a_program_without_data_plate_observes_all_data_as_one_value(b):
    """The bound of the whole is N times that of a datum; a site of another shape is refused. Plates
    of their own have `test_where_sites_stand.py`."""

    def bound_of(program):
        model, options = pg.model(program).with_guide(guide), {"num_steps": 1, "seed": 0}
        fitted = pg.fit(model, Y, SVI(ELBO()), backend=b, progress_bar=False, **options)
        return fitted.history["elbo"]

    each = bound_of(in_rows)
    np.testing.assert_allclose(bound_of(as_one_event), 6 * each, rtol=1e-5)
    with pytest.raises(ShapeError, match=r"expected \(\), since the site stands outside"):
        bound_of(bare)


KERNEL = np.exp(-0.5 * np.subtract.outer(X, X) ** 2)
COV = KERNEL + 0.25 * np.eye(6)
EVIDENCE = stats.multivariate_normal(np.zeros(6), COV + np.outer(X, X))


@pg.model
def process(x):
    """A Gaussian process about a line, for one draw of its slope: y ~ N(0, K + I/4 + x x')."""
    a = pg.sample("a", dist.Normal(0.0, 1.0))
    size = ops.exp(pg.net("log_size", nets.Parameter())())
    near = ops.exp(-0.5 * ops.square(x[:, None] - x + 0.0 * a))
    tril = ops.cholesky(size * near + 0.25 * ops.eye_like(6, x))
    pg.sample("y", dist.MultivariateNormal(a * x, scale_tril=tril))


def process_at_its_posterior():
    precision = 1 + X @ np.linalg.solve(COV, X)
    loc, sd = X @ np.linalg.solve(COV, Y) / precision, precision**-0.5
    values = {"guide/a/loc": loc, "guide/a/log_scale": np.log(sd), "log_size": 0.0}
    params = {k: {"value": np.float32(v)} for k, v in values.items()}
    return pg.Fitted(process.with_guide(AutoNormal()), params, shapes={"y": (6,)})


def test_evaluate_gives_log_p_of_the_one_vector(b):
    """At the exact posterior every weight is p(y), a multivariate normal's; without latents so is
    the density itself."""
    how = {"inputs": {"x": X}, "seed": 0, "backend": b, "progress_bar": False}
    table = pg.evaluate(process_at_its_posterior(), {"y": Y}, [ELBO(3), IWAE(60)], **how)
    for name in ("ELBO(3)", "IWAE(60)"):
        found = table[name]["estimate"].values
        np.testing.assert_allclose(found, [EVIDENCE.logpdf(Y)], rtol=2e-4)

    @pg.model
    def known(x):
        pg.sample("y", dist.MultivariateNormal(0.0 * x, scale_tril=np.linalg.cholesky(COV)))

    table = pg.evaluate(pg.Fitted(known, {}), {"y": Y}, [ELBO(), IWAE(2)], **how)
    want = stats.multivariate_normal(np.zeros(6), COV).logpdf(Y)
    for name in ("ELBO(1)", "IWAE(2)"):
        np.testing.assert_allclose(table[name]["estimate"].values, [want], rtol=1e-4)
    with pytest.raises(
        AlgorithmError, match="observed as one value each, expected a measure of all"
    ):
        pg.evaluate(pg.Fitted(known, {}), {"y": Y}, [Typicality(X)], **how)
    with pytest.raises(ShapeError, match=r"expected \(6,\)"):
        pg.evaluate(pg.Fitted(known, {}), {"y": Y[None]}, [ELBO()], **how)


def test_generate_draws_the_vector_at_prior_and_posterior(b):
    fitted, n = process_at_its_posterior(), 500
    how = {"inputs": {"x": X}, "seed": 0, "backend": b}
    prior = pg.generate(fitted, n, predictive="prior", **how)
    later = pg.generate(fitted, n, **how)
    assert "globals a from the prior" in prior.note and later.note.endswith("a from the guide")
    precision = 1 + X @ np.linalg.solve(COV, X)
    mean = X * (X @ np.linalg.solve(COV, Y)) / precision
    for draws, loc, cov in (
        (prior, 0 * X, COV + np.outer(X, X)), (later, mean, COV + np.outer(X, X) / precision),
    ):  # fmt: skip
        far = (draws["y"].mean(0) - loc) / np.sqrt(np.diag(cov) / n)
        assert np.abs(far).max() < 6
        # Var of an estimated covariance: (c_ii c_jj + c_ij^2) / n.
        error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / n)
        assert (np.abs(np.cov(draws["y"].T) - cov) < 6 * error).all()
