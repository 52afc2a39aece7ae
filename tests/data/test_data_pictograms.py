"""Pictograms in scenes: what is drawn, masked and said is one thing."""

import numpy as np
import pytest

from probgen import data
from probgen.data import PICTOGRAM_COLORS, PICTOGRAM_RENDITIONS, PICTOGRAM_SCENES
from probgen.data.pictogram_colors import color_of, turned
from probgen.data.pictogram_scenes import DRAWN, TEXTURES, draw_scene
from probgen.data.pictograms import FILE
from probgen.errors import DataError

QUIET = ("sky", "night", "snow", "lawn")


@pytest.fixture(scope="module")
def drawn():
    return data.pictograms(400, 0, size=16, scenes=QUIET)


def test_the_file_is_small_and_holds_three_renditions_of_each_noun():
    with np.load(FILE) as file:
        rgba = file["rgba"]
    assert FILE.stat().st_size < 650_000 and rgba.shape == (
        len(data.pictogram_nouns()),
        3,
        32,
        32,
        4,
    )
    assert (rgba[..., :3][rgba[..., 3] == 0] == 0).all()  # what is transparent takes no room
    cover = (rgba[..., 3] > 127).mean((2, 3))
    assert cover.min() > 0.08 and cover.max() < 0.95
    flat = rgba.reshape(len(rgba) * 3, -1).astype(float)
    assert len(np.unique(flat, axis=0)) == len(flat)


def test_outside_the_object_there_is_the_scene_alone():
    """The sky is known up to its noise, so that one of x and mask being shifted would be seen."""
    made = data.pictograms(30, 1, size=24, scenes=["sky"])
    top, bottom = (np.array(c) for c in DRAWN["sky"])
    down = np.linspace(0, 1, 24)[:, None, None]
    sky = 2 * ((1 - down) * top + down * bottom) - 1
    grown = np.pad(made["mask"], ((0, 0), (2, 2), (2, 2), (0, 0)))
    near = sum(grown[:, i : i + 24, j : j + 24] for i in range(5) for j in range(5)) > 0
    off = abs(made["x"] - sky)
    assert (off * ~near).max() < 2 * 5 * 0.015
    inside = (off * made["mask"]).sum((1, 2, 3)) / (3 * made["mask"].sum((1, 2, 3)))
    assert np.median(inside) > 0.3 and set(np.unique(made["mask"])) == {0.0, 1.0}


def test_an_untouched_object_is_the_stored_one():
    """At scale 1 and hue 0 a masked pixel is the picture's own, mirrored or not."""
    made = data.pictograms(
        6, 0, size=32, nouns=["octopus"], renditions=["flat"], scenes=["snow"], hue=0.0,
        scale=(1.0, 1.0),
    )  # fmt: skip
    with np.load(FILE) as file:
        stored = file["rgba"][data.pictogram_nouns().index("octopus"), 1] / 255.0
    whole = stored[..., 3] == 1
    for x in made["x"]:
        each = [abs((x[:, ::way] + 1) / 2 - stored[..., :3])[whole].max() for way in (1, -1)]
        assert min(each) < 1e-6
    assert set(PICTOGRAM_COLORS[k] for k in made["color"]) == {"purple"}


def test_captions_say_what_is_drawn(drawn):
    """Words of a caption are its labels' words, in order; each is said in its share of pictures."""
    said = {"rendition": 0, "color": 0, "scene": 0, "empty": 0}
    nouns = data.pictogram_nouns()
    for i, caption in enumerate(drawn["captions"]):
        if not caption:
            said["empty"] += 1
            continue
        rendition = PICTOGRAM_RENDITIONS[drawn["rendition"][i]]
        color = PICTOGRAM_COLORS[drawn["color"][i]]
        scene, noun = PICTOGRAM_SCENES[drawn["scene"][i]], nouns[drawn["noun"][i]]
        words = caption.split()
        said["rendition"] += rendition in words
        said["color"] += color in words
        said["scene"] += scene in words
        rest = [word for word in words if word not in (rendition, color)]
        assert rest in (["a", noun], ["a", noun, "on", scene])
    shares = {"rendition": 0.45, "color": 0.45, "scene": 0.81, "empty": 0.1}
    for name, share in shares.items():
        assert abs(said[name] / 400 - share) < 5 * np.sqrt(share * (1 - share) / 400), name


def test_what_is_held_out_is_never_drawn_and_pictures_do_not_hang_on_words():
    kept = dict(size=8, nouns=["octopus", "teapot"], scenes=["sky"], scale=(0.5, 0.5))
    made = data.pictograms(120, 0, held_out=[("octopus", "flat")], **kept)
    pairs = {
        (data.pictogram_nouns()[n], PICTOGRAM_RENDITIONS[r])
        for n, r in zip(made["noun"], made["rendition"], strict=True)
    }
    assert len(pairs) == 5 and ("octopus", "flat") not in pairs
    plain, full = (data.pictograms(9, 4, words=w, **kept) for w in ("noun", "full"))
    np.testing.assert_array_equal(plain["x"], full["x"])
    assert set(plain["captions"]) <= {"a octopus", "a teapot"}
    assert all(len(caption.split()) == 6 for caption in full["captions"])


def test_a_hue_turned_by_a_third_makes_red_green_and_keeps_luma():
    angles = np.deg2rad([0.0, 60.0, 120.0, 180.0, 240.0, 300.0])
    soft = np.array([[0.6, 0.4, 0.4], [0.4, 0.5, 0.45]])
    luma = np.array([0.299, 0.587, 0.114])
    for angle in angles:
        np.testing.assert_allclose(turned(soft, angle) @ luma, soft @ luma, atol=2e-3)
        np.testing.assert_allclose(turned(turned(soft, angle), -angle), soft, atol=1e-9)
    pure = {
        "red": (1, 0, 0), "orange": (1, 0.5, 0), "yellow": (1, 0.9, 0), "green": (0, 1, 0),
        "blue": (0, 0, 1), "purple": (0.5, 0, 1), "pink": (1, 0, 0.6), "grey": (0.5, 0.5, 0.5),
    }  # fmt: skip
    for name, rgb in pure.items():
        assert PICTOGRAM_COLORS[color_of(np.array([rgb, rgb], float))] == name
        wine = np.array([[0.8, 0.1, 0.15]])  # hue 356 degrees
    assert PICTOGRAM_COLORS[color_of(wine)] == "red"


def test_scenes_differ_by_their_mean_colour():
    pytest.importorskip("skimage")
    rng = np.random.default_rng(0)
    mean = {s: draw_scene(rng, s, 16).mean((0, 1)) for s in (*DRAWN, *TEXTURES)}
    again = {s: draw_scene(rng, s, 16).mean((0, 1)) for s in mean}
    for name, color in again.items():
        assert min(mean, key=lambda other: abs(mean[other] - color).sum()) == name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nouns": ["unicorn"]}, "noun 'unicorn'"),
        ({"nouns": []}, "no noun"),
        ({"renditions": ["oil"]}, "rendition 'oil'"),
        ({"scenes": ["moon"]}, "scene 'moon'"),
        ({"words": "all"}, "words 'all'"),
        ({"size": 4}, "size=4"),
        ({"scale": (0.9, 0.5)}, r"scale=\(0.9, 0.5\)"),
        ({"hue": float("nan")}, "hue=nan"),
        ({"nouns": ["cat"], "renditions": ["flat"], "held_out": [("cat", "flat")]}, "held_out"),
    ],
)
def test_what_is_no_pictogram_is_refused_in_words(options, words):
    with pytest.raises(DataError, match=words):
        data.pictograms(**{"count": 1, "seed": 0, **options})


def test_a_drawn_picture_needs_no_photographs(monkeypatch):
    """scikit-image is asked for textures alone, and its absence is said."""
    from probgen.data import pictogram_scenes

    def refuse(*args, **kwargs):
        raise DataError("pip install")

    pictogram_scenes._photograph.cache_clear()
    monkeypatch.setattr(pictogram_scenes, "package_file", refuse)
    assert data.pictograms(4, 0, scenes=QUIET)["x"].shape == (4, 24, 24, 3)
    with pytest.raises(DataError, match="pip install"):
        data.pictograms(1, 0, scenes=["grass"])
