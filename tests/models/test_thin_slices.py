"""Three systems through one driver and one protocol: the contracts hold for more than VAEs.

An energy-based model, a frozen VAE tilted by an energy with its chain in noise space, a diffusion
prior. Each is a declaration, `fit`, and a check against a truth that is known.
"""

import math

import numpy as np
import pytest
from at_once import terms_of
from fit_cases import assert_same_bits

import probgen as pg
from probgen import dist, nets
from probgen.errors import AlgorithmError
from probgen.inference import ELBO, SVI, Denoising, Langevin, MaximumLikelihood, PersistentChains
from probgen.models import EBM, VAE, Diffusion, Generator, NoiseSchedule, Tilted

STANDARD = dist.Normal(0, 1).expand([2]).to_event(1)
FAST = {"batch_size": 256, "seed": 0, "progress_bar": False}


def grid(extent=6.0, count=81):
    axis = np.linspace(-extent, extent, count, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    return points, (axis[1] - axis[0]) ** 2


def log_joint(fitted, backend, points):
    bound, params = fitted.bind(backend)
    sites = terms_of(backend, bound.trace, params, {"x": backend.asarray(points)})
    return sum(log_prob.astype(np.float64) for _, log_prob in sites.values())


@pytest.mark.repeated(
    "test_chain_supports.py::test_maximum_likelihood_over_a_positive_base_learns_the_rate"
)
def test_an_energy_learns_the_density_that_the_base_lacks(b):
    """KL(data || model) by quadrature falls from that of the base to a fifth of it."""
    truth = pg.data.gaussian_mixture([[-2.0, 0.0], [2.0, 0.0]], covariances=0.36)
    x = truth.sample(4000, seed=1).astype(np.float32)
    model = EBM(
        energy=nets.MLPEnergy(hidden=(32, 32)),
        base=dist.Normal(0.0, 2.0).expand([2]).to_event(1),
    )
    learn = MaximumLikelihood(
        Langevin(step_size=0.1, num_steps=20), optimizer=pg.Adam(2e-3), init=PersistentChains()
    )
    fitted = pg.fit(model, x, learn, num_steps=200, backend=b, **{**FAST, "batch_size": 128})
    points, area = grid()
    log_p = log_joint(fitted, b, points)
    log_p -= math.log(np.exp(log_p).sum() * area)
    log_true = truth.log_prob(points)
    base = -0.5 * (points**2).sum(1) / 4.0 - math.log(2 * math.pi * 4.0)
    weight = np.exp(log_true) * area
    assert (weight * (log_true - log_p)).sum() < 0.2 * (weight * (log_true - base)).sum()
    draws = pg.generate(
        fitted, 1000, method=Langevin(step_size=0.1, num_steps=100), seed=0, backend=b
    )
    right = (draws["x"][:, 0] > 0).mean()
    assert abs(right - 0.5) < 0.2 and "Langevin" in draws.note


def linear_vae(scale, **decoder):
    return VAE(
        latent=dist.Normal(0, 1).expand([1]).to_event(1),
        decoder=nets.MLP(hidden=(), out=(2,), **decoder),
        likelihood=pg.models.likelihoods.Normal(scale=scale),
        encoder=nets.MLP(hidden=(16,), out=1, heads=("loc", "log_scale")),
    )


@pytest.mark.repeated(
    "test_exponential_tilting.py::test_the_learning_rule_is_the_gradient_of_the_likelihood"
)
def test_tilting_mends_a_frozen_vae(b):
    """A VAE that is too wide is pulled to the data's spread."""
    rng = np.random.default_rng(2)
    z = rng.normal(size=(3000, 1))
    x = (z * [[1.0, 0.5]] + 0.5 * rng.normal(size=(3000, 2))).astype(np.float32)
    vae = pg.fit(linear_vae(1.0), x, SVI(ELBO(), pg.Adam(1e-2)), num_steps=120, backend=b, **FAST)
    model = Tilted(vae, energy=nets.MLPEnergy(hidden=(32,)))
    sampler = Langevin(step_size=0.1, num_steps=10)
    learn = MaximumLikelihood(
        sampler, space="noise", optimizer=pg.Adam(5e-3), init=PersistentChains()
    )
    fitted = pg.fit(model, x, learn, num_steps=120, backend=b, **{**FAST, "batch_size": 128})
    before = pg.generate(vae, 4000, seed=0, backend=b)["x"]
    method = Langevin(step_size=0.1, num_steps=60)
    after = pg.generate(fitted, 2000, method=method, space="noise", seed=0, backend=b)["x"]
    target, wide, mended = (np.cov(s.T) for s in (x, before, after))
    assert np.abs(mended - target).sum() < 0.5 * np.abs(wide - target).sum()


@pytest.fixture(scope="module")
def as_it_starts():
    x = np.random.default_rng(0).normal(size=(256, 2)).astype(np.float32)
    model = linear_vae(1.0, spectral=True)
    rng = np.random.default_rng(0)
    params = {"encoder": model.encoder.init(rng, (2,)), "decoder": model.decoder.init(rng, (1,))}
    return x, pg.Fitted(model, params, shapes={"x": (2,)})


def test_nothing_of_a_frozen_vae_moves_buffers_of_a_spectral_norm_neither(b, as_it_starts):
    x, vae = as_it_starts
    decoder = {"out": {**vae.params["decoder"]["out"], "u": np.float32([0.6, 0.8])}}
    vae = pg.Fitted(vae.model, {**vae.params, "decoder": decoder}, shapes=vae.shapes)
    learn = MaximumLikelihood(Langevin(0.1, num_steps=2), space="noise")
    model = Tilted(vae, nets.MLPEnergy(hidden=(8,)))
    fitted = pg.fit(model, x, learn, num_steps=2, backend=b, **FAST)
    for name, old in vae.params.items():
        assert_same_bits(fitted.params[name], old)
    assert np.abs(fitted.params["energy"]["out"]["weight"]).max() > 0


def without_encoder(vae):
    """The generator of a fitted VAE."""
    model = Generator(vae.model.latent, vae.model.decoder, vae.model.likelihood)
    return pg.Fitted(model, {"decoder": vae.params["decoder"]}, shapes=vae.shapes)


@pytest.mark.parametrize(
    "tilt, options, match",
    [
        (
            lambda vae: Tilted(without_encoder(vae), nets.MLPEnergy(hidden=(8,)), on="z"),
            {},
            "reads the latents.*a guide",
        ),
        (lambda vae: Tilted(vae.model, nets.MLPEnergy(hidden=(8,))), {}, "not frozen"),
        (
            lambda vae: Tilted(without_encoder(vae).model, nets.MLPEnergy(hidden=(8,))),
            {},
            "'decoder'.* not frozen",
        ),
        (
            lambda vae: Tilted(vae, nets.MLPEnergy(hidden=(8,))),
            {"gradient_accumulation": 2},
            "gradient_accumulation=2",
        ),
    ],
)
def test_what_factors_alone_cannot_teach_is_refused(b, as_it_starts, tilt, options, match):
    x, vae = as_it_starts
    learn = MaximumLikelihood(Langevin(0.1, num_steps=2), space="noise")
    with pytest.raises(AlgorithmError, match=match):
        pg.fit(tilt(vae), x, learn, num_steps=2, backend=b, **FAST, **options)


@pytest.mark.repeated(
    "test_latent_priors.py::test_a_prior_behind_a_frozen_vae_learns_the_law_of_its_codes"
)
def test_a_diffusion_prior_learns_a_mixture(b):
    """Ancestral draws have the mixture's weights and spread; held to their errors and a floor."""
    truth = pg.data.gaussian_mixture([[-1.0, -1.0], [1.0, 1.0]], covariances=0.0625)
    x = truth.sample(4000, seed=1).astype(np.float32)
    model = Diffusion(
        denoiser=nets.MLPDenoiser(out=2, hidden=(48, 48)),
        shape=(2,),
        schedule=NoiseSchedule.rescaled(50),
    )
    learn = Denoising(pg.Adam(pg.CosineDecay(5e-3, num_steps=700)))
    fitted = pg.fit(model, x, learn, num_steps=700, ema_decay=0.99, backend=b, **FAST)
    assert fitted.history.last("loss") < 0.6
    draws = pg.generate(fitted, 4000, seed=0, backend=b)["x"]
    side = draws.sum(1) > 0
    assert abs(side.mean() - 0.5) < 0.1
    for sign, part in ((1.0, draws[side]), (-1.0, draws[~side])):
        np.testing.assert_allclose(part.mean(0), [sign, sign], atol=0.12)
        np.testing.assert_allclose(part.std(0), 0.25, atol=0.1)
