"""Sprites of 8 x 8 pixels in named scenes: the smallest world in which a subject can be learned.

A picture is one of five scenes with one object on it. The object has a noun, its outline of 6 x 6
pixels, and three colours, those of its left, middle and right third; a noun with three colours is
an individual, 3 x 6^3 of them. With brightness b, pixel noise e and outline m at a uniform place,

    x = clip((1 - m) (scene + b + e) + m template, -1, 1),

so the object's pixels are exactly its template, and the mask is exact. Captions name noun and scene
always and the colours in half of the pictures: "a red blue green disk on grass", "a cross on sand".
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, TypedDict, get_args

import numpy as np

from probgen.errors import DataError

SIDE, BOX = 8, 6
_OUTLINES = {
    "disk": ("..##..", ".####.", "######", "######", ".####.", "..##.."),
    "square": ("......", ".####.", ".####.", ".####.", ".####.", "......"),
    "cross": ("..##..", "..##..", "######", "######", "..##..", "..##.."),
}
_RGB = {
    "red": (0.8, -0.7, -0.7), "yellow": (0.9, 0.7, -0.7), "green": (-0.6, 0.6, -0.6),
    "cyan": (-0.7, 0.6, 0.8), "blue": (-0.6, -0.4, 0.9), "pink": (0.9, -0.2, 0.6),
}  # fmt: skip
# Two colours of each scene and the pixels, by their row and column, that have the second.
_SCENES = {
    "grass": ((-0.5, 0.1, -0.8), (-0.7, -0.2, -0.9), lambda r, c: (r + 2 * c) % 3 == 0),
    "sand": ((0.7, 0.5, 0.0), (0.5, 0.3, -0.2), lambda r, c: (r * c + c) % 4 == 1),
    "sea": ((-0.8, -0.2, 0.3), (-0.5, 0.2, 0.5), lambda r, c: r % 3 == 0),
    "brick": ((0.1, -0.5, -0.6), (-0.3, -0.6, -0.6), lambda r, c: (r + 2 * (c // 4)) % 4 == 0),
    "night": ((-0.9, -0.9, -0.7), (-0.3, -0.3, 0.0), lambda r, c: (3 * r + 5 * c) % 13 == 2),
}  # fmt: skip

#: What a noun, a colour and a scene may be; the labels of `sprites` count into these.
SPRITE_NOUNS: tuple[str, ...] = tuple(_OUTLINES)
SPRITE_COLORS: tuple[str, ...] = tuple(_RGB)
SPRITE_SCENES: tuple[str, ...] = tuple(_SCENES)

Colors = tuple[str, str, str]
Words = Literal["mixed", "full", "scene", "noun", "none"]  # of captions, here and in `pictograms`
KINDS: tuple[str, ...] = get_args(Words)
_BRIGHTNESS, _NOISE = 0.08, 0.04


class Sprites(TypedDict):
    """Pictures, their captions and masks, and what they are drawn from.

    x: [n, 8, 8, 3] float32 in [-1, 1].
    mask: [n, 8, 8, 1] float32, 1 on the object and 0 elsewhere.
    captions: n sentences, "" where the picture has none.
    noun, scene: [n] int64 into `SPRITE_NOUNS` and `SPRITE_SCENES`.
    colors: [n, 3] int64 into `SPRITE_COLORS`, from left to right.
    """

    x: np.ndarray
    mask: np.ndarray
    captions: tuple[str, ...]
    noun: np.ndarray
    scene: np.ndarray
    colors: np.ndarray


def sprites(
    count: int,
    seed: int,
    *,
    noun: str | None = None,
    colors: Colors | None = None,
    scene: str | None = None,
    words: Words = "mixed",
    held_out: Collection[tuple[str, Colors]] = (),
) -> Sprites:
    """Draw `count` pictures; what is not given is drawn uniformly and independently.

    Five pictures of one individual in one scene, with captions that do not name the scene:
    `sprites(5, 0, noun="disk", colors=("red", "blue", "green"), scene="grass", words="noun")`.

    Args:
        count: n.
        seed: the same seed gives the same pictures.
        noun, colors, scene: fix them, by their words.
        words: of the captions. "full": colours, noun and scene; "scene": noun and scene; "noun":
            the noun alone; "none": nothing; "mixed": none in a tenth of the pictures, else "full"
            or "scene" with equal chances.
        held_out: individuals (noun, colors) that are never drawn.

    Raises:
        DataError: no pictures asked for, a word that is none, an individual that is fixed and
            held out.
    """
    _check(count, noun, colors, scene, words, held_out)
    rng = np.random.default_rng(seed)
    kept = _individuals(noun, colors, held_out)
    rows = kept[rng.integers(len(kept), size=count)]
    where = rng.integers(len(SPRITE_SCENES), size=count)
    if scene is not None:
        where[:] = SPRITE_SCENES.index(scene)
    places = rng.integers(SIDE - BOX + 1, size=(count, 2))
    light = rng.uniform(-_BRIGHTNESS, _BRIGHTNESS, (count, 1, 1, 1))
    x = scene_templates()[where] + light + rng.normal(0.0, _NOISE, (count, SIDE, SIDE, 3))
    mask = np.zeros((count, SIDE, SIDE, 1), np.float32)
    for i, (row, (top, left)) in enumerate(zip(rows, places, strict=True)):
        pixels, outline = sprite_template(SPRITE_NOUNS[row[0]], _names(row))
        box = np.s_[i, top : top + BOX, left : left + BOX]
        x[box] = np.where(outline, pixels, x[box])
        mask[box] = outline
    kinds = _kinds(rng, count, words)
    captions = tuple(_caption(*each) for each in zip(rows, where, kinds, strict=True))
    return {
        "x": np.clip(x, -1.0, 1.0).astype(np.float32), "mask": mask, "captions": captions,
        "noun": rows[:, 0], "scene": where.astype(np.int64), "colors": rows[:, 1:],
    }  # fmt: skip


def sprite_template(noun: str, colors: Colors) -> tuple[np.ndarray, np.ndarray]:
    """What one individual looks like: pixels [6, 6, 3] in [-1, 1] and its outline [6, 6, 1].

    Raises:
        DataError: a word that is none.
    """
    _known("sprite_template", noun, SPRITE_NOUNS, "noun")
    for color in colors:
        _known("sprite_template", color, SPRITE_COLORS, "colour")
    outline = np.array([[c == "#" for c in line] for line in _OUTLINES[noun]])[..., None]
    columns = np.repeat(np.array([_RGB[color] for color in colors]), BOX // 3, axis=0)
    return np.broadcast_to(columns, (BOX, BOX, 3)).astype(np.float32), outline


def scene_templates() -> np.ndarray:
    """[5, 8, 8, 3] the scenes without brightness and noise, in the order of `SPRITE_SCENES`."""
    rows, columns = np.indices((SIDE, SIDE))
    return np.stack(
        [
            np.where(second(rows, columns)[..., None], accent, main)
            for main, accent, second in _SCENES.values()
        ]
    ).astype(np.float32)


def _individuals(
    noun: str | None, colors: Colors | None, held_out: Collection[tuple[str, Colors]]
) -> np.ndarray:
    """[m, 4] noun and three colours of all that may be drawn."""
    sizes = (len(SPRITE_NOUNS), *[len(SPRITE_COLORS)] * 3)
    every = np.argwhere(np.ones(sizes, bool)).astype(np.int64)
    keep = np.ones(len(every), bool)
    if noun is not None:
        keep &= every[:, 0] == SPRITE_NOUNS.index(noun)
    if colors is not None:
        keep &= (every[:, 1:] == [SPRITE_COLORS.index(c) for c in colors]).all(1)
    for other, triple in held_out:
        row = [SPRITE_NOUNS.index(other), *(SPRITE_COLORS.index(c) for c in triple)]
        keep &= (every != row).any(1)
    if not keep.any():
        raise DataError(
            f"sprites: got noun={noun!r} and colors={colors}, all of which are held out, expected "
            "something to draw; leave it out of held_out."
        )
    return every[keep]


def _names(row: np.ndarray) -> Colors:
    left, middle, right = (SPRITE_COLORS[k] for k in row[1:])
    return left, middle, right


def _kinds(rng: np.random.Generator, count: int, words: Words) -> list[str]:
    if words != "mixed":
        return [words] * count
    return list(rng.choice(["none", "full", "scene"], count, p=[0.1, 0.45, 0.45]))


def _caption(row: np.ndarray, where: int, kind: str) -> str:
    if kind == "none":
        return ""
    named = [*_names(row)] if kind == "full" else []
    place = [] if kind == "noun" else ["on", SPRITE_SCENES[where]]
    return " ".join(["a", *named, SPRITE_NOUNS[row[0]], *place])


def _known(who: str, word: str, words: tuple[str, ...], what: str) -> None:
    if word not in words:
        raise DataError(f"{who}: got the {what} {word!r}, expected one of {', '.join(words)}.")


def _check(
    count: int,
    noun: str | None,
    colors: Colors | None,
    scene: str | None,
    words: str,
    held_out: Collection[tuple[str, Colors]],
) -> None:
    if count < 1:
        raise DataError(f"sprites: got count={count}, expected at least 1.")
    given = [(noun, colors), *held_out]
    for name, triple in given:
        if name is not None:
            _known("sprites", name, SPRITE_NOUNS, "noun")
        if triple is not None and len(triple) != 3:
            raise DataError(
                f"sprites: got the colours {triple}, expected three words: left, middle, right."
            )
        for color in triple or ():
            _known("sprites", color, SPRITE_COLORS, "colour")
    if scene is not None:
        _known("sprites", scene, SPRITE_SCENES, "scene")
    _known("sprites", words, KINDS, "words")
