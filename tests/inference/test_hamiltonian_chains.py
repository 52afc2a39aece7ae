"""Warm-up, mass matrices and engines of NUTS and HMC in `infer`."""

import numpy as np
import pytest
from infer_cases import C, Y, assert_moments, check_regression, quick, regression

import probgen as pg
from probgen import dist
from probgen.errors import AlgorithmError, DeclarationError
from probgen.inference import HMC, NUTS
from probgen.inference.sample.adaptation import Learned, learned, unlearned
from probgen.inference.sample.mass import Mass
from probgen.inference.sample.warmup import windows


@pytest.mark.parametrize(
    ("num", "expected"),
    [
        (0, []),
        (19, [19]),
        (20, [3, 15, 2]),
        (100, [15, 75, 10]),
        (150, [75, 25, 50]),
        (180, [75, 25, 30, 50]),
        (300, [75, 25, 50, 100, 50]),
        (700, [75, 25, 50, 100, 400, 50]),
        (1000, [75, 25, 50, 100, 200, 500, 50]),
        (2000, [75, 25, 50, 100, 200, 400, 1100, 50]),
    ],
)
def test_windows_are_those_of_stan(num, expected):
    found = windows(num)
    assert [w.length for w in found] == expected
    assert [w.is_slow for w in found] == [0 < i < len(found) - 1 for i in range(len(found))]


def test_step_sizes_are_learned_by_dual_averaging(b):
    """As a plain loop over the acceptance rates of one chain (Hoffman & Gelman 2014, section 3.2),
    restarted from 0.3 as Stan does: mu = log 3, gamma = 0.05, t_0 = 10, kappa = 3 / 4."""
    rates, first = np.random.default_rng(0).random(30), 0.3
    mu, error, averaged = np.log(10.0 * first), 0.0, 0.0
    size: Learned = unlearned(b.ops, b.asarray(np.zeros(())))
    for m, rate in enumerate(rates, start=1):
        error = (1 - 1 / (m + 10)) * error + (0.8 - rate) / (m + 10)
        log_size = mu - np.sqrt(m) / 0.05 * error
        averaged = m**-0.75 * log_size + (1 - m**-0.75) * averaged
        size = learned(b.ops, size, b.asarray(rate), goal=0.8, num_warmup=b.asarray(30.0))
        now = averaged if m == 30 else log_size
        assert np.log(first) + float(size.log_factor) == pytest.approx(now, abs=1e-3)


COV = np.array([[4.0, 1.5, 0.0], [1.5, 1.0, 0.2], [0.0, 0.2, 0.25]])


@pytest.mark.parametrize(("blocks", "rank"), [((), 0), ((3,), 0), ((2,), 0), ((), 2)])
def test_a_root_gives_the_covariance_of_the_draws(b, blocks, rank):
    """A A' is Stan's shrunk covariance, of a block or the diagonal; and A' is its transpose."""
    mass, n = Mass(3, blocks, rank), 4000
    draws = np.random.default_rng(1).multivariate_normal(np.zeros(3), COV, size=(n, 2))
    arrays = {k: b.asarray(v) for k, v in mass.learned(draws).items()}
    push, pull = mass.root(b.ops, arrays)

    def columns(apply):
        unit = [b.asarray(np.tile(e, (2, 1))) for e in np.eye(3)]
        return np.stack([b.to_numpy(apply(e)) for e in unit], axis=2)

    root = columns(push)
    np.testing.assert_allclose(columns(pull), root.swapaxes(1, 2), atol=1e-6)
    for chain in range(2):
        full = (n * np.cov(draws[:, chain], rowvar=False) + 5e-3 * np.eye(3)) / (n + 5)
        keep = np.eye(3, dtype=bool)
        keep[: sum(blocks), : sum(blocks)] = True
        expected = full if rank else np.where(keep, full, 0.0)
        found = root[chain] @ root[chain].T
        # Two directions of three are all there is, but for what chance shows.
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=0.02 if rank else 1e-5)


def test_directions_of_independent_coordinates_are_left_out():
    draws = np.random.default_rng(2).normal(size=(100, 1, 30))
    assert not Mass(30, (), 5).learned(draws)["gains"].any()


@pytest.fixture(scope="module")
def small(backend_name):
    return quick(backend_name)


# Many short chains: side by side, they cost little more than one.
OURS = {"num_warmup": 40, "num_samples": 16, "num_chains": 40, "engine": "probgen"}


def infer(b, method, seed=0, model=regression, data=None, inputs=None):
    data, inputs = ({"y": Y}, {"covariates": C}) if model is regression else (data, inputs)
    return pg.infer(model, data, method, inputs=inputs, seed=seed, backend=b, progress_bar=False)


FORMS = {
    "dense": NUTS(**OURS, dense_mass=True, max_tree_depth=4),
    "low rank": NUTS(**OURS, mass_rank=2, max_tree_depth=4),
    "HMC": HMC(**OURS, num_steps=4),
}


# Of a low rank and dense, it is the root of the mass alone that differs.
LOW_RANK = pytest.param(
    "low rank", marks=pytest.mark.repeated("test_a_root_gives_the_covariance_of_the_draws")
)


# HMC learns by the warm-up of NUTS, and its chains have their law there.
BY_HMC = pytest.param(
    "HMC",
    marks=pytest.mark.repeated(
        "test_flow_chains.py::test_a_chain_under_a_flow_prior_has_the_posterior"
    ),
)


@pytest.mark.parametrize("form", ["dense", LOW_RANK, BY_HMC])
def test_every_mass_matrix_keeps_a_posterior_known_in_closed_form(small, form):
    check_regression(infer(small, FORMS[form]))


def test_a_chain_does_not_see_its_neighbours(small):
    """The first two of four chains are the same to the bit wherever the others start."""
    short = {"num_warmup": 8, "num_samples": 8, "max_tree_depth": 3, "engine": "probgen"}
    starts = np.zeros((2, 4, 3), np.float32)
    starts[1, 2:] = [[5.0, -5.0, 0.0], [0.0, 20.0, 20.0]]
    one, two = (
        infer(small, NUTS(**short, num_chains=4, init_strategy={"weights": s})).posterior
        for s in starts
    )
    np.testing.assert_array_equal(one.weights.values[:2], two.weights.values[:2])
    assert (one.weights.values[2:, 0] != two.weights.values[2:, 0]).all()


@pg.model
def bounded():
    pg.sample("u", dist.Uniform(2.0, 5.0))
    pg.sample("v", dist.Normal(0.0, 1.0))


@pytest.mark.repeated("test_infer.py::test_nuts_keeps_a_posterior_known_in_closed_form")
def test_a_bounded_support_keeps_its_law(small):
    draws = infer(small, NUTS(**OURS), model=bounded).posterior
    u = (draws.u.values - 2.0) / 3.0
    assert (u > 0).all() and (u < 1).all()
    assert_moments(
        np.stack([u, draws.v.values], axis=-1), np.array([0.5, 0.0]),
        np.diag([1 / 12, 1.0]), "u, v",
    )  # fmt: skip


def test_an_engine_that_is_not_there_is_refused(small):
    other = {"torch": "numpyro", "jax": "pyro"}[small.name]
    with pytest.raises(AlgorithmError, match=f"engine='{other}' on {small.name}, expected one of"):
        infer(small, NUTS(engine=other))
    theirs = {"torch": "pyro", "jax": "numpyro"}[small.name]
    with pytest.raises(AlgorithmError, match="mass_rank=2 with the engine .*expected engine='pr"):
        infer(small, NUTS(engine=theirs, mass_rank=2))
    with pytest.raises(DeclarationError, match="expected one form of the mass matrix"):
        NUTS(mass_rank=2, dense_mass=True)


def test_the_library_of_the_backend_is_the_reference(small):
    engine = {"torch": "pyro", "jax": "numpyro"}[small.name]
    check_regression(
        infer(small, NUTS(num_warmup=100, num_samples=150, num_chains=2, engine=engine))
    )
