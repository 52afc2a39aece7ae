"""Bits per dimension from nats, with nothing guessed.

    bits/dim = -(nats / D + log w) / ln 2,      w = (high - low) / levels the width of one level

A density p(x) of data scaled onto [low, high] and dequantised, x = low + w (level + u), bounds the
mass of the levels: log P(levels) >= E_u[log p(x)] + D log w. On 256 levels that adds log2(1 / w) =
8 bits for data on [0, 1], and 7 on [-1, 1]. A mass needs no such term; a density of data that never
had levels cannot have one, and is no number to compare with the others.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from probgen.errors import DataError, DeclarationError, ShapeError

DEQUANTISATIONS = ("uniform", "variational", "none", "continuous")
_NOTES = {
    "uniform": "mass of {levels} levels, upper bound (uniform dequantisation on "
    "[{low:g}, {high:g}])",
    "variational": "mass of {levels} levels, upper bound (variational dequantisation on "
    "[{low:g}, {high:g}])",
    "none": "mass of {levels} levels",
    "continuous": "density on [{low:g}, {high:g}], not comparable with a mass",
}


@dataclasses.dataclass(frozen=True, eq=False)
class BitsPerDim:
    """Bits per dimension; smaller is likelier.

    Attributes:
        value: the shape of the nats given.
        standard_error: of the same shape, or None.
        kind: "mass" (of discrete levels) or "density"; never compare one with the other.
        offset: bits that the scale of the data added.
        note: kind, levels, range and dequantisation in words.
    """

    value: np.ndarray
    standard_error: np.ndarray | None
    kind: str
    offset: float
    note: str

    unit = "bits/dim"

    def __repr__(self) -> str:
        mean = float(self.value.mean())
        many = f" (mean of {self.value.size})" if self.value.size > 1 else ""
        return f"{mean:.4f} bits/dim{many}: {self.note}"


def bits_per_dim(
    nats: Any,
    dims: int,
    *,
    levels: int | None = None,
    data_range: tuple[float, float] | None = None,
    dequantisation: str | None = None,
    standard_error: Any = None,
) -> BitsPerDim:
    """Converts log-likelihoods to bits per dimension.

    Args:
        nats: log p(x) of a datum each, any shape, constants included.
        dims: D, values of one datum (channels counted).
        levels: number of values that a dimension takes: 256 for bytes; None for data without
            levels.
        data_range: (low, high) onto which level l with noise u in [0, 1) was scaled: x = low +
            (high - low) (l + u) / levels. For a mass it may be None, since no scale enters.
        dequantisation: "uniform": noise u uniform on one level was added, and `nats` is log p(x);
            "variational": u ~ q(u | levels) on [0, 1)^D and `nats` is log p(x) - log q(u | levels);
            "none": `nats` is already the log mass of the levels (Bernoulli, Categorical,
            DiscretizedLogistic); "continuous": the data never had levels, `nats` is a density.
        standard_error: of `nats`, nats, broadcastable.

    Raises:
        DeclarationError: an argument that must be told is missing, or two contradict.
        DataError: a NaN, no datum, no numbers. ShapeError: errors that do not fit the estimates.

    Source: Theis, van den Oord & Bethge 2016, arXiv:1511.01844, section 3.1; Ho et al. 2019,
    arXiv:1902.00275 (variational dequantisation).
    """
    if dequantisation not in DEQUANTISATIONS:
        raise DeclarationError(
            f"bits_per_dim: got dequantisation={dequantisation!r}, expected one of "
            f"{DEQUANTISATIONS}: a density and a mass differ by the width of a level, which is not "
            "guessed; say how the data were made continuous."
        )
    if not isinstance(dims, int | np.integer) or isinstance(dims, bool) or dims < 1:
        raise DeclarationError(
            f"bits_per_dim: got dims={dims!r}, expected the number of values of one datum, such as "
            "784 for an image of 28 x 28."
        )
    width = _width(levels, data_range, dequantisation)
    try:
        values = np.asarray(nats, np.float64)
    except (TypeError, ValueError) as problem:
        raise DataError(
            f"bits_per_dim: got nats of type {type(nats).__name__}, expected numbers; of a table "
            'give table["IWAE(1000)"]["estimate"].'
        ) from problem
    if not values.size:
        raise DataError("bits_per_dim: got no datum, expected at least one log-likelihood.")
    if np.isnan(values).any():
        raise DataError(
            f"bits_per_dim: got {int(np.isnan(values).sum())} NaN, expected log-likelihoods."
        )
    offset = 0.0 - math.log2(width)
    error = None
    if standard_error is not None:
        try:
            error = np.broadcast_to(np.asarray(standard_error, np.float64), values.shape)
        except ValueError as problem:
            raise ShapeError(
                f"bits_per_dim: got standard errors of shape {np.shape(standard_error)} for "
                f"estimates of shape {values.shape}, expected one for each."
            ) from problem
        error = error / (dims * math.log(2.0))
    low, high = data_range if data_range is not None else (math.nan, math.nan)
    return BitsPerDim(
        -values / (dims * math.log(2.0)) + offset,
        error,
        "density" if dequantisation == "continuous" else "mass",
        offset,
        _NOTES[dequantisation].format(levels=levels, low=low, high=high),
    )


def _width(levels: Any, data_range: Any, dequantisation: str) -> float:
    """Width of one level on the scale of the density; 1 where there is none to take off."""
    if dequantisation == "continuous":
        if levels is not None:
            raise DeclarationError(
                f"bits_per_dim: got levels={levels!r} for data that never had levels, expected "
                "levels=None; for dequantised data say 'uniform' or 'variational'."
            )
    elif not isinstance(levels, int | np.integer) or isinstance(levels, bool) or levels < 2:
        raise DeclarationError(
            f"bits_per_dim: got levels={levels!r}, expected the number of values that a dimension "
            "takes, such as levels=256 for bytes or 2 for binary data."
        )
    if data_range is None and dequantisation == "none":
        return 1.0
    try:
        low, high = (float(v) for v in data_range)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and high > low):
        raise DeclarationError(
            f"bits_per_dim: got data_range={data_range!r}, expected (low, high) onto which the "
            "data were scaled, such as (0, 1) or (-1, 1): the density depends on it."
        )
    return (high - low) / levels if dequantisation in ("uniform", "variational") else 1.0
