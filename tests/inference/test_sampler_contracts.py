"""Every sampler of a diffusion: no more steps than there are, the same draws on both backends."""

import numpy as np
import pytest
from fit_cases import quick

import probgen as pg
from probgen import nets
from probgen.errors import AlgorithmError, DeclarationError
from probgen.inference import DDIM, Ancestral, DDIMInverse, DPMSolver, Inpaint, ProbabilityFlowODE
from probgen.models import Diffusion, DiffusionMap, NoiseSchedule

STEPS = 12
MODEL = Diffusion(nets.MLPDenoiser(2, (4,)), (2,), NoiseSchedule(STEPS, "vp_sde"), "v_prediction")
X = np.random.default_rng(1).normal(size=(3, 2)).astype("float32")
PARAMS = {"denoiser": MODEL.denoiser.init(np.random.default_rng(0), (2,), ())}


def fitted():
    return pg.Fitted(MODEL, PARAMS, shapes={"x": (2,)})


def masked(sampler):
    return Inpaint(sampler, [1, 0], [0.5, 0.0], 2)


@pytest.mark.parametrize("make", [
    Ancestral, DDIM, lambda n: DDIM(n, spacing="leading"), lambda n: DDIM(n, spacing="linspace"),
    lambda n: DPMSolver(n, spacing="trailing"), lambda n: ProbabilityFlowODE(n, spacing="trailing"),
    lambda n: masked(DDIM(n)), lambda n: masked(Ancestral(n)),
])  # fmt: skip
def test_more_steps_than_the_schedule_has_are_refused(make):
    with pytest.raises(AlgorithmError, match=rf"num_steps={STEPS + 1} .* has {STEPS} steps"):
        pg.generate(fitted(), 2, method=make(STEPS + 1), seed=0, backend="torch")


def test_more_steps_of_a_way_back_or_a_map_are_refused_too():
    with pytest.raises(AlgorithmError, match=rf"num_steps={STEPS + 1} .* has {STEPS} steps"):
        fitted().encode(X, method=DDIMInverse(STEPS + 1))
    with pytest.raises(DeclarationError, match=f"num_steps={STEPS + 1} for a chain of {STEPS}"):
        DiffusionMap(MODEL, STEPS + 1)


# Each of these does on both backends what its table says.
REPEATED = pytest.mark.repeated("test_ddim.py::test_draws_have_the_covariance_of_the_linear_map")


@pytest.mark.parametrize("method", [
    None, Ancestral(4, clip_sample_range=1.0), DPMSolver(4), masked(Ancestral(3)),
    *(pytest.param(each, marks=REPEATED)
      for each in (DDIM(4), DDIM(4, eta=0.7), ProbabilityFlowODE(4))),
], ids=lambda m: type(m).__name__)  # fmt: skip
def test_the_same_noise_gives_the_same_samples_on_both_backends(same_noise, method):
    """Within 1e-5 a step, at each step of those that show their way."""
    how = {"method": method, "seed": 0, "return_chain": method is not None}
    one, two = (pg.generate(fitted(), 3, backend=quick(n), **how) for n in ("torch", "jax"))
    np.testing.assert_allclose(one["x"], two["x"], rtol=1e-4, atol=1e-5)
    if method is not None:
        np.testing.assert_allclose(one.chain["x"], two.chain["x"], rtol=1e-5, atol=1e-5)
