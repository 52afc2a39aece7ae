"""How the fit driver reads data: one protocol over arrays, map-style data sets and streams.

A source with a `size` is read by index. Its order is a pure function of (seed, step): epoch
e = step // steps_per_epoch is a permutation drawn from the counter-based generator Philox with
key (seed, e), so a run that resumes at any step sees the batches that it would have seen. The
incomplete last batch of an epoch is dropped; the next epoch's permutation is another, so no datum
is left out for good. A source without a size is a stream: see `streams`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from probgen.data.checks import clean_array, clean_dict, is_array, listed, pick, stack_data
from probgen.data.images import Images
from probgen.data.shapes import Shapes
from probgen.data.streams import StreamSource
from probgen.errors import DataError

Batch = dict[str, np.ndarray]


@runtime_checkable
class Source(Protocol):
    """What all sources share; `size is None` marks a stream, else `indices` and `take` exist."""

    @property
    def size(self) -> int | None:
        """Number of data, or None when it is not known."""

    @property
    def batch_size(self) -> int:
        """Data per batch."""

    def example(self) -> Batch:
        """The first batch, without using it up: for shapes and for initialising."""


class _Order:
    """The order in which data are visited, shared by everything that has a size."""

    def __init__(self, size: int, batch_size: int | None, seed: int) -> None:
        count = size if batch_size is None else batch_size
        if not 1 <= count <= size:
            raise DataError(
                f"data: got batch_size={batch_size} for {size} data, expected 1 to {size}; lower "
                f"batch_size, or pass None for all the data at once."
            )
        if not 0 <= seed < 2**64:
            raise DataError(f"data: got seed={seed}, expected a whole number from 0 to 2**64 - 1.")
        self.size = size
        self.seed = int(seed)
        self._last: tuple[int, np.ndarray] | None = None
        self.set_batch_size(int(count))

    def set_batch_size(self, batch_size: int) -> None:
        """Changes the data per batch, 1 to `size`; the order of the data stays."""
        self.batch_size = batch_size
        self.steps_per_epoch = self.size // batch_size

    def permutation(self, epoch: int) -> np.ndarray:
        """[size] int64: the order of one epoch, a pure function of (seed, epoch)."""
        if self._last is not None and self._last[0] == epoch:
            return self._last[1]
        bits = np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64))
        # Sorting raw bits, since numpy promises those for ever but not Generator.permutation's.
        order = np.argsort(bits.random_raw(self.size), kind="stable").astype(np.int64)
        order.setflags(write=False)
        self._last = (epoch, order)
        return order

    def indices(self, step: int) -> np.ndarray:
        """[batch_size] int64: which data make up the batch of `step`."""
        if step < 0:
            raise DataError(f"data: got step={step}, expected 0 or more.")
        epoch, place = divmod(int(step), self.steps_per_epoch)
        start = place * self.batch_size
        return self.permutation(epoch)[start : start + self.batch_size].copy()

    def schedule(self, step: int, num_steps: int) -> np.ndarray:
        """[num_steps, batch_size] int64: the indices of a chunk of steps, for a compiled loop."""
        return np.stack([self.indices(step + k) for k in range(num_steps)])

    def take(self, indices: np.ndarray) -> Batch:
        """The data at `indices`."""
        raise NotImplementedError  # abstract: each source has its own

    def chunks(self, size: int = 1000) -> Iterator[Batch]:
        """All data in their own order, `size` at a time."""
        for first in range(0, self.size, size):
            yield self.take(np.arange(first, min(first + size, self.size)))


class ArraySource(_Order):
    """Data in memory (or memory-mapped): a dict of arrays with one length on axis 0."""

    def __init__(
        self, arrays: Mapping[str, np.ndarray], *, batch_size: int | None, seed: int
    ) -> None:
        self.arrays = dict(arrays)
        super().__init__(len(next(iter(self.arrays.values()))), batch_size, seed)

    def take(self, indices: np.ndarray) -> Batch:
        """The data at `indices` [m], each array [m, ...]."""
        return {name: array[indices] for name, array in self.arrays.items()}

    def example(self) -> Batch:
        """The batch of step 0."""
        return self.take(self.indices(0))


class LazySource(_Order):
    """A map-style data set, read item by item as batches are asked for; memory holds one batch.

    If the data set itself draws random numbers (augmentation), batches repeat only as far as those
    do: the order is ours, the items are its own.
    """

    def __init__(
        self,
        fetch: Callable[[np.ndarray], Batch],
        size: int,
        *,
        batch_size: int | None,
        seed: int,
    ) -> None:
        super().__init__(size, batch_size, seed)
        self._fetch = fetch
        self._form = {name: (a.shape[1:], a.dtype) for name, a in fetch(np.arange(1)).items()}

    def take(self, indices: np.ndarray) -> Batch:
        """The data at `indices` [m], each array [m, ...], checked against the first datum.

        Raises:
            DataError: an item cannot be used, or differs from datum 0 in shape or type.
        """
        batch = self._fetch(np.asarray(indices))
        form = {name: (array.shape[1:], array.dtype) for name, array in batch.items()}
        if form != self._form:
            raise DataError(
                f"data: the data at indices {listed(np.asarray(indices).tolist())} have the shapes "
                f"and types {form}, expected those of datum 0, {self._form}; make all items alike."
            )
        return batch

    def example(self) -> Batch:
        """The batch of step 0."""
        return self.take(self.indices(0))


def as_source(
    data: Any,
    *,
    batch_size: int | None,
    seed: int,
    names: tuple[str, ...] | None = None,
    batched: bool = True,
    dtype: Any = np.float32,
) -> ArraySource | LazySource | StreamSource:
    """Wrap whatever holds the data into a source, after checking what can be checked now.

    | data | becomes |
    | --- | --- |
    | array or tensor [n, ...] of any framework | `ArraySource` of {"x": array} |
    | dict of arrays | `ArraySource` |
    | `Images`, `Shapes` | `ArraySource` of x; by names also the labels, "y", and the factors |
    | map-style data set (torch's `Dataset`), list of items | `LazySource` |
    | Hugging Face data set, by column | `LazySource`; when streaming `StreamSource` of items |
    | iterable, iterator, callable that returns a fresh iterator | `StreamSource` |

    Floating data become float32; integers and booleans stay what they are.

    Args:
        data: see above.
        batch_size: data per batch. None: all of them; for a stream of batches, what it yields.
        seed: fixes the order of sources that have a size; a stream comes in its own order.
        names: which entries are used and what they are called: tuple items by place, dicts and
            columns by key, a single array by its one name. None: all of a dict's, otherwise the
            first entry, called "x".
        batched: for streams: each item is a batch (True) or one datum (False).
        dtype: the type that floating arrays get.

    Raises:
        DataError: data that cannot be used (see `checks`), a batch larger than the data, or an
            object that is none of the above.
    """
    if isinstance(data, ArraySource | LazySource | StreamSource):
        return data
    if isinstance(names, str):
        raise DataError(f"data: got names={names!r}, expected a tuple such as ({names!r},).")
    if isinstance(data, tuple | str | bytes) or hasattr(data, "__fspath__") or data is None:
        raise _unusable(data)
    whole = _whole(data, names)
    if whole is not None:
        arrays = clean_dict(whole, "data", dtype=dtype)
        return ArraySource(arrays, batch_size=batch_size, seed=seed)
    fetch = _fetcher(data, names, dtype)
    if fetch is not None:
        if len(data) == 0:
            raise DataError(
                f"data: the {type(data).__name__} is empty, expected at least one datum."
            )
        return LazySource(fetch, len(data), batch_size=batch_size, seed=seed)
    if callable(data) or isinstance(data, Iterable):
        single = hasattr(data, "column_names")  # Hugging Face streams yield single data
        return StreamSource(
            data, batch_size=batch_size, names=names, batched=batched and not single, dtype=dtype
        )
    raise _unusable(data)


def as_arrays(
    data: Any, *, names: tuple[str, ...] | None = None, dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    """All the data at once as checked arrays, for verbs that need them whole (infer, evaluate).

    Raises:
        DataError: as `as_source`, and for streams, whose end is not known.
    """
    source = as_source(data, batch_size=None, seed=0, names=names, dtype=dtype)
    if isinstance(source, ArraySource):
        return source.arrays
    if isinstance(source, LazySource):
        return source.take(np.arange(source.size))
    raise DataError(
        "data: got a stream, expected data of a known size here; collect it into arrays first."
    )


def as_whole(data: Any, *, names: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    """All the data as checked arrays that need not be rows of one length.

    For `infer`, where all the data are one batch: arrays of a dict may have the axes of further
    plates in front, or none at all. Whether they fit is seen against the program.

    Raises:
        DataError: as `as_arrays`, but for arrays of unequal lengths.
    """
    if not isinstance(data, Mapping) or any(hasattr(v, "column_names") for v in data.values()):
        return as_arrays(data, names=names)
    picked = pick(data, names, "data")
    if not all(isinstance(name, str) for name in picked):
        raise DataError(f"data: got the keys {list(picked)}, expected names of sites or inputs.")
    return {k: clean_array(v, f"data[{k!r}]", may_be_scalar=True) for k, v in picked.items()}


def _whole(data: Any, names: tuple[str, ...] | None) -> Mapping[str, Any] | None:
    """The named arrays of data that are in memory, or None when they are of another kind."""
    if isinstance(data, Images):
        labels = {} if data.labels is None else {"y": data.labels}
        return pick({"x": data.images, **labels}, names or ("x",), f"Images {data.name!r}")
    if isinstance(data, Shapes):
        return pick({"x": data.images, **data.factors}, names or ("x",), "Shapes")
    if isinstance(data, Mapping):
        splits = [key for key, value in data.items() if hasattr(value, "column_names")]
        if splits:
            raise DataError(
                f"data: got several data sets {splits}, expected one; choose data[split]."
            )
        return pick(data, names, "data")
    if is_array(data):
        return pick(data, names, "data")
    return None


def _fetcher(data: Any, names: tuple[str, ...] | None, dtype: Any) -> Callable | None:
    """indices -> checked batch, for data that can be indexed; None for those that cannot."""
    if not hasattr(data, "__len__"):
        return None
    if hasattr(data, "column_names") and hasattr(data, "with_format"):
        pick(dict.fromkeys(data.column_names), names, "data")
        table = data.with_format("numpy", columns=list(names or data.column_names))

        def fetch_rows(indices: np.ndarray) -> Batch:
            where = f"data (rows {listed(indices.tolist())})"
            return clean_dict(table[indices.tolist()], where, dtype=dtype)

        return fetch_rows
    if not hasattr(data, "__getitem__") or (len(data) and not _can_index(data)):
        return None

    def fetch_items(indices: np.ndarray) -> Batch:
        return stack_data([data[int(i)] for i in indices], names, indices.tolist(), dtype)

    return fetch_items


def _can_index(data: Any) -> bool:
    # torch's IterableDataset inherits a __getitem__ that only raises.
    try:
        data[0]
    except NotImplementedError:
        return False
    return True


def _unusable(data: Any) -> DataError:
    cure = "pass an array, a dict of arrays, a data set, an iterable of batches, or a callable"
    if isinstance(data, tuple):
        cure = "give its entries names, for instance {'x': images, 'y': labels}"
    elif isinstance(data, str | bytes) or hasattr(data, "__fspath__"):
        cure = "read the file first, for instance with probgen.data.load_npz or load_image_folder"
    return DataError(
        f"data: got {type(data).__name__}, expected something that holds data; {cure}."
    )
