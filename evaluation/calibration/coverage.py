"""Do 90 % intervals hold the truth 90 % of the time?

Central intervals lie between two quantiles of the draws; an HDI is the shortest interval that holds
the share (ArviZ's). Coverage of finitely many draws is below the nominal one even for the exact
posterior, by about (1 + prob) / (L + 1) or less; take L of some hundreds.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
from arviz_stats.base import array_stats
from scipy import stats

from probgen.errors import DataError, NonFiniteError, ShapeError
from probgen.language.declared import checked
from probgen.language.kinds import OpenShare

WIDE = 0.2  # an interval of the coverage that is wider than this tells nothing


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Share of truths inside their intervals.

    Attributes:
        rate: the share, with its binomial 95 % interval (Clopper-Pearson) low .. high.
        prob: the share that was promised.
        num: truths.
        kind: "central" or "hdi".
    """

    rate: float
    low: float
    high: float
    prob: float
    num: int
    kind: str

    @property
    def is_nominal(self) -> bool:
        """The promised share lies within the interval."""
        return self.low <= self.prob <= self.high

    def __str__(self) -> str:
        told = "as promised" if self.is_nominal else "not as promised"
        if self.is_nominal and self.high - self.low > WIDE:
            told = "too few truths to tell"
        return (
            f"{self.kind} {self.prob:.0%} intervals hold {self.rate:.1%} of {self.num} truths "
            f"(95 % interval {self.low:.1%} to {self.high:.1%}): {told}"
        )


@checked
def interval_coverage(
    draws: Any,
    truth: Any,
    *,
    prob: OpenShare = 0.9,
    kind: Literal["central", "hdi"] = "central",
) -> Coverage:
    """Coverage of the draws' intervals.

    Args:
        draws: [N, L] draws, a row for each truth; rows are independent.
        truth: [N] true values.
        prob: of each interval.
        kind: "central" (equal tails) or "hdi".

    Raises:
        ShapeError: shapes that do not belong together, fewer than two truths or two draws.
        DataError: draws or truths that are not numbers.
        NonFiniteError: a draw or truth that is NaN or infinite.
        DeclarationError: prob outside (0, 1), or another kind.
    """
    draws, truth = np.asarray(draws), np.asarray(truth)
    if {draws.dtype.kind, truth.dtype.kind} - set("biuf"):
        raise DataError(
            f"interval_coverage: got draws of type {draws.dtype} and truths of {truth.dtype}, "
            "expected real numbers; convert them."
        )
    if draws.ndim != 2 or truth.shape != draws.shape[:1]:
        raise ShapeError(
            f"interval_coverage: got draws {draws.shape} and truths {truth.shape}, expected [N, L] "
            "and [N], a row of draws for each truth."
        )
    if len(truth) < 2 or draws.shape[1] < 2:
        raise ShapeError(
            f"interval_coverage: got {len(truth)} truths with {draws.shape[1]} draws each, "
            "expected at least two truths, since coverage is a share of them, and two draws; "
            "simulate more, 200 and 500 are a start."
        )
    if not (np.isfinite(draws).all() and np.isfinite(truth).all()):
        raise NonFiniteError(
            "interval_coverage: got draws or truths that are NaN or infinite, expected finite "
            "numbers; see where the sampler failed."
        )
    if kind == "central":
        low, high = np.quantile(draws, [(1 - prob) / 2, (1 + prob) / 2], axis=1)
    else:
        low, high = array_stats.hdi(draws, prob, axis=-1).T
    inside = int(((truth >= low) & (truth <= high)).sum())
    interval = stats.binomtest(inside, len(truth)).proportion_ci(0.95, method="exact")
    return Coverage(
        inside / len(truth), float(interval.low), float(interval.high), prob, len(truth), kind
    )
