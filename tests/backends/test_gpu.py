"""On a CUDA device: the same declarations, the same numbers. Skipped where there is none."""

import numpy as np
import pytest
from emd_cases import REVERSE, chain_ends, exact, gradients, small_teacher, within_errors
from flow_cases import exact_diffusion

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.engine.codes import codes_by
from probgen.inference import (
    DDIM,
    ELBO,
    IWAE,
    SVI,
    Adversarial,
    DDIMInverse,
    Denoising,
    DenoisingELBO,
    DPMSolver,
    EMDistillation,
    Inpaint,
    Langevin,
    ProbabilityFlow,
    ProbabilityFlowODE,
)
from probgen.models import (
    VAE,
    Diffusion,
    DiffusionMap,
    ImplicitDiffusion,
    InverseProblem,
    NoiseSchedule,
    OneStep,
    likelihoods,
)

pytestmark = pytest.mark.gpu


def small_vae():
    return VAE(
        latent=dist.Normal(0, 1).expand([4]).to_event(1),
        decoder=nets.ConvDecoder(channels=(16, 8), out=(8, 8, 1)),
        likelihood=dist.Bernoulli,
        encoder=nets.ConvEncoder(channels=(8, 16), out=4, heads=("loc", "log_scale")),
    )


def test_a_fit_on_cuda_gives_the_likelihood_of_one_on_cpu(backend_name):
    x = pg.data.binarize(pg.data.digits().images)
    bounds = {}
    for device in ("cpu", "cuda"):
        fitted = pg.fit(
            small_vae(), x, SVI(ELBO(), pg.Adam(2e-3)), num_steps=500, batch_size=128,
            backend=backend_name, device=device, seed=0, progress_bar=False,
        )  # fmt: skip
        assert fitted.info["device"].startswith(device)
        table = pg.evaluate(fitted, x[:300], [IWAE(100)], seed=0, device=device)
        bounds[device] = table.mean("IWAE(100)")
    (cpu, error), (cuda, _) = bounds["cpu"], bounds["cuda"]
    assert abs(cpu - cuda) < 5 * error


def test_log_densities_agree_across_devices(backend_name):
    x = pg.data.binarize(pg.data.digits().images)[:16]
    z = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    found = []
    for device in ("cpu", "cuda"):
        b = pg.backends.load(backend_name, device)
        bound, params = bind(small_vae(), b, data={"x": x})
        sites = bound.trace(params, {"x": b.asarray(x)}, {"z": b.asarray(z)})
        found.append(b.to_numpy(sites["x"].log_prob))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def test_a_conditional_diffusion_is_learned_drawn_and_bounded_on_cuda(backend_name):
    """By every weighting and kind of time; the bound is that of the CPU."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 64)
    x = (y[:, None, None, None] - 1.0 + 0.1 * rng.normal(size=(64, 8, 8, 1))).astype(np.float32)
    model = Diffusion(
        nets.UNet((8,), num_groups=4), (8, 8, 1), NoiseSchedule(6, "vp_sde"), "v_prediction",
        nets.ClassEmbedding(3, 8),
    )  # fmt: skip
    on = {"backend": backend_name, "device": "cuda", "seed": 0}
    for algorithm in (
        Denoising(), Denoising(weighting="min_snr", time="continuous"), Denoising(weighting="edm"),
        Denoising(weighting="flow_matching", time="continuous"), Denoising(weighting="elbo"),
    ):  # fmt: skip
        fitted = pg.fit(
            model, x, algorithm, inputs={"condition": y}, num_steps=3, ema_decay=0.9,
            progress_bar=False, **on,
        )  # fmt: skip
    part = Inpaint(DDIM(3), np.eye(8)[..., None], np.zeros((8, 8, 1)), 2)
    for method in (None, DDIM(3), DPMSolver(3, guidance_scale=2.0), ProbabilityFlowODE(3), part):
        drawn = pg.generate(fitted.raw, 6, method=method, inputs={"condition": y[:6]}, **on)
        assert drawn["x"].shape == (6, 8, 8, 1)
    found = []
    for device in ("cpu", "cuda"):
        table = pg.evaluate(
            fitted, x, [DenoisingELBO(8)], inputs={"condition": y}, progress_bar=False,
            **{**on, "device": device},
        )  # fmt: skip
        found.append(table[DenoisingELBO(8).name])
    gap = found[0]["estimate"].values - found[1]["estimate"].values
    spread = np.hypot(*(f["standard_error"].values for f in found))
    assert abs(gap.mean()) < 5 * spread.mean() / np.sqrt(len(gap))


@pytest.mark.parametrize("options", [{}, {"consistency": 0.5}, {"gradient_penalty": 10.0}], ids=str)
def test_a_denoising_diffusion_gan_is_learned_and_drawn_on_cuda(backend_name, options):
    x = np.random.default_rng(0).uniform(-1, 1, size=(64, 8, 8, 1)).astype(np.float32)
    model = ImplicitDiffusion(nets.LatentUNet((8, 16)), (8, 8, 1), 4, data_range=(-1, 1))
    learner = Adversarial(nets.ConvDiscriminator((8, 8)), r1=0.05, r1_every=2, **options)
    on = {"backend": backend_name, "device": "cuda", "seed": 0}
    fitted = pg.fit(
        model, x, learner, num_steps=3, batch_size=16, ema_decay=0.9, progress_bar=False, **on
    )
    assert pg.generate(fitted, 6, **on)["x"].shape == (6, 8, 8, 1)


def test_em_distillation_on_cuda(backend_name):
    """The chain's closed form, and a step of a student and its score on the device."""
    b = pg.backends.load(backend_name, "cuda")
    ends, _ = chain_ends(b, exact(num_steps=1, gamma_z=0.0), 50_000)
    within_errors(gradients(ends)["full"], 0.16 * np.array(REVERSE))
    teacher = small_teacher()
    fitted = pg.fit(
        OneStep(teacher), None, EMDistillation(teacher, num_steps=2), num_steps=2, batch_size=8,
        seed=0, backend=backend_name, device="cuda", progress_bar=False,
    )  # fmt: skip
    assert np.isfinite(fitted.history["loss"]).all()


# ---- what is deterministic is the same on both devices ----

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
DEVICES = ("cpu", "cuda")


def drawn(b, fitted, method):
    return pg.generate(fitted, 6, method=method, start=X, seed=0, backend=b)["x"]


def density(b, fitted, measure):
    table = pg.evaluate(fitted, X, [measure], seed=0, backend=b, progress_bar=False)
    return table[measure.name]["estimate"].values


DETERMINISTIC = {
    "DPM-Solver": lambda b, f: drawn(b, f, DPMSolver(5)),
    "Heun": lambda b, f: drawn(b, f, ProbabilityFlowODE(5)),
    "inversion": lambda b, f: codes_by(DDIMInverse(5), f, b, X, None)["x_40"],
    "flow": lambda b, f: density(b, f, ProbabilityFlow(10)),
    "adaptive flow": lambda b, f: density(b, f, ProbabilityFlow(tolerance=0.01)),
}


@pytest.mark.parametrize("call", DETERMINISTIC)
def test_samplers_and_densities_of_a_diffusion_are_those_of_the_cpu(backend_name, call):
    fitted, _, _ = exact_diffusion(3, steps=40)
    found = [DETERMINISTIC[call](pg.backends.load(backend_name, d), fitted) for d in DEVICES]
    np.testing.assert_allclose(*found, rtol=1e-2, atol=2e-2)  # products in TF32


def test_a_diffusion_is_completed_and_is_a_prior_of_chains_on_cuda(backend_name):
    """What is known stays; of y = x + N(0, 0.3^2) the posterior mean is that of the CPU."""
    fitted, _, _ = exact_diffusion(3, steps=40)
    b = pg.backends.load(backend_name, DEVICES[1])
    completed = drawn(b, fitted, Inpaint(DDIM(5), [1, 0, 0], X[0], 2))
    np.testing.assert_allclose(completed[:, 0], X[0, 0], atol=1e-5)
    assert np.isfinite(completed).all()
    problem = InverseProblem(DiffusionMap(fitted, 4), lambda x: dist.Normal(x, 0.3).to_event(1))
    method = Langevin(0.05, 300, metropolis=True, num_warmup=100, num_chains=64)
    means = []
    for device in DEVICES:
        chains = pg.infer(
            problem, {"y": X[:1]}, method, seed=0, backend=pg.backends.load(backend_name, device),
            progress_bar=False,
        )  # fmt: skip
        means.append(chains.posterior["x"].values[:, :, 0].mean(1))
    error = np.sqrt(sum(m.var(0, ddof=1) / len(m) for m in means))
    assert (abs(means[0].mean(0) - means[1].mean(0)) < 5 * error).all()


def test_a_latents_diffusion_is_learned_on_cuda(backend_name):
    """Behind a frozen encoder and decoder, which stay as they were."""
    prior = Diffusion(nets.MLPDenoiser(2, (8,), time_dim=4), (2,), NoiseSchedule.rescaled(30))
    model = VAE(
        prior, nets.MLP((4,), 3), likelihoods.Normal(0.5),
        nets.MLP((4,), 2, heads=("loc", "log_scale")),
    )  # fmt: skip
    fitted = pg.fit(
        model, X, Denoising(), num_steps=3, batch_size=4, seed=0, progress_bar=False,
        freeze=("encoder", "decoder"), backend=pg.backends.load(backend_name, DEVICES[1]),
    )  # fmt: skip
    assert np.isfinite(fitted.history["loss"]).all()
    assert pg.generate(fitted, 6, seed=0, device=DEVICES[1])["x"].shape == (6, 3)


def test_a_network_of_diffusers_draws_on_cuda_what_it_draws_on_the_cpu():
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(4, 8),
        layers_per_block=1, norm_num_groups=2, down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    ).eval()  # fmt: skip
    fitted = pg.from_diffusers(network, diffusers.DDPMScheduler(40))
    start = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    found = [
        pg.generate(fitted, 2, method=DDIM(4), start=start, seed=0, backend="torch", device=d)["x"]
        for d in DEVICES
    ]
    np.testing.assert_allclose(*found, rtol=1e-2, atol=1e-2)  # convolutions in TF32
