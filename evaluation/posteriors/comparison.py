"""What a comparison holds: for each method its distance to the reference, its cost, its proof.

With m, s the mean and standard deviation of a scalar under a method, and m_0, s_0 under the
reference, distances are in the reference's standard deviations,

    (m - m_0) / s_0  +-  sqrt(mcse(m)^2 + mcse(m_0)^2) / s_0
    s / s_0          +-  (s / s_0) sqrt((mcse(s) / s)^2 + (mcse(s_0) / s_0)^2)

and a method is said to differ only where that is more than Monte Carlo error explains: z-tests of
all means and sds of the method, Holm's correction.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy import stats

from probgen.errors import UnknownName
from probgen.evaluation.detection.intervals import holm
from probgen.evaluation.posteriors import page
from probgen.evaluation.posteriors.moments import Moments
from probgen.language.dist import did_you_mean


@dataclasses.dataclass(frozen=True)
class PosteriorDifference:
    """A method's distance to the reference, [scalars] in the order of `PosteriorComparison.names`.

    Attributes:
        mean, mean_error: of the means, in the reference's standard deviations.
        sd_ratio, sd_error: of the standard deviations.
        p_mean, p_sd: corrected p-values; NaN where no error is known.
    """

    mean: np.ndarray
    mean_error: np.ndarray
    sd_ratio: np.ndarray
    sd_error: np.ndarray
    p_mean: np.ndarray
    p_sd: np.ndarray

    @classmethod
    def between(cls, one: Moments, reference: Moments) -> PosteriorDifference:
        """Of two sets of the same scalars."""
        mean = (one.mean - reference.mean) / reference.sd
        mean_error = np.hypot(one.mean_error, reference.mean_error) / reference.sd
        ratio = one.sd / reference.sd
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.hypot(one.sd_error / one.sd, reference.sd_error / reference.sd)
            z = np.concatenate([mean / mean_error, np.log(ratio) / relative])
        p = np.full(len(z), np.nan)
        known = ~np.isnan(z)
        p[known] = holm(2 * stats.norm.sf(np.abs(z[known])))
        half = len(mean)
        return cls(mean, mean_error, ratio, ratio * relative, p[:half], p[half:])

    @property
    def worst_mean(self) -> int:
        """Which scalar's mean is farthest off."""
        return int(np.argmax(np.abs(self.mean)))

    @property
    def worst_sd(self) -> int:
        """Which scalar's standard deviation is farthest off, by its logarithm."""
        with np.errstate(divide="ignore"):
            return int(np.argmax(np.abs(np.log(self.sd_ratio))))


@dataclasses.dataclass(frozen=True)
class MethodResult:
    """One method.

    Attributes:
        name: in the table.
        method: its text.
        moments: of its draws; None where it failed.
        difference: to the reference; None of the reference itself, and where the method failed.
        seconds: wall time of all of it, compilation and fit included.
        ess: the smallest bulk effective sample size over scalars; of a guide, its draws.
        divergences: transitions that diverged; None where there are none to count.
        elbo, elbo_error: E log p(y, z) - log q(z) of a guide's draws, nats of all data; else None.
        log_evidence, log_evidence_error, khat: by the guide's importance weights; None where their
            tail is too heavy to say.
        draws: the DataTree; fitted: what a fit made, or None.
        failure: why it failed; "" where it did not.
    """

    name: str
    method: str
    moments: Moments | None
    difference: PosteriorDifference | None
    seconds: float
    ess: float = float("nan")
    divergences: int | None = None
    elbo: float | None = None
    elbo_error: float | None = None
    log_evidence: float | None = None
    log_evidence_error: float | None = None
    khat: float | None = None
    draws: Any = dataclasses.field(default=None, repr=False)
    fitted: Any = dataclasses.field(default=None, repr=False)
    failure: str = ""

    @property
    def ess_per_second(self) -> float:
        """Effective draws for each second of all that the method did."""
        return self.ess / self.seconds

    @property
    def rhat(self) -> float:
        """The largest over scalars; NaN where there is one chain, or none."""
        values = np.array([]) if self.moments is None else self.moments.rhat
        return float(values.max()) if len(values) else float("nan")


@dataclasses.dataclass(frozen=True, repr=False)
class PosteriorComparison:
    """What `pg.compare` gives. Prints as a table with what can be said of it.

    Attributes:
        names: scalars that are compared.
        results: by method, in the order given.
        reference: name of the reference; one that is no method was given as numbers.
        truth: its moments.
        model, backend, device, seed: of the runs.
        alpha: of the tests against the reference, after Holm's correction.
    """

    alpha: ClassVar[float] = 0.01

    names: tuple[str, ...]
    results: dict[str, MethodResult]
    reference: str
    truth: Moments
    model: str
    backend: str
    device: str
    seed: int

    def __getitem__(self, name: str) -> MethodResult:
        if name not in self.results:
            raise UnknownName(
                f"PosteriorComparison: got the method {name!r}, expected one of "
                f"{list(self.results)}{did_you_mean(name, self.results)}."
            )
        return self.results[name]

    def differing(self, name: str) -> tuple[list[str], list[str]]:
        """Scalars whose (mean, sd) differ from the reference's by more than Monte Carlo error."""
        found = self[name].difference
        if found is None:
            return [], []
        return tuple(  # type: ignore[return-value]
            [n for n, p in zip(self.names, each, strict=True) if p <= self.alpha]
            for each in (found.p_mean, found.p_sd)
        )

    def to_pandas(self) -> Any:
        """One row a method and scalar: mean, sd, their errors and distances, ESS, R-hat."""
        import pandas as pd

        rows = []
        for result in self.results.values():
            if result.moments is None:
                continue
            own = dataclasses.asdict(result.moments)
            far = dataclasses.asdict(result.difference) if result.difference else {}
            renamed = {f"difference_{k}" if k in own else k: v for k, v in far.items()}
            columns = {**own, **renamed}
            columns["quantity"] = columns.pop("names")
            rows.append(pd.DataFrame({"method": result.name, **columns}))
        return pd.concat(rows, ignore_index=True)

    def plot(self, names: Any = None) -> Any:
        """Means and two standard deviations of each method beside the reference's."""
        return page.interval_figure(self, names)

    def page(self) -> Any:
        """The comparison as a `Report`."""
        return page.report(self)

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the page to `path`, and its numbers to the same name with `.json`."""
        return self.page().save(path)

    def __repr__(self) -> str:
        return page.text(self)
