"""Scores at the door: two sets of numbers, one of data like the training data, one of other data.

Everywhere in this package a larger score means a stranger datum, and "ood" is the positive class
unless `positive="in"` is said; a measure that runs the other way (a likelihood) is turned round
here, once, by `larger_is_stranger=False`. Only the order of scores is ever used, so infinite scores
are welcome. A NaN has no place in an order and is refused; nothing is dropped or replaced.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from probgen.errors import AlgorithmError, DataError, ShapeError
from probgen.language.declared import checked
from probgen.language.kinds import Count

PositiveClass = Literal["ood", "in"]
Distinct = tuple[Count, Count] | None  # how many in and out data differ; None for all of them


class Scores(NamedTuple):
    """Two checked sets of scores, already turned so that larger means stranger."""

    inside: np.ndarray  # [n] scores of in-distribution data
    outside: np.ndarray  # [m] scores of out-of-distribution data
    sign: float  # +1, or -1 where the caller's own scores ran the other way
    name: str  # how error messages call them
    distinct: tuple[int, int] | None = None  # in and out data that differ; None for all of them

    @property
    def sizes(self) -> tuple[int, int]:
        """How many in and out data count as independent."""
        return self.distinct or (len(self.inside), len(self.outside))

    def groups(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tie groups, the strangest first: codes of `inside` [n], of `outside` [m], values [u]."""
        values, codes = np.unique(np.concatenate([self.inside, self.outside]), return_inverse=True)
        codes = len(values) - 1 - codes
        return codes[: len(self.inside)], codes[len(self.inside) :], values[::-1]


@checked
def as_scores(
    in_scores: Any,
    out_scores: Any,
    *,
    larger_is_stranger: bool = True,
    name: str = "scores",
    distinct: Distinct = None,
) -> Scores:
    """Two one-dimensional sets of scores, checked, in float64, larger = stranger.

    Args:
        in_scores: [n] scores of in-distribution data, n >= 2; infinities are allowed.
        out_scores: [m] scores of out-of-distribution data, m >= 2; m need not equal n.
        larger_is_stranger: False turns both sets round, for likelihoods and other measures that
            are larger on familiar data.
        name: what an error message calls them.
        distinct: how many of the n and of the m data differ from each other, where some are copies;
            intervals and tests then count these.

    Raises:
        ShapeError: a set that is not one-dimensional.
        DataError: a set of size 0 or 1, a NaN, or values that are not real numbers.
        DeclarationError: `larger_is_stranger` that is no bool, `distinct` that are no counts.
        AlgorithmError: `distinct` outside 1 ... n, 1 ... m.
    """
    sign = 1.0 if larger_is_stranger else -1.0
    inside = score_array(in_scores, f"{name} of the in-distribution data")
    outside = score_array(out_scores, f"{name} of the out-of-distribution data")
    if distinct is not None:
        check_distinct(distinct, (len(inside), len(outside)))
    return Scores(sign * inside, sign * outside, sign, name, distinct)


def score_array(values: Any, name: str, *, batched: bool = False) -> np.ndarray:
    """Scores as float64: [size], or [*batch, size] where `batched`; at least two, no NaN."""
    try:
        raw = np.asarray(values)
        if raw.dtype.kind not in "buif":
            raise TypeError(f"dtype {raw.dtype}")
        array = raw.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as cause:
        raise DataError(
            f"{name}: got {type(values).__name__} that is no array of real numbers ({cause}), "
            "expected one score per datum; convert them with numpy.asarray(scores, float)."
        ) from cause
    if array.ndim == 0 or (array.ndim > 1 and not batched):
        expected = "[*batch, size]" if batched else "[size], one score per datum"
        raise ShapeError(
            f"{name}: got shape {array.shape}, expected {expected}; reduce each datum to one score "
            "first, or pick one row."
        )
    if array.shape[-1] < 2:
        of_them = f"{array.shape[-1]} of them"
        if array.ndim > 1:
            of_them += f" on the last axis of shape {array.shape}"
        raise DataError(
            f"{name}: got {of_them}, expected at least 2, since one datum says nothing about the "
            "spread; score more data"
            + (", or put the data on the last axis." if array.ndim > 1 else ".")
        )
    is_nan = np.isnan(array)
    if is_nan.any():
        where = [tuple(map(int, each)) for each in np.argwhere(is_nan)[:5]]
        places = ", ".join(str(each[0] if len(each) == 1 else each) for each in where)
        more = ", ..." if is_nan.sum() > len(where) else ""
        raise DataError(
            f"{name}: got NaN in {is_nan.sum()} of {array.size} places (index {places}{more}), "
            "expected a number for every datum; look at those data, and leave them out of every "
            "measure alike if they cannot be scored."
        )
    return array


def demand_spread(inside: np.ndarray, outside: np.ndarray, name: str) -> None:
    """Refuses scores that are all one number, which have an AUROC of 1/2 but no sampling error.

    Raises:
        DataError: some row of inside [*batch, n] and outside [*batch, m] holds one value alone.
    """
    first = inside[..., :1]
    is_constant = (inside == first).all(-1) & (outside == first).all(-1)
    if is_constant.any():
        value = float(first[..., 0][is_constant].flat[0])
        raise DataError(
            f"{name}: got {value:g} for every datum, in and out of distribution, expected scores "
            "that differ, since no interval or test can be had from a constant; check the measure "
            "(`auroc` alone gives its 1/2)."
        )


def demand_pairs(first: tuple[int, int], second: tuple[int, int], names: tuple[str, str]) -> None:
    """Refuses a paired comparison of sets (num_in, num_out) of different length.

    Raises:
        ShapeError: the sets cannot be the same data.
    """
    if first != second:
        raise ShapeError(
            f"{names[0]} and {names[1]}: got {first[0]} and {second[0]} scores in distribution, "
            f"{first[1]} and {second[1]} out of it, expected the same data in the same order for "
            "both, since the comparison is paired; score both measures on all of them."
        )


def check_distinct(value: tuple[int, int], sizes: tuple[int, int]) -> None:
    """Refuses numbers (in, out) of distinct data that sets of these sizes cannot have."""
    if not (1 <= value[0] <= sizes[0] and 1 <= value[1] <= sizes[1]):
        raise AlgorithmError(
            f"distinct: got {value!r}, expected (in, out), from 1 to {sizes[0]} and to {sizes[1]}; "
            "count the data that differ from each other."
        )


@checked
def count_distinct(values: np.ndarray) -> int:
    """How many of the data [n, ...] differ from each other, in any number."""
    rows = np.ascontiguousarray(values).reshape(len(values), -1)
    return len({(row + 0).tobytes() for row in rows})  # + 0: minus zero is zero


def one_way_slack(level: float, sizes: tuple[int, int]) -> float:
    """1 - (1 - level)^(1/k): what k = min(sizes) pairs that all went one way leave open."""
    return 1 - (1 - level) ** (1 / min(sizes))
