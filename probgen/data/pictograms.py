"""Pictograms in named scenes: the same noun as several individuals, with captions and masks.

Each noun is drawn in three renditions by three groups of artists, so a noun is a class and a
rendition of it an individual: an octopus is red and drawn, purple and flat, or pink and glossy. A
picture is a scene with one of them at a random place and size, mirrored or not, its hue turned or
not; with a its coverage of each pixel,

    x = 2 ((1 - a) scene + a object) - 1,        mask = a > 1/2.

Captions are "a [rendition] [colour] noun [on scene]". The pictures lie in `pictograms.npz` beside
this file, made by `tools/build_pictograms.py`; authors and licences: `pictograms.NOTICE.txt`.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from probgen.data.images import require
from probgen.data.pictogram_colors import COLORS, color_of, turned
from probgen.data.pictogram_scenes import DRAWN, TEXTURES, draw_scene
from probgen.data.sprites import KINDS, Words
from probgen.errors import DataError

FILE = Path(__file__).with_name("pictograms.npz")

#: What the labels of `pictograms` count into, beside its nouns.
PICTOGRAM_COLORS: tuple[str, ...] = COLORS
PICTOGRAM_RENDITIONS: tuple[str, ...] = ("drawn", "flat", "glossy")
PICTOGRAM_SCENES: tuple[str, ...] = (*DRAWN, *TEXTURES)


class Pictograms(TypedDict):
    """Pictures, their captions and masks, and what they show.

    x: [n, size, size, 3] float32 in [-1, 1].
    mask: [n, size, size, 1] float32, 1 where the object covers more than half of a pixel, else 0.
    captions: n sentences, "" where the picture has none.
    noun, rendition, scene, color: [n] int64 into `pictogram_nouns()`, `PICTOGRAM_RENDITIONS`,
        `PICTOGRAM_SCENES` and `PICTOGRAM_COLORS`, whatever the captions say.
    """

    x: np.ndarray
    mask: np.ndarray
    captions: tuple[str, ...]
    noun: np.ndarray
    rendition: np.ndarray
    scene: np.ndarray
    color: np.ndarray


class _Recipe(NamedTuple):
    individuals: np.ndarray  # [m, 2] nouns and renditions that may be drawn
    scenes: tuple[str, ...]
    size: int
    hue: float | None
    scale: tuple[float, float]
    words: Words


@functools.cache
def _contents() -> tuple[tuple[str, ...], np.ndarray]:
    """The nouns and their pictures [n, 3, 32, 32, 4] uint8."""
    with np.load(FILE, allow_pickle=False) as file:
        return tuple(map(str, file["nouns"])), file["rgba"]


def pictogram_nouns() -> tuple[str, ...]:
    """All nouns there are, in the order that labels count in."""
    return _contents()[0]


def pictograms(
    count: int,
    seed: int,
    *,
    size: int = 24,
    nouns: Sequence[str] | None = None,
    renditions: Sequence[str] = PICTOGRAM_RENDITIONS,
    scenes: Sequence[str] = PICTOGRAM_SCENES,
    hue: float | None = None,
    scale: tuple[float, float] = (0.55, 0.8),
    words: Words = "mixed",
    held_out: Collection[tuple[str, str]] = (),
) -> Pictograms:
    """Draw `count` pictures, each of a noun, a rendition and a scene drawn uniformly.

    Five pictures of one individual in one scene, with captions that do not name the scene:
    `pictograms(5, 0, nouns=["octopus"], renditions=["flat"], scenes=["lawn"], hue=0, words="noun")`

    Args:
        count: n; about a millisecond each.
        seed: the same seed gives the same pictures.
        size: side, pixels.
        nouns: of `pictogram_nouns()`; None for all.
        renditions, scenes: those to draw from. "sky", "night", "snow" and "lawn" are quiet;
            "grass", "brick", "gravel" and "sand" are textures, which scikit-image carries.
        hue: by which every object's hue is turned, radians; None: half of them by a uniform angle.
        scale: smallest and largest side of the object, as a share of `size`.
        words: of the captions. "full": rendition, colour, noun and scene; "scene": noun and scene;
            "noun": the noun alone; "none": nothing; "mixed": nothing in a tenth of the pictures,
            else rendition and colour in half of them each, and the scene in nine tenths.
        held_out: individuals (noun, rendition) that are never drawn.

    Raises:
        DataError: no pictures asked for, a word that is none, sizes without sense, individuals that
            are asked for and held out; scikit-image is not installed and a texture is asked for.
    """
    nouns = pictogram_nouns() if nouns is None else tuple(nouns)
    _check_sizes(count, size, hue, scale)
    for what, given, known in (
        ("noun", (*nouns, *(noun for noun, _ in held_out)), pictogram_nouns()),
        ("rendition", (*renditions, *(each for _, each in held_out)), PICTOGRAM_RENDITIONS),
        ("scene", scenes, PICTOGRAM_SCENES), ("kind of words", (words,), KINDS),
    ):  # fmt: skip
        _check_words(what, given, known)
    pairs = [(n, r) for n in nouns for r in renditions if (n, r) not in set(held_out)]
    if not pairs:
        raise DataError("pictograms: got held_out with all that is asked for, expected less of it.")
    rows = np.array([(pictogram_nouns().index(n), PICTOGRAM_RENDITIONS.index(r)) for n, r in pairs])
    recipe = _Recipe(rows, tuple(scenes), size, hue, scale, words)
    rng = np.random.default_rng(seed)
    return _gathered([_picture(rng, recipe) for _ in range(count)])


def _picture(rng: np.random.Generator, recipe: _Recipe) -> dict[str, Any]:
    noun, rendition = recipe.individuals[rng.integers(len(recipe.individuals))]
    scene = recipe.scenes[rng.integers(len(recipe.scenes))]
    pixels = _contents()[1][noun, rendition]
    is_turned = recipe.hue is None and rng.random() < 0.5
    angle = rng.uniform(0.0, 2 * np.pi) if is_turned else recipe.hue or 0.0
    rgb = turned(pixels[..., :3] / 255.0, angle) if angle else pixels[..., :3] / 255.0
    color = color_of(rgb[pixels[..., 3] > 127])
    placed = _placed(rng, np.concatenate([rgb * 255.0, pixels[..., 3:]], -1), recipe)
    cover = placed[..., 3:]
    x = (1 - cover) * draw_scene(rng, scene, recipe.size) + cover * placed[..., :3]
    named = (PICTOGRAM_RENDITIONS[rendition], COLORS[color], pictogram_nouns()[noun], scene)
    return {
        "x": 2.0 * x - 1.0, "mask": cover > 0.5, "captions": _caption(rng, recipe.words, *named),
        "noun": noun, "rendition": rendition, "scene": PICTOGRAM_SCENES.index(scene),
        "color": color,
    }  # fmt: skip


def _placed(rng: np.random.Generator, pixels: np.ndarray, recipe: _Recipe) -> np.ndarray:
    """[size, size, 4] in [0, 1]: the object somewhere on an empty picture."""
    pillow = require("PIL.Image", needed_by="pictograms")
    picture = pillow.fromarray(pixels.astype(np.uint8))
    side = max(1, round(recipe.size * rng.uniform(*recipe.scale)))
    if rng.random() < 0.5:
        picture = picture.transpose(pillow.Transpose.FLIP_LEFT_RIGHT)
    placed = np.zeros((recipe.size, recipe.size, 4))
    top, left = rng.integers(recipe.size - side + 1, size=2)
    small = np.asarray(picture.resize((side, side), pillow.Resampling.LANCZOS))
    placed[top : top + side, left : left + side] = small / 255.0
    return placed


def _caption(
    rng: np.random.Generator, words: Words, rendition: str, color: str, noun: str, scene: str
) -> str:
    chances = {"full": (1, 1, 1), "scene": (0, 0, 1), "noun": (0, 0, 0), "mixed": (0.5, 0.5, 0.9)}
    said = rng.random(4)  # always as many numbers, so that pictures do not hang on words
    if words == "none" or (words == "mixed" and said[3] < 0.1):
        return ""
    has_rendition, has_color, has_scene = said[:3] < chances[words]
    first = [word for word, is_said in ((rendition, has_rendition), (color, has_color)) if is_said]
    return " ".join(["a", *first, noun, *(["on", scene] if has_scene else [])])


def _gathered(pictures: list[dict[str, Any]]) -> Pictograms:
    def labels(name: str) -> np.ndarray:
        return np.array([picture[name] for picture in pictures], np.int64)

    return {
        "x": np.stack([picture["x"] for picture in pictures]).astype(np.float32),
        "mask": np.stack([picture["mask"] for picture in pictures]).astype(np.float32),
        "captions": tuple(picture["captions"] for picture in pictures),
        "noun": labels("noun"), "rendition": labels("rendition"), "scene": labels("scene"),
        "color": labels("color"),
    }  # fmt: skip


def _check_words(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    unknown = [word for word in given if word not in known]
    if unknown or not given:
        raise DataError(
            f"pictograms: got the {what} {unknown[0]!r}, expected of: {', '.join(known)}."
            if unknown
            else f"pictograms: got no {what}, expected at least one."
        )


def _check_sizes(count: int, size: int, hue: float | None, scale: tuple[float, float]) -> None:
    if count < 1 or size < 8:
        raise DataError(
            f"pictograms: got count={count} and size={size}, expected count >= 1 and size >= 8."
        )
    if not 0 < scale[0] <= scale[1] <= 1:
        raise DataError(f"pictograms: got scale={scale}, expected 0 < smallest <= largest <= 1.")
    if hue is not None and not np.isfinite(hue):
        raise DataError(f"pictograms: got hue={hue}, expected an angle in radians, or None.")
