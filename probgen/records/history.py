"""What happened in a fit: one number per step and metric, and the held-out evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from probgen.errors import SaveError, UnknownName
from probgen.language.dist import did_you_mean
from probgen.language.viewed import Plotted

WINDOW = 100


class History(Plotted):
    """Metrics of a fit.

    `history["elbo"]` is an array with one entry a step; a metric that is a vector (a KL per latent
    unit) has one row for every `WINDOW` steps, its mean there, and one for the rest.
    `history.validation["elbo"]` goes with `history.validation_steps`, and `events` are sentences
    about what was out of the ordinary.
    """

    _plot = "plot_history"

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {}
        self._rest: dict[str, np.ndarray] = {}  # steps of vectors that do not fill a window yet
        self._validation: dict[str, list[float]] = {}
        self.validation_steps: list[int] = []
        self.events: list[str] = []

    def extend(self, metrics: dict[str, np.ndarray]) -> None:
        """Adds a chunk of steps: each metric [steps, ...]."""
        for name, given in metrics.items():
            values, parts = np.asarray(given), self._parts.setdefault(name, [])
            if values.ndim == 1:
                parts.append(values)
                continue
            if name in self._rest:
                values = np.concatenate([self._rest[name], values])
            while len(values) >= WINDOW:
                parts.append(values[:WINDOW].mean(0, keepdims=True))
                values = values[WINDOW:]
            self._rest[name] = values.copy()

    def add_validation(self, step: int, metrics: dict[str, float]) -> None:
        self.validation_steps.append(int(step))
        for name, value in metrics.items():
            self._validation.setdefault(name, []).append(float(value))

    @property
    def validation(self) -> dict[str, np.ndarray]:
        return {k: np.asarray(v) for k, v in self._validation.items()}

    @property
    def num_steps(self) -> int:
        """Steps that were recorded."""
        scalars = (parts for parts in self._parts.values() if parts and parts[0].ndim == 1)
        return max((sum(len(p) for p in parts) for parts in scalars), default=0)

    def keys(self) -> list[str]:
        return sorted(self._parts)

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._parts:
            raise UnknownName(
                f"history: no metric {name!r}, expected one of {self.keys()}"
                f"{did_you_mean(name, self._parts)}."
            )
        if len(self._parts[name]) > 1:
            self._parts[name] = [np.concatenate(self._parts[name])]
        rest = self._rest.get(name, np.empty(0))
        if not len(rest):
            return self._parts[name][0]
        return np.concatenate([*self._parts[name], rest.mean(0, keepdims=True)])

    def last(self, name: str, num: int = 100) -> float:
        """Mean of a metric over the last `num` steps.

        Raises:
            UnknownName: no metric of that name.
        """
        return float(self[name][-num:].mean())

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything as arrays, for saving; `from_arrays` is the inverse."""
        out = {f"train/{k}": np.concatenate(v) for k, v in self._parts.items() if v}
        out |= {f"rest/{k}": v for k, v in self._rest.items()}
        out |= {f"validation/{k}": v for k, v in self.validation.items()}
        out["validation_steps"] = np.asarray(self.validation_steps, np.int64)
        return out

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], events: Any = (), where: str = "history"
    ) -> History:
        """The history that `to_arrays` gave.

        Raises:
            SaveError: arrays that no history has.
        """
        history = cls()
        steps = arrays.get("validation_steps", np.zeros(0, np.int64))
        for name, values in arrays.items():
            kind, _, metric = name.partition("/")
            ndim = {"train": (1, 9), "rest": (2, 9), "validation": (1, 1)}.get(kind, (1, 1))
            is_known = name == "validation_steps" or (metric and kind != "validation_steps")
            if not is_known or values.dtype == bool or not ndim[0] <= values.ndim <= ndim[1]:
                raise SaveError(
                    f"{where}: holds {name!r}, {values.dtype} {list(values.shape)}, which is not "
                    "of a history; it is damaged."
                )
            if kind == "train":
                history._parts[metric] = [values]
            elif kind == "rest":
                history._parts.setdefault(metric, [])
                history._rest[metric] = values
            elif kind == "validation":
                history._validation[metric] = [float(v) for v in values]
        for metric, rest in history._rest.items():
            parts = history._parts[metric]
            if (parts and parts[0].shape[1:] != rest.shape[1:]) or not len(rest) < WINDOW:
                raise SaveError(f"{where}: the parts of {metric!r} do not fit; it is damaged.")
        if any(len(v) > len(steps) for v in history._validation.values()) or steps.dtype != int:
            raise SaveError(f"{where}: holds {len(steps)} held-out evaluations and more values.")
        history.validation_steps = [int(s) for s in steps]
        history.events = list(events)
        return history

    def __repr__(self) -> str:
        tail = ", ".join(f"{k}={self.last(k):.4g}" for k in self.keys() if self[k].ndim == 1)
        said = "".join(f"\n  {event}" for event in self.events)
        return f"History({self.num_steps} steps; {tail})" + said
