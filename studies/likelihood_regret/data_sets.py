"""The data of the likelihood regret study: what is learned, and what is held to be strange.

A `Pair` has a training set and several test sets of equal size, all as grey levels 0 ... L - 1. No
model here. Letters come in three kinds: `plain_letters` near the middle (white on black, 16 to 24
pixels, several fonts, offsets of up to 3 pixels), the same anywhere in the picture, and those of
`data.letters`, drawn as MNIST's digits are: larger, slanted, with more ink.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from probgen import data
from probgen.data.images import require
from probgen.errors import DataError
from probgen.evaluation.detection.scores import count_distinct

FACES = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "STIXGeneral.ttf")


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """A training set and test sets in distribution and out of it.

    Attributes:
        name: of the training set.
        train: [N, h, w, 1] uint8 levels, what models are fitted to.
        reference: [m, h, w, 1] held-out data for scores that need some.
        inside: [n, h, w, 1] test data in distribution.
        outside: {set: [n, h, w, 1]}; one of them is more data in distribution, for which every
            AUROC should be near 1/2.
        num_levels: L.
    """

    name: str
    train: np.ndarray
    reference: np.ndarray
    inside: np.ndarray
    outside: Mapping[str, np.ndarray]
    num_levels: int

    def __post_init__(self) -> None:
        sizes = {k: len(v) for k, v in (("inside", self.inside), *self.outside.items())}
        if len(set(sizes.values())) != 1:
            raise DataError(
                f"Pair {self.name!r}: got test sets of the sizes {sizes}, expected one size for "
                "all; take as many of each as the smallest has."
            )

    @property
    def num_each(self) -> int:
        """n, data in each test set."""
        return len(self.inside)

    @property
    def num_distinct(self) -> tuple[int, dict[str, int]]:
        """(inside, {set: outside}): how many images of each set differ; copies count once."""
        counts = {name: count_distinct(x) for name, x in self.outside.items()}
        return count_distinct(self.inside), counts

    @property
    def stacked(self) -> np.ndarray:
        """[(1 + sets) n, h, w, 1]: in distribution, then the others in order. One evaluation of
        them all has noise of its own for each datum."""
        return np.concatenate([self.inside, *self.outside.values()])

    def split(self, scores: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(in_scores, {set: out_scores}) of scores of `stacked`, as `compare` takes them."""
        parts = np.asarray(scores).reshape(1 + len(self.outside), self.num_each)
        return parts[0], dict(zip(self.outside, parts[1:], strict=True))


def plain_letters(count: int, size: int, seed: int, *, max_offset: int | None = None) -> np.ndarray:
    """Letters A-Z, a-z in white on black, [count, size, size, 1] float32 in [0, 1].

    Font, height of the font (4/7 to 6/7 of `size`: 16 to 24 pixels of 28) and place are drawn
    uniformly, the place such that nothing is cut off.

    Args:
        max_offset: of the letter's box from the middle, either way, pixels; None: anywhere.

    Raises:
        DataError: Pillow or matplotlib, whose fonts these are, is missing.
    """
    image, draw, font = (
        require(f"PIL.{m}", needed_by="plain_letters") for m in ("Image", "ImageDraw", "ImageFont")
    )
    matplotlib = require("matplotlib", needed_by="plain_letters")
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    rng = np.random.default_rng(seed)
    out = np.zeros((count, size, size, 1), np.float32)
    for row in range(count):
        letter = string.ascii_letters[rng.integers(52)]
        points = int(rng.integers(round(size * 4 / 7), round(size * 6 / 7) + 1))
        face = font.truetype(str(folder / FACES[rng.integers(len(FACES))]), points)
        left, top, right, bottom = (int(v) for v in face.getbbox(letter))
        x, y = (_place(rng, size - side, max_offset) for side in (right - left, bottom - top))
        sheet = image.new("L", (size, size))
        draw.Draw(sheet).text((x - left, y - top), letter, fill=255, font=face)
        out[row, :, :, 0] = np.asarray(sheet, np.float32) / 255
    return out


def _place(rng: np.random.Generator, free: int, max_offset: int | None) -> int:
    """Where a box starts on one axis that it leaves `free` pixels of."""
    middle = free // 2
    reach = free if max_offset is None else max_offset
    low, high = max(0, middle - reach), min(free, middle + reach)
    return int(rng.integers(low, max(low, high) + 1))


def shifted(images: np.ndarray, by: int, seed: int, *, diagonally: bool = False) -> np.ndarray:
    """Images moved by `by` pixels up, down, left or right, zeros coming in; [n, h, w, 1].

    Args:
        diagonally: moved along both axes at once, by `by` pixels on each.
    """
    corners = [(by, by), (by, -by), (-by, by), (-by, -by)]
    ways = np.array(corners if diagonally else [(by, 0), (-by, 0), (0, by), (0, -by)])
    chosen = ways[np.random.default_rng(seed).integers(4, size=len(images))]
    padded = np.pad(images, ((0, 0), (by, by), (by, by), (0, 0)))
    h, w = images.shape[1:3]
    return np.stack(
        [p[by - dy : by - dy + h, by - dx : by - dx + w] for p, (dy, dx) in zip(padded, chosen,
                                                                                strict=True)]
    )  # fmt: skip


def simple_sets(inside: np.ndarray, shift: int, seed: int) -> dict[str, np.ndarray]:
    """Strange sets made without other data: {set: [n, h, w, 1] in [0, 1]}.

    "inverted" (1 - x) and "shift" of the test data themselves, "noise", "constant", "black".
    """
    n, shape = len(inside), inside.shape[1:]
    return {
        "inverted": data.inverted(inside),
        "noise": data.noise(n, shape, seed).images,
        "constant": data.constants(n, shape, seed + 1).images,
        f"shift {shift}px": shifted(inside, shift, seed + 2),
        "black": np.zeros_like(inside),
    }


def digits_pair(num_train: int, num_reference: int, n: int, num_levels: int, seed: int) -> Pair:
    """MNIST digits; strange: letters of two kinds, and `simple_sets`."""
    sizes = [num_train, num_reference, n, n]
    parts = data.split(data.mnist5k(), sizes, seed=seed, stratify=True)
    train, reference, inside, more = (p.images for p in parts)
    per_letter = -(-n // 52)
    alike = data.letters(28, seed=seed + 1, per_letter=per_letter).images
    outside = {
        "letters": plain_letters(n, 28, seed + 2, max_offset=3),
        "letters anywhere": plain_letters(n, 28, seed + 2),
        "letters as MNIST": _some(alike, n, seed + 3),
        **simple_sets(inside, 6, seed + 4),
        "held-out digits": more,
    }
    return _on_levels("MNIST digits", train, reference, inside, outside, num_levels)


def letters_pair(num_train: int, num_reference: int, n: int, num_levels: int, seed: int) -> Pair:
    """The reverse: letters drawn as MNIST is; strange: the digits, and `simple_sets`."""
    total = num_train + num_reference + 2 * n
    drawn = data.letters(28, seed=seed + 1, per_letter=-(-total // 52)).images
    sizes = [num_train, num_reference, n, n]
    train, reference, inside, more = data.split(drawn, sizes, seed=seed)
    outside = {
        "digits": _some(data.mnist5k().images, n, seed + 2),
        "plain letters": plain_letters(n, 28, seed + 3, max_offset=3),
        **simple_sets(inside, 6, seed + 4),
        "held-out letters": more,
    }
    return _on_levels("letters", train, reference, inside, outside, num_levels)


def patches_pair(num_train: int, num_reference: int, n: int, num_levels: int, seed: int) -> Pair:
    """Natural 25x25 windows; strange: faces (at most 100), digits, letters, and `simple_sets`.

    Test windows come from the photographs of the training windows, at other places that overlap.
    """
    count = num_train + num_reference + 2 * n
    windows = data.patches(25, count, seed + 1).images
    sizes = [num_train, num_reference, n, n]
    train, reference, inside, more = data.split(windows, sizes, seed=seed)
    both = data.faces()
    faces = both.images[np.flatnonzero(np.asarray(both.labels))]  # without the pieces of background
    outside = {
        "faces": _some(faces, n, seed + 2),
        "digits": _some(data.mnist5k().images[:, 1:26, 1:26], n, seed + 3),
        "letters": plain_letters(n, 25, seed + 4, max_offset=3),
        **simple_sets(inside, 6, seed + 5),
        "held-out patches": more,
    }
    return _on_levels("natural patches", train, reference, inside, outside, num_levels)


def small_digits_pair(
    num_train: int, num_reference: int, n: int, num_levels: int, seed: int
) -> Pair:
    """Digits of 8x8 pixels; strange: letters at that size, and `simple_sets`, with shifts of 2
    pixels along one axis and along both (digits of this set fill their picture from top to bottom).
    """
    sizes = [num_train, num_reference, n, n]
    parts = data.split(data.digits(), sizes, seed=seed, stratify=True)
    train, reference, inside, more = (p.images for p in parts)
    fine = plain_letters(n, 32, seed + 2, max_offset=3)  # then averaged down, as those digits were
    letters = fine.reshape(n, 8, 4, 8, 4, 1).mean((2, 4))
    outside = {
        "letters": letters,
        **simple_sets(inside, 2, seed + 4),
        "both axes 2px": shifted(inside, 2, seed + 7, diagonally=True),
        "held-out digits": more,
    }
    return _on_levels("8x8 digits", train, reference, inside, outside, num_levels)


def _some(images: np.ndarray, n: int, seed: int) -> np.ndarray:
    if len(images) < n:
        raise DataError(f"got {len(images)} images, expected at least {n}; ask for fewer.")
    return images[np.random.default_rng(seed).permutation(len(images))[:n]]


def _on_levels(
    name: str, train: np.ndarray, reference: np.ndarray, inside: np.ndarray,
    outside: Mapping[str, np.ndarray], num_levels: int,
) -> Pair:  # fmt: skip
    def levels(x: np.ndarray) -> np.ndarray:
        return data.to_levels(x, num_levels)

    return Pair(
        name, levels(train), levels(reference), levels(inside),
        {k: levels(v) for k, v in outside.items()}, num_levels,
    )  # fmt: skip
