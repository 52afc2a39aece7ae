"""Attention maps of diffusers' U-Net: read and replaced for one call, which is otherwise theirs."""

import numpy as np
import pytest

import probgen as pg
from probgen import backends, nets
from probgen.errors import AlgorithmError, ShapeError, UnknownName
from probgen.inference import DDIM, AttentionControl, NullTextInversion
from probgen.trees import tree_map

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import pipelines  # noqa: E402 : it imports all three

ROWS, PIXELS, HEADS = 8, 4, 4
NONE, EVERY = np.zeros(ROWS, bool), np.ones(ROWS, bool)
CAPTIONS = ["a photo of octopus", "a dog on grass"]
LAYERS = [f"{part}.transformer_blocks.0.attn2" for part in (
    "down_blocks.1.attentions.0", "mid_block.attentions.0", "up_blocks.0.attentions.0",
    "up_blocks.0.attentions.1",
)]  # fmt: skip
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(scope="module")
def pipeline():
    return pipelines.stable_diffusion()


@pytest.fixture(scope="module")
def fitted(pipeline):
    """The prior of its latents."""
    return pg.from_diffusers(pipeline).prior


@pytest.fixture(scope="module")
def unet(fitted):
    return fitted.model.denoiser


@pytest.fixture(scope="module")
def params(fitted):
    return tree_map(torch.as_tensor, fitted.params)


@pytest.fixture(scope="module")
def given(fitted, params):
    """x, t, and a context for each caption."""
    ids = fitted.model.condition.tokens(CAPTIONS)
    context = fitted.model.condition.apply(params["condition"], torch.as_tensor(ids))
    x = torch.randn(2, 4, 4, 4, generator=torch.manual_seed(1))
    return x, torch.tensor([300.0, 20.0]), context


@pytest.fixture(scope="module")
def recorded(unet, params, given):
    """(the output without maps, the output with, the maps)"""
    plain = unet.apply(params["denoiser"], *given)
    return plain, *unet.apply(params["denoiser"], *given, return_maps=True)


def processors(pipeline):
    return list(pipeline.unet.attn_processors.values())


def test_the_output_is_theirs_and_a_pixels_weights_sum_to_one(unet, recorded):
    plain, y, maps = recorded
    torch.testing.assert_close(y, plain, **CLOSE)
    assert unet.has_maps and list(maps) == LAYERS
    for each in maps.values():
        assert each.shape == (2, HEADS, PIXELS, ROWS)
        torch.testing.assert_close(each.sum(-1), torch.ones(2, HEADS, PIXELS), **CLOSE)


def test_a_map_is_the_softmax_of_their_own_queries_and_keys(
    pipeline, unet, params, given, recorded
):
    layer, seen = pipeline.unet.get_submodule(LAYERS[1]), {}
    hook = layer.to_q.register_forward_hook(lambda _, rows, out: seen.update(q=out))
    unet.apply(params["denoiser"], *given)
    hook.remove()
    heads = (2, -1, HEADS, seen["q"].shape[-1] // HEADS)
    q, k = seen["q"].reshape(heads), layer.to_k(given[2]).reshape(heads)
    want = (torch.einsum("nqhd,nkhd->nhqk", q, k) / heads[-1] ** 0.5).softmax(-1)
    torch.testing.assert_close(recorded[2][LAYERS[1]], want, **CLOSE)


def test_own_maps_change_nothing_and_others_move_what_is_not_kept(unet, params, given, recorded):
    x, t, context = given
    plain, _, maps = recorded
    other = context.flip(0)

    def ask(context, replacement, x=x, t=t):
        return unet.apply(params["denoiser"], x, t, context, replace=replacement)

    torch.testing.assert_close(ask(context, nets.MapReplacement(maps, NONE)), plain, **CLOSE)
    theirs = unet.apply(params["denoiser"], x, t, other)
    torch.testing.assert_close(ask(other, nets.MapReplacement(maps, EVERY)), theirs, **CLOSE)
    half = nets.MapReplacement({LAYERS[1]: maps[LAYERS[1]]}, np.arange(ROWS) < 4)
    y, used = unet.apply(params["denoiser"], x, t, other, return_maps=True, replace=half)
    _, own = unet.apply(params["denoiser"], x, t, other, return_maps=True)
    for layer in LAYERS[:1]:  # before the replaced one nothing changes
        torch.testing.assert_close(used[layer], own[layer], **CLOSE)
    torch.testing.assert_close(used[LAYERS[1]][..., :4], own[LAYERS[1]][..., :4], **CLOSE)
    torch.testing.assert_close(used[LAYERS[1]][..., 4:], maps[LAYERS[1]][..., 4:], **CLOSE)
    assert (y - theirs).abs().max() > 1e-5
    # Any leading axes, those of the maps among them.
    more, stored = torch.stack([x, x + 1]), nets.MapReplacement(maps, NONE)
    _, several = unet.apply(params["denoiser"], more, t, context, return_maps=True)
    assert several[LAYERS[0]].shape == (2, 2, HEADS, PIXELS, ROWS)
    torch.testing.assert_close(ask(other, stored, x=more)[1], ask(other, stored, x=x + 1), **CLOSE)


def test_the_gradient_reaches_the_context_through_maps(unet, params, given, recorded):
    x, t, context = given

    def slope(**options):
        at = context.clone().requires_grad_()
        y = unet.apply(params["denoiser"], x, t, at, **options)
        (y[0] if options else y).square().sum().backward()
        return at.grad

    assert slope().norm() > 1e-4
    torch.testing.assert_close(slope(return_maps=True), slope(), rtol=1e-5, atol=1e-6)
    at = context.clone().requires_grad_()
    _, maps = unet.apply(params["denoiser"], x, t, at, return_maps=True)
    maps[LAYERS[0]][..., 0].sum().backward()
    assert at.grad.norm() > 1e-5


def test_the_module_is_as_it_was_whatever_happens(pipeline, unet, params, given, recorded):
    before, (x, t, context), maps = processors(pipeline), given, recorded[2]
    wrong = {
        "maps of shape (2, 4, 4, 7)": (ShapeError, maps[LAYERS[3]][..., :7], LAYERS[3]),
        "did you mean 'down": (UnknownName, maps[LAYERS[0]], LAYERS[0] + "x"),
        "broadcast to theirs": (ShapeError, torch.ones(3, 4, 4, 8), LAYERS[2]),
    }
    for said, (error, each, layer) in wrong.items():
        with pytest.raises(error, match=said.replace("(", r"\(").replace(")", r"\)")):
            replacement = nets.MapReplacement({layer: each}, NONE)
            unet.apply(params["denoiser"], x, t, context, replace=replacement)
    assert all(a is b for a, b in zip(processors(pipeline), before, strict=True))
    torch.testing.assert_close(unet.apply(params["denoiser"], x, t, context), recorded[0], **CLOSE)


def test_layers_that_do_more_than_attend_are_refused(pipeline, unet, params, given):
    layer = pipeline.unet.get_submodule(LAYERS[1])
    own = layer.processor

    class Adapter(type(own)):
        """Someone's own arithmetic."""

    layer.processor = Adapter()
    try:
        with pytest.raises(AlgorithmError, match=r"mid_block.*with Adapter, expected plain"):
            unet.apply(params["denoiser"], *given, return_maps=True)
        assert isinstance(layer.processor, Adapter)
    finally:
        layer.processor = own
    labels = nets.DiffusersUNet(pipeline.unet, "class_labels")
    assert not labels.has_maps and not nets.DiffusersUNet(pipeline.unet).has_maps


def test_a_draw_looks_where_its_source_looked(fitted, monkeypatch):
    """Null-text inversion keeps the maps, and attention control puts them into another draw."""
    b, ddim = backends.load("torch", "cpu", compile="live"), DDIM(2, guidance_scale=3.0)
    monkeypatch.setattr(pg.Fitted, "resolve", lambda *given, **more: b)
    said, new = (fitted.model.condition.tokens(c) for c in (CAPTIONS[:1], CAPTIONS[1:]))
    z = np.random.default_rng(3).standard_normal((1, 4, 4, 4)).astype("f")
    learn = NullTextInversion(ddim, inner_steps=1, keeps_maps=True)
    codes = fitted.encode(z, {"condition": said}, method=learn)
    assert codes[f"maps/{LAYERS[0]}"].shape == (1, 2, HEADS, PIXELS, ROWS)

    def draw(method, ids):
        given = {"inputs": {"condition": ids}, "seed": 0, "backend": b}
        return pg.generate(fitted, 1, method=method, start=codes, **given)["x"]

    source, plain = draw(ddim, said), draw(ddim, new)
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(draw(AttentionControl(ddim, NONE), said), source, **close)
    np.testing.assert_allclose(draw(AttentionControl(ddim, EVERY), new), plain, **close)
    assert np.abs(draw(AttentionControl(ddim, NONE), new) - plain).max() > 1e-4
