"""Pareto k-hat against ArviZ at every size of the tail, also where the two rules for it differ.

    ours    M = ceil(min(0.2 S, 3 sqrt S))
    ArviZ   M = floor(0.2 S) to S r = 225, floor(3 sqrt(S / r)) above

For larger S its r (relative efficiency, 1 for independent weights) can be set so that its tail has
our length, and then the fits must agree; up to S = 225 the rules meet where S is a multiple of 5.
"""

import math

import numpy as np
import pytest
from arviz_stats.base import array_stats

from probgen.inference.likelihood.psis import psis

SIZES = (250, 333, 512, 777, 1000, 1999, 3000, 5001, 10_000)
LAWS = {
    "pareto": lambda rng, size: 0.7 * rng.exponential(size=size),
    "normal": lambda rng, size: 1.5 * rng.normal(size=size) + 300.0,
    "bounded": lambda rng, size: np.log(rng.uniform(size=size)),
}


def arviz(log_w, r_eff=1.0):
    """(normalised smoothed log weights, k-hat); it takes minus log w."""
    return array_stats.psislw(-log_w, r_eff=r_eff)


def agrees(log_w, expected, atol):
    smoothed, shape = expected
    ours = psis(log_w)
    normalised = ours.log_w - np.logaddexp.reduce(ours.log_w)
    return abs(ours.khat - shape) < atol and np.abs(normalised - smoothed).max() < atol


@pytest.mark.parametrize("law", list(LAWS))
@pytest.mark.parametrize("size", SIZES)
def test_khat_is_arviz_for_the_same_tail(size, law):
    """r = 9 S / (M + 1/2)^2 makes floor(3 sqrt(S / r)) = M: k-hat and weights to 1e-6."""
    length = math.ceil(3.0 * math.sqrt(size))
    r_eff = 9.0 * size / (length + 0.5) ** 2
    assert size * r_eff > 225.0
    log_w = LAWS[law](np.random.default_rng(size), size)
    assert agrees(log_w, arviz(log_w, r_eff), 1e-6)
    # One weight fewer in the tail is seen: no other length would do.
    assert not agrees(log_w, arviz(log_w, 9.0 * size / (length - 0.5) ** 2), 1e-6)


@pytest.mark.parametrize("law", list(LAWS))
@pytest.mark.parametrize("size", [25, 40, 105, 200, 225])
def test_khat_is_arviz_for_few_weights(size, law):
    log_w = LAWS[law](np.random.default_rng(size), size)
    assert agrees(log_w, arviz(log_w), 1e-6)


@pytest.mark.parametrize("size", [103, 1000, 10_000])
def test_the_rule_of_the_tail_moves_khat_less_than_other_draws_do(size):
    """Where the lengths differ by one, k-hat differs by less than half its spread over draws."""
    rng = np.random.default_rng(0)
    rows = 0.5 * rng.exponential(size=(200, size))
    ours, theirs = psis(rows).khat, np.array([arviz(row)[1] for row in rows])
    off = ours - theirs
    assert 0.0 < np.sqrt((off**2).mean()) < 0.5 * ours.std() and abs(off.mean()) < 0.02
