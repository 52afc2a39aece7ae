"""Tail probabilities of a datum among reference data, and how they are put together.

    p_right(s) = (1 + #{i: s_i >= s}) / (n + 1)         p_left likewise with <=

the smallest level at which "as large as s" is rejected; uniform for a new datum of the same law
(Vovk's conformal p-value). The 1 is the datum itself, so that no probability is zero.
"""

from __future__ import annotations

import numpy as np
import scipy  # its `stats`, half a second of every start, come when first asked for


def right_tail(known: np.ndarray, s: np.ndarray) -> np.ndarray:
    """p_right of each entry of s [n] among `known` [m]; NaN where s is."""
    ordered, s = np.sort(np.asarray(known, np.float64)), np.asarray(s, np.float64)
    count = len(ordered) - np.searchsorted(ordered, s, side="left")
    return np.where(np.isnan(s), np.nan, (1.0 + count) / (1.0 + len(ordered)))


def left_tail(known: np.ndarray, s: np.ndarray) -> np.ndarray:
    """p_left of each entry of s [n] among `known` [m]."""
    return right_tail(-np.asarray(known, np.float64), -np.asarray(s, np.float64))


def copod(known: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Minus log of the empirical copula's tail probability, [n], nats; larger is stranger.

    With u_j and v_j the left and right tails of variable j, and w_j the one on the side of its
    skew (u_j where the skewness is negative, else v_j), all taken as independent:

        max(-sum_j log u_j, -sum_j log v_j, -sum_j log w_j)

    Args:
        known: [m, d] reference data. x: [n, d].

    Source: Li, Zhao, Botta, Ionescu & Hu 2020, arXiv:2009.09463, section III; its tails are taken
    over reference and datum together, as here.
    """
    known, x = np.asarray(known, np.float64), np.asarray(x, np.float64)
    left = np.stack([left_tail(k, s) for k, s in zip(known.T, x.T, strict=True)])  # [d, n]
    right = np.stack([right_tail(k, s) for k, s in zip(known.T, x.T, strict=True)])
    off = known - known.mean(0)
    is_left = (off**3).mean(0) < 0.0  # the sign of the skewness is that of the third moment
    skewed = np.where(is_left[:, None], left, right)
    return np.max([-np.log(p).sum(0) for p in (left, right, skewed)], axis=0)


def fisher(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fisher's combination of independent p-values [n, k]: (-2 sum_j log p_j, its p-value).

    Under the null hypothesis the statistic is chi-square with 2 k degrees of freedom.

    Source: Fisher 1932, Statistical Methods for Research Workers, section 21.1.
    """
    statistic = -2.0 * np.log(p).sum(1)
    return statistic, scipy.stats.chi2.sf(statistic, 2 * p.shape[1])


def brown(p: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fisher's statistic with the p-value for tests that depend on each other.

    The statistic of k dependent tests has the mean 2 k and a variance other than 4 k; it is taken
    as c chi-square with f degrees of freedom of that mean and variance: c = variance / (4 k),
    f = 2 k / c.

    Args:
        p: [n, k]. known: [m, k] p-values of the reference data, which give the variance.

    Source: Brown 1975, Biometrics 31(4), in the empirical form of Poole et al. 2016.
    """
    statistic, _ = fisher(p)
    num = 2.0 * p.shape[1]
    cov = np.atleast_2d(np.cov(-2.0 * np.log(known), rowvar=False))
    # Marginals are uniform by construction: only the correlations are estimated.
    sd = np.sqrt(np.diag(cov))
    variance = 4.0 * float((cov / np.outer(sd, sd)).sum())
    scale = variance / (2.0 * num)
    return statistic, scipy.stats.chi2.sf(statistic / scale, num / scale)
