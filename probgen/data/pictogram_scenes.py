"""Backgrounds by name: four photographed textures, tinted, and four that are drawn.

A texture is a window of a grey photograph in scikit-image's wheel, at a random place and of a
random size, whose grey goes from one colour of the scene to another. A drawn scene is a colour that
changes from top to bottom, with fine noise and, at night, stars. All are [size, size, 3] in [0, 1].
"""

from __future__ import annotations

import functools

import numpy as np

from probgen.data.bundled import PHOTOGRAPHS
from probgen.data.images import package_file, require

Colour = tuple[float, float, float]

# The photograph, and the colours of its darkest and brightest places.
TEXTURES: dict[str, tuple[str, Colour, Colour]] = {
    "grass": ("grass", (0.05, 0.25, 0.02), (0.45, 0.80, 0.25)),
    "brick": ("brick", (0.35, 0.10, 0.06), (0.85, 0.45, 0.30)),
    "gravel": ("gravel", (0.20, 0.20, 0.22), (0.70, 0.70, 0.72)),
    "sand": ("gravel", (0.70, 0.55, 0.30), (1.00, 0.90, 0.60)),
}
# Colours of the top and of the bottom.
DRAWN: dict[str, tuple[Colour, Colour]] = {
    "sky": ((0.35, 0.60, 0.95), (0.75, 0.88, 1.00)),
    "night": ((0.03, 0.03, 0.15), (0.12, 0.08, 0.30)),
    "snow": ((0.88, 0.90, 0.96), (0.97, 0.97, 0.99)),
    "lawn": ((0.35, 0.70, 0.30), (0.20, 0.50, 0.18)),
}
_CONTRAST, _NOISE, _STARS = 0.9, 0.015, 6


def draw_scene(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """[size, size, 3] one background of this name."""
    return _textured(rng, name, size) if name in TEXTURES else _drawn(rng, name, size)


def _textured(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    pillow = require("PIL.Image", needed_by="pictograms")
    photograph, dark, bright = TEXTURES[name]
    whole = _photograph(photograph)
    side = int(rng.integers(150, 260))
    top, left = rng.integers(min(whole.shape) - side, size=2)
    window = pillow.fromarray(whole[top : top + side, left : left + side])
    grey = np.asarray(window.resize((size, size), pillow.Resampling.BOX), np.float32) / 255
    share = np.clip(0.5 + _CONTRAST * (grey - grey.mean()), 0.0, 1.0)[..., None]
    return (1 - share) * np.array(dark) + share * np.array(bright)


@functools.cache
def _photograph(name: str) -> np.ndarray:
    """[h, w] uint8; read once a process."""
    path = package_file("skimage", f"data/{PHOTOGRAPHS[name]}", needed_by="pictograms")
    with require("PIL.Image", needed_by="pictograms").open(path) as photograph:
        return np.asarray(photograph.convert("L"))


def _drawn(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    top, bottom = DRAWN[name]
    down = np.linspace(0.0, 1.0, size)[:, None, None]
    scene = (1 - down) * np.array(top) + down * np.array(bottom)
    scene = np.repeat(scene, size, axis=1)
    if name == "night":
        scene[tuple(rng.integers(size, size=(2, _STARS)))] = 0.9
    return np.clip(scene + rng.normal(0.0, _NOISE, scene.shape), 0.0, 1.0)
