"""The chunks of an evaluation: what `evaluate` computes here, and what its workers are sent.

One text for both: a `Scoring` is plain data, and `start` binds the model and the measures of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from probgen.backends import resolve
from probgen.backends.protocol import Backend
from probgen.engine import provenance
from probgen.engine.data_support import SupportCheck
from probgen.engine.explain import explain
from probgen.engine.fitted import Fitted
from probgen.engine.measure import EvaluationContext, Measure, check_finite

Rows = Mapping[str, np.ndarray]
Values = dict[str, dict[str, np.ndarray]]  # by measure


@dataclasses.dataclass(frozen=True)
class Scoring:
    """An evaluation without its data.

    Attributes:
        backend, device: as `backends.resolve` takes them; a worker finds its own device.
        num_data: of all of them, whoever scores which.
        example: one datum, with its inputs.
        is_once: the data are one value of each site.
    """

    fitted: Fitted
    measures: list[Measure]
    seed: int
    backend: str | Backend
    device: str
    num_data: int
    chunk_size: int
    names: tuple[str, ...] | None
    example: Rows
    is_once: bool

    def made(self) -> dict[str, Any]:
        """What its numbers depend on but for the data, the framework's version among it."""
        b = resolve(self.backend, self.device)
        made = provenance.of_evaluation(self.fitted, self.measures, self.seed, b)
        more = {"num_data": self.num_data, "chunk_size": self.chunk_size}
        return {**made, **more, "versions": b.versions()}

    def start(self) -> Scorer:
        """It, ready to score chunks."""
        return Scorer(self, resolve(self.backend, self.device))


class Scorer:
    """A scoring on a backend: (number of the first datum, rows) -> values by measure.

    Raises (when it is called):
        SupportError: data outside their support.
        NonFiniteError: a measure gave NaN for a datum (says which).
    """

    def __init__(self, scoring: Scoring, backend: Backend):
        self.scoring, self.key = scoring, backend.key(scoring.seed)
        self.context = EvaluationContext(
            scoring.fitted, backend, self.key, scoring.example, num_data=scoring.num_data,
            chunk_size=scoring.chunk_size, names=scoring.names, is_once=scoring.is_once,
        )  # fmt: skip
        self.bound, self.params = self.context.bound, self.context.params
        self.bound.require_rows("evaluate")
        self._check = SupportCheck(self.bound, self.params, self.key)

    @functools.cached_property
    def _functions(self) -> list[Callable]:
        """Of the measures. Reference data are only gone through when something is computed."""
        return [self.context.function(m) for m in self.scoring.measures]

    def __call__(self, first: int, rows: Rows) -> Values:
        b = self.context.backend
        self._check({k: b.asarray(v) for k, v in rows.items()})
        ids = first + np.arange(len(next(iter(rows.values()))))
        values = {}
        for measure, function in zip(self.scoring.measures, self._functions, strict=True):
            out = function(rows, ids)
            check_finite(measure.name, out["estimate"], first, functools.partial(self._why, rows))
            values[measure.name] = out
        return values

    def _why(self, rows: Rows, index: int) -> str:
        b = self.context.backend
        row = {k: b.asarray(v[index : index + 1]) for k, v in rows.items()}
        return explain(self.bound, self.params, row, self.key)

    def close(self) -> None:
        """Lets go of what the evaluation kept."""
        self.context.close()
