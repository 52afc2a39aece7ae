"""AIS of log p(x): unbiased weights on models with a closed form, whatever the path.

That a datum does not see its neighbours is `test_ais_bracket`'s, whose forward runs are these.
"""

import dataclasses
import math

import numpy as np
import pytest
from ais_cases import (
    CASES,
    clusters_data,
    guided,
    guided_data,
    guided_exact,
    ppca,
    ppca_data,
    within,
)

import probgen as pg
from probgen import dist
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError, DeclarationError
from probgen.inference.likelihood.ais import AIS, summary
from probgen.inference.likelihood.annealing import schedule


def estimates(b, fitted, x, method, key=None):
    """What the measure gives, as `evaluate` would ask for it."""
    bound, params = fitted.bind(b, {"x": x})
    measure = b.compile(method.device_function(bound), over="steps")
    out = measure(params, {"x": b.asarray(x)}, b.key(1) if key is None else key)
    return method.finish({k: b.to_numpy(v) for k, v in out.items()})


# Forward runs of brackets are such runs from the prior.
@pytest.mark.parametrize(
    "case, start",
    [
        pytest.param("ppca", "prior", marks=pytest.mark.repeated(
            "test_ais_bracket.py::test_bounds_lie_on_either_side_of_the_truth")),
        ("guided", "guide"),
        pytest.param("waiting", "prior", marks=pytest.mark.repeated(
            "test_ais_bracket.py::test_bounds_lie_on_either_side_of_the_truth")),
        pytest.param("clusters", "prior", marks=pytest.mark.repeated(
            "test_the_mean_weight_is_the_density")),
    ],
)  # fmt: skip
def test_the_mean_weight_is_the_density(b, case, start):
    """E[p_hat(x)] = p(x) at any number of temperatures, so the mean of their ratio is 1; hence a
    lower bound of log p, by Jensen. Latents on the real line, positive, and with two modes."""
    make, data, exact = CASES[case]
    x = data(300)
    out = estimates(
        b, make(), x,
        AIS(150 if case == "ppca" else 40, 8, num_leapfrog=4, start=start, num_pilot_steps=30),
    )  # fmt: skip
    off = out["estimate"] - exact(x)
    within(np.exp(off), 1.0)
    assert off.mean() < 4.5 * off.std() / 300**0.5
    assert off.mean() > -0.4
    # An error over chains is that of the estimate, as far as one heavy chain lets it be.
    if case in ("guided", "waiting"):
        said = (8.0 / out["effective_chains"] - 1.0).mean() / 7.0
        assert 0.6 < said / (off**2).mean() < 1.6, (off, said)
    assert 0.7 < out["acceptance_rate"].mean() < 0.97


def test_a_path_from_the_posterior_itself_has_no_error(b):
    """With the exact posterior as guide every increment is (b_t - b_{t-1}) log p(x)."""
    x = guided_data(20)
    out = estimates(b, guided(1.0), x, AIS(12, num_chains=4, num_leapfrog=2, start="guide"))
    np.testing.assert_allclose(out["estimate"], guided_exact(x), rtol=1e-5)
    assert (out["estimate"] - out["lower_bound"]).max() < 1e-3
    np.testing.assert_allclose(out["effective_chains"], 4.0, rtol=1e-4)


def test_the_schedule_is_that_of_the_sheet():
    b = schedule(10)
    g = 1 / (1 + np.exp(-4 * (2 * np.arange(11) / 10 - 1)))
    np.testing.assert_allclose(b, (g - g[0]) / (g[10] - g[0]), rtol=1e-12)
    assert b[0] == 0.0 and b[-1] == 1.0 and (np.diff(b) > 0).all()
    np.testing.assert_allclose(b + b[::-1], 1.0, rtol=1e-12)


def test_the_summary_of_weights_is_their_mean_and_its_error():
    rng = np.random.default_rng(0)
    log_w = 0.3 * rng.normal(size=(4000, 8)) - 3000.0  # far below what exp can hold
    out = summary(log_w)
    w = np.exp(log_w + 3000.0)
    np.testing.assert_allclose(out["estimate"], np.log(w.mean(1)) - 3000.0, rtol=1e-12)
    assert out["standard_error"].mean() == pytest.approx(out["estimate"].std(), rel=0.05)
    assert out["effective_chains"].mean() == pytest.approx(8 / (1 + 0.09), rel=0.02)
    none = summary(np.full((1, 4), -np.inf))
    assert none["estimate"] == -np.inf and np.isnan(none["standard_error"])


def test_few_chains_that_carry_the_weight_are_told():
    method = AIS(100, num_chains=4)
    values = {"effective_chains": np.array([1.0, 3.9, 1.5])}
    assert (
        "for 2 of 3 data" in method.warnings(values)[0] and "too low" in method.warnings(values)[0]
    )
    assert method.warnings({"effective_chains": np.array([3.0])}) == []


def test_names_say_the_settings():
    assert AIS(1000).name == "AIS(1000, num_chains=16)"
    assert AIS(9, 4, 5, start="guide").name == "AIS(9, num_chains=4, num_leapfrog=5, start=guide)"
    assert AIS().unit == "nats" and not AIS().larger_is_stranger
    assert AIS().direction == "lower, stochastic"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_chains": 1}, "num_chains=1, expected a whole number of at least 2"),
        ({"num_leapfrog": 2.5}, "num_leapfrog=2.5"),
        ({"num_pilot_steps": 3}, "num_pilot_steps=3"),
        ({"start": "posterior"}, "start='posterior'"),
        ({"target_accept_prob": 1.0}, "target_accept_prob=1.0"),
        ({"jitter": 1.0}, "jitter=1.0"),
        ({"initial_step_size": math.nan}, "initial_step_size=nan"),
    ],
)
def test_options_that_make_no_run_are_refused(options, message):
    with pytest.raises(DeclarationError, match=message):
        AIS(**options)


def refusals():
    @pg.model
    def shared():
        m = pg.sample("m", dist.Normal(0.0, 1.0))
        with pg.data_plate():
            z = pg.sample("z", dist.Normal(m, 1.0))
            pg.sample("x", dist.Normal(z, 1.0))

    @pg.model
    def labelled():
        with pg.data_plate():
            k = pg.sample("k", dist.Bernoulli(0.3))
            pg.sample("x", dist.Normal(pg.sample("z", dist.Normal(2.0 * k, 1.0)), 1.0))

    @pg.model
    def plates():
        with pg.data_plate(), pg.plate("inner", 3):
            pg.sample("z", dist.Normal(0.0, 1.0))
        with pg.data_plate():
            pg.sample("x", dist.Normal(0.0, 1.0))

    @pg.model
    def plain():
        with pg.data_plate():
            pg.sample("x", dist.Normal(0.0, 1.0))

    @pg.model
    def tilted():
        with pg.data_plate():
            z = pg.sample("z", dist.Normal(0.0, 1.0))
            pg.sample("x", dist.Normal(z, 1.0))
            pg.factor("tilt", -z)

    tilted.is_normalized = False
    return [
        (shared, "prior", "'m' of 'shared' is global"),
        (labelled, "prior", "latent 'k' of 'labelled' is discrete"),
        (plates, "prior", r"stands in the plates \['inner'\]"),
        (plain, "prior", "has no latents"),
        (tilted, "prior", "known up to a constant"),
    ]


@pytest.mark.parametrize("model, start, message", refusals(), ids=lambda v: getattr(v, "name", ""))
def test_models_without_such_an_integral_are_refused(backend, model, start, message):
    bound, _ = bind(model, backend, data={"x": clusters_data(3)})
    with pytest.raises(AlgorithmError, match=message):
        AIS(10, start=start).device_function(bound)


def test_a_guide_is_needed_to_start_there_and_data_to_condition_on(backend):
    bound, _ = ppca().bind(backend, {"x": ppca_data(2)})
    with pytest.raises(AlgorithmError, match="start='guide'.*has no guide"):
        AIS(10, start="guide").device_function(bound)
    bound, _ = dataclasses.replace(ppca(), shapes={}).bind(backend)
    with pytest.raises(AlgorithmError, match="no site of 'Generator' is observed"):
        AIS(10).device_function(bound)
