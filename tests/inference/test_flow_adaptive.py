"""Adaptive steps of a diffusion's probability flow: what tolerance is stated is met.

Gaussian data against their density, a mixture against scipy's solver in double precision of the ODE
as the paper writes it, both with the exact score of 1000 levels. Far-away data are among them.
"""

import numpy as np
import pytest
from flow_cases import (
    LinearBeta,
    MixtureDenoiser,
    draws,
    exact_diffusion,
    log_normal,
    measured,
    measuring,
)
from scipy.integrate import solve_ivp

from probgen.engine.fitted import Fitted
from probgen.errors import DeclarationError
from probgen.inference.likelihood.probability_flow import ProbabilityFlow
from probgen.models import Diffusion

SINGLE = 5e-4  # of single precision, and of what lies between 1000 levels


@pytest.mark.repeated("test_a_mixture_within_the_tolerance")
@pytest.mark.parametrize("tolerance", [0.1, 1e-3])
def test_gaussian_data_within_the_tolerance(b, tolerance):
    fitted, u, lam = exact_diffusion(steps=1000)
    x = np.concatenate([draws(u, lam, 40), 3.0 * draws(u, lam, 10)])
    out = measured(b, ProbabilityFlow(tolerance=tolerance), fitted, x)
    off = abs(out["estimate"] - log_normal(x, u, lam))
    assert off.max() < tolerance + SINGLE and out["solver_error"].max() <= tolerance
    np.testing.assert_allclose(out["log_prior"] + out["log_volume"], out["estimate"], rtol=1e-6)
    # Seven stages, of which one is the last step's.
    assert ((out["network_calls"] - 1) % 6 == 0).all() and out["network_calls"].max() < 1000


@pytest.fixture(scope="module")
def mixture():
    """(fitted, data, log p by scipy)."""
    num = 1000
    net = MixtureDenoiser(num)
    fitted = Fitted(Diffusion(net, (2,), LinearBeta(num)), {"denoiser": {}}, shapes={"x": (2,)})
    x = (1.2 * np.random.default_rng(0).normal(size=(20, 2))).astype(np.float32)

    def ode(t, y):
        beta, bar = 0.1 + 19.9 * t, np.exp(-(0.1 * t + 9.95 * t * t))
        _, score, divergence = net.log_prob(y.reshape(3, -1)[:2].T, bar)
        dx = -0.5 * beta * (y.reshape(3, -1)[:2] + score.T)
        return np.concatenate([dx, -0.5 * beta * (2.0 + divergence)[None]]).reshape(-1)

    start = np.concatenate([x.T.astype(np.float64), np.zeros((1, len(x)))])
    end = solve_ivp(ode, (1 / num, 1.0), start.reshape(-1), "DOP853", rtol=1e-8, atol=1e-8)
    y = end.y[:, -1].reshape(3, -1)
    return fitted, x, y[2] - 0.5 * (y[:2] ** 2).sum(0) - np.log(2 * np.pi)


def test_a_mixture_within_the_tolerance(b, mixture):
    (fitted, x, log_p), tolerance = mixture, 1e-2
    flow = ProbabilityFlow(tolerance=tolerance, down_to="lowest_noise")
    run = measuring(b, flow, fitted)
    out = run(x)
    off = abs(out["estimate"] - log_p)
    assert off.max() < tolerance + SINGLE and out["solver_error"].max() <= tolerance
    # Each datum has steps of its own: its numbers do not depend on its neighbours.
    assert len(set(out["network_calls"])) > 3
    among = run(np.concatenate([x[:3], x[:1].repeat(len(x) - 3, 0)]))
    np.testing.assert_allclose(among["estimate"][:3], out["estimate"][:3], rtol=1e-5, atol=1e-4)


def test_too_few_steps_are_told_and_a_score_that_is_nan_ends_in_nan(b):
    """What `evaluate` says of NaN is `test_flow_likelihood`'s."""
    fitted, u, lam = exact_diffusion(2, steps=20)
    bound, params = fitted.bind(b)
    flow = ProbabilityFlow(tolerance=1e-3, max_steps=8)
    run, x = b.compile(flow.device_function(bound), over="steps"), b.asarray(draws(u, lam, 20))
    out = run(params, {"x": x}, b.key(0))
    assert out["solver_error"].max() > 1e-3 and out["network_calls"].max() <= 1 + 3 * 6 * 8
    broken = b.tree_map(lambda a: a * float("nan"), dict(params))
    out = run(broken, {"x": x}, b.key(0))
    assert np.isnan(b.to_numpy(out["estimate"])).all()


def test_fixed_and_adaptive_steps_are_a_choice():
    with pytest.raises(DeclarationError, match=r"num_steps.*tolerance.*expected one of the two"):
        ProbabilityFlow(50, tolerance=1e-3)
    flows = [ProbabilityFlow(), ProbabilityFlow(tolerance=0.1), ProbabilityFlow(tolerance=0.2)]
    assert len({f.name for f in [*flows, ProbabilityFlow(guidance_scale=2.0)]}) == 4
