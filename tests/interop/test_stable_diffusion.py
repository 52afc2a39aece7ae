"""A Stable Diffusion of random weights: its text, latents and pictures are diffusers'."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import probgen as pg
from probgen import backends
from probgen.errors import AlgorithmError, DataError, DeclarationError, ShapeError, SupportError
from probgen.evaluation.subjects import tune
from probgen.inference import DDIM, ELBO, SVI, DDIMInverse, Denoising
from probgen.models import Subject, personalised
from probgen.trees import tree_leaves, tree_map

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import pipelines  # noqa: E402 : it imports all three

NUM_STEPS, GUIDANCE = 7, 3.0
PAGE = Path(__file__).resolve().parents[2] / "docs" / "diffusion.md"
CAPTIONS = ["a photo of octopus", "a dog on grass"]


@pytest.fixture(scope="module")
def live():
    return backends.load("torch", "cpu", compile="live")


@pytest.fixture(scope="module")
def pipeline():
    return pipelines.stable_diffusion()


@pytest.fixture(scope="module")
def fitted(pipeline):
    return pg.from_diffusers(pipeline)


@pytest.fixture(scope="module")
def text(fitted):
    return fitted.prior.model.condition


@pytest.fixture(scope="module")
def params(fitted):
    """Of the prior, as tensors."""
    return tree_map(torch.as_tensor, fitted.prior.params)


@pytest.fixture(scope="module")
def z():
    return torch.randn(2, 4, 4, 4, generator=torch.manual_seed(1))  # channels first


def rows(pipeline, ids):
    """Their text encoder's own, [n, L, d]."""
    with torch.no_grad():
        return pipeline.text_encoder(torch.as_tensor(ids).long()).last_hidden_state


def last(x):
    """Channels last, numpy."""
    return np.asarray(x.permute(0, 2, 3, 1))


def test_rows_of_a_caption_are_the_text_encoders(pipeline, text, params):
    ids = text.tokens(CAPTIONS)
    theirs = pipeline.tokenizer(CAPTIONS, padding="max_length", max_length=8)["input_ids"]
    assert ids.dtype == np.int32 and ids.tolist() == theirs and text.words(ids) == CAPTIONS
    got = text.apply(params["condition"], torch.as_tensor(ids))
    torch.testing.assert_close(got, rows(pipeline, ids), rtol=1e-5, atol=1e-6)
    null = text.null(params["condition"])
    torch.testing.assert_close(null, rows(pipeline, text.tokens(""))[0], rtol=1e-5, atol=1e-6)


def test_padding_reads_the_caption(pipeline, text):
    """The rows of padding are not those of the empty caption: [c, null rows] is not c."""
    ids = text.tokens(CAPTIONS[1])
    with_null = rows(pipeline, text.tokens(""))[:, -2:] - rows(pipeline, ids)[:, -2:]
    assert (ids[0, -2:] == ids[0, -1]).all()
    assert with_null.norm() > 0.1 * rows(pipeline, ids)[:, -2:].norm()


def test_latents_and_pictures_are_the_pipelines(pipeline, fitted, text, z, live):
    """With guidance, from the same start, by the scheduler's own options; in [0, 1] as theirs."""
    ids, w = text.tokens(CAPTIONS), GUIDANCE
    given = {"num_inference_steps": NUM_STEPS, "guidance_scale": w, "latents": z}
    null = rows(pipeline, text.tokens("")).expand(2, -1, -1)
    given |= {"prompt_embeds": rows(pipeline, ids), "negative_prompt_embeds": null}
    latents = pipeline(**given, output_type="latent").images
    pictures = pipeline(**given, output_type="np").images
    method = pg.interop.sampler_of(pipeline.scheduler, NUM_STEPS, guidance_scale=w)
    assert method == DDIM(
        NUM_STEPS, guidance_scale=w, spacing="leading", steps_offset=1, set_alpha_to_one=False,
        lands="stride",
    )  # fmt: skip
    options = {"method": method, "start": last(z), "seed": 0, "backend": live}
    got = pg.generate(fitted, 2, inputs={"condition": ids}, **options)
    np.testing.assert_allclose(got["z"], last(latents), atol=3e-5)
    np.testing.assert_allclose(got["x"], pictures, atol=3e-5)
    alone = pg.generate(fitted.prior, 2, inputs={"condition": ids}, **options)
    np.testing.assert_array_equal(alone["x"], got["z"])


def test_inversion_of_latents_is_theirs(pipeline, fitted, text, z):
    inverse = pipelines.DDIMInverseScheduler.from_config(pipeline.scheduler.config)
    inverse.set_timesteps(NUM_STEPS)
    ids, x = text.tokens(CAPTIONS), 0.5 * z
    context = rows(pipeline, ids)
    with torch.no_grad():
        for t in inverse.timesteps:
            x = inverse.step(pipeline.unet(x, t, context).sample, t, x).prev_sample
    method = pg.interop.sampler_of(pipeline.scheduler, NUM_STEPS, inverse=True)
    assert isinstance(method, DDIMInverse)
    assert method == pg.interop.sampler_of(inverse, NUM_STEPS)
    found = fitted.prior.encode(last(0.5 * z), {"condition": ids}, method=method)
    np.testing.assert_allclose(found["x_1000"], last(x), rtol=1e-6, atol=1e-6)


def test_encoding_and_decoding_are_the_vaes(pipeline, fitted, text):
    """The mean of q(z | x), scaled; and the picture of it, for pictures in [0, 1]."""
    x = np.random.default_rng(0).random((3, 8, 8, 3)).astype("f")
    given = {"condition": text.tokens("a dog")[0]}  # one for all
    with torch.no_grad():
        mean = pipeline.vae.encode(torch.as_tensor(2 * x - 1).permute(0, 3, 1, 2)).latent_dist.mean
        back = pipeline.vae.decode(mean).sample
    scale = pipeline.vae.config.scaling_factor
    np.testing.assert_allclose(fitted.encode(x, given)["z"], scale * last(mean), atol=1e-6)
    expected = (last(back) / 2 + 0.5).clip(0, 1)
    np.testing.assert_allclose(fitted.reconstruct(x, given)["x"], expected, atol=1e-6)


def test_a_draw_of_the_posterior_has_the_vaes_variance(pipeline, fitted, params):
    x = torch.rand(2, 8, 8, 3, generator=torch.manual_seed(2))
    with torch.no_grad():
        theirs = pipeline.vae.encode(2 * x.permute(0, 3, 1, 2) - 1).latent_dist
        weights = tree_map(torch.as_tensor, fitted.params["encoder"])
        heads = fitted.model.encoder.apply(weights, x)
    expected = pipeline.vae.config.scaling_factor * last(theirs.std)
    np.testing.assert_allclose(heads["log_scale"].exp().numpy(), expected, rtol=1e-5)


def test_the_gradient_reaches_the_context_alone(pipeline, fitted, text, params, z):
    """As subject learning takes it; the module's own parameters stay as they are."""
    before = [p.clone() for p in pipeline.unet.parameters()]
    context = text.apply(params["condition"], torch.as_tensor(text.tokens(CAPTIONS)))
    context = context.detach().requires_grad_()
    x, t = z.permute(0, 2, 3, 1), torch.full((2,), 300.0)
    fitted.prior.model.predict(params, x, t, {"context": context}).square().sum().backward()
    assert context.grad.norm() > 1e-4
    assert all(w.grad is None for w in tree_leaves(params))
    for module in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        assert all(p.grad is None for p in module.parameters())
    assert all(map(torch.equal, before, pipeline.unet.parameters()))


def test_a_fit_of_the_denoiser_leaves_all_else_to_the_bit(fitted, text, live):
    x = np.random.default_rng(1).random((2, 8, 8, 3)).astype("f")
    trained = pg.fit(
        fitted, x, Denoising(pg.Adam(1e-3)), inputs={"condition": text.tokens(CAPTIONS)},
        freeze=("encoder", "decoder", "prior/condition"), num_steps=1, seed=0, backend=live,
        progress_bar=False,
    )  # fmt: skip
    moved = {
        net: not all(map(np.array_equal, tree_leaves(trained.params[net]), tree_leaves(tree)))
        for net, tree in fitted.params.items()
    }
    assert moved == {"prior/denoiser": True, "prior/condition": False, "encoder": False,
                     "decoder": False}  # fmt: skip


def test_a_subject_is_learned_from_latents_and_drawn_in_pictures(fitted, text, live):
    """Its rows move and nothing else; the auto-encoder around it makes pictures of its draws."""
    z = np.random.default_rng(2).standard_normal((2, 4, 4, 4)).astype("f")
    given = {"condition": text.tokens(["a dog", "a dog on grass"])}
    np.testing.assert_array_equal(text.lengths(given["condition"]), [3, 5])
    subject = Subject(fitted.prior, num_tokens=2, anchor="dog", draws=2, word="dog")
    rows = text.apply(tree_map(torch.as_tensor, fitted.prior.params["condition"]),
                      torch.as_tensor(text.tokens("dog")))  # fmt: skip
    np.testing.assert_allclose(subject.anchor_rows, rows[0, [1, 1]].numpy(), atol=1e-6)
    learned = pg.fit(
        subject, {"x": z}, SVI(ELBO(), pg.Adam(1e-2)), inputs=given, num_steps=1, seed=0,
        backend=live, progress_bar=False,
    )  # fmt: skip
    for net, tree in fitted.prior.params.items():
        assert all(map(np.array_equal, tree_leaves(tree), tree_leaves(learned.params[net])))
    within = fitted.with_prior(personalised(learned))
    ways = {"method": DDIM(2, guidance_scale=2.0), "seed": 0, "backend": live}
    draws, plain = (pg.generate(f, 2, inputs=given, **ways) for f in (within, fitted))
    assert draws["x"].shape == (2, 8, 8, 3) and np.abs(draws["z"] - plain["z"]).max() > 1e-5
    same = fitted.with_prior(fitted.prior)
    assert same.shapes == fitted.shapes and same.params.keys() == fitted.params.keys()
    np.testing.assert_array_equal(pg.generate(same, 2, inputs=given, **ways)["x"], plain["x"])
    with pytest.raises(DataError, match="reach into the last 2 of 8 rows"):
        personalised(learned).model.check_rows({"condition": text.tokens("a photo of a dog on")})


def test_a_folder_of_one_is_tuned_by_the_command(pipeline, live, tmp_path, monkeypatch):
    """Pictures to latents and back; the page's program finds the model, whose modules are in no
    file of ours."""
    pipeline.save_pretrained(tmp_path / "sd")
    (tmp_path / "dog").mkdir()
    x = np.random.default_rng(3).integers(0, 256, (2, 8, 8, 3), np.uint8)
    for i, each in enumerate(x):
        Image.fromarray(each).save(tmp_path / "dog" / f"{i}.png")
        cover = np.repeat(np.arange(8)[:, None] < 4, 8, axis=1)
        Image.fromarray(cover).save(tmp_path / "dog" / f"{i}_mask.png")
    monkeypatch.chdir(tmp_path)
    tune("dog", "sd", ("a dog on",), word="dog", num_tokens=2, num_steps=1, draws=2, num_images=1,
         sampler_steps=2, backend=live, out="out", progress_bar=False)  # fmt: skip
    load = json.loads(Path("out/report.json").read_text())["sections"]["again"]["load"]
    space: dict = {}
    program = load.rpartition("\nx = ")[0].replace('"model"', '"out/model"')
    exec(compile(program, "the page's", "exec"), space)
    given = {"condition": space["ids"]}
    ways = {"method": space["method"], "inputs": given, "seed": 0, "backend": live}
    drawn = pg.generate(space["model"], 1, **ways, chunk_size=1)["x"]
    found = np.asarray(Image.open("out/pictures/01-a-dog-on/with-the-subject-01.png")) / 255
    np.testing.assert_allclose(drawn[0], found, atol=0.51 / 255)
    assert space["method"] == pg.interop.sampler_of(pipeline.scheduler, 2, guidance_scale=2.0)


def test_a_folder_is_the_pipeline(pipeline, fitted, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = pg.from_diffusers(tmp_path)
    assert loaded.shapes == fitted.shapes and loaded.params.keys() == fitted.params.keys()
    for ours, theirs in zip(tree_leaves(loaded.params), tree_leaves(fitted.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ids = loaded.prior.model.condition.tokens(CAPTIONS)
    np.testing.assert_array_equal(ids, fitted.prior.model.condition.tokens(CAPTIONS))
    index = (tmp_path / "model_index.json").read_text()
    (tmp_path / "model_index.json").write_text(index.replace("AutoencoderKL", "VQModel"))
    with pytest.raises(DeclarationError, match="vae=VQModel of diffusers"):
        pg.from_diffusers(tmp_path)


def test_the_section_of_the_page_runs(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    (program,) = re.findall(r"^```py\n(.*?)^```", PAGE.read_text("utf-8"), re.S | re.M)
    program = program.replace("stable-diffusion-v1-4", str(tmp_path)).replace("(50", "(3")
    space: dict = {"pg": pg}
    exec(compile(program, "docs/diffusion.md", "exec"), space)
    assert space["pictures"].shape == (2, 8, 8, 3) and space["noise"]["x_1000"].shape == (
        2,
        4,
        4,
        4,
    )
    assert space["pictures"].min() >= 0.0 and space["pictures"].max() <= 1.0


def test_an_embedding_as_the_condition_leaves_the_text_encoder_out(pipeline, fitted, text, params):
    null = np.asarray(text.null(params["condition"]))
    ours = pg.from_diffusers(pipeline, null=null)
    assert ours.shapes["condition"] == (8, 8) and ours.dtypes == {}
    np.testing.assert_array_equal(ours.prior.params["condition"]["null"], null)


def test_what_it_cannot_take_is_an_error_in_words(pipeline, fitted, text):
    with pytest.raises(DataError, match=r"a caption of 9 tokens .* expected at most 8"):
        text.tokens(["a dog", "a photo of a dog on grass"])
    with pytest.raises(DataError, match="of type int"):
        text.tokens([3])
    x, given = np.full((2, 8, 8, 3), 0.5, "f"), {"condition": text.tokens(CAPTIONS)}
    for other in (255 * x, 2 * x - 1.5):
        with pytest.raises(SupportError, match="declared data_range, 0 to 1"):
            fitted.encode(other, given)
    with pytest.raises(ShapeError, match="expected \\(number of data, 8, 8, 3\\)"):
        fitted.encode(x[:, :4], given)
    with pytest.raises(DataError, match="expected 0 ... 71"):
        fitted.encode(x, {"condition": 0 * given["condition"] + 72})
    with pytest.raises(ShapeError, match=r"expected \(8,\), a whole caption"):
        fitted.encode(x, {"condition": given["condition"][:, :5]})
    with pytest.raises(AlgorithmError, match="no latent whose prior is a model"):
        _ = fitted.prior.prior


def test_its_table_and_its_line_name_modules_by_their_class(fitted):
    table = fitted.describe()
    assert "DiffusersUNet(module=UNet2DConditionModel(...)" in table
    assert max(map(len, table.splitlines())) < 200 and "\n" not in repr(fitted)


def test_half_precision_is_refused():
    pipeline = pipelines.stable_diffusion()
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        part.half()
        with pytest.raises(DeclarationError, match="of type float16, expected float32"):
            pg.from_diffusers(pipeline)
        part.float()


def test_gradient_checkpointing_is_refused(pipeline, fitted, text, live):
    """Its second pass takes the module's own weights: after a step of a fit, no longer those."""
    z = np.zeros((2, 4, 4, 4), "f")
    pipeline.unet.enable_gradient_checkpointing()
    try:
        with pytest.raises(DeclarationError, match="gradient checkpointing in .'down_blocks.0"):
            pg.fit(
                fitted.prior, z, Denoising(), inputs={"condition": text.tokens(CAPTIONS)},
                num_steps=1, seed=0, backend=live, progress_bar=False,
            )  # fmt: skip
    finally:
        pipeline.unet.disable_gradient_checkpointing()


def test_a_scheduler_without_an_inverse_is_refused(pipeline):
    config = pipeline.scheduler.config
    for kind in (pipelines.PNDMScheduler, pipelines.DDPMScheduler):
        with pytest.raises(DeclarationError, match="DDIMScheduler.from_config"):
            pg.interop.sampler_of(kind.from_config(config), 6, inverse=True)
    with pytest.raises(DeclarationError, match="with eta=1 and inverse=True"):
        pg.interop.sampler_of(pipeline.scheduler, 6, 1.0, inverse=True)
