"""Chains where a flow is the law of a latent, or the base of a tilt: noise, data and the real line.

The truth is quadrature over the flow's noise, which reads the map alone; chains on values read its
inverse and log determinant.
"""

import numpy as np
import pytest
import scipy.stats as st
from infer_cases import assert_mean, quick, run
from tilt_cases import Quadratic

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.inference import HMC, Langevin
from probgen.models import Coupling, Flow, Tilted

FLOW = Flow(2, Coupling(nets.MLP((6,), activation="tanh")), num_layers=2, standardize=False)
ENERGY = {"q": np.float32([[0.9, 0.2], [0.2, 0.5]]), "c": np.float32([0.8, -0.5])}
NOISE = 0.8
Y = np.float32([[0.5, -0.8]])
QUANTITIES = {
    "x0": lambda x: x[..., 0], "x1": lambda x: x[..., 1], "x0^2": lambda x: x[..., 0] ** 2,
    "x1^2": lambda x: x[..., 1] ** 2, "x0 x1": lambda x: x[..., 0] * x[..., 1],
}  # fmt: skip


@pg.model
def coded():
    """y = z + noise, z a flow's."""
    with pg.data_plate():
        z = pg.sample("z", FLOW.distribution())
        pg.sample("y", dist.Normal(z, NOISE).to_event(1))


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


@pytest.fixture(scope="module")
def bent(b):
    """(parameters at which the flow is no Gaussian, what it makes of a grid of noise, the grid's
    weights under N(0, I))."""
    bound, params = bind(FLOW, b)
    rng = np.random.default_rng(5)
    params = b.tree_map(
        lambda p: rng.normal(0, 0.5, tuple(p.shape)).astype(np.float32), dict(params)
    )
    axis = np.linspace(-5, 5, 81, dtype=np.float32)
    eps = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    on_device = b.tree_map(b.asarray, params)
    noise = {"x": b.asarray(eps)}

    def made(params, noise):
        return bound.trace(params, {}, noise=noise, batch_size=len(eps))["x"].value

    x = b.compile(made, 1)(on_device, noise)
    return params, b.to_numpy(x).astype(np.float64), np.exp(st.norm.logpdf(eps).sum(-1))


def mean_of(f, x, weight):
    return float(np.average(f(x), weights=weight))


def test_a_chain_under_a_flow_prior_has_the_posterior(b, bent):
    params, z, weight = bent
    still = {"adapt_step_size": False, "adapt_mass_matrix": False}
    method = HMC(num_steps=3, num_warmup=5, num_samples=300, num_chains=2, step_size=0.56, **still)
    draws = run(pg.Fitted(coded, params), {"y": Y}, b, method)
    weight = weight * np.exp(st.norm.logpdf(Y, z, NOISE).sum(-1))
    found = draws.posterior.z.values[:, :, 0]
    for name, f in QUANTITIES.items():
        assert_mean(f(found), mean_of(f, z, weight), name)


CHAINS = {
    "noise": HMC(num_steps=4, step_size=0.4, num_warmup=12, num_samples=4),
    "data": Langevin(0.2, 60, metropolis=True),
}


@pytest.mark.parametrize("space", CHAINS)
def test_chains_of_a_tilted_flow_have_its_law_wherever_they_move(b, bent, space):
    params, x, weight = bent
    model = Tilted(pg.Fitted(FLOW, params, shapes={"x": (2,)}), Quadratic())
    fitted = pg.Fitted(model, {**params, "energy": ENERGY}, shapes={"x": (2,)})
    draws = pg.generate(
        fitted, 4000, method=CHAINS[space], space=space, chunk_size=4000, seed=0, backend=b
    )["x"].astype(np.float64)
    d = x - ENERGY["c"]
    tilted = weight * np.exp(-0.5 * np.einsum("ni,ij,nj->n", d, ENERGY["q"], d))
    for name, f in QUANTITIES.items():
        found = f(draws)
        error = found.std() / len(found) ** 0.5
        assert abs(found.mean() - mean_of(f, x, tilted)) < 5 * error, name
    # The tilt is seen.
    assert abs(mean_of(QUANTITIES["x0"], x, weight) - mean_of(QUANTITIES["x0"], x, tilted)) > 0.2
