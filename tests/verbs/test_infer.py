"""Native NUTS and HMC keep posteriors that are known in closed form."""

import numpy as np
import pytest
import scipy.stats
from infer_cases import (
    CASES,
    RNG,
    C,
    Y,
    assert_moments,
    check_regression,
    quick,
    regression,
    run,
    sized,
)

import probgen as pg
from probgen import dist, nets
from probgen.inference import HMC, NUTS


@pytest.fixture(scope="module")
def small(backend_name):
    return quick(backend_name)


REPEATED = pytest.mark.repeated("test_nuts_keeps_a_posterior_known_in_closed_form")


OF_A_SIMPLEX = pytest.mark.repeated(
    "test_chain_supports.py::test_a_chain_keeps_a_base_of_any_support"
)


@pytest.mark.parametrize(
    "case",
    [
        "supports",
        pytest.param("regression", marks=REPEATED),
        pytest.param("correlated", marks=REPEATED),
        pytest.param("die", marks=OF_A_SIMPLEX),
    ],
)
def test_nuts_keeps_a_posterior_known_in_closed_form(case, small):
    model, data, inputs, check, options = CASES[case]
    method = sized(NUTS, small, max_tree_depth=6, **options)
    check(run(model, data, small, method, inputs=inputs))


@pytest.mark.repeated(
    "test_infer_samplers.py::test_every_sampler_gives_the_posterior_that_theory_says"
)
@pytest.mark.parametrize("options", [{"trajectory_length": 2.0}, {"num_steps": 2}])
def test_hmc_keeps_a_posterior_known_in_closed_form(options, small):
    """Steps settle near 0.8 standard deviations: a length of 1.5 is one step then, a slow walk (23
    to 120 effective draws over seeds), and three steps come near half a turn, from which squares do
    not move (31 to 200). Two are near a quarter, where draws are all but independent, once the
    scales are known well: hence a warm-up of 300, whose last window has 100 draws (500 and more).
    """
    sizes = {} if small.name == "jax" else {"num_warmup": 300, "num_samples": 50}
    method = sized(HMC, small, **sizes, **options)
    draws = run(regression, {"y": Y}, small, method, inputs={"covariates": C})
    check_regression(draws)
    assert "tree_depth" not in draws.sample_stats
    if "num_steps" in options:
        assert (draws.sample_stats.n_steps == 2).all()


@pytest.mark.repeated("test_conditional.py::test_infer_reads_them_too")
def test_latents_of_a_fitted_vae_have_their_exact_posterior(small):
    """x = W z + b + s e: z given x is Gaussian with precision I + W'W / s^2, for each datum."""
    scale, w, b = 0.5, np.array([[0.8, -0.3], [0.2, 0.6], [-0.5, 0.1]]), np.array([0.3, -0.2, 0.0])
    vae = pg.models.VAE(
        latent=dist.Normal(0, 1).expand([2]).to_event(1),
        decoder=nets.MLP(hidden=(), out=(3,)),
        likelihood=pg.models.likelihoods.Normal(scale=scale),
        encoder=nets.MLP(hidden=(), out=2, heads=("loc", "log_scale")),
    )
    layer = {"weight": np.float32(w.T), "bias": np.float32(b)}
    params = {"decoder": {"out": layer}, "encoder": vae.encoder.init(RNG, (3,))}
    fitted = pg.Fitted(vae, params, info={"backend": small.name}, shapes={"x": (3,)})
    x = np.array([[1.0, -0.5, 0.2], [-0.3, 0.8, 1.1]], np.float32)
    where = "auto" if small.name == "jax" else small  # auto is the backend that fitted
    method = sized(HMC, small, num_steps=2)
    draws = run(fitted, x, where, method, log_likelihood=True)
    assert draws.attrs["backend"] == small.name and set(draws.posterior.data_vars) == {"z"}
    cov = np.linalg.inv(np.eye(2) + w.T @ w / scale**2)
    z = draws.posterior.z.values
    for i in range(2):
        assert_moments(z[:, :, i], cov @ w.T @ (x[i] - b) / scale**2, cov, f"z[{i}]")
    direct = scipy.stats.norm(b + z @ w.T, scale).logpdf(x).sum(-1)
    np.testing.assert_allclose(draws.log_likelihood.x.values, direct, rtol=1e-3, atol=1e-3)
