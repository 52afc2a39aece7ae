"""Pareto k-hat against its closed form, ArviZ, and the mean that smoothing repairs."""

import math

import numpy as np
import pytest

from probgen.errors import DataError, ShapeError
from probgen.inference.likelihood.psis import khat, khat_limit, psis, tail_length


def gaussian_weights(variance, shape, seed=0):
    """log N(z; 0, 1) - log N(z; 0, v) at z ~ N(0, v): weights of tail shape k = 1 - v."""
    z = np.random.default_rng(seed).normal(scale=math.sqrt(variance), size=shape)
    return -0.5 * z**2 + 0.5 * z**2 / variance + 0.5 * math.log(variance)


@pytest.mark.parametrize("variance", [0.1, 0.25, 0.5, 0.8])
def test_khat_is_one_minus_the_variance_of_the_proposal(variance):
    """Over 20 replicates of 20,000 weights, to the .12 that the fit's prior towards 1/2 allows."""
    assert abs(khat(gaussian_weights(variance, (20, 20_000))).mean() - (1.0 - variance)) < 0.12


def test_bounded_weights_have_a_negative_khat():
    assert khat(gaussian_weights(1.5, (20, 20_000))).mean() < 0.0


def laws():
    """Sizes at which 3 sqrt(S) or 0.2 S is whole: elsewhere ArviZ rounds the tail's length down."""
    rng = np.random.default_rng(1)
    yield "pareto", 0.6 * rng.exponential(size=2500)
    yield "normal", rng.normal(size=900)
    yield "wide", 30.0 * rng.normal(size=400) - 4000.0
    yield "bounded", np.log(rng.uniform(size=1600))
    yield "few", rng.normal(size=30)
    yield "very wide", 200.0 * rng.normal(size=900)
    yield "zeros", np.where(rng.uniform(size=625) < 0.3, -np.inf, rng.normal(size=625))


@pytest.mark.parametrize("name", [name for name, _ in laws()])
def test_khat_and_smoothed_weights_are_arviz(name):
    from arviz_stats.base import array_stats

    log_w = dict(laws())[name]
    carried = np.isfinite(log_w)
    # It takes minus log w, as leave-one-out needs them, and gives normalised weights.
    smoothed, expected = array_stats.psislw(-np.where(carried, log_w, -1e4), r_eff=1.0)
    ours = psis(log_w)
    assert abs(ours.khat - expected) < 1e-6
    normalised = ours.log_w - np.logaddexp.reduce(ours.log_w)
    np.testing.assert_allclose(normalised[carried], smoothed[carried], atol=1e-6)


def test_data_are_fitted_side_by_side():
    log_w = np.stack([gaussian_weights(v, (6, 400), seed=i) for i, v in enumerate((0.3, 0.7))])
    log_w[1, 2] = np.round(log_w[1, 2], 1)  # ties: another number of exceedances
    np.testing.assert_allclose(
        khat(log_w), [[khat(row) for row in group] for group in log_w], rtol=1e-12
    )
    assert khat(log_w).shape == (2, 6) and psis(log_w).log_w.shape == log_w.shape


def test_khat_does_not_see_scale_or_order():
    rng = np.random.default_rng(2)
    log_w = gaussian_weights(0.4, (1000,))
    for other in (log_w + 5000.0, log_w - 5000.0, rng.permutation(log_w)):
        np.testing.assert_allclose(khat(other), khat(log_w), rtol=1e-7)
    np.testing.assert_allclose(psis(log_w + 7.0).log_w, psis(log_w).log_w + 7.0, atol=1e-9)


def test_smoothing_keeps_order_and_all_but_the_tail():
    log_w = gaussian_weights(0.3, (2000,))
    smoothed = psis(log_w).log_w
    order = np.argsort(log_w)
    assert (np.diff(smoothed[order]) >= 0).all() and smoothed.max() <= log_w.max()
    kept = order[: -tail_length(2000)]
    np.testing.assert_array_equal(smoothed[kept], log_w[kept])
    assert (smoothed[order[-tail_length(2000) :]] != log_w[order[-tail_length(2000) :]]).all()


def test_smoothing_lowers_the_error_of_the_mean():
    """Weights w = u^-k have mean 1 / (1 - k); at k = 0.6 their plain mean has no variance."""
    k = 0.6
    log_w = -k * np.log(np.random.default_rng(3).uniform(size=(4000, 200)))
    truth = 1.0 / (1.0 - k)
    plain = np.exp(log_w).mean(1) - truth
    smooth = np.exp(psis(log_w).log_w).mean(1) - truth
    assert (smooth**2).mean() < 0.8 * (plain**2).mean()


def test_without_a_tail_khat_is_undefined_and_weights_stay():
    for log_w in (
        np.zeros(100),  # constant: the mean is exact
        np.full(100, -np.inf),
        np.random.default_rng(0).normal(size=24),
        np.r_[np.zeros(500), np.ones(500)],  # two values, as of a latent with two: no tail
        np.r_[np.full(96, -784.3), np.full(4, -784.3 + 6e-5)],  # constant up to float32's rounding
        np.array([0.3]),
    ):
        assert np.isnan(khat(log_w))
        np.testing.assert_array_equal(psis(log_w).log_w, log_w)
    assert np.isfinite(khat(np.random.default_rng(0).normal(size=25)))
    assert np.isfinite(khat(np.r_[np.zeros(95), np.arange(1.0, 6.0)]))


def test_weights_that_a_handful_dwarfs_are_the_worst_of_all():
    """Too few above the rest for a fit, and k-hat says so; the weights stay."""
    from arviz_stats.base import array_stats

    for top in ([50.0], [1.0, 2.0, 3.0, 4.0], [300.0, 200.0]):
        log_w = np.r_[top, np.zeros(1000 - len(top))]
        assert khat(log_w) == np.inf
        np.testing.assert_array_equal(psis(log_w).log_w, log_w)
    # One weight far above a tail that can be fitted: a number, and ArviZ's.
    alone = np.r_[np.zeros(800), np.linspace(0.0, 1e-3, 100)[1:], [50.0]]
    _, theirs = array_stats.psislw(-alone, r_eff=1.0)
    assert abs(khat(alone) - theirs) < 1e-6 and theirs > khat_limit(900)


@pytest.mark.parametrize("sd", [1e3, 1e4, 1e6])
def test_weights_that_lie_beyond_float64_of_each_other_are_the_worst_of_all(sd):
    """All but a few vanish beside the largest: an effective number of 1, and never a NaN."""
    log_w = np.random.default_rng(0).normal(0.0, sd, (300, 1000))
    found = khat(log_w)
    assert (found > 30.0).all() and np.isinf(found).any()
    smoothed = psis(log_w).log_w
    assert np.isfinite(smoothed).all() and (smoothed.max(1) <= log_w.max(1)).all()


def test_tails_as_long_as_float64_allows_do_not_overflow():
    rng = np.random.default_rng(0)
    for power in (0.1, 1.0, 5.0, 50.0):
        log_w = np.r_[np.zeros(950), 707.0 * rng.uniform(size=50) ** power]
        smoothed, found = psis(log_w)
        assert not np.isnan(found) and smoothed.max() <= log_w.max()
    # A quartile that is nothing beside the largest, so that no theta is finite: no fit, the worst.
    log_w = np.r_[np.zeros(950), 1e-3 * rng.uniform(size=40), np.linspace(100.0, 707.0, 10)]
    assert khat(log_w) > 30.0
    np.testing.assert_array_equal(psis(log_w).log_w, log_w)


def test_the_limit_grows_with_the_number_of_weights():
    assert khat_limit(100) == pytest.approx(0.5) and khat_limit(10**6) == 0.7
    assert khat_limit(1000) == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="at least two"):
        khat_limit(1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(bad):
    log_w = np.zeros((3, 50))
    log_w[1, 7] = bad
    with pytest.raises(DataError, match=r"khat: got (nan|inf) at \[1, 7\]"):
        khat(log_w)


@pytest.mark.parametrize("empty", [np.float64(1.0), np.zeros((3, 0))])
def test_no_axis_of_weights_is_refused(empty):
    with pytest.raises(ShapeError, match="khat: got log weights of shape"):
        khat(empty)
