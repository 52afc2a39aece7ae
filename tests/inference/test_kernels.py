"""Kernels keep their target, and a biased one shows the bias that theory says."""

import numpy as np
import pytest

from probgen.errors import AlgorithmError, DeclarationError
from probgen.inference import Langevin
from probgen.inference.sample.kernels import run_chain
from probgen.inference.sample.spaces import bind_space


def ends(backend, declared, log_density, start, seed=0):
    """Positions after the declared number of steps, one per chain, and each step's info."""
    kernel = declared.kernel(backend, log_density, num_calls=1)

    def run(x, key):
        state, info = run_chain(backend, kernel, x, key, declared.num_steps)
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


@pytest.mark.parametrize(
    "options", [{"step_size": 0.0}, {"step_size": 0.1, "num_steps": 0},
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
        bind_space(bound, "data")
