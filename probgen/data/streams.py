"""Data that come in their own order and never all at once: iterators, loaders, generators.

Memory is flat: one batch is held at a time. All batches must have one shape and type; only the
last of a pass may be shorter, and is dropped, since compiled steps want one shape. A callable that
returns a fresh iterator, or a re-iterable, can be resumed exactly: it is run again and the batches
that were seen are passed over. An iterator that is already running cannot.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np

from probgen.data.checks import clean_dict, pick, stack_data
from probgen.errors import DataError

Batch = dict[str, np.ndarray]


class StreamSource:
    """A source without a size: see the head of this file, and `as_source` for what it reads.

    The first batch is read when the source is made, so that unusable data are refused at once.

    Args:
        data: a callable that returns an iterable, an iterable, or an iterator (which can be gone
            through once).
        batch_size: data per batch. With `batched` it must be what the stream yields, or None.
        names: as in `as_source`.
        batched: each item of the stream is a batch (True) or one datum (False).
        dtype: the type that floating arrays get.

    Raises:
        DataError: no batch at all, or a first batch that cannot be used.
    """

    size: None = None

    def __init__(
        self,
        data: Iterable[Any] | Callable[[], Iterable[Any]],
        *,
        batch_size: int | None,
        names: tuple[str, ...] | None = None,
        batched: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        if not batched and (batch_size is None or batch_size < 1):
            raise DataError(
                f"data: got a stream of single data and batch_size={batch_size}, expected how many "
                f"make a batch; pass batch_size, or batched=True if its items are batches."
            )
        self._data, self._names, self._dtype = data, names, dtype
        self._batched, self._asked = batched, batch_size
        self._once = isinstance(data, Iterator)
        self._opened: Iterator[Any] | None = None
        self._form: dict[str, Any] | None = None
        running = self._cleaned(self._open())
        first = next(running, None)
        if first is None:
            need = "" if batched else f" ({batch_size} data)"
            raise DataError(
                f"data: the stream ended before its first batch{need}, expected at least one; the "
                f"data are empty, or fewer than one batch, or the iterator was already used up."
            )
        self._first: Batch = first
        # Kept for the first pass, so that a loader is not started twice.
        self._begun: Iterator[Batch] | None = chain([first], running)

    @property
    def batch_size(self) -> int:
        """Data per batch."""
        return len(next(iter(self._first.values())))

    def example(self) -> Batch:
        """The first batch, without using it up."""
        return self._first

    def batches(self, start_step: int = 0, *, repeat: bool = False) -> Iterator[Batch]:
        """The batches from `start_step` on.

        Args:
            start_step: how many batches to pass over, so that a resumed run goes on where it was.
            repeat: begin again when the data end, and count on; an iterator cannot, and just ends.

        Raises:
            DataError: an iterator that has been used, or is to be resumed; while iterating: a
                batch that differs from the first, or fewer than `start_step` batches.
        """
        if self._once and (start_step > 0 or self._begun is None):
            got = f"resuming at step {start_step}" if start_step else "a second pass"
            raise DataError(
                f"data: {got} was asked of an iterator, which can only be gone through once; pass "
                f"a callable that returns a fresh iterator, such as lambda: read_batches(path)."
            )
        return self._run(start_step, repeat and not self._once)

    def _run(self, start_step: int, repeat: bool) -> Iterator[Batch]:
        step = 0
        while True:
            before = step
            for batch in self._pass():
                if step >= start_step:
                    yield batch
                step += 1
            if step == before:
                raise DataError(
                    f"data: the stream gave {step} batches and none on the next pass, expected a "
                    f"fresh iterator on every pass; pass a callable that makes a new one."
                )
            if not repeat:
                break
        if step < start_step:
            raise DataError(
                f"data: the stream has {step} batches, expected at least {start_step} to resume at "
                f"step {start_step}; are these the data that the run began with?"
            )

    def _pass(self) -> Iterator[Batch]:
        begun, self._begun = self._begun, None
        return self._cleaned(self._open()) if begun is None else begun

    def _open(self) -> Iterator[Any]:
        raw = self._data() if callable(self._data) and not self._once else self._data
        if not isinstance(raw, Iterable):
            raise DataError(
                f"data: the callable returned {type(raw).__name__}, expected an iterator of "
                f"batches; return one, for instance by making the callable a generator function."
            )
        fresh = iter(raw)
        if not self._once and fresh is self._opened:
            raise DataError(
                "data: got the same, used iterator twice, expected a fresh one on every pass; make "
                "it inside the callable, as in lambda: iter(make_loader())."
            )
        self._opened = fresh
        return fresh

    def _cleaned(self, raw: Iterator[Any]) -> Iterator[Batch]:
        """Checked batches of one shape; a shorter one is dropped at the end, an error before."""
        short: tuple[int, int] | None = None
        for number, batch in enumerate(self._arrays(raw)):
            if short is not None:
                raise DataError(
                    f"data: batch {short[0]} has {short[1]} data and is not the last, expected "
                    f"{self._length} in every batch but the last; let the stream keep one size."
                )
            if self._matches(batch, number):
                yield batch
            else:
                short = number, len(next(iter(batch.values())))

    def _arrays(self, raw: Iterator[Any]) -> Iterator[Batch]:
        if self._batched:
            for number, item in enumerate(raw):
                where = f"batch {number}"
                yield clean_dict(pick(item, self._names, where), where, dtype=self._dtype)
            return
        items: list[Any] = []
        for number, item in enumerate(raw):
            items.append(item)
            if len(items) == self._asked:
                labels = list(range(number + 1 - len(items), number + 1))
                yield stack_data(items, self._names, labels, self._dtype)
                items = []

    def _matches(self, batch: Batch, number: int) -> bool:
        """True for a whole batch, False for a shorter one; an error for any other difference."""
        length = len(next(iter(batch.values())))
        form = {name: (array.shape[1:], array.dtype) for name, array in batch.items()}
        if self._form is None:
            if self._asked not in (None, length):
                raise DataError(
                    f"data: the stream yields batches of {length}, expected batch_size="
                    f"{self._asked}; pass batch_size={length} or None, or batched=False if its "
                    f"items are single data."
                )
            self._form, self._length = form, length
        if form != self._form or length > self._length:
            raise DataError(
                f"data: batch {number} has {length} data of {form}, expected {self._length} of "
                f"{self._form} as in the first batch; make all batches alike."
            )
        return length == self._length
