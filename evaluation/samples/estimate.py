"""The record that every judge of samples returns: a number, its error, its n, and what it means.

    value +- standard_error, a 95 % interval, how many real and fake data, the value that equal laws
    would give at this n (`expected`), which way it errs (`bias`), and notes in words.

A number without an error is not a result, so there is no way to make one here. Nothing is computed
from data in this file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from probgen.errors import NonFiniteError

Z95 = 1.959963984540054  # the .975 quantile of N(0, 1)


@dataclasses.dataclass(frozen=True, repr=False)
class Estimate:
    """One number about two sets of samples.

    Attributes:
        name: with its features, such as "FD[pca50]".
        value: the point estimate.
        standard_error: of the value, over new draws of the data; `error_by` says how it was found.
        n_real, n_fake: how many data of each set entered; 0 where a set plays no part.
        interval: 95 % interval; value +- 1.96 standard errors unless given.
        expected: the value for equal laws at this n, where it is known; else None.
        better: "smaller", "larger" or "nearer" (to `expected`).
        bias: "none", "upward" (too large on average), "downward", or "unknown".
        error_by: method of the error, in words.
        notes: warnings that belong to the number, in words.
        details: further numbers by name.
        seed: of the random choices, or None when there were none.
    """

    name: str
    value: float
    standard_error: float
    n_real: int
    n_fake: int
    interval: tuple[float, float] | None = None
    expected: float | None = None
    better: str = "smaller"
    bias: str = "none"
    error_by: str = ""
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        numbers = (self.value, self.standard_error, *(self.interval or ()))
        if not all(math.isfinite(number) for number in numbers):
            raise NonFiniteError(
                f"{self.name}: got value {self.value}, standard error {self.standard_error} and "
                f"interval {self.interval}, expected finite numbers; the data are too few or "
                "degenerate for this measure: use more of them, or other features."
            )
        if self.interval is None:
            half = Z95 * self.standard_error
            object.__setattr__(self, "interval", (self.value - half, self.value + half))

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.interval[0] if self.interval else math.nan

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.interval[1] if self.interval else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, text, lists and dicts, ready for JSON."""
        return plain(dataclasses.asdict(self))

    def row(self) -> tuple[str, ...]:
        """Name, value, error, interval, expected, n, as text for a table."""
        n = f"{self.n_real:,}/{self.n_fake:,}" if self.n_real else f"{self.n_fake:,}"
        return (
            self.name,
            f"{self.value:.4g}",
            f"{self.standard_error:.2g}",
            f"[{self.low:.4g}, {self.high:.4g}]",
            "" if self.expected is None else f"{self.expected:.4g}",
            n,
        )

    def __str__(self) -> str:
        name, value, error, interval, expected, n = self.row()
        equal = f"; {expected} for equal laws" if expected else ""
        test = f"; p = {self.details['p_value']:.2g}" if "p_value" in self.details else ""
        text = f"{name} = {value} ± {error}, 95 % {interval}, n {n}{equal}{test}"
        return "\n".join([text, *(f"  note: {note}" for note in self.notes)])

    __repr__ = __str__


def plain(value: Any) -> Any:
    """Arrays, numpy numbers, tuples and mappings as lists, numbers and dicts."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return plain(value.tolist()) if hasattr(value, "tolist") else value


def wilson(share: float, n: float) -> tuple[float, float]:
    """95 % interval of a share of n draws; never empty, also at 0 and 1.

    Source: Wilson 1927, JASA 22, 209-212.
    """
    z2 = Z95 * Z95
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)  # past rounding


def share_interval(share: float, standard_error: float, n: int) -> tuple[float, float]:
    """Wilson's interval at the number of independent draws that would have this standard error.

    At a share of 0 or 1, where the error says nothing, `n` stands for that number.
    """
    variance = share * (1 - share)
    effective = variance / standard_error**2 if standard_error > 0 and variance > 0 else n
    return wilson(share, effective)


def table(estimates: Any) -> str:
    """Estimates as aligned text: name, value, s.e., 95 % interval, for equal laws, n."""
    head = ("measure", "value", "s.e.", "95 % interval", "if equal", "n real/fake")
    rows = [head, *(each.row() for each in estimates)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = []
    for row in rows:
        first, *rest = (cell.ljust(w) if i == 0 else cell.rjust(w)
                        for i, (cell, w) in enumerate(zip(row, widths, strict=True)))  # fmt: skip
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)
