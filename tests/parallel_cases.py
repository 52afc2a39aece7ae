"""A tiny fit by every learner, and its numbers: the same on one device as on many."""

import numpy as np
from emd_cases import affine, exact, small_teacher
from fit_cases import binary_data, small_vae
from learner_cases import EM as UserEM
from learner_cases import factor_data, factor_model, follow

import probgen as pg
from probgen import dist, nets, ops
from probgen.inference import (
    ELBO,
    EM,
    HMC,
    PI,
    SVI,
    Adversarial,
    AutoNormal,
    ControlledELBO,
    Denoising,
    EMDistillation,
    EnergyMagnitude,
    Enumerate,
    GradientPenalty,
    ImportanceSampling,
    ImportanceWeightedELBO,
    Langevin,
    MaximumLikelihood,
    PersistentChains,
    ReplayBuffer,
    SpectralPenalty,
)
from probgen.models import (
    EBM,
    VAE,
    GaussianMixture,
    Generator,
    OneStep,
    likelihoods,
)
from probgen.records.store import flatten

ROWS = 8
X = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
PICTURES = (np.random.default_rng(2).random((24, 8, 8, 1)) < 0.3).astype(np.float32)
NORMAL = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
ENERGY = EBM(nets.MLPEnergy((4,)), NORMAL)


@pg.model
def regression(c):
    """A global latent as long as a batch, and a local one: neither is taken for the other."""
    w = pg.sample("w", dist.Normal(0.0, 1.0).expand([ROWS]).to_event(1))
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0.0, 1.0))
        pg.sample("x", dist.Normal(ops.sum(c * w, axis=-1) + 0.1 * z, 1.0))


QUIET = {"progress_bar": False}
ADAM = pg.Adam(1e-2)
CHAINS = Langevin(0.05, num_steps=3)
C = np.random.default_rng(1).normal(size=(40, ROWS)).astype(np.float32)

# Name -> (model, data, algorithm, options of fit).
CASES = {
    "svi": lambda: (
        small_vae(), binary_data(40),
        SVI(ControlledELBO(set_point=1.0, controller=PI()), pg.Adam(1e-2, clip_norm=0.5)),
        {"ema_decay": 0.9, "validation": binary_data(16, 1), "eval_every": 2},
    ),
    "free bits": lambda: (small_vae(), binary_data(40), SVI(ELBO(free_bits=0.1), ADAM), {}),
    "iwae": lambda: (small_vae(), binary_data(40), SVI(ImportanceWeightedELBO(3), ADAM), {}),
    "in parts": lambda: (
        small_vae(), binary_data(40), SVI(ELBO(), ADAM), {"gradient_accumulation": 2},
    ),
    "global latents": lambda: (
        regression.with_guide(AutoNormal()),
        X[:, 0], SVI(ELBO(), ADAM), {"inputs": {"c": C}},
    ),
    "persistent chains": lambda: (
        ENERGY, X,
        MaximumLikelihood(
            CHAINS, optimizer=ADAM, init=PersistentChains(0.2),
            regularizers=(EnergyMagnitude(0.1), GradientPenalty(0.1), SpectralPenalty(0.1)),
        ), {},
    ),
    "replay buffer": lambda: (
        ENERGY, X,
        MaximumLikelihood(
            HMC(num_steps=2, num_warmup=0, num_samples=1, step_size=0.1), optimizer=ADAM,
            init=ReplayBuffer(24, 0.3, 4),
        ), {},
    ),
    "importance sampling": lambda: (
        ENERGY, X, MaximumLikelihood(ImportanceSampling(16), optimizer=ADAM), {},
    ),
    "denoising": lambda: (small_teacher().model, X, Denoising(ADAM), {}),
    "adversarial": lambda: (
        Generator(NORMAL, nets.MLP((4,), out=2, in_ndim=1), likelihoods.Implicit()), X,
        Adversarial(
            nets.MLP((4,), (), in_ndim=1), ADAM, ADAM, r1=0.1, r1_every=2, gradient_penalty=0.5,
            discriminator_steps=2,
        ), {},
    ),
    "em by chains": lambda: (
        factor_model(), factor_data(40), EM(Langevin(0.05, num_steps=3), ADAM, num_m_steps=2), {},
    ),
    "em by enumeration": lambda: (
        GaussianMixture(2, 3), factor_data(40), EM(Enumerate()), {"batch_size": None},
    ),
    "a user's em": lambda: (factor_model(), factor_data(40), UserEM(num_steps=3), {}),
    "distillation": lambda: (
        affine, None, exact(pg.SGD(0.1), num_steps=3, gamma_z=0.1, check_every=2), {},
    ),
    "a student's score": lambda: (
        OneStep(small_teacher()), None,
        EMDistillation(
            small_teacher(), ADAM, ADAM, num_steps=2, gamma_z=0.01, score_steps=2, weighting="l1",
            check_every=2,
        ), {},
    ),
    "convolutions": lambda: (
        VAE(
            latent=NORMAL, decoder=nets.ConvDecoder(channels=(4, 32), out=(8, 8, 1)),
            likelihood=dist.Bernoulli,
            encoder=nets.ConvEncoder(channels=(2, 4), out=2, heads=("loc", "log_scale")),
        ), PICTURES, SVI(ImportanceWeightedELBO(2), ADAM), {"num_steps": 3},
    ),
    "a drift": lambda: (affine, None, follow(lambda x: -x), {}),
}  # fmt: skip


def fitted(name, b, **options):
    """The fit of that name."""
    model, data, algorithm, own = CASES[name]()
    settings = {"num_steps": 5, "batch_size": ROWS, "seed": 3, "backend": b, **QUIET, **own}
    return pg.fit(model, data, algorithm, **{**settings, **options})


def numbers(fit):
    """All numbers of a fit by name: parameters, what the algorithm has beside them, history."""
    history = {f"history/{n}": fit.history[n] for n in fit.history}
    held_out = {f"validation/{n}": v for n, v in fit.history.validation.items()}
    return {**flatten(fit.params), **flatten(fit.extras), **history, **held_out}


def assert_same(one, other, where):
    """To rounding in float64."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(
            other[name], value, rtol=1e-9, atol=1e-11, err_msg=f"{where}: {name}"
        )
