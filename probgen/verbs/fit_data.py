"""The data of a fit: batches of them, what is held out, how many steps, and some for its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.data.sources import ArraySource, as_arrays, as_source
from probgen.engine import starting
from probgen.engine.auto_guide import automatic
from probgen.engine.batches import NoData, merge_inputs
from probgen.engine.bound import Bound
from probgen.engine.data_support import SupportCheck
from probgen.errors import AlgorithmError, DataError, ShapeError, UnknownName
from probgen.language.model import Model
from probgen.language.run import ROW

BATCH = 128


def source_of(
    model: Model,
    data: Any,
    inputs: Mapping[str, Any] | None,
    names: tuple[str, ...] | None,
    batch_size: int | str | None,
    seed: int,
    validation: Any,
) -> tuple[Any, dict]:
    """(source, inputs shared by all data); inputs with one row a datum join the source."""
    if data is None:
        shared, _ = merge_inputs(model, None, inputs)
        return NoData(starting.draws(batch_size, names, validation)), shared
    wanted: Any = None if batch_size == "auto" else batch_size
    single = hasattr(data, "column_names") and not hasattr(data, "__len__")
    if batch_size == "auto" and single:
        wanted = BATCH  # a stream of single data
    source: Any = as_source(data, batch_size=wanted, seed=seed, names=names)
    if batch_size == "auto" and source is not data and source.size is not None:
        source.set_batch_size(min(BATCH, source.size))
    constants, per_datum = merge_inputs(model, data, inputs, source.size)
    if automatic(model) and isinstance(source, ArraySource) and ROW not in source.arrays:
        per_datum[ROW] = np.arange(source.size)
    if not per_datum:
        return source, constants
    if not isinstance(source, ArraySource):
        raise DataError(
            "inputs: arrays with one row a datum need data in memory; yield the inputs as entries "
            "of each batch instead."
        )
    arrays = {**source.arrays, **per_datum}
    return as_source(arrays, batch_size=source.batch_size, seed=seed), constants


def held_out_data(
    validation: Any, names: Any, example: dict, bound: Bound, guide: Any, check: SupportCheck
) -> dict:
    """Held-out data as arrays, alike the training data in names, shapes and support."""
    arrays = as_arrays(validation, names=names)
    if guide is not None and ROW in example and ROW not in arrays:
        local = [n for n in bound.latents if bound.structure.sites[n].is_local]
        if local:
            raise AlgorithmError(
                f"validation: {guide!r} has a q of {local} for each of the data that "
                "are fitted, and none for held-out ones, expected no validation data; or write a "
                "guide that reads the data (an encoder)."
            )
        size = len(next(iter(arrays.values())))
        arrays = {**arrays, ROW: np.arange(size)}  # of no meaning where all latents are shared
    missing = sorted(set(example) - set(arrays))
    if missing:
        raise UnknownName(
            f"validation: got {sorted(arrays)}, expected {missing} too, as in the data (inputs "
            "with one row a datum included)."
        )
    arrays = {k: arrays[k] for k in example}
    for name, value in arrays.items():
        got, want = (value.shape[1:], value.dtype), (example[name].shape[1:], example[name].dtype)
        if got != want:
            raise ShapeError(
                f"validation[{name!r}]: got data of shape {got[0]} and type {got[1]}, expected "
                f"{want[0]} and {want[1]} as in the data it is fitted to."
            )
    check(arrays)
    return arrays


def number_of_steps(source: Any, num_epochs: int | None, num_steps: int | None) -> int:
    """How many steps a fit takes in all, of which one number is given.

    Raises:
        AlgorithmError: both are given, or none; epochs of data without a size.
    """
    if (num_epochs is None) == (num_steps is None):
        raise AlgorithmError(
            f"fit: got num_epochs={num_epochs} and num_steps={num_steps}, expected one of them."
        )
    if num_steps is None:
        if source.size is None:
            raise AlgorithmError("fit: data without a size have no epochs; give num_steps instead.")
        num_steps = num_epochs * source.steps_per_epoch
    return num_steps


def some_rows(source: Any, example: dict, most: int = 1000) -> dict:
    """Up to `most` of the data in random order, for the report; of a stream its first ones.

    Never more, whatever the batch: a report may compare each datum with each other.
    """
    if source.size is None:
        return {k: v[:most] for k, v in example.items()}
    steps = -(-min(most, source.size) // source.batch_size)
    rows = [source.indices(i) for i in range(min(steps, source.steps_per_epoch))]
    return source.take(np.concatenate(rows)[:most])
