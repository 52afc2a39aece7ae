"""diffusers' networks, schedulers and loops are ours, number for number; on torch alone.

Networks are small, random, and made here; theirs run in double precision where steps are compared,
since in single precision their own 1 - alpha_bar_t / alpha_bar_{t-1} loses four digits.
"""

import numpy as np
import pytest
from floats import float64

import probgen as pg
from probgen import backends
from probgen.errors import DeclarationError, ShapeError
from probgen.inference import DDIM, Denoising
from probgen.models import Diffusion, NoiseSchedule
from probgen.trees import tree_leaves, tree_map

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

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


@pytest.mark.parametrize("steps", [1000, 37])
@pytest.mark.parametrize("name", NAMES)
def test_schedules_are_theirs(name, steps):
    theirs = diffusers.DDPMScheduler(steps, beta_schedule=name)
    ours = pg.from_diffusers(theirs)
    assert isinstance(ours, NoiseSchedule) and ours.num_train_timesteps == steps
    np.testing.assert_allclose(ours.betas(), theirs.betas, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(ours.alphas_bar(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)


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


def theirs_of(network, scheduler, x, num_steps, eta=0.0):
    """What their pipelines do, with a given start."""
    scheduler.set_timesteps(num_steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            predicted = network(x, t).sample
            x = scheduler.step(predicted, t, x, eta=eta).prev_sample
    return x


def test_a_whole_ddim_loop_is_theirs(network, fitted, monkeypatch):
    """Six steps of sixty from the same start, the same network."""
    b = backends.load("torch", "cpu", compile="live")
    start = torch.randn(3, 4, 4, 2, generator=torch.manual_seed(2), dtype=torch.float64)
    scheduler = double(diffusers.DDIMScheduler(60, **PLAIN))
    with float64(b):
        network.double()
        expected = theirs_of(network, scheduler, start.permute(0, 3, 1, 2), 6)
        network.float()
        monkeypatch.setattr(type(b), "normal", lambda self, key, shape: start)
        exact = pg.Fitted(
            fitted.model, tree_map(lambda w: w.astype(np.float64), fitted.params),
            shapes=fitted.shapes, dtypes={"x": "float64"},
        )  # fmt: skip
        got = pg.generate(exact, 3, method=DDIM(6), seed=0, backend=b)["x"]
    np.testing.assert_allclose(got, expected.permute(0, 2, 3, 1), rtol=1e-6, atol=1e-6)


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
