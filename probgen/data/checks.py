"""What every array passes before a model sees it, whichever way the data came.

Floating arrays become float32 (float64 included, without a word); integers and booleans keep their
type, since they are counts, classes or masks. Refused: objects, text, complex numbers, masked
entries, NaN and infinity, no datum axis, no data. Tensors of any framework are recognised by what
they can do (`detach`, `cpu`, `numpy`, `__array__`), so no framework is imported here.
"""

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.errors import DataError, ShapeError
from probgen.language.masked import refuse_masked

_CHUNK = 1 << 24  # values looked at together, so that checking memory-mapped data stays flat


def clean_array(
    value: Any, name: str, *, dtype: Any = np.float32, may_be_scalar: bool = False
) -> np.ndarray:
    """`value` as a checked numpy array [n, ...].

    Args:
        value: an array or tensor of any framework, or nested lists of numbers.
        name: how messages call it, such as 'data["x"]'.
        dtype: the type that floating arrays get.
        may_be_scalar: one number, without an axis, will do.

    Raises:
        DataError: see the head of this file.
    """
    raw = _to_numpy(value, name)
    if raw.dtype.kind not in "biuf" and raw.dtype.name != "bfloat16":
        raise DataError(
            f"{name}: got an array of dtype {raw.dtype}, expected numbers; text, dates, "
            f"objects and rows of unequal length must become numbers, or be left out by names=."
        )
    if (raw.ndim == 0 and not may_be_scalar) or raw.size == 0:
        raise DataError(
            f"{name}: got an array of shape {raw.shape}, expected [n, ...] with at least one datum "
            f"on axis 0; the data are empty or have no datum axis."
        )
    if raw.dtype.kind in "biu":
        return raw
    with np.errstate(over="ignore"):
        array = raw.astype(dtype, copy=False)
    _check_finite(np.atleast_1d(array), raw.dtype, name)
    return array


def clean_dict(values: Mapping[str, Any], where: str, *, dtype: Any = np.float32) -> dict[str, Any]:
    """Each array checked by `clean_array`, and all of one length on axis 0.

    Raises:
        DataError: no arrays, names that are not text, unequal lengths, or as `clean_array`.
    """
    if not values or not all(isinstance(name, str) for name in values):
        raise DataError(
            f"{where}: got a dict with the keys {list(values)}, expected at least one array under "
            f"the name of the site or input that it feeds."
        )
    arrays = {
        name: clean_array(value, f"{where}[{name!r}]", dtype=dtype)
        for name, value in values.items()
    }
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"{where}: got arrays of lengths {lengths}, expected one length: row i of each belongs "
            f"to datum i; cut or align them."
        )
    return arrays


def pick(item: Any, names: tuple[str, ...] | None, where: str) -> dict[str, Any]:
    """The named parts of one item or batch: a dict by key, a tuple by place, an array as "x".

    Raises:
        DataError: a name that the item lacks, or more names than a tuple has entries.
    """
    if isinstance(item, Mapping):
        absent = [name for name in names or () if name not in item]
        if absent:
            raise DataError(
                f"{where}: has {list(item)}, expected {absent} too; correct names=, or rename."
            )
        return {name: item[name] for name in names or item}
    wanted = names or ("x",)
    entries = tuple(item) if isinstance(item, tuple | list) and not _is_numbers(item) else (item,)
    if len(wanted) > len(entries):
        raise DataError(
            f"{where}: has {len(entries)} entries, expected {len(wanted)} for "
            f"names={wanted}; leave out names, or yield a tuple or dict with all of them."
        )
    return dict(zip(wanted, entries, strict=False))


def stack_data(
    items: list[Any], names: tuple[str, ...] | None, labels: list[int], dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    """Single data, picked by name and stacked on a new axis 0.

    Args:
        items: the data, each an array, a tuple or a dict.
        names: as in `pick`.
        labels: what each datum is called in a message.
        dtype: the type that floating arrays get.

    Raises:
        DataError: parts that differ in name or shape, or as `clean_array`.
    """
    parts = [
        pick(item, names, f"datum {number}") for item, number in zip(items, labels, strict=True)
    ]
    stacked = {}
    for name in parts[0]:
        column = []
        for part, number in zip(parts, labels, strict=True):
            if part.keys() != parts[0].keys():
                raise DataError(
                    f"datum {number}: has {list(part)}, expected {list(parts[0])} as datum "
                    f"{labels[0]} has; make all data alike."
                )
            column.append(_to_numpy(part[name], f"datum {number}, {name!r}"))
            if column[-1].shape != column[0].shape:
                raise DataError(
                    f"datum {number}, {name!r}: got shape {column[-1].shape}, expected "
                    f"{column[0].shape} as datum {labels[0]} has; resize or pad the data."
                )
        rows = f"data[{name!r}] (its rows are the data {listed(labels)})"
        stacked[name] = clean_array(np.stack(column), rows, dtype=dtype)
    return stacked


def _is_numbers(item: Any) -> bool:
    """Whether a list, however nested, holds plain numbers: one array, not several entries."""
    return isinstance(item, numbers.Number) or (
        isinstance(item, list) and all(_is_numbers(entry) for entry in item)
    )


def listed(labels: list[int]) -> str:
    """The first few of many numbers, for a message."""
    return ", ".join(map(str, labels[:8])) + (", ..." if len(labels) > 8 else "")


def is_array(value: Any) -> bool:
    """Whether `value` is an array or tensor of some framework."""
    return isinstance(value, np.ndarray) or (
        hasattr(value, "shape") and (hasattr(value, "__array__") or hasattr(value, "detach"))
    )


def on_device(backend: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by name as the backend's own.

    Raises:
        DataError: integers that the device's type does not hold; says of which array.
    """
    out = {}
    for name, value in arrays.items():
        try:
            out[name] = backend.asarray(value)
        except DataError as error:
            raise DataError(f"data {name!r}: {error}") from error
    return out


def _to_numpy(value: Any, name: str) -> np.ndarray:
    refuse_masked(value, name)
    try:
        if hasattr(value, "detach") and hasattr(value, "cpu"):
            tensor = value.detach().cpu()
            # numpy has no bfloat16, and torch refuses to convert it.
            value = tensor.float().numpy() if "bfloat16" in str(tensor.dtype) else tensor.numpy()
        return np.asarray(value)
    except Exception as error:  # whatever a foreign type raises, its user should know which array
        raise DataError(
            f"{name}: got {type(value).__name__}, which numpy cannot read ({error}), expected an "
            f"array or tensor of numbers with equal rows; convert it with numpy.asarray first."
        ) from error


def _check_finite(array: np.ndarray, given: np.dtype, name: str) -> None:
    rows = max(1, _CHUNK // max(1, array[0].size))
    count, first = 0, None
    for start in range(0, len(array), rows):
        bad = ~np.isfinite(array[start : start + rows])
        count += int(np.count_nonzero(bad))
        if count and first is None:
            place = np.unravel_index(int(bad.argmax()), bad.shape)
            first = tuple(int(i) for i in (place[0] + start, *place[1:]))
    if first is not None:
        note = "" if given == array.dtype else f" after {given} became {array.dtype}"
        raise DataError(
            f"{name}: got {count} values that are NaN or infinite{note}, the first at index "
            f"{first}, expected finite numbers; remove those data or fill them in."
        )


def check_masks(masks: Any, shape: tuple[int, ...], who: str) -> None:
    """Refuses masks that tell no subject from its background.

    Args:
        masks: [N, h, w, 1 or c] of 0 and 1.
        shape: of the pictures, [N, h, w, c].
        who: for the message.

    Raises:
        ShapeError, DataError: names the mask.
    """
    mask = np.asarray(masks)
    if mask.shape not in (tuple(shape), (*shape[:-1], 1)):
        raise ShapeError(
            f"{who}: got masks of shape {list(mask.shape)} for pictures {list(shape)}, expected "
            f"{[*shape[:-1], 1]}, one for each picture at its size; resize them to it."
        )
    if not np.isin(mask, (0, 1)).all():
        raise DataError(
            f"{who}: got a mask with other values than 0 and 1, expected 1 where the subject is; "
            "cut it, mask > 0.5."
        )
    share = mask.reshape(len(mask), -1).mean(axis=1)
    for i, s in enumerate(share):
        if s in (0.0, 1.0):
            what = "empty" if s == 0 else "full"
            raise DataError(
                f"{who}: got mask {i}, which is {what}, expected some of the picture to be the "
                "subject and some not; leave the mask out where the background shall count."
            )
