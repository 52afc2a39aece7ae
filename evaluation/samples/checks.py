"""What is refused at the door of every judge of samples, and how data are read into a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.errors import DataError, ShapeError


def refuse_dict(x: Any, where: str) -> None:
    """Refuses data by name, such as what `pg.generate` returns, where one array is compared.

    Raises:
        DataError: says how to take one of them.
    """
    if isinstance(x, Mapping):
        names = [str(name) for name in x]
        one = "x" if "x" in names or not names else names[0]
        raise DataError(
            f"{where}: got {type(x).__name__} with {names}, expected one array of data; say "
            f'samples["{one}"].'
        )


def as_rows(x: Any, where: str) -> np.ndarray:
    """[n, *event] numpy array of an array, a list, or an `Images`.

    Raises:
        DataError: a dict, no numbers, NaN or infinity.
        ShapeError: no data axis.
    """
    refuse_dict(x, where)
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
    refuse_dict(real, f"{where} (real)")
    refuse_dict(fake, f"{where} (fake)")
    shapes = [np.shape(getattr(x, "images", x))[1:] for x in (real, fake)]
    if shapes[0] != shapes[1]:
        raise ShapeError(
            f"{where}: got real data of shape [n, *{shapes[0]}] and fake of [m, *{shapes[1]}], "
            "expected one shape; compare sets of the same kind, resized and scaled alike."
        )
    return as_matrix(real, f"{where} (real)", least=least), as_matrix(
        fake, f"{where} (fake)", least=least
    )
