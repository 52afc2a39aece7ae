"""Cut a set into disjoint parts by a seeded shuffle, stratified by label when asked.

A part's size is settled first, to the datum; stratifying then gives each class its share of each
part by largest remainders, within one datum of the exact share.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probgen.data.images import Images
from probgen.data.shapes import Shapes
from probgen.errors import DataError


def split(
    data: Any,
    sizes: float | Sequence[float] | Sequence[int],
    *,
    seed: int,
    stratify: bool | np.ndarray = False,
) -> tuple[Any, ...]:
    """Disjoint shuffled parts of `data`, each of the type of `data`.

    Args:
        data: an `Images` or `Shapes`, an array, or a dict of arrays with one length.
        sizes: a fraction f in (0, 1) for two parts, f and the rest; or one size per part, all
            integers (their sum may stay below the whole) or all fractions (summing to at most 1).
        seed: the same seed gives the same parts.
        stratify: True keeps the share of each of the data's own labels; or labels [n].

    Returns:
        One value per part.

    Raises:
        DataError: sizes that do not fit, an empty part, or no labels to stratify by.

    Example:
        >>> train, test = split(np.arange(10), 0.8, seed=0)
        >>> len(train), len(test), len(set(train) & set(test))
        (8, 2, 0)
    """
    total = _length(data)
    counts = _counts(sizes, total)
    rng = np.random.default_rng(seed)
    if stratify is False:
        cuts = np.cumsum(counts)
        parts = np.split(rng.permutation(total), cuts)[: len(counts)]
    else:
        parts = _stratified(_labels(data, stratify, total), counts, rng)
    return tuple(_take(data, part) for part in parts)


def _stratified(
    labels: np.ndarray, counts: list[int], rng: np.random.Generator
) -> list[np.ndarray]:
    """Indices per part, each class in its share."""
    queues = [rng.permutation(np.flatnonzero(labels == value)) for value in np.unique(labels)]
    parts = []
    for count in counts:
        left = np.array([len(queue) for queue in queues])
        quota = left * (count / left.sum())
        given = np.floor(quota + 1e-9).astype(int)
        short = count - given.sum()
        given[np.argsort(given - quota, kind="stable")[:short]] += 1
        taken = [queue[:k] for queue, k in zip(queues, given, strict=True)]
        queues = [queue[k:] for queue, k in zip(queues, given, strict=True)]
        parts.append(rng.permutation(np.concatenate(taken)))
    return parts


def _counts(sizes: Any, total: int) -> list[int]:
    listed = [sizes] if np.ndim(sizes) == 0 else list(sizes)
    if listed and all(isinstance(size, int | np.integer) for size in listed):
        counts = [int(size) for size in listed]
        if np.ndim(sizes) == 0:
            counts.append(total - counts[0])
    else:
        if not listed or min(listed) <= 0 or sum(listed) > 1 + 1e-9:
            raise DataError(
                f"split: got sizes={sizes!r}, expected a fraction in (0, 1), fractions that sum to "
                f"at most 1, or whole numbers of data."
            )
        ends = [round(total * share) for share in np.cumsum(listed)]  # sums to the whole at 1
        counts = [int(end - start) for start, end in zip([0, *ends], ends, strict=False)]
        if np.ndim(sizes) == 0:
            counts.append(total - counts[0])
    if min(counts) < 1 or sum(counts) > total:
        raise DataError(
            f"split: got sizes={sizes!r} for {total} data, which makes parts of {counts}; expected "
            f"parts of at least one datum that together need no more than {total}."
        )
    return counts


def _length(data: Any) -> int:
    if isinstance(data, Mapping):
        lengths = {name: len(column) for name, column in data.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(
                f"split: got arrays of lengths {lengths}, expected one length on axis 0 for all."
            )
        return int(next(iter(lengths.values())))
    if isinstance(data, Images | Shapes) or (isinstance(data, np.ndarray) and data.ndim > 0):
        return len(data)
    raise DataError(
        f"split: got {type(data).__name__}, expected an Images, a Shapes, an array or a dict of "
        f"arrays; np.asarray(...) makes an array of a list."
    )


def _labels(data: Any, stratify: bool | np.ndarray, total: int) -> np.ndarray:
    labels: Any = getattr(data, "labels", None) if stratify is True else stratify
    if labels is None or np.shape(labels) != (total,):
        got = "no labels" if labels is None else f"labels of shape {np.shape(labels)}"
        raise DataError(
            f"split: got {got} to stratify by, expected one label per datum, [{total}]; pass "
            f"stratify=labels."
        )
    return np.asarray(labels)


def _take(data: Any, part: np.ndarray) -> Any:
    if isinstance(data, Mapping):
        return {name: np.asarray(column)[part] for name, column in data.items()}
    return data.take(part) if isinstance(data, Images | Shapes) else np.asarray(data)[part]
