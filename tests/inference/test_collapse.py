"""The report at the end of a fit, where the information that a code carries is a closed form."""

import numpy as np
import pytest
from elbo_cases import (
    COV,
    C,
    S,
    W,
    X,
    bound_to,
    exact,
    off,
    story,
)

import probgen as pg
from probgen import dist
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError
from probgen.inference import (
    ELBO,
    LinearWarmup,
)
from probgen.inference.objectives.collapse import collapse_report
from probgen.inference.objectives.terms import compute, per_datum
from probgen.records.history import History


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
    at 1,050 data; both estimates have a standard error of about sd / sqrt(1050) = 0.04. The table's
    last block holds data of the block before, which count once.
    """
    information = 0.5 * np.linalg.slogdet(np.linalg.inv(COV))[1]
    report = reported(b, exact, drawn(1050))
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


def test_the_lower_bound_of_the_information_is_never_above_the_upper_one(b, monkeypatch):
    """It is an estimate from one draw a datum; the upper one, of closed forms, holds."""
    where = "probgen.inference.objectives.collapse._information"
    monkeypatch.setattr(where, lambda *args: (1e6, 9.0))
    low, high = reported(b, exact, drawn(50)).information
    assert low == high < 1e6
