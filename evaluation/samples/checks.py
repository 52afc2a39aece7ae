"""What is refused at the door of every judge of samples, and how data are read into a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from probgen.errors import AlgorithmError, DataError, MissingSeed, ShapeError


def as_rows(x: Any, where: str) -> np.ndarray:
    """[n, *event] numpy array of an array, a list, or an `Images`.

    Raises:
        DataError: no numbers, NaN or infinity.
        ShapeError: no data axis.
    """
    array = np.asarray(getattr(x, "images", x))
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{where}: got {type(x).__name__} of type {array.dtype}, expected an array of real "
            "numbers, one datum a row."
        )
    if array.ndim == 0:
        raise ShapeError(
            f"{where}: got a single number, expected data [n, *event]; pass x[None] for one datum."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
        raise DataError(
            f"{where}: got NaN or infinity in {len(bad)} of {len(array)} data, first in datum "
            f"{bad[0]}, expected finite numbers; find out why the generator gives them."
        )
    return array


def as_matrix(x: Any, where: str, *, least: int = 2) -> np.ndarray:
    """[n, d] float64, events flattened; a vector is n data of one number.

    Raises:
        DataError: fewer than `least` data, no features, not numbers, not finite.
    """
    array = as_rows(x, where)
    if len(array) < least:
        raise DataError(
            f"{where}: got {len(array)} data, expected at least {least}; draw more samples."
        )
    matrix = np.ascontiguousarray(array.reshape(len(array), -1), np.float64)
    if matrix.shape[1] == 0:
        raise DataError(f"{where}: got data of shape {array.shape}, expected at least one feature.")
    return matrix


def as_pair(real: Any, fake: Any, where: str, *, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Both sets as [n, d] and [m, d].

    Raises:
        ShapeError: their data have different shapes.
        DataError: as `as_matrix`.
    """
    shapes = [np.shape(getattr(x, "images", x))[1:] for x in (real, fake)]
    if shapes[0] != shapes[1]:
        raise ShapeError(
            f"{where}: got real data of shape [n, *{shapes[0]}] and fake of [m, *{shapes[1]}], "
            "expected one shape; compare sets of the same kind, resized and scaled alike."
        )
    return as_matrix(real, f"{where} (real)", least=least), as_matrix(
        fake, f"{where} (fake)", least=least
    )


def check_seed(seed: Any, where: str) -> int:
    """The seed as an integer.

    Raises:
        MissingSeed: None or no integer.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise MissingSeed(f"{where}: got seed={seed!r}, expected an integer such as seed=0.")
    return int(seed)


def check_count(value: Any, name: str, where: str, *, least: int = 1) -> int:
    """A whole number of at least `least`.

    Raises:
        AlgorithmError: something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise AlgorithmError(
            f"{where}: got {name}={value!r}, expected a whole number of at least {least}."
        )
    return int(value)
