"""How far the draws of a chain hang together, and every how many are kept so that they do not."""

from __future__ import annotations

import math

import numpy as np
from arviz_stats.base import array_stats

from probgen.errors import DataError, ShapeError


def moves(draws: np.ndarray) -> bool:
    """Whether every chain of draws [chain, draw] has two that differ (or only one draw)."""
    return draws.shape[1] < 2 or bool((np.ptp(draws, axis=1) > 0).all())


def thinning_from(pilots: list[dict[str, np.ndarray]]) -> int:
    """Every how many draws are nearly independent: the largest, over quantities, of the median
    autocorrelation time (number of draws over bulk effective sample size) of the pilots.

    A chain that never moves has no such time. Quantities for which that is so in half of the pilots
    or more are left to the others to decide (a discrete latent may be certain).

    Args:
        pilots: for each pilot, draws [chain, draw] by quantity.

    Raises:
        DataError: it is so for all of them. ShapeError: fewer than four draws a chain.
    """
    worst, told = 1.0, False
    for name in list(pilots[0])[:200]:
        draws = [np.asarray(p[name], np.float64) for p in pilots]
        if draws[0].shape[1] < 4:
            raise ShapeError(
                f"sbc: got {draws[0].shape[1]} draws a chain, expected at least 4 to learn the "
                "thinning from; use fewer chains, or give thinning=1."
            )
        times = [v.size / array_stats.ess(v, method="bulk") for v in draws if moves(v)]
        if 2 * len(times) > len(draws):
            worst, told = max(worst, float(np.median(times))), True
    if not told:
        raise DataError(
            f"sbc: got chains that never move in at least half of {len(pilots)} pilot simulations, "
            "expected draws that differ, to learn the thinning from; the sampler rejects "
            "everything (look at its step size and warm-up), or give thinning=1."
        )
    # A time of 1.2 is within the error of one from so few draws.
    return max(1, math.ceil(worst - 0.25))


def lag_one(draws: np.ndarray) -> float:
    """Mean over chains of the autocorrelation of successive draws [chain, draw], bias removed.

    Over the chains that move; NaN, undefined, where none does, and with fewer than three draws.
    """
    draws = draws[np.ptp(draws, axis=1) > 0] if draws.shape[1] > 2 else draws[:0]
    if not len(draws):
        return math.nan
    centred = draws - draws.mean(axis=1, keepdims=True)
    power = (centred**2).sum(axis=1)
    found = (centred[:, 1:] * centred[:, :-1]).sum(axis=1) / power
    # Removing the chain's own mean costs an independent chain about 1 / n.
    return float(found.mean()) + 1.0 / draws.shape[1]
