"""Scores with codecs: code lengths, input complexity, error reduction, corrupted training data."""

import io
import lzma

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit
from scores_models_cases import affine, draws, heads, latent, linear

import probgen as pg
from probgen import nets
from probgen.engine.fitted import Fitted
from probgen.errors import AlgorithmError, DataError, DeclarationError, ShapeError, UnknownName
from probgen.inference import ELBO, IWAE, SVI
from probgen.inference.ood import (
    ErrorReduction,
    InputComplexity,
    LikelihoodRatio,
    Restorer,
    available_codecs,
    downsampled,
    fit_background,
    perturbed,
)
from probgen.inference.ood import codecs as module
from probgen.inference.ood.codecs import CODECS, code_bits
from probgen.models import VAE, likelihoods

PILLOW = ("png", "jpeg2000", "webp")


def evaluate(fitted, x, measures, b, **options):
    options = {"seed": 0, "progress_bar": False} | options
    return pg.evaluate(fitted, x, measures, backend=b, **options)


def image_vae(likelihood, size=8, seed=0):
    """A VAE of size x size images with affine nets of random weights."""
    rng = np.random.default_rng(seed)
    k, count = likelihood.parameters_per_value, size * size
    model = VAE(latent(2), nets.MLP(hidden=(), out=(size, size, 1)), likelihood, heads(2))
    params = {
        "decoder": {"out": affine(rng.normal(size=(2, count * k)), rng.normal(size=count * k))},
        "encoder": {"out": affine(0.2 * rng.normal(size=(count, 4)), np.zeros(4))},
    }
    return Fitted(model, params, shapes={"x": (size, size, 1)})


def three_kinds(num_levels, size=16, channels=1):
    """A constant image, a smooth one and noise, as levels."""
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(size), np.arange(size)) * (num_levels - 1) // (2 * size - 2)
    flat = np.full((size, size), num_levels // 2)
    rough = rng.integers(0, num_levels, (size, size))
    return np.repeat(np.stack([flat, smooth, rough])[..., None], channels, axis=-1)


# ---- codecs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_levels, channels", [(2, 1), (16, 1), (256, 1), (256, 3)])
@pytest.mark.parametrize("codec", CODECS)
def test_a_code_is_lossless_and_orders_images_by_complexity(codec, num_levels, channels):
    if codec not in available_codecs():
        pytest.skip(f"this Pillow has no {codec}")
    levels = three_kinds(num_levels, channels=channels)
    bits = code_bits(levels, codec, num_levels)
    assert bits[0] < bits[2] and bits[1] < bits[2]
    assert bits[0] <= bits[1] or num_levels == 2  # two levels: both are next to nothing
    for image, length in zip(levels, bits, strict=True):
        code = CODECS[codec](image.astype(np.uint8), num_levels)
        assert length == 8 * len(code)
        if codec in PILLOW:
            back = np.asarray(Image.open(io.BytesIO(code)), np.uint8)
            # WebP holds colours only: grey comes back as three equal channels
            back = back[..., :1] if back.ndim == 3 and channels == 1 else back
            np.testing.assert_array_equal(back.reshape(image.shape), image)


def test_the_standard_librarys_codes_are_of_packed_bits():
    """1000 fair bits cannot be coded in less than about 1000 bits, nor need many more."""
    levels = np.random.default_rng(0).integers(0, 2, (1, 40, 25, 1))
    for codec in ("lzma", "zlib", "bz2"):
        assert 1000 <= code_bits(levels, codec, 2)[0] < 2000
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 4096}]
    code = CODECS["lzma"](levels[0], 2)
    back = lzma.decompress(code, format=lzma.FORMAT_RAW, filters=filters)
    bits = np.unpackbits(np.frombuffer(back, np.uint8))
    np.testing.assert_array_equal(bits, levels.ravel())
    wide = np.random.default_rng(0).integers(0, 1000, (1, 6, 6, 2))
    assert code_bits(wide, "lzma", 1000)[0] >= 8 * 36 * 2


def test_an_image_is_compressed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "_kept", {})
    monkeypatch.setitem(module.CODECS, "png", lambda x, n: calls.append(1) or b"12")
    levels = three_kinds(256)
    for _ in range(2):
        assert code_bits(levels[[0, 1, 0]], "png", 256).tolist() == [16] * 3
    assert len(calls) == 2
    assert code_bits(levels[:1], "png", 128).tolist() == [16] and len(calls) == 3


def test_codecs_that_are_not_there_are_refused(monkeypatch):
    with pytest.raises(UnknownName, match="did you mean 'png'"):
        InputComplexity(codecs=("pgn",))
    with pytest.raises(DeclarationError, match=r"got codecs=\(\)"):
        InputComplexity(codecs=())
    monkeypatch.setattr(module, "available_codecs", lambda: ("lzma",))
    with pytest.raises(UnknownName, match="'webp' is not built into this Pillow"):
        InputComplexity(codecs=("lzma", "webp"))
    with pytest.raises(ShapeError, match="channels of at most 256 levels; use 'lzma'"):
        code_bits(np.zeros((1, 4, 4, 7), int), "png", 256)
    with pytest.raises(ShapeError, match="1000 levels"):
        code_bits(np.zeros((1, 4, 4, 1), int), "png", 1000)


# ---- input complexity ----------------------------------------------------------------------------


def png_bits(image, mode):
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, format="PNG", compress_level=9)
    return 8 * len(file.getvalue())


def test_both_terms_of_the_complexity_are_in_bits(b):
    """Binary images as 1-bit PNGs, by a call of our own; the likelihood as IWAE gives it."""
    x = (np.random.default_rng(0).random((5, 8, 8, 1)) < 0.3).astype(np.float32)
    scores = [InputComplexity(IWAE(20), codecs="png"), IWAE(20)]
    table = evaluate(image_vae(likelihoods.Bernoulli()), x, scores, b, chunk_size=2)
    found, plain = table[table.names[0]], table["IWAE(20)"]
    wanted = [png_bits(image[..., 0] > 0, "1") for image in x]
    np.testing.assert_array_equal(found["bits"], wanted)
    np.testing.assert_allclose(found["nll_bits"], -plain["estimate"] / np.log(2), rtol=1e-12)
    np.testing.assert_allclose(found["estimate"], found["nll_bits"] - wanted, rtol=1e-12)
    error = plain["standard_error"] / np.log(2)
    np.testing.assert_allclose(found["standard_error"], error, rtol=1e-12)
    assert table.units[table.names[0]] == "bits"


@pytest.mark.parametrize(
    "likelihood", [likelihoods.DiscretizedLogistic(256), likelihoods.Categorical(256)]
)
def test_levels_are_coded_as_bytes_however_they_are_stored(b, likelihood):
    levels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1))
    x = levels.astype(np.int32)
    if isinstance(likelihood, likelihoods.DiscretizedLogistic):
        x = (levels / 255).astype(np.float32)
    score = InputComplexity(IWAE(2), codecs=("png", "lzma"))
    found = evaluate(image_vae(likelihood), x, [score], b)[score.name]
    raw = code_bits(levels, "lzma", 256)
    wanted = [png_bits(image[..., 0].astype(np.uint8), "L") for image in levels]
    np.testing.assert_array_equal(found["bits"], np.minimum(wanted, raw))
    np.testing.assert_array_equal(found["codec"], np.argmin([wanted, raw], 0))


def test_published_code_differs_by_exactly_the_unit_factor(b):
    x = (np.random.default_rng(0).random((4, 8, 8, 1)) < 0.3).astype(np.float32)
    scores = [InputComplexity(IWAE(5)), InputComplexity(IWAE(5), as_published_code=True)]
    table = evaluate(image_vae(likelihoods.Bernoulli()), x, scores, b)
    right, mixed = (table[s.name] for s in scores)
    bits = right["bits"]
    np.testing.assert_allclose(
        mixed["estimate"] + bits, np.log(2) * (right["estimate"] + bits), rtol=1e-12
    )
    assert table.units[scores[1].name] == "nats - bits"
    (bound,) = table.warnings[scores[0].name]  # five draws: of no use for an interval
    assert "a bound only" in bound and "0.69" in table.warnings[scores[1].name][1]
    assert table.mean_limit(scores[0].name) > right["estimate"].mean()
    assert table.mean_limit(scores[1].name) is None


def test_a_density_is_refused_unless_the_data_are_dequantised(b):
    fitted = image_vae(likelihoods.Normal(0.5))
    levels = np.random.default_rng(0).integers(0, 16, (4, 8, 8, 1))
    x = pg.data.dequantize(levels, seed=0, levels=16)
    with pytest.raises(AlgorithmError, match="has a density, and dequantized=False"):
        evaluate(fitted, x, [InputComplexity(IWAE(5), num_levels=16)], b)
    score = InputComplexity(IWAE(5), codecs="lzma", num_levels=16, dequantized=True)
    table = evaluate(fitted, x, [score, IWAE(5)], b)
    found = table[score.name]
    nll = -table["IWAE(5)"]["estimate"] / np.log(2) + 64 * 4  # D log2 L
    np.testing.assert_allclose(found["nll_bits"], nll, rtol=1e-6)
    np.testing.assert_array_equal(found["bits"], code_bits(levels, "lzma", 16))
    with pytest.raises(DataError, match=r"\[0, 1\)"):
        evaluate(fitted, x + 1, [score], b)
    binary = image_vae(likelihoods.Bernoulli())
    with pytest.raises(AlgorithmError, match="leave dequantized=True out"):
        evaluate(binary, np.round(x), [score], b)


def test_levels_that_the_model_does_not_have_are_refused(b):
    binary, normal = image_vae(likelihoods.Bernoulli()), image_vae(likelihoods.Normal(0.5))
    x = np.zeros((2, 8, 8, 1), np.float32)
    with pytest.raises(AlgorithmError, match="num_levels=256, expected the 2"):
        evaluate(binary, x, [InputComplexity(IWAE(2), num_levels=256)], b)
    with pytest.raises(AlgorithmError, match="does not tell how many levels"):
        evaluate(normal, x, [InputComplexity(IWAE(2), dequantized=True)], b)
    with pytest.raises(ShapeError, match="image_shape"):
        evaluate(
            linear(), draws(3) % 1, [InputComplexity(IWAE(2), dequantized=True, num_levels=4)], b
        )
    with pytest.raises(DeclarationError, match="expected a measure of log p"):
        InputComplexity(LikelihoodRatio(linear()))


# ---- corrupted data ------------------------------------------------------------------------------

KINDS_OF_DATA = {
    "binary": (2, lambda k: k.astype(np.float32)),
    "integers": (256, lambda k: k.astype(np.uint8)),
    "floats": (17, lambda k: (k / 16).astype(np.float32)),
}


@pytest.mark.parametrize("kind", ["replace", "add"])
@pytest.mark.parametrize("name", KINDS_OF_DATA)
def test_a_share_of_the_values_becomes_uniform(name, kind):
    """P(changed) = rate (L - 1) / L, and where all are hit every level is as frequent."""
    num_levels, make = KINDS_OF_DATA[name]
    k = np.random.default_rng(0).integers(0, num_levels, (50, 20, 20, 1)) // 2 * 2 // num_levels
    x = make(k)
    options = {"num_levels": num_levels, "seed": 1, "kind": kind}
    found = perturbed(x, rate=0.3, **options)
    assert found.dtype == x.dtype and found.shape == x.shape
    share = 0.3 * (num_levels - 1) / num_levels
    assert abs((found != x).mean() - share) < 5 * np.sqrt(share * (1 - share) / x.size)
    np.testing.assert_array_equal(found, perturbed(x, rate=0.3, **options))
    np.testing.assert_array_equal(perturbed(x, rate=0.0, **options), x)
    every = perturbed(x, rate=1.0, **options)
    _, counts = np.unique(every, return_counts=True)
    assert len(counts) == num_levels
    chi2 = ((counts - x.size / num_levels) ** 2).sum() / (x.size / num_levels)
    assert abs(chi2 - (num_levels - 1)) < 5 * np.sqrt(2 * (num_levels - 1))


def test_replacing_forgets_the_level_and_adding_does_not():
    """The same seed draws the same u: k + u against u itself."""
    k = np.full((10, 8, 8, 1), 3)
    put, added = (perturbed(k, rate=1.0, num_levels=8, seed=0, kind=c) for c in ("replace", "add"))
    np.testing.assert_array_equal(added, (put + 3) % 8)


def test_images_that_are_not_on_the_levels_are_refused():
    x = np.random.default_rng(0).random((3, 4, 4, 1))
    with pytest.raises(DataError, match="not all levels"):
        perturbed(x, seed=0)
    with pytest.raises(DataError, match="not all levels"):
        perturbed(np.full((2, 2), np.nan), seed=0)
    with pytest.raises(DataError, match="num_levels=2"):
        perturbed((x > 0.5).astype(np.float32), seed=0)
    with pytest.raises(DataError, match="a rate in"):
        perturbed(x, rate=1.5, seed=0)
    with pytest.raises(DataError, match="one of"):
        perturbed(x, kind="blur", seed=0)
    with pytest.raises(DeclarationError, match="2 levels or more"):
        perturbed(x, num_levels=1, seed=0)


def test_a_background_model_is_fitted_to_corrupted_images(b):
    images = pg.data.binarize(pg.data.digits())
    model = image_vae(likelihoods.Bernoulli()).model
    options = {"num_steps": 5, "batch_size": 64, "seed": 3, "backend": b, "progress_bar": False}
    ours = fit_background(model, images, SVI(ELBO()), num_levels=2, **options)
    rough = perturbed(images, rate=0.2, num_levels=2, seed=3)
    theirs = pg.fit(model, rough, SVI(ELBO()), **options)
    np.testing.assert_array_equal(ours.history["elbo"], theirs.history["elbo"])
    assert rough.images.shape == images.images.shape and (rough.images != images.images).any()
    with pytest.raises(DataError, match="Images or one array"):
        fit_background(model, {"x": images.images}, SVI(ELBO()), **options)


# ---- error reduction -----------------------------------------------------------------------------


def restoration(fitted, x, lossy, b, **options):
    model = Fitted(
        Restorer(fitted.model), fitted.params, shapes={"x": (8, 8, 1), "lossy": (8, 8, 1)}
    )
    score = ErrorReduction(**options)
    return evaluate(model, {"x": x, "lossy": lossy}, [score], b, chunk_size=2)[score.name]


def test_the_error_reduction_is_the_one_computed_by_hand(b):
    """The guide sees the lossy image, its mean is decoded; residuals and PNGs in bits."""
    fitted = image_vae(likelihoods.DiscretizedLogistic(256))
    p = fitted.params
    # A decoder that is bright everywhere, so that the bright image is restored and the dark is not.
    p["decoder"]["out"]["bias"] = np.tile(np.float32([2.0, 0.0]), 64)
    p["decoder"]["out"]["weight"] *= np.float32(0.1)
    rng = np.random.default_rng(1)
    levels = np.stack([rng.integers(200, 256, (8, 8, 1)), rng.integers(0, 50, (8, 8, 1))])
    coarse = downsampled(levels, 4)
    coarse[0] -= 120
    x, lossy = ((a / 255).astype(np.float32) for a in (levels, coarse))
    found = restoration(fitted, x, lossy, b)
    z = lossy.reshape(2, 64) @ p["encoder"]["out"]["weight"][:, :2]
    output = (z @ p["decoder"]["out"]["weight"] + p["decoder"]["out"]["bias"]).reshape(2, 64, 2)
    mean = 255 * expit(output[..., 0])
    before = ((levels - coarse) ** 2).mean((1, 2, 3))
    after = ((levels.reshape(2, 64) - mean) ** 2).mean(1)
    reduction = 32 * np.log2((before + 1 / 12) / (after + 1 / 12))
    assert reduction[0] > 0 > reduction[1]  # both branches
    bits, less = (
        np.array([png_bits(i[..., 0].astype("u1"), "L") for i in a]) for a in (levels, coarse)
    )
    np.testing.assert_allclose(found["mse_restored"], after, rtol=1e-4)
    np.testing.assert_allclose(found["error_reduction"], reduction, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found["bits"], bits)
    wanted = [-(reduction[0] + bits[0] - less[0]), -reduction[1]]
    np.testing.assert_allclose(found["estimate"], wanted, rtol=1e-4)
    half = restoration(fitted, x, lossy, b, complexity_weight=0.5)
    wanted[0] += 0.5 * (bits[0] - less[0])
    np.testing.assert_allclose(half["estimate"], wanted, rtol=1e-4)


def test_a_restorer_is_fitted_saved_and_loaded_like_any_model(b, tmp_path):
    x = pg.data.binarize(pg.data.digits()).images[:128]
    data = {"x": x, "lossy": downsampled(x, 2)}
    model = Restorer(image_vae(likelihoods.Bernoulli()).model)
    fitted = pg.fit(
        model, data, SVI(ELBO(), pg.Adam(1e-2)), num_steps=30, batch_size=64, seed=0, backend=b,
        progress_bar=False,
    )  # fmt: skip
    fitted.save_pretrained(tmp_path / "run")
    again = Fitted.from_pretrained(tmp_path / "run")
    score = ErrorReduction()
    small = {k: v[:8] for k, v in data.items()}
    one, two = (evaluate(f, small, [score], b)[score.name]["estimate"] for f in (fitted, again))
    np.testing.assert_array_equal(one, two)
    with pytest.raises(ShapeError, match="multiples of the factor"):
        downsampled(x, 3)


def test_error_reduction_asks_for_a_guide_that_sees_the_lossy_image(b):
    fitted = image_vae(likelihoods.Bernoulli())
    x = np.zeros((2, 8, 8, 1), np.float32)
    with pytest.raises(AlgorithmError, match="does not take 'lossy'"):
        evaluate(fitted, x, [ErrorReduction()], b)
    small = image_vae(likelihoods.Bernoulli())
    small.params["encoder"]["out"]["weight"] = np.zeros((16, 4), np.float32)
    model = Fitted(Restorer(small.model), small.params)
    with pytest.raises(DataError, match="bring the lossy images back to full size"):
        evaluate(model, {"x": x, "lossy": x[:, ::2, ::2]}, [ErrorReduction()], b)
    with pytest.raises(DeclarationError, match="a model with a guide and a mean"):
        Restorer(pg.model(lambda: None))
