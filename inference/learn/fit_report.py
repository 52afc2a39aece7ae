"""What a fit by chains reports: what they target, and how they went at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class ChainReport:
    """What `Fitted.report` holds after a fit by `EM` or `MaximumLikelihood`.

    Attributes:
        algorithm: its name.
        target: what the E-step is, or what the draws of the model are, in words.
        metrics: their means over the last tenth of the steps.
    """

    algorithm: str
    target: str
    metrics: Mapping[str, float]

    @classmethod
    def of(cls, algorithm: str, target: str, history: Any) -> ChainReport:
        """Of the end of a fit's `History`; metrics that are vectors, and `loss`, are left out."""
        curves = {n: history[n] for n in history if n != "loss" and history[n].ndim == 1}
        ends = {n: float(v[-max(1, len(v) // 10) :].mean()) for n, v in curves.items()}
        return cls(algorithm, target, ends)

    def text(self) -> str:
        """The report as lines of text."""
        lines = [f"{self.algorithm}: {self.target}", "  over the last tenth of the steps:"]
        return "\n".join([*lines, *(f"  {n} {v:.4g}" for n, v in self.metrics.items())])
