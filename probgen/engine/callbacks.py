"""Callbacks of `fit`: a protocol of three moments, and the ones that everybody needs.

A callback is called between chunks of steps, never inside compiled code; it may read everything and
may ask the fit to stop by returning True from `on_chunk` or `on_validation`.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Literal

import numpy as np

from probgen.errors import DeclarationError, UnknownName
from probgen.language.declared import argument
from probgen.language.kinds import Count, NonNegative, PathLike, Text


class Callback:
    """Base of callbacks: override what you need.

    `fit` hands over `progress`, with `step`, `num_steps`, `history`, `params()` (numpy) and, for
    what is done once by a fit in several processes, `is_first`.
    """

    def on_start(self, progress: Any) -> None:
        """Before the first step (also of a resumed run)."""

    def on_chunk(self, progress: Any, metrics: dict[str, np.ndarray]) -> bool | None:
        """After a chunk of steps; metrics are [steps, ...]."""

    def on_validation(self, progress: Any, metrics: dict[str, float]) -> bool | None:
        """After an evaluation on held-out data."""

    def on_end(self, progress: Any) -> None:
        """After the last step."""


@dataclasses.dataclass
class EarlyStopping(Callback):
    """Stops when the held-out `monitor` has not improved by `min_delta` for `patience` evaluations.

    Args:
        monitor: name of a held-out metric, such as "elbo".
        patience: evaluations without improvement that are borne.
        min_delta: what counts as improvement, in the metric's unit (nats).
        mode: "max" (larger is better) or "min".
    """

    monitor: str = "elbo"
    patience: int = 5
    min_delta: float = 0.0
    mode: str = "max"

    def __post_init__(self) -> None:
        who = "EarlyStopping"
        argument(who, Text, monitor=self.monitor)
        self.patience = argument(who, Count, patience=self.patience)
        self.min_delta = argument(who, NonNegative, min_delta=self.min_delta)
        argument(who, Literal["max", "min"], mode=self.mode)

    def _stale(self, values: np.ndarray) -> int:
        sign = 1.0 if self.mode == "max" else -1.0
        best, stale = -np.inf, 0
        for v in sign * np.asarray(values):
            best, stale = (v, 0) if v > best + self.min_delta else (best, stale + 1)
        return stale

    def on_validation(self, progress: Any, metrics: dict[str, float]) -> bool | None:
        if self.monitor not in metrics:
            raise UnknownName(
                f"EarlyStopping: got monitor {self.monitor!r}, expected one of {sorted(metrics)}."
            )
        # Counted from the history, so that a resumed fit stops where an uninterrupted one does.
        return self._stale(progress.history.validation[self.monitor]) >= self.patience


class TensorBoard(Callback):
    """Writes metrics for TensorBoard: "train/elbo", "validation/elbo", at the step they are of.

    Args:
        log_dir: a folder; a resumed fit adds to it.
        every: writes the training metrics of every so many steps.

    Raises (when the fit starts):
        DeclarationError: the package `tensorboard` is not installed.
    """

    def __init__(self, log_dir: str | os.PathLike, every: int = 1):
        self.log_dir = argument("TensorBoard", PathLike, log_dir=log_dir)
        self.every = argument("TensorBoard", Count, every=every)
        self._writer: Any = None

    def on_start(self, progress: Any) -> None:
        if not progress.is_first:
            return
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise DeclarationError(
                "TensorBoard callback: the package tensorboard is not installed; install it with: "
                "pip install tensorboard"
            ) from error
        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(self.log_dir))

    def _write(self, step: int, metrics: dict[str, float], prefix: str) -> None:
        if self._writer is None:
            return
        values = [
            self._summary.Value(tag=f"{prefix}/{k}", simple_value=float(v))
            for k, v in metrics.items()
        ]
        event = self._event(step=step, summary=self._summary(value=values))
        self._writer.add_event(event)

    def on_chunk(self, progress: Any, metrics: dict[str, np.ndarray]) -> None:
        scalars = {k: np.asarray(v) for k, v in metrics.items() if np.ndim(v) == 1}
        count = len(next(iter(scalars.values()), ()))
        for i in range(count):
            step = progress.step - count + i + 1
            if step % self.every == 0:
                self._write(step, {k: v[i] for k, v in scalars.items()}, "train")

    def on_validation(self, progress: Any, metrics: dict[str, float]) -> None:
        self._write(progress.step, metrics, "validation")

    def on_end(self, progress: Any) -> None:
        if self._writer is not None:
            self._writer.close()
