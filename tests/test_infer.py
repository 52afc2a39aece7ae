"""Native NUTS and HMC against closed forms; what `pg.infer` returns, and what it refuses.

A posterior is known through means of functions of its draws: each must lie within 5 Monte Carlo
standard errors (ArviZ's, from the effective sample size) of the closed form.
"""

import numpy as np
import pytest
import scipy.stats
from arviz_stats.base import array_stats

import probgen as pg
from probgen import dist, nets
from probgen.errors import (
    AlgorithmError,
    MissingSeed,
    NonFiniteError,
    SupportError,
    UnknownName,
)
from probgen.inference import HMC, NUTS

RNG = np.random.default_rng(0)
TINY = {"num_warmup": 5, "num_samples": 10, "num_chains": 2}


@pytest.fixture(scope="module")
def small(backend_name):
    """The backend without the cost of C++ compilation, which short chains do not earn back."""
    options = {"compile": "graph"} if backend_name == "torch" else {}
    return pg.backends.load(backend_name, "cpu", **options)


def sized(kind, backend, **options):
    """Chains as long as a second or two allows: Pyro's take a millisecond a leapfrog."""
    sizes = {"num_warmup": 150, "num_samples": 300, "num_chains": 2}
    if backend.name == "jax":
        sizes = {"num_warmup": 300, "num_samples": 2000, "num_chains": 4}
    return kind(**{**sizes, **options})


def run(model, data, backend, method=None, **options):
    method = method or sized(NUTS, backend)
    return pg.infer(
        model, data, method, **{"backend": backend, "seed": 0, "progress_bar": False, **options}
    )


def assert_mean(draws, expected, name):
    """draws: [chain, draw] of a quantity whose posterior mean is `expected`."""
    draws = np.asarray(draws, np.float64)
    error = array_stats.mcse(draws, method="mean")
    # Fewer effective draws than these, and the error bar itself is not to be believed.
    assert array_stats.ess(draws, method="mean") > 40, f"{name}: the chains hardly move"
    assert abs(draws.mean() - expected) < 5 * error, (
        f"{name}: {draws.mean():.4f} +- {error:.4f}, expected {expected:.4f}"
    )


def assert_moments(draws, mean, cov, name):
    """draws: [chain, draw, d]; every mean and covariance of a known posterior."""
    centred = np.asarray(draws, np.float64) - mean
    for i in range(len(mean)):
        assert_mean(draws[..., i], mean[i], f"{name}[{i}]")
        for j in range(i + 1):
            assert_mean(centred[..., i] * centred[..., j], cov[i, j], f"cov({name})[{i}, {j}]")


# --- posteriors known in closed form -----------------------------------------------------------

C = RNG.normal(size=(40, 3)).astype(np.float32)
Y = (C @ np.array([1.0, -1.0, 0.5]) + RNG.normal(size=40)).astype(np.float32)


@pg.model
def regression(covariates):
    weights = pg.sample("weights", dist.Normal(0, 1).expand([3]).to_event(1))
    with pg.data_plate():
        pg.sample("y", dist.Normal(covariates @ weights, 1.0))


def check_regression(draws):
    precision = np.eye(3) + C.T.astype(np.float64) @ C
    cov = np.linalg.inv(precision)
    assert_moments(draws.posterior.weights.values, cov @ C.T @ Y, cov, "weights")


@pg.model
def coin():
    p = pg.sample("p", dist.Beta(0.5, 1.5))
    with pg.data_plate():
        pg.sample("heads", dist.Binomial(2, probs=p))


HEADS = np.array([2.0, 1.0], np.float32)  # few: the Jacobian is then most of the density


def check_coin(draws):
    law = scipy.stats.beta(0.5 + HEADS.sum(), 1.5 + (2 - HEADS).sum())
    p = draws.posterior.p.values[..., None]
    assert_moments(p, np.array([law.mean()]), np.array([[law.var()]]), "p")


@pg.model
def counts():
    rate = pg.sample("rate", dist.Gamma(2.0, 0.5))
    with pg.data_plate():
        pg.sample("events", dist.Poisson(rate))


EVENTS = np.array([1.0, 0.0], np.float32)


def check_counts(draws):
    law = scipy.stats.gamma(2 + EVENTS.sum(), scale=1 / (0.5 + len(EVENTS)))
    rate = draws.posterior.rate.values[..., None]
    assert_moments(rate, np.array([law.mean()]), np.array([[law.var()]]), "rate")


@pg.model
def die():
    p = pg.sample("p", dist.Dirichlet(np.array([2.0, 1.0, 1.5], np.float32)))
    with pg.data_plate():
        pg.sample("face", dist.Categorical(probs=p))


FACES = np.array([0, 2, 2], np.int32)


def check_die(draws):
    law = scipy.stats.dirichlet(np.array([2, 1, 1.5]) + np.bincount(FACES, minlength=3))
    assert_moments(draws.posterior.p.values, law.mean(), law.cov(), "p")


COV = np.array([[1.0, 1.5, 0.0], [1.5, 4.0, -0.5], [0.0, -0.5, 0.25]])


@pg.model
def correlated():
    pg.sample("a", dist.MultivariateNormal(np.array([1.0, -2.0, 0.0]), covariance_matrix=COV))


def check_correlated(draws):
    assert_moments(draws.posterior.a.values, np.array([1.0, -2.0, 0.0]), COV, "a")


@pg.model
def ladder():
    top = pg.sample("top", dist.Gamma(3.0, 1.0))
    pg.sample("x", dist.Uniform(0.0, top))


def check_ladder(draws):
    """E x = E top / 2 and E x^2 = E top^2 / 3: wrong by far when the Jacobian forgets `top`."""
    top, x = draws.posterior.top.values, draws.posterior.x.values
    assert (x < top).all()
    assert_mean(top, 3.0, "top")
    assert_mean(x, 1.5, "x")
    assert_mean(x**2, 4.0, "x^2")


@pg.model
def tank():
    most = pg.sample("most", dist.Gamma(4.0, 0.5))
    with pg.data_plate():
        pg.sample("serial", dist.Uniform(0.0, most))


SERIALS = np.array([1.0, 3.5, 2.0], np.float32)


def check_tank(draws):
    """Gamma(4, 1/2) times most^-3 above the largest serial is an exponential tail from there."""
    assert (draws.posterior.most.values > 3.5).all()
    assert_mean(draws.posterior.most.values, 3.5 + 2.0, "most")


CASES = {
    "regression": (regression, {"y": Y}, {"covariates": C}, check_regression, {}),
    "beta-binomial": (coin, {"heads": HEADS}, None, check_coin, {}),
    "gamma-poisson": (counts, {"events": EVENTS}, None, check_counts, {}),
    "dirichlet-categorical": (die, {"face": FACES}, None, check_die, {}),
    "correlated": (correlated, None, None, check_correlated, {"dense_mass": True}),
    "support of a latent": (ladder, {}, None, check_ladder, {}),
    "support of the data": (tank, {"serial": SERIALS}, None, check_tank, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_nuts_keeps_a_posterior_known_in_closed_form(case, small):
    model, data, inputs, check, options = CASES[case]
    check(run(model, data, small, sized(NUTS, small, **options), inputs=inputs))


@pytest.mark.parametrize("options", [{"trajectory_length": 1.5}, {"num_steps": 3}])
def test_hmc_keeps_a_posterior_known_in_closed_form(options, small):
    method = sized(HMC, small, **options)
    draws = run(regression, {"y": Y}, small, method, inputs={"covariates": C})
    check_regression(draws)
    assert "tree_depth" not in draws.sample_stats
    if "num_steps" in options:
        assert (draws.sample_stats.n_steps == 3).all()


def test_latents_of_a_fitted_vae_have_their_exact_posterior(small):
    """x = W z + b + s e: z given x is Gaussian with precision I + W'W / s^2, for each datum."""
    scale, x = 0.5, RNG.normal(size=(64, 3)).astype(np.float32)
    vae = pg.models.VAE(
        latent=dist.Normal(0, 1).expand([2]).to_event(1),
        decoder=nets.MLP(hidden=(), out=(3,)),
        likelihood=pg.models.likelihoods.Normal(scale=scale),
        encoder=nets.MLP(hidden=(8,), out=2, heads=("loc", "log_scale")),
    )
    learn = pg.inference.SVI(pg.inference.ELBO(), pg.Adam(1e-2))
    fitted = pg.fit(vae, x, learn, num_steps=60, backend=small, seed=0, progress_bar=False)
    where = "auto" if small.name == "jax" else small  # auto is the backend that fitted
    draws = run(fitted, x[:2], where, sized(NUTS, small), log_likelihood=True)
    assert draws.attrs["backend"] == small.name and set(draws.posterior.data_vars) == {"z"}
    bound, params = fitted.bind(small)
    probe = np.concatenate([np.zeros((1, 2)), np.eye(2)]).astype(np.float32)
    out = bound.trace(params, {}, {"z": small.asarray(probe), "x": small.asarray(x[:3])},
                      batch_size=3)["x"]  # fmt: skip
    mean = small.to_numpy(small.mean(out.fn)).astype(np.float64)
    b, w = mean[0], (mean[1:] - mean[0]).T
    cov = np.linalg.inv(np.eye(2) + w.T @ w / scale**2)
    for i in range(2):
        expected = cov @ w.T @ (x[i] - b) / scale**2
        assert_moments(draws.posterior.z.values[:, :, i], expected, cov, f"z[{i}]")
    direct = scipy.stats.norm(mean[0] + draws.posterior.z.values @ w.T, scale).logpdf(x[:2]).sum(-1)
    np.testing.assert_allclose(draws.log_likelihood.x.values, direct, rtol=1e-3, atol=1e-3)


# --- what comes back ---------------------------------------------------------------------------


@pg.model
def schools():
    mu = pg.sample("mu", dist.Normal(0, 5))
    with pg.data_plate(), pg.plate("test", 3):
        ability = pg.sample("ability", dist.Normal(mu, 1).expand([2]).to_event(1))
        pg.deterministic("total", ability[..., 0] + ability[..., 1])
    with pg.data_plate():
        pg.sample("y", dist.Normal(mu, 1.0))
    pg.submodel("part", coin_prior)


@pg.model
def coin_prior():
    pg.sample("p", dist.Beta(2.0, 3.0))


def test_plates_are_dimensions(small):
    y = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    draws = run(schools, {"y": y}, small, HMC(**TINY, num_steps=2), log_likelihood=True)
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


def test_the_statistics_are_those_of_the_draws(small):
    """lp is the density on the real line: log p(rate, events) + log rate, for a positive latent."""
    draws = run(counts, {"events": EVENTS}, small, NUTS(num_warmup=50, num_samples=40))
    rate = draws.posterior.rate.values.astype(np.float64)
    expected = scipy.stats.gamma(2, scale=2).logpdf(rate) + np.log(rate)
    expected += scipy.stats.poisson(rate[..., None]).logpmf(EVENTS).sum(-1)
    stats = draws.sample_stats
    np.testing.assert_allclose(stats.lp, expected, rtol=1e-4, atol=1e-4)
    assert (stats.energy.values >= -stats.lp.values.max() - 1.0).all()
    assert ((stats.acceptance_rate >= 0) & (stats.acceptance_rate <= 1 + 1e-5)).all()
    assert (stats.n_steps < 2**stats.tree_depth).all()
    assert not stats.reached_max_treedepth.any() and (stats.step_size > 0).all()


def test_a_log_likelihood_is_the_direct_one_whatever_the_chunk(small):
    options = {"inputs": {"covariates": C}, "log_likelihood": True}
    draws = run(regression, {"y": Y}, small, NUTS(**TINY), **options)
    mean = np.einsum("cdi,ni->cdn", draws.posterior.weights.values, C)
    direct = scipy.stats.norm(mean, 1.0).logpdf(Y)
    assert draws.log_likelihood.y.dims == ("chain", "draw", "data")
    np.testing.assert_allclose(draws.log_likelihood.y, direct, rtol=1e-4, atol=1e-4)
    for chunk in (1, 7, 20, 1000):
        other = run(regression, {"y": Y}, small, NUTS(**TINY), chunk_size=chunk, **options)
        np.testing.assert_array_equal(other.posterior.weights, draws.posterior.weights)
        np.testing.assert_allclose(
            other.log_likelihood.y, draws.log_likelihood.y, rtol=1e-5, atol=1e-5
        )


def test_same_seed_same_draws_and_nobody_elses_randomness(small):
    torch = pytest.importorskip("torch")
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    one, two, three = (
        run(regression, {"y": Y}, small, NUTS(**TINY), inputs={"covariates": C}, seed=s)
        for s in (3, 3, 4)
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
    run(counts, {"events": EVENTS}, small, NUTS(**TINY))
    assert not dict(pyro.get_param_store())


def test_thinning_keeps_every_nth_transition(small):
    options = {"num_warmup": 20, "num_samples": 12, "num_chains": 2, "num_steps": 2}
    every = run(counts, {"events": EVENTS}, small, HMC(**options))
    third = run(counts, {"events": EVENTS}, small, HMC(**options, thinning=3))
    np.testing.assert_allclose(
        third.posterior.rate, every.posterior.rate.values[:, 2::3], rtol=1e-5
    )


STRATEGIES = ("uniform", "median", "mean", "sample", "feasible")


@pytest.mark.parametrize("strategy", [*(f"init_to_{s}" for s in STRATEGIES), {"rate": 2.5}])
def test_chains_start_where_they_are_told(strategy, small):
    """With steps of 1e-6 a chain stays where it starts; Gamma(2, 1/2) has mean 4, median 3.36."""
    method = HMC(
        num_warmup=0, num_samples=1, num_chains=3, step_size=1e-6, adapt_step_size=False,
        num_steps=1, init_strategy=strategy,
    )  # fmt: skip
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


def test_blocks_of_the_mass_matrix_are_named_by_sites(small):
    method = sized(NUTS, small, dense_mass=[("top",), ("x",)])
    check_ladder(run(ladder, None, small, method))


def test_data_in_the_program_are_not_latents(small):
    @pg.model
    def inside():
        mu = pg.sample("mu", dist.Normal(0.0, 1.0))
        pg.sample("y", dist.Normal(mu, 1.0), obs=pg.ops.asarray(1.0))

    draws = run(inside, None, small, NUTS(**TINY), log_likelihood=True)
    assert set(draws.posterior.data_vars) == {"mu"}
    direct = scipy.stats.norm(draws.posterior.mu, 1.0).logpdf(1.0)
    np.testing.assert_allclose(draws.log_likelihood.y, direct, rtol=1e-4, atol=1e-4)


def test_auto_prefers_jax():
    pytest.importorskip("numpyro")
    draws = pg.infer(counts, {"events": EVENTS}, NUTS(**TINY), seed=0, progress_bar=False)
    assert draws.attrs["backend"] == "jax"


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word, right",
    [("warmup_steps", "num_warmup"), ("full_mass", "dense_mass"), ("jit_compile", "compiled"),
     ("disable_progbar", "progress_bar"), ("draws", "num_samples"), ("num_sample", "num_samples"),
     ("target_accept", "target_accept_prob"), ("initial_params", "init_strategy")],
)  # fmt: skip
def test_words_of_others_are_refused_with_the_right_one(word, right):
    for method in (NUTS, HMC):
        with pytest.raises(UnknownName, match=f"got {word}, expected .*{right}"):
            method(**{word: 1})


@pytest.mark.parametrize(
    "options",
    [{"num_samples": 0}, {"num_warmup": -1}, {"num_chains": 1.5}, {"step_size": 0.0},
     {"target_accept_prob": 1.0}, {"thinning": 2000}, {"dense_mass": ["top"]},
     {"init_strategy": "median"}],
)  # fmt: skip
def test_options_out_of_range_are_refused(options):
    with pytest.raises(AlgorithmError, match=f"got {next(iter(options))}="):
        NUTS(**options)


def test_options_of_one_method_only():
    with pytest.raises(UnknownName, match="trajectory_length"):
        NUTS(trajectory_length=1.0)
    with pytest.raises(AlgorithmError, match="expected one of them"):
        HMC(trajectory_length=1.0, num_steps=3)
    with pytest.raises(AlgorithmError, match="by name"):
        NUTS(regression)


def test_what_cannot_be_inferred_is_refused_by_name(small):
    @pg.model
    def mixture():
        k = pg.sample("k", dist.Bernoulli(probs=0.5))
        pg.sample("x", dist.Normal(k * 1.0, 1.0))

    @pg.model
    def observed():
        with pg.data_plate():
            pg.sample("y", dist.Normal(0.0, 1.0))

    @pg.model
    def broken():
        a = pg.sample("a", dist.Normal(0.0, 1.0))
        pg.factor("bad", pg.ops.log(-1.0 - a * a))

    @pg.model
    def untrained():
        z = pg.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pg.data_plate():
            pg.sample("y", dist.Normal(pg.net("decoder", nets.MLP(out=1))(z)[..., 0], 1.0))

    with pytest.raises(AlgorithmError, match="latent 'k'.*discrete.*MixtureSameFamily"):
        run(mixture, None, small)
    with pytest.raises(AlgorithmError, match="at least one latent"):
        run(observed, {"y": Y}, small)
    with pytest.raises(NonFiniteError, match="chain 0 of 'broken'.*'bad'"):
        run(broken, None, small, NUTS(**TINY))
    with pytest.raises(AlgorithmError, match=r"nets \['decoder'\].*no parameters"):
        run(untrained, {"y": Y}, small)
    with pytest.raises(SupportError, match="data 'events': 1 values lie outside"):
        run(counts, {"events": -EVENTS}, small, NUTS(**TINY))
    with pytest.raises(UnknownName, match="init_strategy names 'ratio'.*did you mean 'rate'"):
        run(counts, {"events": EVENTS}, small, NUTS(init_strategy={"ratio": 1.0}))
    with pytest.raises(UnknownName, match="eventz"):
        run(counts, {"eventz": EVENTS}, small)


def test_calls_that_lack_something_are_refused(small):
    with pytest.raises(MissingSeed, match="got no seed"):
        run(counts, {"events": EVENTS}, small, seed=None)
    with pytest.raises(AlgorithmError, match="seed='a'"):
        run(counts, {"events": EVENTS}, small, seed="a")
    with pytest.raises(AlgorithmError, match="expected one such as"):
        run(counts, {"events": EVENTS}, small, NUTS)
    with pytest.raises(AlgorithmError, match=r"decorate it with @pg\.model"):
        run(lambda: None, None, small)
