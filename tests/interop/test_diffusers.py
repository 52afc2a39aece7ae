"""diffusers' networks, schedulers and loops are ours, number for number; on torch alone.

Networks are small, random, and made here; theirs run in double precision where steps are compared,
since in single precision their own 1 - alpha_bar_t / alpha_bar_{t-1} loses four digits.
"""

import numpy as np
import pytest
from floats import float64

import probgen as pg
from probgen import backends
from probgen.errors import AlgorithmError, DeclarationError, ShapeError
from probgen.inference import DDIM, Ancestral, Denoising
from probgen.models import Diffusion, NoiseSchedule
from probgen.trees import tree_leaves, tree_map

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
rescale_zero_terminal_snr = pytest.importorskip(
    "diffusers.schedulers.scheduling_ddpm"
).rescale_zero_terminal_snr

NAMES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
PLAIN = {"clip_sample": False, "timestep_spacing": "trailing"}


def unet(**options):
    torch.manual_seed(0)
    sizes = {"sample_size": 4, "in_channels": 2, "out_channels": 2, "block_out_channels": (4, 8),
             "layers_per_block": 1, "norm_num_groups": 2}  # fmt: skip
    kinds = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
             "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 4}  # fmt: skip
    return diffusers.UNet2DModel(**{**sizes, **kinds, **options}).eval()


@pytest.fixture(scope="module")
def network():
    return unet()


@pytest.fixture(scope="module")
def fitted(network):
    return pg.from_diffusers(network, diffusers.DDPMScheduler(60, **PLAIN))


def double(scheduler):
    """Their scheduler with its own betas, accumulated in double precision."""
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("steps", [1000, 37])
@pytest.mark.parametrize("name", NAMES)
def test_schedules_are_theirs(name, steps, rescaled):
    theirs = diffusers.DDPMScheduler(
        steps, beta_schedule=name, rescale_betas_zero_snr=rescaled, prediction_type="v_prediction"
    )
    ours = pg.from_diffusers(theirs)
    assert isinstance(ours, NoiseSchedule) and ours.num_train_timesteps == steps
    betas = diffusers.DDPMScheduler(steps, beta_schedule=name).betas.double()
    if rescaled:  # by their function, in double precision
        betas = rescale_zero_terminal_snr(betas)
    np.testing.assert_allclose(ours.betas(), betas, rtol=1e-6, atol=1e-6)
    bar = torch.cumprod(1 - betas, 0)
    np.testing.assert_allclose(ours.alphas_bar(), bar, rtol=1e-4, atol=1e-6)


def test_a_scheduler_without_our_betas_is_refused():
    with pytest.raises(DeclarationError, match="without betas of a named schedule"):
        pg.from_diffusers(diffusers.DDPMScheduler(3, trained_betas=[0.1, 0.2, 0.3]))
    with pytest.raises(DeclarationError, match="without betas of a named schedule"):
        pg.from_diffusers(diffusers.FlowMatchEulerDiscreteScheduler())
    changed = diffusers.DDPMScheduler(10)
    changed.alphas_cumprod = changed.alphas_cumprod**2
    with pytest.raises(DeclarationError, match="was changed after it was made"):
        pg.from_diffusers(changed)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_an_ancestral_step_is_theirs(kind):
    """DDPMScheduler.step at given noise, but for the last, which draws none there."""
    theirs = double(diffusers.DDPMScheduler(60, prediction_type=kind, clip_sample=False))
    model = Diffusion(pg.nets.UNet(), (2, 4, 4), pg.from_diffusers(theirs), kind)
    table = model.table()
    x, predicted = np.random.default_rng(0).standard_normal((2, 3, 2, 4, 4))
    for t in (59, 30, 1):
        row = {k: v[t] for k, v in table.items()}
        noise = torch.randn(3, 2, 4, 4, generator=torch.manual_seed(t), dtype=torch.float64)
        expected = theirs.step(
            torch.as_tensor(predicted), t, torch.as_tensor(x), generator=torch.manual_seed(t)
        ).prev_sample
        got = model.posterior_mean(x, predicted, row) + row["std"] * noise.numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_a_network_computes_what_it_computes_by_itself(network, fitted):
    """Axes and times: at any number of leading axes, and a whole number or a fraction of t."""
    x = torch.randn(3, 2, 4, 4, 2, generator=torch.manual_seed(1))
    t = torch.tensor([3.0, 41.5])
    params = tree_map(torch.as_tensor, fitted.params["denoiser"])
    got = fitted.model.denoiser.apply(params, x, t)
    for i in range(2):
        expected = network(x[:, i].permute(0, 3, 1, 2), t[i]).sample.permute(0, 2, 3, 1)
        torch.testing.assert_close(got[:, i], expected, rtol=1e-6, atol=1e-6)


OPTIONS = [
    (6, 0.0, {**PLAIN}),
    (6, 1.0, {**PLAIN}),
    (7, 0.0, {"steps_offset": 1, "set_alpha_to_one": False}),  # clipped, "leading"
    (7, 0.5, {"timestep_spacing": "linspace", "prediction_type": "v_prediction"}),
]


def exact(fitted):
    """The same in double precision."""
    dtypes = {n: "float64" for n in fitted.shapes}
    params = tree_map(lambda w: w.astype(np.float64), fitted.params)
    return pg.Fitted(fitted.model, params, shapes=fitted.shapes, dtypes=dtypes)


@pytest.mark.parametrize(("num_steps", "eta", "options"), OPTIONS)
def test_a_whole_ddim_loop_is_theirs(network, monkeypatch, num_steps, eta, options):
    """From the same start, the same noise on the way, by the scheduler's own options."""
    b = backends.load("torch", "cpu", compile="live")
    scheduler = double(diffusers.DDIMScheduler(60, **options))
    if not scheduler.config.set_alpha_to_one:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    start, *noise = torch.randn(
        num_steps + 1, 3, 4, 4, 2, generator=torch.manual_seed(2), dtype=torch.float64
    )
    ours = pg.from_diffusers(network, scheduler)
    with float64(b):
        x = start.permute(0, 3, 1, 2)
        network.double()
        scheduler.set_timesteps(num_steps)
        with torch.no_grad():
            for t, xi in zip(scheduler.timesteps, noise, strict=True):
                drawn = xi.permute(0, 3, 1, 2) if eta else None
                predicted = network(x, t).sample
                x = scheduler.step(predicted, t, x, eta=eta, variance_noise=drawn).prev_sample
        network.float()
        rest = iter(noise)
        monkeypatch.setattr(type(b), "normal", lambda self, key, shape: next(rest))
        method = pg.interop.sampler_of(scheduler, num_steps, eta)
        got = pg.generate(exact(ours), 3, method=method, start=start.numpy(), seed=0, backend=b)[
            "x"
        ]
    np.testing.assert_allclose(got, x.permute(0, 2, 3, 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "options", [PLAIN, {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}]
)
def test_a_ddim_inversion_is_theirs(network, fitted, options):
    """The noise predicted at the time that a step leads to, from the datum up."""
    b = backends.load("torch", "cpu", compile="live")
    x = np.random.default_rng(4).standard_normal((3, 4, 4, 2))
    scheduler = double(diffusers.DDIMInverseScheduler(60, **options))
    if not scheduler.config.set_alpha_to_one:
        scheduler.initial_alpha_cumprod = scheduler.alphas_cumprod[0]
    with float64(b):
        network.double()
        scheduler.set_timesteps(6)
        y = torch.as_tensor(x).permute(0, 3, 1, 2)
        with torch.no_grad():
            for t in scheduler.timesteps:
                y = scheduler.step(network(y, t).sample, t, y).prev_sample
        network.float()
        found = exact(fitted).encode(x, method=pg.interop.sampler_of(scheduler, 6))
    np.testing.assert_allclose(found["x_60"], y.permute(0, 2, 3, 1), rtol=1e-6, atol=1e-6)


def test_samplers_that_have_no_counterpart_are_refused():
    ddpm = diffusers.DDPMScheduler(60, clip_sample_range=2.0)
    assert pg.interop.sampler_of(ddpm) == Ancestral(clip_sample_range=2.0)
    for other, steps in (
        (ddpm, 6),
        (diffusers.DDIMScheduler(60, thresholding=True), 6),
        (diffusers.DDPMScheduler(60, variance_type="fixed_large"), None),
        (diffusers.PNDMScheduler(60), 6),
    ):
        with pytest.raises(DeclarationError, match="choose a sampler of probgen.inference by hand"):
            pg.interop.sampler_of(other, steps)


def conditional():
    torch.manual_seed(1)
    return diffusers.UNet2DConditionModel(
        sample_size=4, in_channels=2, out_channels=2, block_out_channels=(4, 8),
        layers_per_block=1, norm_num_groups=2, cross_attention_dim=6, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


def test_an_embedding_conditions_and_guides():
    """predict = null + s (given - null), each by their network at its encoder_hidden_states."""
    network, rng = conditional(), np.random.default_rng(5)
    null, rows = (rng.standard_normal(s).astype("f") for s in ((3, 6), (2, 3, 6)))
    x = torch.as_tensor(rng.standard_normal((2, 4, 4, 2)).astype("f"))
    ours = pg.from_diffusers(network, diffusers.DDPMScheduler(60, **PLAIN), null=null)
    params = tree_map(torch.as_tensor, ours.params)

    def theirs(context):
        at = x.permute(0, 3, 1, 2)
        return network(at, 7.0, torch.as_tensor(context)).sample.permute(0, 2, 3, 1)

    t, batch = torch.full((2,), 7.0), {"condition": torch.as_tensor(rows)}
    given, away = theirs(rows), theirs(np.stack([null, null]))
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(ours.model.predict(params, x, t, batch), given, **close)
    found = ours.model.predict(params, x, t, batch, guidance_scale=2.5)
    torch.testing.assert_close(found, away + 2.5 * (given - away), **close)
    drawn = pg.generate(ours, 2, method=DDIM(2), inputs={"condition": rows}, seed=0)
    assert drawn["x"].shape == (2, 4, 4, 2)
    with pytest.raises(DeclarationError, match="num_tokens=77 of CLIP"):
        pg.from_diffusers(network, diffusers.DDPMScheduler(60))
    bare = pg.from_diffusers(network, diffusers.DDPMScheduler(60), num_tokens=3)
    with pytest.raises(AlgorithmError, match="unconditional branch"):
        bare.model.predict(params, x, t, batch, guidance_scale=2.5)


def test_a_class_conditions():
    network = unet(num_class_embeds=5)
    ours = pg.from_diffusers(network, diffusers.DDPMScheduler(60, **PLAIN))
    x, y = torch.randn(2, 4, 4, 2, generator=torch.manual_seed(6)), torch.tensor([4, 1])
    got = ours.model.predict(
        tree_map(torch.as_tensor, ours.params), x, torch.full((2,), 7.0), {"condition": y}
    )
    expected = network(x.permute(0, 3, 1, 2), 7.0, y).sample.permute(0, 2, 3, 1)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    trained = pg.fit(
        ours, x.numpy(), Denoising(), inputs={"condition": y.numpy()}, num_steps=1, seed=0,
        backend=backends.load("torch", "cpu", compile="live"), progress_bar=False,
    )  # fmt: skip
    assert np.isfinite(trained.history["loss"]).all()


def test_training_moves_their_weights_and_they_go_back(network, fitted, tmp_path):
    """One step, saved, loaded, and put into a network of theirs, which then computes the same."""
    x = np.random.default_rng(3).standard_normal((4, 4, 4, 2)).astype("f")
    trained = pg.fit(
        fitted, x, Denoising(pg.Adam(1e-2)), num_steps=1, seed=0, backend="torch",
        progress_bar=False,
    )  # fmt: skip
    before, after = (f.params["denoiser"]["conv_in"]["weight"] for f in (fitted, trained))
    assert np.abs(after - before).max() > 1e-3
    trained.save_pretrained(tmp_path / "ours")
    loaded = pg.Fitted.from_pretrained(tmp_path / "ours", model=fitted.model)
    other = pg.interop.to_diffusers(loaded, unet())
    at = torch.as_tensor(x).permute(0, 3, 1, 2)
    got = fitted.model.denoiser.apply(
        tree_map(torch.as_tensor, trained.params["denoiser"]), torch.as_tensor(x), torch.ones(4)
    )
    torch.testing.assert_close(got, other(at, torch.ones(4)).sample.permute(0, 2, 3, 1))
    with pytest.raises(ShapeError, match="other names or shapes"):
        pg.to_diffusers(loaded, unet(block_out_channels=(2, 8)))


def test_a_pipelines_folder_is_the_pipeline(network, fitted, tmp_path, caplog):
    """What is left to samplers is said; a folder of a network alone needs a scheduler."""
    scheduler = diffusers.DDIMScheduler(60, beta_schedule="scaled_linear", steps_offset=1)
    diffusers.DDIMPipeline(network, scheduler).save_pretrained(tmp_path)
    with caplog.at_level("INFO", "probgen"):
        loaded = pg.from_diffusers(tmp_path)
    assert "clipping of the estimated datum to [-1, 1]" in caplog.text
    assert "spaced 'leading', moved by 1" in caplog.text
    assert loaded.model.schedule.beta_schedule == "scaled_linear" and loaded.shapes["x"] == (
        4,
        4,
        2,
    )
    for ours, theirs in zip(tree_leaves(loaded.params), tree_leaves(fitted.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    alone = pg.from_diffusers(tmp_path / "unet", tmp_path / "scheduler")
    assert alone.model.schedule == loaded.model.schedule
    assert pg.from_diffusers(tmp_path / "scheduler") == loaded.model.schedule
    with pytest.raises(DeclarationError, match="does not say its noise"):
        pg.from_diffusers(tmp_path / "unet")
    with pytest.raises(DeclarationError, match="local_files_only=False"):
        pg.from_diffusers("google/ddpm-cat-256")
    with pytest.raises(DeclarationError, match="model_index.json"):
        pg.from_diffusers(tmp_path.parent)


@pytest.mark.parametrize(
    ("options", "scheduler", "said"),
    [
        ({"out_channels": 4}, {"variance_type": "learned_range"}, "learned variance"),
        ({"time_embedding_type": "fourier"}, {}, "a noise level in place of a step"),
        ({"sample_size": None}, {}, r"give shape=\(height, width, channels\)"),
    ],
)
def test_what_has_no_counterpart_is_refused(options, scheduler, said):
    with pytest.raises(DeclarationError, match=said):
        pg.from_diffusers(unet(**options), diffusers.DDPMScheduler(10, **scheduler))
