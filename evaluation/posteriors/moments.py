"""Means and standard deviations of a posterior's scalars, with their Monte Carlo errors.

    m +- mcse(m),    s +- mcse(s)        over chains: by effective sample sizes, ArviZ's

Source of the errors: Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, arXiv:1903.08008.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from arviz_stats.base import array_stats

from probgen.errors import DataError, NonFiniteError, ShapeError
from probgen.evaluation.calibration.study import scalars
from probgen.language.declared import checked

FEWEST = 4  # draws a chain, below which no error can be told


@dataclasses.dataclass(frozen=True)
class Moments:
    """Of each scalar, [scalars]; errors are 0 where the numbers are exact.

    Attributes:
        names: such as "theta[3]".
        mean, mean_error, sd, sd_error: of the draws.
        ess: bulk effective sample size; infinite where the numbers are exact.
        rhat: NaN of one chain.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    mean_error: np.ndarray
    sd: np.ndarray
    sd_error: np.ndarray
    ess: np.ndarray
    rhat: np.ndarray

    def of(self, names: tuple[str, ...]) -> Moments:
        """Those of these names, in their order."""
        at = [self.names.index(n) for n in names]
        rest = (getattr(self, f.name)[at] for f in dataclasses.fields(self)[1:])
        return Moments(names, *rest)


@checked
def moments(draws: Any) -> Moments:
    """Of what `pg.infer` returns, of arrays [chain, draw, ...] by name, or of exact numbers.

    Args:
        draws: a DataTree; a mapping of arrays; or a mapping of pairs (mean, sd) by site, numbers or
            arrays [*event], that are known exactly.

    Raises:
        DataError: nothing to compare.
        ShapeError: arrays without axes of chains and draws, or with too few draws.
        NonFiniteError: draws that are NaN or infinite; a mean or sd that is none.
    """
    if hasattr(draws, "children"):
        draws = {n: v.values for n, v in draws["posterior"].data_vars.items()}
    if not isinstance(draws, Mapping) or not draws:
        raise DataError(
            f"compare: got {type(draws).__name__} without draws, expected what pg.infer returns, "
            "arrays [chain, draw, ...] by site, or pairs (mean, sd) by site."
        )
    if all(isinstance(v, tuple) and len(v) == 2 for v in draws.values()):
        return _exact(draws)
    rows, names = [], []
    for name, x in scalars({n: np.asarray(v, float) for n, v in draws.items()}, 2).items():
        if x.ndim != 2 or x.shape[1] < FEWEST:
            raise ShapeError(
                f"compare: got draws of {name!r} of shape {list(x.shape)}, expected "
                f"[chain, draw, ...] with at least {FEWEST} draws; one chain is v[None]."
            )
        if not np.isfinite(x).all():
            raise NonFiniteError(
                f"compare: got {int((~np.isfinite(x)).sum())} draws of {name!r} that are NaN or "
                "infinite, expected finite numbers; see in which chain the sampler failed."
            )
        rows.append(_measured(x))
        names.append(name)
    return Moments(tuple(names), *np.array(rows).T)


def _measured(x: np.ndarray) -> tuple[float, ...]:
    """(mean, its error, sd, its error, ESS, R-hat) of draws [chain, draw]."""
    if not (np.ptp(x, axis=1) > 0).any():  # no chain moves: nothing is known of its errors
        return (float(x.mean()), np.nan, float(x.std(ddof=1)), np.nan, 0.0, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        rhat = float(array_stats.rhat(x, method="rank")) if len(x) > 1 else np.nan
        # Of s by its square, the mean of (x - m)^2, whose effective sample size is its own: where
        # NUTS's draws take turns about the mean, squares follow each other. The error of an sd in
        # ArviZ 0.8 goes by the sample size of the mean, and is then too small.
        error, of_square = (
            float(array_stats.mcse(v, method="mean")) for v in (x, (x - x.mean()) ** 2)
        )
        ess = float(array_stats.ess(x, method="bulk"))
    sd = float(x.std(ddof=1))
    return (float(x.mean()), error, sd, of_square / (2 * sd), ess, rhat)


def _exact(pairs: Mapping[str, tuple]) -> Moments:
    parts = [scalars({n: np.asarray(p[i], float) for n, p in pairs.items()}, 0) for i in (0, 1)]
    mean, sd = (np.array([float(v) for v in part.values()]) for part in parts)
    if list(parts[0]) != list(parts[1]):
        raise ShapeError(
            f"compare: got exact means of {list(parts[0])} and sds of {list(parts[1])}, expected "
            "the same shape of both."
        )
    if not (np.isfinite(mean).all() and np.isfinite(sd).all() and (sd > 0).all()):
        raise NonFiniteError(
            f"compare: got exact means {mean} and sds {sd}, expected finite means and sds above 0."
        )
    zero, one = np.zeros_like(mean), np.ones_like(mean)
    return Moments(tuple(parts[0]), mean, zero, sd, zero, np.inf * one, np.nan * one)
