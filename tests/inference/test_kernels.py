"""Kernels keep their target, and a biased one shows the bias that theory says."""

import numpy as np
import pytest

from probgen.engine.markov import judged
from probgen.engine.spaces import model_target
from probgen.engine.target import Target, climb, run_chain
from probgen.errors import AlgorithmError, DeclarationError
from probgen.inference import HMC, NUTS, Langevin


def target(log_density=None, drift=None, names=("x",)):
    return Target(
        names, init=None, log_density=log_density, drift=drift,
        values=lambda x, *args: dict(x), is_normalized=False,
    )  # fmt: skip


def ends(backend, declared, log_density, start, seed=0, drift=None):
    """Positions after the declared number of steps, one per chain, and each step's statistics."""
    kernel = declared.kernel(backend, target(log_density, drift), num_calls=1)

    def run(x, key):
        state, info = run_chain(
            backend, kernel, x, key, declared.num_warmup + declared.num_draws,
            keep=lambda state, info: judged(backend.ops, info, state.x),
        )  # fmt: skip
        return state.x, info

    x, info = backend.loop(run)({"x": backend.asarray(start)}, backend.key(seed))
    return backend.to_numpy(x["x"]), {k: backend.to_numpy(v) for k, v in info.items()}


def skewed(ops):
    """Gumbel: log p(x) = -x - exp(-x), mean 0.5772, variance pi^2 / 6; a flipped sign shows."""
    return lambda x: (-x["x"] - ops.exp(-x["x"]))[:, 0]


def within(values, mean, num_errors=5.0):
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - mean) < num_errors * error, (values.mean(), mean, error)


@pytest.mark.parametrize("step_size", [0.1, 0.5])
def test_unadjusted_langevin_has_the_variance_that_theory_says(backend, step_size):
    """On x^2 / 2 its stationary variance is 1 / (1 - h / 2); 100,000 chains see 5 % at 11 s.e."""
    rng = np.random.default_rng(1)
    start = rng.normal(size=(100_000, 1)) / np.sqrt(1 - step_size / 2)
    x, _ = ends(
        backend,
        Langevin(step_size, num_steps=20),
        lambda x: -0.5 * (x["x"] ** 2)[:, 0],
        start.astype(np.float32),
    )
    within(x[:, 0], 0.0)
    within(x[:, 0] ** 2, 1.0 / (1.0 - step_size / 2))


def test_metropolis_removes_the_bias(backend):
    start = np.random.default_rng(2).gumbel(size=(50_000, 1)).astype(np.float32)
    declared = Langevin(0.4, num_steps=30, metropolis=True)
    x, info = ends(backend, declared, skewed(backend.ops), start)
    within(x[:, 0], np.euler_gamma)
    within((x[:, 0] - np.euler_gamma) ** 2, np.pi**2 / 6)
    assert 0.5 < info["acceptance_rate"].mean() < 1.0
    biased, _ = ends(backend, Langevin(0.4, num_steps=30), skewed(backend.ops), start)
    error = biased[:, 0].std() / np.sqrt(len(biased))
    assert abs(biased[:, 0].mean() - np.euler_gamma) > 8 * error


def test_noise_scale_is_a_temperature(backend):
    """noise_scale s targets p^(1 / s^2): variance s^2 / (1 - h / 2) on x^2 / 2."""
    start = 0.5 * np.random.default_rng(3).normal(size=(50_000, 1)).astype(np.float32)
    declared = Langevin(0.1, num_steps=100, noise_scale=0.5)
    x, _ = ends(backend, declared, lambda x: -0.5 * (x["x"] ** 2)[:, 0], start)
    within(x[:, 0] ** 2, 0.25 / (1.0 - 0.05))
    assert "temperature 0.25" in declared.note()


def test_no_noise_is_gradient_ascent(backend):
    start = np.array([[3.0], [-1.0]], np.float32)
    x, _ = ends(
        backend,
        Langevin(0.1, num_steps=7, noise_scale=0.0),
        lambda x: -0.5 * (x["x"] ** 2)[:, 0],
        start,
    )
    np.testing.assert_allclose(x, start * 0.9**7, rtol=1e-5)


def test_the_same_key_gives_the_same_chain(backend):
    start = np.zeros((4, 1), np.float32)
    runs = [
        ends(backend, Langevin(0.1, num_steps=5), skewed(backend.ops), start, seed=s)[0]
        for s in (7, 7, 8)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.allclose(runs[0], runs[2])


def test_a_drift_stands_for_the_gradient(b):
    """x' = x + h d(x) by hand where only a drift is known; a test of its steps is refused."""
    start = np.array([[3.0], [-1.0]], np.float32)
    along = {"drift": lambda x: {"x": 1.0 - x["x"]}}
    x, info = ends(b, Langevin(0.1, num_steps=7, noise_scale=0.0), None, start, **along)
    np.testing.assert_allclose(x, 1.0 + (start - 1.0) * 0.9**7, rtol=1e-5)
    assert not info["diverging"].any() and "acceptance_rate" not in info
    _, up = climb(b, target(**along))({"x": b.asarray(start)})
    np.testing.assert_allclose(b.to_numpy(up["x"]), 1.0 - start)
    for asked in (Langevin(0.1, metropolis=True), HMC(num_steps=2)):
        with pytest.raises(AlgorithmError, match="only a drift is known"):
            asked.kernel(b, target(**along))


def test_hmc_learns_one_step_size_for_all_chains(b):
    """Of a Gaussian whose scales are 1 and 0.1, given by site: moments, at the rate aimed at."""
    from probgen.engine.markov import chain_ends

    def log_density(x, *args):
        return -0.5 * (x["a"] ** 2)[:, 0] - 50.0 * ((x["c"] - 2.0) ** 2)[:, 0]

    def init(params, batch, key, n):
        return {k: b.ops.asarray(b.normal(key, (n, 1))) for k in ("a", "c")}

    where = target(log_density, names=("a", "c"))._replace(init=init)
    method = HMC(
        num_warmup=40, num_samples=30, num_steps=4, step_size={"a": 3.0, "c": 0.3},
        target_accept_prob=0.8,
    )  # fmt: skip
    values, _, stats = chain_ends(b, method, where)({}, {}, b.key(0), 4000)
    values = {n: b.to_numpy(v)[:, 0].astype(np.float64) for n, v in values.items()}
    within(values["a"], 0.0)
    within(values["a"] ** 2, 1.0)
    within(values["c"] - 2.0, 0.0)
    within((values["c"] - 2.0) ** 2, 0.01)
    assert 0.7 < b.to_numpy(stats["acceptance_rate"]).mean() < 0.95


def test_what_no_kernel_moves_is_refused(b):
    where = target(lambda x: -0.5 * (x["x"] ** 2)[:, 0])
    with pytest.raises(AlgorithmError, match="NUTS is for pg.infer"):
        NUTS().kernel(b, where)
    with pytest.raises(AlgorithmError, match="num_steps=10"):
        HMC().kernel(b, where)
    with pytest.raises(AlgorithmError, match="step sizes of \\['z'\\].*each of \\['x'\\]"):
        Langevin({"z": 0.1}).kernel(b, where)


@pytest.mark.parametrize(
    "options", [{"step_size": {"x": -0.1}}, {"step_size": {}},
                {"step_size": 0.0}, {"step_size": 0.1, "num_steps": 0},
                {"step_size": 0.1, "metropolis": True, "noise_scale": 0.5}]
)  # fmt: skip
def test_options_that_make_no_chain_are_refused(options):
    with pytest.raises(DeclarationError, match="Langevin"):
        Langevin(**options)


def test_a_chain_cannot_move_a_discrete_site(backend):
    import probgen as pg
    from probgen import dist
    from probgen.engine.bind import bind

    @pg.model
    def coins():
        with pg.data_plate():
            pg.sample("x", dist.Bernoulli(0.5))

    bound, _ = bind(coins, backend, data={"x": np.zeros(3, np.float32)})
    with pytest.raises(AlgorithmError, match="'x' is discrete"):
        model_target(bound, "data")
