"""Letters A-Z and a-z drawn from the fonts that matplotlib carries, made to look like MNIST.

White on black. As in MNIST, a glyph is scaled until its longer side is 20/28 of the picture, and
its centre of mass is put in the middle, as far as that cuts nothing off; scale, rotation, slant
and shift vary with the seed. Because each glyph fills the box, letters whose two cases differ only
in size (C c, O o) look alike, as in EMNIST.
"""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from probgen.data.images import Images, require
from probgen.errors import DataError

#: Upright and slanted faces whose strokes, at this size, are as wide as a pen's.
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Italic.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Oblique.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralBolIta.ttf",
)
_FINE = 4  # drawn this many times larger, then averaged down: anti-aliasing by area


def letters(
    size: int = 28,
    *,
    seed: int,
    per_letter: int = 50,
    alphabet: str = string.ascii_uppercase + string.ascii_lowercase,
    fonts: Sequence[str] = FONTS,
    max_shift: float = 0.04,
    max_rotation: float = 10.0,
    max_scale: float = 0.1,
    max_slant: float = 0.15,
) -> Images:
    """Draw `per_letter` pictures of each letter; the font of each is drawn uniformly.

    Args:
        size: side of a picture, pixels; at least 8.
        seed: the same seed gives the same pictures.
        per_letter: pictures per letter; letters alternate, so that every stretch is balanced.
        alphabet: the letters, each once; digits work too.
        fonts: files in matplotlib's font folder, or paths of other TrueType files.
        max_shift: largest shift per axis, as a share of `size`.
        max_rotation: largest rotation either way, degrees.
        max_scale: largest relative change of scale either way.
        max_slant: largest horizontal shear either way.

    Returns:
        images [len(alphabet) * per_letter, size, size, 1]; labels index `alphabet`.

    Raises:
        DataError: a size, count or alphabet that makes no sense, or a font file that is not there.
    """
    _check(size, per_letter, alphabet, fonts)
    rng = np.random.default_rng(seed)
    paths = [_font_path(font) for font in fonts]
    labels = np.tile(np.arange(len(alphabet)), per_letter)
    glyphs: dict[tuple[int, int], Any] = {}
    images = np.empty((len(labels), size, size, 1), dtype=np.float32)
    for row, label in enumerate(labels):
        font = int(rng.integers(len(paths)))
        shift = rng.uniform(-max_shift, max_shift, 2) * size
        angle = np.deg2rad(rng.uniform(-max_rotation, max_rotation))
        scale = 1 + rng.uniform(-max_scale, max_scale)
        slant = rng.uniform(-max_slant, max_slant)
        if (font, label) not in glyphs:
            glyphs[font, label] = _glyph(alphabet[label], paths[font], size)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = scale * turn @ np.array([[1.0, slant], [0.0, 1.0]])
        images[row, :, :, 0] = _draw(glyphs[font, label], size, matrix, shift)
    return Images(images, labels.astype(np.int64), "letters", tuple(alphabet))


def _glyph(letter: str, path: Path, size: int) -> Any:
    """The letter cropped to its ink, its longer side 20/28 of the fine picture (Pillow image)."""
    image = require("PIL.Image", needed_by="letters")
    fonts = require("PIL.ImageFont", needed_by="letters")
    draw = require("PIL.ImageDraw", needed_by="letters")
    box = round(size * _FINE * 20 / 28)
    try:
        font = fonts.truetype(str(path), 4 * box)
    except OSError as error:
        raise DataError(f"letters: {path} is not a font that can be read: {error}.") from error
    sheet = image.new("L", (12 * box, 12 * box))
    draw.Draw(sheet).text((4 * box, 4 * box), letter, fill=255, font=font)
    ink = sheet.crop(sheet.getbbox() or (0, 0, 1, 1))
    ratio = box / max(ink.size)
    return ink.resize([max(1, round(side * ratio)) for side in ink.size], image.Resampling.BOX)


def _draw(glyph: Any, size: int, matrix: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """[size, size]: the glyph under x -> matrix x about its centre of mass, then shifted."""
    image = require("PIL.Image", needed_by="letters")
    ink = np.asarray(glyph, dtype=np.float64)
    rows, columns = np.indices(ink.shape)
    mass = np.array([(columns * ink).sum(), (rows * ink).sum()]) / max(ink.sum(), 1.0) + 0.5
    # Off the middle only as far as no ink is cut off, which a T, an L or an r would be.
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]) * ink.shape[::-1] - mass
    reach = corners @ matrix.T
    low, high = _FINE - reach.min(axis=0), (size - 1) * _FINE - reach.max(axis=0)
    between = (low + high) / 2
    middle = (size / 2 + shift) * _FINE
    middle = np.clip(middle, np.minimum(low, between), np.maximum(high, between))
    # Pillow wants the map from the new picture to the old one.
    inverse = np.linalg.inv(matrix)
    offset = mass - inverse @ middle
    row_x, row_y = (*inverse[0], offset[0]), (*inverse[1], offset[1])
    fine = glyph.transform(
        (size * _FINE, size * _FINE), image.Transform.AFFINE, row_x + row_y,
        resample=image.Resampling.BILINEAR,
    )  # fmt: skip
    pixels = np.asarray(fine, dtype=np.float32).reshape(size, _FINE, size, _FINE)
    return pixels.mean((1, 3)) / np.float32(255)


def _font_path(font: str) -> Path:
    if Path(font).is_file():
        return Path(font)
    folder = Path(require("matplotlib", needed_by="letters").get_data_path()) / "fonts" / "ttf"
    if not (folder / font).is_file():
        have = sorted(path.name for path in folder.glob("DejaVu*.ttf"))
        raise DataError(
            f"letters: got the font {font!r}, which is neither a file nor one of matplotlib's, "
            f"expected for instance {have[:4]}; name a bundled font or give a path."
        )
    return folder / font


def _check(size: int, per_letter: int, alphabet: str, fonts: Sequence[str]) -> None:
    if size < 8 or per_letter < 1 or not fonts:
        raise DataError(
            f"letters: got size={size}, per_letter={per_letter} and {len(fonts)} fonts, expected "
            f"size >= 8, per_letter >= 1 and at least one font."
        )
    if not alphabet or len(set(alphabet)) != len(alphabet) or any(c.isspace() for c in alphabet):
        raise DataError(
            f"letters: got alphabet={alphabet!r}, expected letters that can be seen, each once."
        )
