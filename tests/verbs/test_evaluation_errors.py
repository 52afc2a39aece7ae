"""How far a table's numbers can be trusted: errors that all data share, and hopeless weights."""

import dataclasses
import math

import numpy as np
import pytest

import probgen as pg
from probgen import dist
from probgen.errors import NonFiniteError
from probgen.inference.likelihood.energy_likelihood import EnergyLogLikelihood
from probgen.inference.likelihood.importance import importance_estimate
from probgen.inference.likelihood.interval import bound_warning, settle
from probgen.inference.likelihood.partition import LogPartition


def own():
    """Errors of their own: sqrt(3^2 + 4^2) / 3 = 5/3."""
    return pg.Evaluation.from_values(
        {"a": {"estimate": np.array([1.0, 2.0, 4.0]), "standard_error": np.array([3.0, 0, 4])}},
        units={"a": "nats"}, larger_is_stranger={"a": True},
    )  # fmt: skip


def shared(estimate, error):
    return pg.Evaluation.from_values(
        {"s": {"estimate": estimate, "standard_error": np.full(len(estimate), error)}},
        units={"s": "nats"}, larger_is_stranger={"s": False}, shared_error={"s": True},
    )  # fmt: skip


# ---- errors that all data share ------------------------------------------------------------------


def test_an_error_that_all_data_share_does_not_average_out():
    """log Z +- 0.3 moves every datum alike: the mean's error over repetitions holds all of it."""
    rng, error, n = np.random.default_rng(0), 0.3, 400
    runs = [shared(rng.normal(size=n) + error * rng.normal(), error) for _ in range(300)]
    means, errors = np.array([t.mean("s") for t in runs]).T
    assert runs[0].mc_error("s") == pytest.approx(error)
    assert errors.mean() == pytest.approx(math.hypot(error, n**-0.5), rel=0.01)
    assert abs(means.std() / errors.mean() - 1.0) < 4.0 / math.sqrt(2 * 300)
    assert math.isnan(runs[0].select([0]).mean("s")[1])  # of one datum the spread is not known


def test_a_shared_error_is_remembered(tmp_path):
    """By saving, choosing data and joining tables."""
    t = shared(np.arange(3.0), 0.3)
    t.save(tmp_path / "t")
    for each in (t, pg.Evaluation.load(tmp_path / "t"), t.select([0, 2]), t | own(), own() | t):
        assert each.shared_error["s"] and each.mc_error("s") == pytest.approx(0.3)
    both = t | own()
    assert not both.shared_error["a"] and both.mc_error("a") == pytest.approx(5 / 3)
    (row,) = t.summary()
    assert row["monte_carlo_error"] == pytest.approx(0.3)
    assert row["standard_error"] == pytest.approx(math.hypot(1 / math.sqrt(3), 0.3))


@pg.model
def energy():
    with pg.data_plate():
        x = pg.sample("x", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        pg.factor("tilt", 0.5 * x[..., 0])


energy.is_normalized = False


def test_the_error_of_log_z_is_that_of_the_mean_likelihood(b):
    """400 data, log Z +- .112: of the mean's error .112 is Monte Carlo's, not .112 / 20."""
    log_z = LogPartition(
        estimate=0.125, standard_error=0.112, method=pg.inference.AIS(), start="a Gaussian",
        num_weights=20, lower_bound=-0.1,
    )  # fmt: skip
    x = np.random.default_rng(0).normal(0.5, 1.0, (400, 1)).astype(np.float32)
    measure = EnergyLogLikelihood(log_z)
    found = pg.evaluate(
        pg.Fitted(energy, {}, shapes={"x": (1,)}), x, [measure], seed=0, backend=b,
        progress_bar=False,
    )  # fmt: skip
    spread = found[measure.name]["estimate"].values.std(ddof=1) / 20
    assert found.mc_error(measure.name) == pytest.approx(0.112, rel=1e-6)
    assert found.mean(measure.name)[1] == pytest.approx(math.hypot(spread, 0.112), rel=1e-5)


# ---- hopeless weights ----------------------------------------------------------------------------


def test_hopeless_weights_are_warned_of():
    """Log weights 10,000 nats wide: one particle carries all; no error is given that says +- 1."""
    log_w = np.random.default_rng(0).normal(0.0, 1e4, (40, 1000))
    found = importance_estimate(log_w)
    assert np.median(found["effective_particles"]) < 1.01
    settled = settle(found, 1000)
    assert np.isnan(settled["standard_error"]).all()
    (text,) = bound_warning(settled, "lower")
    assert "for 40 of 40 data (100%)" in text and "lower_bound holds" in text
    np.testing.assert_allclose(found["estimate"] - found["lower_bound"], np.log(20.0))  # Markov's


@dataclasses.dataclass(frozen=True)
class Spiked:
    """Weights that are 1, but for one that is +inf for the data above 2."""

    name = "spiked"
    unit = "nats"
    larger_is_stranger = False

    def bind_measure(self, context):
        ops = context.backend.ops

        def measure(params, batch, key):
            high = ops.where(batch["x"] > 2.0, math.inf, 0.0)  # [batch, 1]
            return {"log_w": ops.concatenate([high, 0.0 * batch["x"]], axis=1)}

        run = context.device(measure, self.name)
        return lambda rows, ids: importance_estimate(run(rows, ids)["log_w"])


def test_a_weight_of_infinity_is_refused_with_the_number_of_its_datum(b):
    x = np.zeros((7, 1), np.float32)
    x[5] = 3.0
    fitted = pg.Fitted(energy, {}, shapes={"x": (1,)})
    with pytest.raises(NonFiniteError, match="spiked .* for 1 data, the first is datum 5"):
        pg.evaluate(fitted, x, [Spiked()], seed=0, chunk_size=2, backend=b, progress_bar=False)
    table = pg.evaluate(fitted, x[:5], [Spiked()], seed=0, backend=b, progress_bar=False)
    np.testing.assert_allclose(table["spiked"]["estimate"], 0.0)
