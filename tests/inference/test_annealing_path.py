"""The path from a base to its tilt as a space: the tilt by b E is its density, and its chains'."""

import numpy as np
import pytest
from at_once import at_once
from tilt_cases import Quadratic

import probgen as pg
from probgen import dist, nets
from probgen.engine.spaces import model_target
from probgen.inference import AnnealingPath, Langevin
from probgen.models import EBM

BASE = dist.Normal(1.0, 2.0).expand([2]).to_event(1)
Q = np.array([[0.6, 0.2], [0.2, 0.9]], np.float32)
PARAMS = {"energy": {"q": Q, "c": np.zeros(2, np.float32)}}


def tilted(scale=None):
    energy = Quadratic() if scale is None else nets.ScaledEnergy(Quadratic(), scale)
    return pg.Fitted(EBM(energy, BASE), PARAMS, shapes={"x": (2,)})


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_its_density_is_that_of_the_tilt_by_a_part_of_the_energy(b, fraction):
    bound, params = tilted().bind(b)
    point = AnnealingPath(fraction).target(bound)
    wanted = model_target(tilted(fraction).bind(b)[0], "noise")
    eps = {"x": np.random.default_rng(0).normal(0, 1.5, (20, 2)).astype(np.float32)}

    def run(eps, params):
        return (
            point.log_density(eps, params, {}), wanted.log_density(eps, params, {}),
            point.terms(eps, params, {}),
        )  # fmt: skip

    found, truth, (start, rest) = at_once(b, run, {"x": b.asarray(eps["x"])}, params)
    np.testing.assert_allclose(found, truth, rtol=1e-5)
    np.testing.assert_allclose(start + rest, found, rtol=1e-5)
    normal = -0.5 * (eps["x"] ** 2).sum(-1) - np.log(2 * np.pi)
    np.testing.assert_allclose(start, normal, rtol=1e-5)
    assert point.is_normalized == (fraction == 0.0)


def test_chains_between_base_and_model_have_the_law_of_that_point(b):
    """x ~ N(m, S) with 1 / S = I / 4 + Q / 2, m = S 1 / 4; five standard errors of 4,000 chains."""
    n, method = 4000, Langevin(0.4, num_steps=25, metropolis=True)
    draws = pg.generate(
        tilted(), n, method=method, space=AnnealingPath(0.5), chunk_size=n, seed=0, backend=b
    )
    assert "0.5 of the factors: neither's law" in draws.note
    cov = np.linalg.inv(np.eye(2) / 4 + 0.5 * Q)
    mean = cov @ np.full(2, 0.25)
    spread = np.sqrt(np.diag(cov))
    np.testing.assert_allclose(draws["x"].mean(0), mean, atol=5 * spread.max() / np.sqrt(n))
    products = np.sqrt((np.outer(spread, spread) ** 2 + cov**2) / n)
    assert np.all(np.abs(np.cov(draws["x"].T) - cov) < 5 * products)
