"""What is done to a set before a model sees it: binarise, quantise, dequantise, split, and the
strange sets that OOD detectors are tried on.

Each function takes an `Images` or a bare array and gives the same kind back, changes nothing in
place, and takes its randomness from `seed`. Grey levels: an image of L levels stores k / (L - 1)
for k = 0 ... L - 1; a dequantised one lies in [k / L, (k + 1) / L).
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np

from probgen.data.images import Images
from probgen.errors import DataError
from probgen.language.declared import argument
from probgen.language.kinds import Count
from probgen.language.memory import ask

Data = TypeVar("Data", Images, np.ndarray)


def binarize(images: Data, *, threshold: float | None = None, seed: int | None = None) -> Data:
    """Black and white, float32 in {0, 1}: pixel > threshold, or with `seed` pixel ~ Bernoulli(x).

    Args:
        images: values in [0, 1].
        threshold: 0.5 when neither argument is given.
        seed: asks for stochastic binarisation.

    Raises:
        DataError: values outside [0, 1], or both arguments given.

    Source: stochastic binarisation, Salakhutdinov & Murray 2008.
    """
    if threshold is not None and seed is not None:
        raise DataError(
            f"binarize: got threshold={threshold} and seed={seed}, expected one of them: a "
            f"threshold is deterministic, a seed asks for Bernoulli draws; leave one out."
        )

    def apply(x: np.ndarray) -> np.ndarray:
        _check_unit(x, "binarize")
        if seed is None:
            cut: float | np.ndarray = 0.5 if threshold is None else threshold
        else:
            cut = np.random.default_rng(seed).random(x.shape)
        return (x > cut).astype(np.float32)

    return _mapped(images, apply)


def to_levels(images: Data, levels: int = 256) -> Data:
    """Integers k = round(x (levels - 1)); exact on images that were stored as k / (levels - 1).

    Returns:
        uint8 for up to 256 levels, else int64.

    Raises:
        DataError: fewer than two levels, or values outside [0, 1].
    """
    _check_levels(levels, "to_levels")

    def apply(x: np.ndarray) -> np.ndarray:
        _check_unit(x, "to_levels")
        k = np.rint(np.asarray(x, np.float64) * (levels - 1))
        return k.astype(np.uint8 if levels <= 256 else np.int64)

    return _mapped(images, apply)


def from_levels(images: Data, levels: int = 256) -> Data:
    """k / (levels - 1) as float32 in [0, 1]: the inverse of `to_levels`.

    Raises:
        DataError: values that are not integers 0 ... levels - 1.
    """

    def apply(k: np.ndarray) -> np.ndarray:
        _check_integers(k, levels, "from_levels")
        return (np.asarray(k, np.float64) / (levels - 1)).astype(np.float32)

    return _mapped(images, apply)


def dequantize(images: Data, seed: int, *, levels: int = 256) -> Data:
    """(k + u) / levels with u ~ Uniform[0, 1): a density on it bounds the probability of k.

    log P(k) >= E_u[log p(x)] - D log levels for D pixels. floor(x levels) gives k back.

    Args:
        images: integers 0 ... levels - 1, as `to_levels` makes; not values in [0, 1].
        seed: the same seed gives the same u.
        levels: number of grey levels.

    Returns:
        float32 in [0, 1).

    Raises:
        DataError: values that are not integers 0 ... levels - 1.

    Source: Theis, van den Oord & Bethge 2016, arXiv:1511.01844, section 3.1.
    """

    def apply(k: np.ndarray) -> np.ndarray:
        _check_integers(k, levels, "dequantize")
        low = np.asarray(k, np.float64)
        x = ((low + np.random.default_rng(seed).random(low.shape)) / levels).astype(np.float32)
        # Rounding to float32 may step out of the cell, and then floor would give a neighbour.
        x = np.where(x >= (low + 1) / levels, np.nextafter(x, np.float32(0)), x)
        return np.where(x < low / levels, np.nextafter(x, np.float32(1)), x)

    return _mapped(images, apply)


def inverted(images: Data) -> Data:
    """1 - x: ink and paper change places; the simplest set that a density model should refuse."""

    def apply(x: np.ndarray) -> np.ndarray:
        _check_unit(x, "inverted")
        return (1 - np.asarray(x, np.float32)).astype(np.float32)

    result = _mapped(images, apply)
    return replace(result, name=f"inverted {result.name}") if isinstance(result, Images) else result


def noise(count: int, shape: tuple[int, ...], seed: int) -> Images:
    """Independent Uniform[0, 1) pixels, [count, *shape]."""
    _check_count(count, shape, "noise")
    pixels = np.random.default_rng(seed).random((count, *shape), dtype=np.float32)
    return Images(pixels, None, "noise")


def constants(count: int, shape: tuple[int, ...], seed: int) -> Images:
    """Images of one Uniform[0, 1) value per channel (the last axis), [count, *shape]."""
    _check_count(count, shape, "constants")
    rng = np.random.default_rng(seed)
    value = rng.random((count, *[1] * (len(shape) - 1), shape[-1]), dtype=np.float32)
    return Images(np.broadcast_to(value, (count, *shape)).copy(), None, "constants")


def _mapped(images: Data, apply: Callable[[np.ndarray], np.ndarray]) -> Data:
    if isinstance(images, Images):
        return replace(images, images=apply(images.images))
    return apply(np.asarray(images))


def _check_unit(x: np.ndarray, where: str) -> None:
    # Written so that NaN fails it too.
    if x.size and not (x.min() >= 0 and x.max() <= 1):
        raise DataError(
            f"{where}: got values from {x.min()} to {x.max()} ({x.dtype}), expected [0, 1]; for "
            f"integers 0 ... 255 call from_levels first."
        )


def _check_levels(levels: int, where: str) -> None:
    if levels < 2:
        raise DataError(f"{where}: got levels={levels}, expected at least 2 grey levels.")


def _check_integers(k: np.ndarray, levels: int, where: str) -> None:
    _check_levels(levels, where)
    if k.size and not (k.min() >= 0 and k.max() <= levels - 1 and np.array_equal(k, np.rint(k))):
        raise DataError(
            f"{where}: got values from {k.min()} to {k.max()} ({k.dtype}), expected the integers "
            f"0 ... {levels - 1}; call to_levels(images, {levels}) first, or correct levels=."
        )
    if k.size and k.dtype.kind == "f" and levels > 2 and 0 < k.max() <= 1:
        raise DataError(
            f"{where}: got floating values that are all 0 or 1, expected the integers "
            f"0 ... {levels - 1}; images in [0, 1] go through to_levels(images, {levels}) first."
        )


def _check_count(count: int, shape: tuple[int, ...], where: str) -> None:
    count = argument(where, Count, count=count)
    if not shape or min(shape) < 1:
        raise DataError(
            f"{where}: got count={count} and shape={shape}, expected a positive count and the "
            f"shape of one image, such as (28, 28, 1)."
        )
    ask(where, 4 * count * math.prod(shape), "ask for fewer or smaller images", DataError)
