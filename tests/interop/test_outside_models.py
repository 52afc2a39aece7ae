"""Segmenter, captioner and features: transformers' own calls on pictures in [0, 1], from a folder.

Networks are small, random, and made here.
"""

import json

import numpy as np
import pytest

from probgen import interop
from probgen.errors import DataError, DeclarationError, ShapeError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PICTURES = np.random.default_rng(0).random((3, 12, 16, 3)).astype("f")
PICTURES[1:] = 0.2 * PICTURES[1:] + np.reshape([0.0, 0.8], (2, 1, 1, 1))  # a dark one, a bright one
BYTES = list(np.rint(255 * PICTURES).astype(np.uint8))
SMALL = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
VISION = {**SMALL, "image_size": 8, "patch_size": 4}


def saved(folder, *parts):
    for part in parts:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": 8, "output_channels": 8, "num_hidden_layers": 1, "mlp_dim": 16,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "window_size": 2,
            "num_pos_feats": 4, "global_attn_indexes": [0],
        },
        prompt_encoder_config={
            "hidden_size": 8, "image_size": 32, "patch_size": 8, "mask_input_channels": 4,
        },
        mask_decoder_config={
            "hidden_size": 8, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "attention_downsample_rate": 2, "iou_head_hidden_dim": 8,
        },
    )  # fmt: skip
    model = transformers.SamModel(config).eval()
    prepare = transformers.SamImageProcessorPil(
        size={"longest_edge": 32}, pad_size={"height": 32, "width": 32}
    )
    return saved(tmp_path_factory.mktemp("sam"), model, prepare), model, prepare


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "on", "grass"]
    tokenizer = transformers.BertTokenizer(vocab={w: i for i, w in enumerate(words)})
    config = transformers.BlipConfig(
        vision_config=VISION,
        text_config={
            **SMALL, "vocab_size": len(words), "encoder_hidden_size": 8, "projection_dim": 8,
            "max_position_embeddings": 16, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3,
            "pad_token_id": 0,
        },
        projection_dim=8,
    )  # fmt: skip
    model = transformers.BlipForConditionalGeneration(config).eval()
    for name, weight in model.named_parameters():  # else each picture has the same caption
        if weight.ndim > 1:
            size = 1.0 if "vision" in name or "crossattention" in name else 0.3
            weight.data = size * torch.randn(weight.shape)
    prepare = transformers.BlipImageProcessorPil(size={"height": 8, "width": 8})
    return saved(folder, model, prepare, tokenizer), model, prepare, tokenizer


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    torch.manual_seed(2)
    model = transformers.ViTModel(transformers.ViTConfig(**VISION)).eval()
    prepare = transformers.ViTImageProcessorPil(size={"height": 8, "width": 8})
    return saved(tmp_path_factory.mktemp("dino"), model, prepare), model, prepare


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    import pipelines

    torch.manual_seed(3)
    words = pipelines.tokenizer()
    vocabulary = words.get_vocab()
    config = transformers.CLIPConfig(
        vision_config=VISION,
        text_config={
            **SMALL, "vocab_size": len(vocabulary), "max_position_embeddings": 8,
            "bos_token_id": vocabulary[pipelines.START], "eos_token_id": vocabulary[pipelines.END],
        },
        projection_dim=5,
    )  # fmt: skip
    model = transformers.CLIPModel(config).eval()
    prepare = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
    )
    return saved(tmp_path_factory.mktemp("clip"), model, prepare, words), model, prepare, words


@torch.no_grad()
def test_masks_are_those_that_sam_rates_highest(sam):
    """At the points, and in the box, by the processor's own prompts in pixels of the picture."""
    folder, model, prepare = sam
    processor = transformers.SamProcessor(prepare)
    points, box = ((0.25, 0.5), (0.5, 0.75)), (0.125, 0.25, 0.75, 1.0)
    sized = [(16 * a, 12 * b) for a, b in points]
    corners = [16 * box[0], 12 * box[1], 16 * box[2], 12 * box[3]]
    ways = [
        ({"points": points}, {"input_points": [[[list(p) for p in sized]]] * 3,
                              "input_labels": [[[1, 1]]] * 3}),
        ({"box": box}, {"input_boxes": [[corners]] * 3}),
    ]  # fmt: skip
    for ours, theirs in ways:
        got = interop.sam_segmenter(folder, **ours)(PICTURES)
        given = processor(images=BYTES, return_tensors="pt", **theirs)
        sizes = given.pop("original_sizes"), given.pop("reshaped_input_sizes")
        given = {k: v.float() if v.dtype == torch.float64 else v for k, v in given.items()}
        found = model(**given)
        masks = prepare.post_process_masks(list(found.pred_masks), *sizes)
        best = found.iou_scores[:, 0].argmax(-1)
        expected = np.stack([np.asarray(m[0, i]) for m, i in zip(masks, best, strict=True)])
        assert got.shape == (3, 12, 16) and got.dtype == np.float32
        np.testing.assert_array_equal(got, expected)
    assert 0.0 < got.mean() < 1.0
    np.testing.assert_array_equal(got, interop.sam_segmenter(folder, box=box)(PICTURES))
    with pytest.raises(DeclarationError, match="as shares of width and height"):
        interop.sam_segmenter(folder, points=((8, 6),))


@torch.no_grad()
def test_captions_are_blips_likeliest_words(blip):
    folder, model, prepare, tokenizer = blip
    pixels = prepare(BYTES, return_tensors="pt")["pixel_values"]
    ids = model.generate(pixel_values=pixels, max_new_tokens=5, do_sample=False)
    expected = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    captions = interop.blip_captioner(folder, max_tokens=5)
    assert captions(PICTURES) == expected == captions(PICTURES)
    assert len(set(expected)) > 1 and max(map(len, expected)) > 0
    assert all(set(c.split()) <= {"a", "dog", "cat", "on", "grass"} for c in expected)


@torch.no_grad()
def test_features_of_dino_are_its_class_token(dino):
    folder, model, prepare = dino
    expected = model(**prepare(BYTES, return_tensors="pt")).last_hidden_state[:, 0]
    features = interop.dino_features(folder)
    np.testing.assert_allclose(features(PICTURES), expected, rtol=1e-5, atol=1e-6)
    many = np.concatenate([PICTURES] * 4)  # more than a batch
    np.testing.assert_allclose(features(many)[9:], expected, rtol=1e-5, atol=1e-6)
    assert features(PICTURES[:0]).shape == (0, 8)


@torch.no_grad()
def test_features_of_clip_are_cosines_of_its_logits(clip):
    """logits = exp(logit_scale) cos(picture, caption), by their own forward pass."""
    folder, model, prepare, words = clip
    captions = ["a photo of dog", "octopus"]
    given = words(captions, padding="max_length", max_length=8, return_tensors="pt")
    pixels = prepare(BYTES, return_tensors="pt")["pixel_values"]
    logits = model(pixel_values=pixels, **given).logits_per_image / model.logit_scale.exp()
    features = interop.clip_features(folder)
    x, c = features.images(PICTURES), features.texts(captions)
    np.testing.assert_allclose(x @ c.T, logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose((x**2).sum(1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(x, features.images(PICTURES))
    with pytest.raises(DataError, match="expected at most 8"):
        features.texts(["a photo of a dog on grass"])


def test_pictures_of_another_range_or_shape_are_refused(dino):
    features = interop.dino_features(dino[0])
    for other in (2 * PICTURES - 1, 255 * PICTURES, np.where(PICTURES > 0.5, np.nan, PICTURES)):
        with pytest.raises(DataError, match=r"expected them in \[0, 1\]; divide bytes by 255"):
            features(other)
    with pytest.raises(ShapeError, match=r"expected \[n, h, w, 3\]"):
        features(PICTURES[0])


def test_nothing_is_fetched_and_other_folders_are_refused(dino, clip, tmp_path):
    for make in (interop.sam_segmenter, interop.blip_captioner, interop.dino_features,
                 interop.clip_features):  # fmt: skip
        with pytest.raises(DeclarationError, match="local_files_only=False"):
            make("facebook/dino-vits16")
        with pytest.raises(DeclarationError, match="which does not hold a"):
            make(tmp_path)
    config = json.loads((dino[0] / "config.json").read_text())
    assert config["architectures"] == ["ViTModel"]
    with pytest.raises(DeclarationError, match="of a CLIPModel, expected a ViTModel"):
        interop.dino_features(clip[0])
