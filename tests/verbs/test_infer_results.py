"""What `pg.infer` returns: dimensions, statistics, log likelihoods, draws that a seed repeats."""

import numpy as np
import pytest
import scipy.stats
from infer_cases import EVENTS, TINY, C, Y, counts, quick, regression, run

import probgen as pg
from probgen import dist
from probgen.engine.bind import bind
from probgen.engine.posterior import Posterior
from probgen.inference import HMC

STILL = {
    "num_warmup": 0, "num_samples": 1, "num_chains": 3, "step_size": 1e-6, "num_steps": 1,
    "adapt_step_size": False,
}  # fmt: skip
FEW = HMC(**TINY, num_steps=2, engine="probgen")


@pytest.fixture(scope="module")
def small(backend_name):
    return quick(backend_name)


@pg.model
def schools():
    mu = pg.sample("mu", dist.Normal(0, 5))
    with pg.data_plate(), pg.plate("test", 3):
        ability = pg.sample("ability", dist.Normal(mu, 1).expand([2]).to_event(1))
        pg.deterministic("total", ability[..., 0] + ability[..., 1])
    with pg.data_plate():
        pg.sample("y", dist.Normal(mu, 1.0))
    pg.sample("seen", dist.Normal(mu, 1.0), obs=pg.ops.asarray(1.0))
    pg.submodel("part", coin_prior)


@pg.model
def coin_prior():
    pg.sample("p", dist.Beta(2.0, 3.0))


@pytest.fixture(scope="module")
def of_schools(small):
    y = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    return run(schools, {"y": y}, small, FEW, log_likelihood=True)


def test_plates_are_dimensions(small, of_schools):
    draws = of_schools
    post = draws.posterior
    assert post.mu.dims == ("chain", "draw")
    assert post.ability.dims == ("chain", "draw", "test", "data", "ability_dim_0")
    assert post.total.dims == ("chain", "draw", "test", "data")
    assert post.ability.shape == (2, 10, 3, 4, 2)
    assert post["part.p"].dims == ("chain", "draw")
    np.testing.assert_allclose(post.total, post.ability.sum("ability_dim_0"), rtol=1e-5, atol=1e-5)
    assert draws.observed_data.y.dims == ("data",)
    assert draws.log_likelihood.y.dims == ("chain", "draw", "data")
    stats = {"lp", "energy", "diverging", "acceptance_rate", "n_steps", "step_size"}
    assert stats <= set(draws.sample_stats.data_vars)
    assert {draws.sample_stats[s].dims for s in stats} == {("chain", "draw")}
    for key in ("backend", "device", "versions", "seed", "method", "sampling_time"):
        assert key in draws.attrs and key in post.attrs
    assert draws.attrs["backend"] == small.name and draws.attrs["seed"] == 0
    assert "HMC(num_warmup=5" in draws.attrs["method"]


def test_data_in_the_program_are_not_latents(of_schools):
    assert set(of_schools.posterior.data_vars) == {"mu", "ability", "total", "part.p"}
    direct = scipy.stats.norm(of_schools.posterior.mu, 1.0).logpdf(1.0)
    np.testing.assert_allclose(of_schools.log_likelihood.seen, direct, rtol=1e-4, atol=1e-4)


def test_a_log_likelihood_is_the_direct_one_whatever_the_chunk(small):
    options = {"inputs": {"covariates": C}, "log_likelihood": True}
    draws = run(regression, {"y": Y}, small, FEW, **options)
    mean = np.einsum("cdi,ni->cdn", draws.posterior.weights.values, C)
    direct = scipy.stats.norm(mean, 1.0).logpdf(Y)
    assert draws.log_likelihood.y.dims == ("chain", "draw", "data")
    np.testing.assert_allclose(draws.log_likelihood.y, direct, rtol=1e-4, atol=1e-4)
    for chunk in (1, 7):
        other = run(regression, {"y": Y}, small, FEW, chunk_size=chunk, **options)
        np.testing.assert_array_equal(other.posterior.weights, draws.posterior.weights)
        np.testing.assert_allclose(
            other.log_likelihood.y, draws.log_likelihood.y, rtol=1e-5, atol=1e-5
        )


def test_same_seed_same_draws_and_nobody_elses_randomness(small):
    torch = pytest.importorskip("torch")
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    one, two, three = (
        run(regression, {"y": Y}, small, FEW, inputs={"covariates": C}, seed=s) for s in (3, 3, 4)
    )
    np.testing.assert_array_equal(one.posterior.weights, two.posterior.weights)
    assert (one.posterior.weights != three.posterior.weights).any()
    chains = one.posterior.weights.values
    assert (chains[0] != chains[1]).any()
    assert torch.equal(states[0], torch.random.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])


def test_pyros_parameter_store_stays_empty():
    pyro = pytest.importorskip("pyro")
    small = pg.backends.load("torch", "cpu", compile="graph")
    run(counts, {"events": EVENTS}, small, HMC(**TINY, num_steps=2, engine="pyro"))
    assert not dict(pyro.get_param_store())


def test_thinning_keeps_every_nth_transition(small):
    sizes = {"num_warmup": 5, "num_chains": 2, "num_steps": 2}
    every = run(counts, {"events": EVENTS}, small, HMC(num_samples=12, **sizes))
    third = run(counts, {"events": EVENTS}, small, HMC(num_samples=12, thinning=3, **sizes))
    assert third.posterior.rate.shape == (2, 4) and (third.sample_stats.n_steps == 2).all()
    np.testing.assert_allclose(third.posterior.rate, every.posterior.rate[:, 2::3], rtol=1e-5)


STRATEGIES = ("uniform", "median", "sample", "feasible")


@pg.model
def waiting():
    pg.sample("rate", dist.LogNormal(1.0, 0.5))


@pytest.mark.parametrize("strategy", [*(f"init_to_{s}" for s in STRATEGIES), "init_to_mean"])
def test_a_strategy_says_where_the_posterior_is_first_looked_at(strategy, small):
    """On the real line, where it is N(1, 1/4), for each of 20 keys."""
    bound, params = bind(waiting, small, whole=True)

    def look(key):
        point = Posterior(bound, None).point(params, {}, key=key, strategy=strategy)
        return point.free["rate"], point.values["rate"]

    look = small.compile(look) if small.name == "jax" else look
    free, rate = np.array([[float(small.to_numpy(v)) for v in look(small.key(i))]
                           for i in range(20)]).T  # fmt: skip
    np.testing.assert_allclose(rate, np.exp(free), rtol=1e-4)
    fixed = {"init_to_mean": 1.125, "init_to_feasible": 0.0}
    if strategy in fixed:
        np.testing.assert_allclose(free, fixed[strategy], atol=1e-4)
        return
    assert len(set(free)) == 20
    if strategy == "init_to_uniform":
        assert (abs(free) < 2).all() and np.ptp(free) > 2
    # A draw, or the median of fifteen: the deviation of that is about sqrt(pi / 2) / sqrt(15).
    else:
        sd = 0.5 * (1.0 if strategy == "init_to_sample" else 0.32)
        assert abs(free.mean() - 1.0) < 5 * sd / 20**0.5 and 0.5 * sd < free.std() < 1.6 * sd


# What a strategy is, and a start by its value, is seen apart from the chains that begin there.
OF_A_POINT = pytest.mark.repeated("test_a_strategy_says_where_the_posterior_is_first_looked_at")
OF_A_START = pytest.mark.repeated(
    "test_infer_starts.py::test_one_start_serves_all_chains_and_one_each_is_used"
)


@pytest.mark.parametrize(
    "strategy",
    [
        "init_to_mean",
        *(pytest.param(f"init_to_{s}", marks=OF_A_POINT) for s in STRATEGIES),
        pytest.param({"rate": 2.5}, marks=OF_A_START),
    ],
)
def test_chains_start_where_they_are_told(strategy, small):
    """With steps of 1e-6 a chain stays where it starts; Gamma(2, 1/2) has mean 4, median 3.36."""
    method = HMC(**STILL, init_strategy=strategy)
    rate = run(counts, {"events": EVENTS}, small, method).posterior.rate.values[:, 0]
    known = {"init_to_mean": 4.0, "init_to_feasible": 1.0}
    if isinstance(strategy, dict) or strategy in known:
        np.testing.assert_allclose(rate, known.get(strategy, 2.5) if isinstance(strategy, str)
                                   else 2.5, rtol=1e-3)  # fmt: skip
    else:
        assert len(set(rate)) == 3
    if strategy == "init_to_uniform":
        assert (abs(np.log(rate)) < 2).all()
    if strategy == "init_to_median":
        assert ((rate > 1.0) & (rate < 9.0)).all()
