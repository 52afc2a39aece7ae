"""A site outside the data plate is observed by one value of its event shape: fit and infer."""

import numpy as np
import pytest
from scipy import stats

import probgen as pg
from probgen import dist, nets, ops
from probgen.errors import ShapeError
from probgen.inference import ELBO, SVI, AutoNormal, Guide

X = np.linspace(-1, 1, 6).astype("float32")
Y = np.random.default_rng(0).normal(1.0, 2.0, 6).astype("float32")


@pg.model
def series(x):
    """y = a x + noise as one vector, its scale learned: nothing is counted twice."""
    a = pg.sample("a", dist.Normal(0.0, 1.0))
    scale = ops.exp(pg.net("log_scale", nets.Parameter())())
    pg.sample("y", dist.Normal(a * x, scale).to_event(1))


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


def in_its_own_plate():
    mu = pg.sample("mu", dist.Normal(0, 10))
    with pg.plate("rows", 6):
        pg.sample("x", dist.Normal(mu, 2.0))


def as_one_event():
    mu = pg.sample("mu", dist.Normal(0, 10))
    pg.sample("x", dist.Normal(mu, 2.0).expand([6]).to_event(1))


def bare():
    pg.sample("x", dist.Normal(pg.sample("mu", dist.Normal(0, 10)), 2.0))


def test_a_program_without_data_plate_observes_all_data_as_one_value(b):
    """The bound of the whole is N times that of a datum; a site of another shape is refused."""

    def bound_of(program):
        model, options = pg.model(program).with_guide(guide), {"num_steps": 1, "seed": 0}
        fitted = pg.fit(model, Y, SVI(ELBO()), backend=b, progress_bar=False, **options)
        return fitted.history["elbo"]

    each = bound_of(in_rows)
    for program in (in_its_own_plate, as_one_event):
        np.testing.assert_allclose(bound_of(program), 6 * each, rtol=1e-5)
    with pytest.raises(ShapeError, match=r"expected \(\), since the site stands outside"):
        bound_of(bare)
