"""Sprites in scenes: pictures, masks and captions say the same thing."""

import numpy as np
import pytest

from probgen import data
from probgen.data import SPRITE_COLORS, SPRITE_NOUNS, SPRITE_SCENES
from probgen.errors import DataError
from studies.hifi_tuner.scores import nearest_scene, scene_share, subject_error

SUBJECT = ("red", "blue", "green")


@pytest.fixture(scope="module")
def drawn():
    return data.sprites(1000, 0)


def test_a_masked_pixel_is_the_template_s_and_no_other_is(drawn):
    """Within the mask each picture is its template at one place, exactly; outside it is within
    brightness and five deviations of noise of its scene."""
    assert drawn["x"].dtype == np.float32 and abs(drawn["x"]).max() <= 1
    assert set(np.unique(drawn["mask"])) == {0.0, 1.0}
    scenes = data.scene_templates()
    for i in range(50):
        x, mask = drawn["x"][i], drawn["mask"][i, ..., 0] > 0
        noun = SPRITE_NOUNS[drawn["noun"][i]]
        colors = tuple(SPRITE_COLORS[k] for k in drawn["colors"][i])
        pixels, outline = data.sprite_template(noun, colors)
        np.testing.assert_array_equal(x[mask], pixels[outline[..., 0]])
        assert abs(x[~mask] - scenes[drawn["scene"][i]][~mask]).max() < 0.08 + 5 * 0.04


def test_captions_say_what_is_drawn(drawn):
    """Noun and scene whenever there is a caption, colours from left to right or none of them."""
    counts = np.zeros(3)
    for caption, noun, scene, colors in zip(
        *(drawn[k] for k in ("captions", "noun", "scene", "colors")), strict=True
    ):
        plain = f"{SPRITE_NOUNS[noun]} on {SPRITE_SCENES[scene]}"
        full = " ".join(SPRITE_COLORS[k] for k in colors)
        counts[["", f"a {plain}", f"a {full} {plain}"].index(caption)] += 1
    share = np.array([0.1, 0.45, 0.45])
    assert (abs(counts / 1000 - share) < 5 * np.sqrt(share * (1 - share) / 1000)).all()


def test_what_is_fixed_is_fixed_and_what_is_held_out_never_drawn():
    one = data.sprites(5, 3, noun="disk", colors=SUBJECT, scene="grass", words="noun")
    assert set(one["captions"]) == {"a disk"} and (one["scene"] == 0).all()
    assert (one["colors"] == [SPRITE_COLORS.index(c) for c in SUBJECT]).all()
    some = data.sprites(
        2000, 0, noun="disk", colors=None, held_out=[("disk", SUBJECT)], words="scene"
    )
    assert (some["colors"] != one["colors"][0]).any(1).all()
    assert len(np.unique(some["colors"], axis=0)) == 215  # the others all are
    with pytest.raises(DataError, match="all of which are held out"):
        data.sprites(1, 0, noun="disk", colors=SUBJECT, held_out=[("disk", SUBJECT)])


def test_the_same_seed_draws_the_same():
    first, second, other = (data.sprites(20, seed)["x"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noun": "dog"}, "noun 'dog', expected one of disk"),
        ({"colors": ("red", "blue")}, "expected three words"),
        ({"colors": ("red", "blue", "mauve")}, "colour 'mauve'"),
        ({"scene": "moon"}, "scene 'moon'"),
        ({"words": "all"}, "words 'all'"),
        ({"count": 0}, "count=0"),
        ({"held_out": [("dog", SUBJECT)]}, "noun 'dog'"),
    ],
)
def test_what_is_no_sprite_is_refused_in_words(options, words):
    with pytest.raises(DataError, match=words):
        data.sprites(**{"count": 2, "seed": 0, **options})


def test_scores_know_the_subject_and_the_scene_wherever_they_are(drawn):
    """Zero error for the individual at any place and in any scene, and none other's; the scene is
    told right with each object in front; half the pictures elsewhere is half the share."""
    subject = data.sprites(200, 1, noun="disk", colors=SUBJECT)
    np.testing.assert_allclose(subject_error(subject["x"], "disk", SUBJECT), 0.0, atol=1e-12)
    others = data.sprites(200, 2, held_out=[("disk", SUBJECT)])
    assert subject_error(others["x"], "disk", SUBJECT).min() > 0.05
    np.testing.assert_array_equal(nearest_scene(drawn["x"]), drawn["scene"])
    mixed = np.concatenate([data.sprites(10, 0, scene=s)["x"] for s in ("sea", "sand")])
    assert scene_share(mixed, "sea") == 0.5 and scene_share(mixed, "night") == 0.0


def test_an_error_of_the_subject_is_that_of_its_pixels_alone():
    """A known shift of the object's colours gives its square; one of the scene gives nothing."""
    one = data.sprites(30, 0, noun="disk", colors=SUBJECT)
    moved = one["x"] + 0.1 * one["mask"]
    np.testing.assert_allclose(subject_error(moved, "disk", SUBJECT), 0.01, rtol=1e-4)
    around = one["x"] + 0.1 * (1 - one["mask"])
    np.testing.assert_allclose(subject_error(around, "disk", SUBJECT), 0.0, atol=1e-12)
