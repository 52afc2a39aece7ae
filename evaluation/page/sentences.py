"""Words for data: a file, a folder of pictures, or a built-in set, fitted to what a model takes.

    digits  mnist5k  faces  letters  patches  noise  constants  inverted:WORD  PATH

A word is read as numbers first, pictures in [0, 1] where that is what they are; then `fitted_to`
gives them the shape and the values that the model's site has, and says all that it did. What cannot
be fitted without guessing is refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from probgen import data
from probgen.data.files import is_there, load_npy, npz_names
from probgen.data.image_files import load_image_folder
from probgen.engine.bound import Bound
from probgen.errors import DataError, ShapeError
from probgen.inference.ood.complexity import declared_levels
from probgen.language.dist import did_you_mean

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Need:
    """What a model's observed site takes: its name, the shape of one datum, what values it has.

    Attributes:
        levels: number of levels of a discrete site, None for real numbers.
        are_indices: levels are the integers 0 ... L - 1; else they are k / (L - 1).
        is_discrete: a probability of values, not a density.
    """

    site: str
    shape: Shape
    levels: int | None
    are_indices: bool
    is_discrete: bool

    @property
    def image_shape(self) -> Shape | None:
        """(h, w, c) where one datum is a picture, also a flat square one; None where it is not."""
        if len(self.shape) == 3 and self.shape[2] in (1, 3):
            return self.shape
        if len(self.shape) == 2:
            return (*self.shape, 1)
        side = math.isqrt(self.shape[0]) if len(self.shape) == 1 else 0
        return (side, side, 1) if side >= 8 and side * side == self.shape[0] else None


def need_of(bound: Bound, shapes: dict[str, Shape], site: str) -> Need:
    """What the observed site of a bound model takes."""
    found = bound.structure.sites[site]
    levels = declared_levels(bound, site) if found.is_discrete else None
    are_indices = found.is_discrete and not found.distribution.startswith(
        ("dist.Bernoulli(", "dist.DiscretizedLogistic(")
    )
    return Need(site, tuple(shapes[site]), levels, are_indices, found.is_discrete)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A set: its values [n, ...], what to call it, and what was done to it."""

    values: np.ndarray
    name: str
    done: tuple[str, ...] = ()

    def then(self, values: np.ndarray, said: str) -> Loaded:
        """The same set with other values, and a word on why."""
        return Loaded(values, self.name, (*self.done, said))


def load(word: str, need: Need, *, count: int, seed: int, like: Loaded | None = None) -> Loaded:
    """At most `count` data of a word, drawn without replacement by `seed`, in the model's form.

    Args:
        like: the model's own data. Where they are real numbers beyond [0, 1], "noise" has the range
            of each coordinate and "constants" that of all, else [0, 1].

    Raises:
        DataError: no such word or file, or values that the model cannot take.
        ShapeError: data of another shape, that are no pictures.
    """
    found = _sample(_read(word, need, count, seed), count, seed)
    if found.name in RANGED:
        found = _ranged(found, need, like)
    return fitted_to(found, need)


def _ranged(loaded: Loaded, need: Need, like: Loaded | None) -> Loaded:
    """Uniform numbers on the range of the model's own data, with a word on what they are."""
    what = RANGED[loaded.name]
    if loaded.name == "constants" and need.image_shape is not None and need.image_shape[2] > 1:
        what = "one uniform number a channel"
    if like is None or need.is_discrete or (like.values.min() >= 0 and like.values.max() <= 1):
        return loaded.then(loaded.values, f"{what} on [0, 1]")
    axis = 0 if loaded.name == "noise" else None  # one value in all coordinates has one range
    low, high = like.values.min(axis=axis), like.values.max(axis=axis)
    unit = np.asarray(loaded.values).reshape(len(loaded.values), *like.values.shape[1:])
    each = ", coordinate by coordinate" if loaded.name == "noise" else ""
    said = f"{what} on the range of {like.name}{each}, {low.min():.3g} to {high.max():.3g} in all"
    return loaded.then((low + unit * (high - low)).astype(np.float32), said)


# ---- reading -------------------------------------------------------------------------------------


def _generated(make: Callable[[Shape, int, int], Any]) -> Callable[[Need, int, int], np.ndarray]:
    def build(need: Need, count: int, seed: int) -> np.ndarray:
        shape = need.image_shape or need.shape
        return make(shape, count, seed).images

    return build


def _letters(shape: Shape, count: int, seed: int) -> Any:
    return data.letters(shape[0], seed=seed, per_letter=-(-count // 52))


def _constants(need: Need, count: int, seed: int) -> np.ndarray:
    """One value a picture and channel; of data that are no pictures, one value a datum."""
    if need.image_shape is not None:
        return data.constants(count, need.image_shape, seed).images
    return data.constants(count, (*need.shape, 1), seed).images[..., 0]


BUILT_IN: dict[str, tuple[str, Callable[[Need, int, int], np.ndarray]]] = {
    "digits": ("1,797 digits of 8 x 8 pixels", lambda need, count, seed: data.digits().images),
    "mnist5k": ("5,000 MNIST digits", lambda need, count, seed: data.mnist5k().images),
    "faces": (
        "100 faces, 25 x 25",
        lambda need, count, seed: data.faces().images[data.faces().labels == 1],
    ),
    "letters": ("letters drawn from fonts", _generated(_letters)),
    "patches": (
        "pieces of photographs",
        _generated(lambda shape, count, seed: data.patches(
            shape[0], count, seed, channels=shape[2])),
    ),
    "noise": (
        "independent uniform values",
        _generated(lambda shape, count, seed: data.noise(count, shape, seed)),
    ),
    "constants": (
        "pictures of one value",
        lambda need, count, seed: _constants(need, count, seed),
    ),
}  # fmt: skip
SQUARE = ("letters", "patches")
RANGED = {"noise": "independent uniform numbers", "constants": "one uniform number a datum"}


def _read(word: str, need: Need, count: int, seed: int) -> Loaded:
    if word.startswith("inverted:"):
        if word == "inverted:":
            raise DataError(
                "got the data 'inverted:', expected 'inverted:WORD'; name what to invert, as in "
                "inverted:letters."
            )
        inner = _as_unit(_read(word.removeprefix("inverted:"), need, count, seed))
        return Loaded(data.inverted(inner.values), f"inverted {inner.name}", inner.done)
    if word in BUILT_IN and not is_there(Path(word)):
        shape = need.image_shape
        if word in SQUARE and (shape is None or shape[0] != shape[1]):
            raise ShapeError(
                f"{word}: got a model of data of shape {need.shape}, expected square pictures, "
                "since these are drawn to size; give other data."
            )
        return Loaded(BUILT_IN[word][1](need, count, seed), word)
    return Loaded(_from_path(word, need), Path(word).stem.replace("_", " ") or word)


def _from_path(word: str, need: Need) -> np.ndarray:
    path = Path(word)
    if not word or not is_there(path):
        words = [*BUILT_IN, "inverted:WORD"]
        raise DataError(
            f"got the data {word!r}, expected a file, a folder of pictures, or one of "
            f"{', '.join(words)}; paths are read from {Path.cwd()}"
            f"{did_you_mean(word, words) or '; give one that is there'}".removesuffix("?")
            + "."
        )
    if path.is_dir():
        return load_image_folder(path, labels_from_folders=False).images
    if path.suffix == ".npz":
        names = npz_names(path)
        if len(names) > 1 and need.site not in names:
            raise DataError(
                f"{path}: got the arrays {names}, expected one alone, or one called {need.site!r} "
                f"as the model's site; save it so: numpy.savez(path, {need.site}=array)."
            )
        return data.load_npz(path, need.site if need.site in names else None)
    if path.suffix == ".npy":
        return load_npy(path)
    with path.open("rb") as stream:
        start = stream.read(2)
    if start not in (b"\0\0", b"\x1f\x8b"):  # what IDX begins with, and what gzip does
        raise DataError(
            f"{path}: got a file of no kind that is read here, expected .npz, .npy, or IDX as "
            "MNIST's; a table of text is saved as one with numpy.save('data.npy', "
            "numpy.loadtxt(path, delimiter=','))."
        )
    return data.read_idx(path)


def _sample(loaded: Loaded, count: int, seed: int) -> Loaded:
    values = np.asarray(loaded.values)
    if values.ndim == 0 or len(values) < 2 or values.dtype.kind not in "buif":
        raise DataError(
            f"{loaded.name}: got {values.dtype} {list(values.shape)}, expected numbers, two data "
            "or more along the first axis."
        )
    if len(values) <= count:
        said = f"all {len(values):,}" if len(values) < count else ""
        return loaded.then(values, said) if said else Loaded(values, loaded.name, loaded.done)
    chosen = np.random.default_rng(seed).choice(len(values), count, replace=False)
    return loaded.then(values[chosen], f"{count:,} of {len(values):,}, drawn by the seed")


# ---- fitting -------------------------------------------------------------------------------------


def fitted_to(loaded: Loaded, need: Need) -> Loaded:
    """The set in the shape and on the values of the model's site.

    Raises:
        DataError: values that are not what the site takes, and no picture's either.
        ShapeError: another shape, that is no picture's.
    """
    if not np.isfinite(np.asarray(loaded.values, np.float64)).all():
        raise DataError(
            f"{loaded.name}: got NaN or infinite values, expected numbers; look at those data."
        )
    return _valued(_shaped(loaded, need), need)


def _shaped(loaded: Loaded, need: Need) -> Loaded:
    values, shape = loaded.values, need.shape
    own = tuple(values.shape[1:])
    if own == shape:
        return loaded
    picture = need.image_shape
    if picture is not None and own in (picture, picture[:2]):
        return loaded.then(values.reshape(len(values), *shape), f"reshaped to {_by(shape)}")
    if math.prod(own) == math.prod(shape) and (len(own) == 1 or len(shape) == 1):
        return loaded.then(values.reshape(len(values), *shape), f"reshaped to {_by(shape)}")
    channels = own[2] if len(own) == 3 else 1 if len(own) == 2 else 0
    if picture is None or channels != picture[2]:
        raise ShapeError(
            f"{loaded.name}: got data of shape {own}, expected {shape} as the model was fitted to; "
            "bring them into that shape."
        )
    unit = _as_unit(loaded)
    resized = _resized(unit.values.reshape(len(values), *own[:2], channels), picture)
    said = f"resized from {_by(own[:2])} to {_by(picture[:2])} pixels, which itself leaves traces"
    return unit.then(resized.reshape(len(values), *shape), said)


def _resized(pictures: np.ndarray, shape: Shape) -> np.ndarray:
    """[n, h, w, c] in [0, 1] at another size, bilinear with smoothing where it shrinks."""
    from PIL import Image

    def one(channel: np.ndarray) -> np.ndarray:
        size = (shape[1], shape[0])
        picture = Image.fromarray(channel.astype(np.float32))
        return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))

    out = np.empty((len(pictures), *shape), np.float32)
    for i, picture in enumerate(pictures):
        for c in range(shape[2]):
            out[i, :, :, c] = one(picture[:, :, c])
    return np.clip(out, 0.0, 1.0)


def _by(shape: Shape) -> str:
    return " × ".join(map(str, shape))


def _valued(loaded: Loaded, need: Need) -> Loaded:
    values = loaded.values
    if not need.is_discrete:
        if values.dtype.kind == "u":
            loaded = _as_unit(loaded)
        return Loaded(loaded.values.astype(np.float32), loaded.name, loaded.done)
    if need.levels == 2 and not need.are_indices:
        if np.isin(values, (0, 1)).all():
            return Loaded(values.astype(np.float32), loaded.name, loaded.done)
        unit = _as_unit(loaded)
        return unit.then(data.binarize(unit.values), "made black and white at 0.5")
    if need.levels is None:  # counts, and the like: the model's own check speaks
        return loaded
    if need.are_indices and values.dtype.kind in "iu" and values.max() < need.levels:
        return Loaded(values.astype(np.int32), loaded.name, loaded.done)
    unit = _as_unit(loaded)
    on = data.to_levels(unit.values, need.levels)
    said = f"put on {need.levels} levels"
    if need.are_indices:
        return unit.then(on.astype(np.int32), said)
    exact = data.from_levels(on, need.levels)
    return Loaded(exact, unit.name, unit.done) if np.allclose(
        exact, unit.values, atol=1e-6) else unit.then(exact, said)  # fmt: skip


def _as_unit(loaded: Loaded) -> Loaded:
    """Values in [0, 1]: bytes divided by 255.

    Raises:
        DataError: numbers that are neither.
    """
    values = loaded.values
    if values.dtype == np.uint8:
        return loaded.then((values / np.float32(255)).astype(np.float32), "divided by 255")
    low, high = float(values.min()), float(values.max())
    if not 0.0 <= low <= high <= 1.0:
        raise DataError(
            f"{loaded.name}: got {values.dtype} values from {low:g} to {high:g}, expected [0, 1], "
            "or unsigned bytes 0 ... 255; scale them."
        )
    return Loaded(values.astype(np.float32), loaded.name, loaded.done)


def as_pictures(values: np.ndarray, need: Need) -> np.ndarray | None:
    """Data in the model's form as pictures [n, h, w, 1 or 3] in [0, 1]; None if they are none."""
    shape = need.image_shape
    if shape is None:
        return None
    scale = (need.levels or 2) - 1 if need.are_indices else 1
    pictures = np.asarray(values, np.float32).reshape(len(values), *shape) / scale
    low, high = float(pictures.min()), float(pictures.max())
    return pictures if low >= 0 and high <= 1 else None
