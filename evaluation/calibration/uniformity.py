"""Ranks of true values among posterior draws, and two tests of whether they are uniform.

    rank = #{draws < truth} + U{0 .. #{draws = truth}}      in 0 .. L, for L draws

Where truth and data come from prior and model, and the draws are independent draws of the
posterior, each rank is uniform on 0 .. L. The chi-square test looks at bins of ranks; the envelope
looks at the whole empirical distribution function at once: at each point the number of ranks below
is binomial, and the smallest of these pointwise tail probabilities is held against its own law
under uniform ranks, which is simulated (ranks are discrete, so this is exact up to Monte Carlo).

Sources: Talts et al. 2018, arXiv:1804.06788 (ranks); Säilynoja, Bürkner & Vehtari 2022,
arXiv:2103.10522 (simultaneous envelope).
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import numpy as np
from scipy import stats

from probgen.errors import AlgorithmError, NonFiniteError, ShapeError
from probgen.language.declared import checked
from probgen.language.kinds import Count, OpenShare, between
from probgen.language.seeds import check_seed

NUM_BINS = 20
NUM_NULL = 4000  # simulated sets of uniform ranks; the smallest p-value is 1 / (NUM_NULL + 1)
MAX_POINTS = 100  # where the distribution function is looked at


class Envelope(NamedTuple):
    """A simultaneous band for the empirical distribution function of uniform ranks.

    Attributes:
        points: [k] probabilities z at which it is looked at, fractions j / (L + 1).
        lower, upper: [k] bounds of #{ranks below z} / N that hold everywhere at once with `prob`.
        prob: that probability.
        null: [s] the smallest pointwise tail probability in each simulated set of uniform ranks.
    """

    points: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    prob: float
    null: np.ndarray


@checked
def ranks(draws: Any, truth: Any, *, seed: int = 0) -> np.ndarray:
    """Rank of each true value among its draws; ties are broken at random.

    Args:
        draws: [N, L, ...] draws, one row of L a simulation.
        truth: [N, ...] the value that each row's data were simulated from.
        seed: for the ties.

    Returns:
        [N, ...] whole numbers in 0 .. L.

    Raises:
        ShapeError: the shapes do not belong together, or there are no draws.
        NonFiniteError: NaN among draws or truths (infinities have their rank).
    """
    draws, truth, seed = np.asarray(draws), np.asarray(truth), check_seed(seed, "ranks")
    fits = draws.ndim >= 2 and truth.shape == (draws.shape[0], *draws.shape[2:])
    if not fits or draws.shape[1] == 0 or draws.shape[0] == 0:
        raise ShapeError(
            f"ranks: got draws {draws.shape} and truths {truth.shape}, expected [N, L, ...] with "
            "at least one simulation and one draw, and [N, ...]; put the draws on axis 1."
        )
    if np.isnan(draws).any() or np.isnan(truth).any():
        raise NonFiniteError(
            f"ranks: got NaN among {int(np.isnan(draws).sum())} draws and "
            f"{int(np.isnan(truth).sum())} truths, expected numbers, since NaN has no rank; find "
            "out which simulation the sampler failed on."
        )
    less = (draws < truth[:, None]).sum(axis=1)
    equal = (draws == truth[:, None]).sum(axis=1)
    return less + np.random.default_rng(seed).integers(0, equal + 1)


def check_ranks(values: np.ndarray, num_draws: int, least: int = 20) -> np.ndarray:
    """Ranks as whole numbers [N], or an error that says what is wrong with them.

    Raises:
        ShapeError: not one axis, or fewer than `least`.
        AlgorithmError: not whole, or outside 0 .. num_draws.
    """
    values = np.asarray(values)
    if values.ndim != 1 or len(values) < least:
        raise ShapeError(
            f"calibration: got ranks of shape {values.shape}, expected [N] with N at least "
            f"{least}; run more simulations."
        )
    whole = np.issubdtype(values.dtype, np.number) and bool((values == np.floor(values)).all())
    if not whole or values.min() < 0 or values.max() > num_draws:
        raise AlgorithmError(
            f"calibration: got ranks between {values.min()} and {values.max()} for {num_draws} "
            "draws, expected whole numbers in 0 .. num_draws; see `ranks`."
        )
    return values.astype(np.int64)


@checked
def chi_square(
    values: Any, num_draws: Count, *, num_bins: Annotated[int, between(2, 10**7)] = NUM_BINS
) -> float:
    """p-value of the chi-square test that ranks are uniform on 0 .. num_draws.

    Bins hold as nearly equal numbers of ranks as L + 1 allows, and the expected counts know it;
    there are fewer bins where a bin would expect fewer than five.

    Args:
        values: [N] ranks.
        num_draws: L.
        num_bins: at most L + 1.
    """
    values = check_ranks(values, num_draws)
    num_bins = max(2, min(num_bins, num_draws + 1, len(values) // 5))
    edges = np.round(np.linspace(0, num_draws + 1, num_bins + 1)).astype(np.int64)
    counts = np.histogram(values, bins=edges - 0.5)[0]
    expected = len(values) * np.diff(edges) / (num_draws + 1)
    return float(stats.chisquare(counts, expected).pvalue)


def _cuts(num_draws: int) -> np.ndarray:
    """[k] whole numbers c: the distribution function is looked at as #{rank < c}."""
    count = min(num_draws, MAX_POINTS)
    return np.unique(np.round(np.linspace(1, num_draws, count)).astype(np.int64))


def _below(values: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """#{rank < c} for each cut, [k]."""
    return np.searchsorted(np.sort(values), cuts, side="left")


def _tails(k: np.ndarray, num: int, points: np.ndarray) -> np.ndarray:
    """Two-sided tail probability of counts at each point [k], before doubling.

    The smaller of P(K <= k) and P(K >= k), K ~ Binomial(num, z).
    """
    return np.minimum(stats.binom.cdf(k, num, points), stats.binom.sf(k - 1, num, points))


@checked
def envelope(
    num_simulations: Count,
    num_draws: Count,
    *,
    prob: OpenShare = 0.95,
    num_null: Annotated[int, between(100, 10**7)] = NUM_NULL,
    seed: int = 0,
) -> Envelope:
    """The band that holds the whole empirical distribution function of N uniform ranks.

    Args:
        num_simulations: N.
        num_draws: L.
        prob: of the band, simultaneously over all points.
        num_null: simulated sets of ranks.
        seed: of these simulations.

    Raises:
        DeclarationError: a number out of range.
    """
    seed, cuts = check_seed(seed, "envelope"), _cuts(num_draws)
    points = cuts / (num_draws + 1)
    tails = _tails(np.arange(num_simulations + 1)[:, None], num_simulations, points)
    cells = np.diff(np.concatenate([[0.0], points, [1.0]]))
    counts = np.random.default_rng(seed).multinomial(num_simulations, cells, size=num_null)
    below = np.cumsum(counts[:, :-1], axis=1)
    null = tails[below, np.arange(len(cuts))].min(axis=1)
    # Counts whose tail is at least this stay inside in a share `prob` of uniform sets.
    level = np.quantile(null, 1 - prob, method="lower")
    inside = tails >= level
    lower = inside.argmax(axis=0) / num_simulations
    upper = (num_simulations - inside[::-1].argmax(axis=0)) / num_simulations
    return Envelope(points, lower, upper, prob, null)


@checked
def ecdf_test(values: Any, num_draws: Count, band: Envelope | None = None) -> float:
    """p-value that ranks are uniform, from the largest departure of their distribution function.

    Args:
        values: [N] ranks.
        num_draws: L.
        band: `envelope(N, L)`, to be made once for many quantities.
    """
    values = check_ranks(values, num_draws)
    band = band or envelope(len(values), num_draws)
    cuts = np.round(band.points * (num_draws + 1)).astype(np.int64)
    seen = _tails(_below(values, cuts), len(values), band.points).min()
    # The set itself counts as one of its null, so that no p-value is zero; equal tails are ties.
    beaten = int((band.null <= seen * (1 + 1e-12)).sum())
    return (beaten + 1) / (len(band.null) + 1)


def ecdf_difference(values: np.ndarray, num_draws: int, band: Envelope) -> np.ndarray:
    """[k] #{ranks below z} / N - z at the band's points."""
    values = check_ranks(values, num_draws)
    cuts = np.round(band.points * (num_draws + 1)).astype(np.int64)
    return _below(values, cuts) / len(values) - band.points
