"""Native NUTS and HMC keep posteriors that are known in closed form."""

import numpy as np
import pytest
import scipy.stats
from at_once import at_once
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


@pytest.mark.parametrize("case", CASES)
def test_nuts_keeps_a_posterior_known_in_closed_form(case, small):
    model, data, inputs, check, options = CASES[case]
    method = sized(NUTS, small, max_tree_depth=6, **options)
    check(run(model, data, small, method, inputs=inputs))


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
    values = {"z": small.asarray(probe), "x": small.asarray(x[:3])}

    def means():
        return small.mean(bound.trace(params, {}, values, batch_size=3)["x"].fn)

    mean = at_once(small, means).astype(np.float64)
    b, w = mean[0], (mean[1:] - mean[0]).T
    cov = np.linalg.inv(np.eye(2) + w.T @ w / scale**2)
    for i in range(2):
        expected = cov @ w.T @ (x[i] - b) / scale**2
        assert_moments(draws.posterior.z.values[:, :, i], expected, cov, f"z[{i}]")
    direct = scipy.stats.norm(mean[0] + draws.posterior.z.values @ w.T, scale).logpdf(x[:2]).sum(-1)
    np.testing.assert_allclose(draws.log_likelihood.x.values, direct, rtol=1e-3, atol=1e-3)
