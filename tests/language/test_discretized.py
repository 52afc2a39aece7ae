"""The discretised logistic: its levels sum to one, its tails keep their digits, its draws fit."""

import functools

import numpy as np
import pytest
import scipy.special as sp
import scipy.stats as st
from at_once import at_once, terms_of
from hypothesis import given
from hypothesis import strategies as hs

import probgen as pg
from probgen import dist
from probgen.language import discretized

NUM_DRAWS = 20_000


def program_of(declared):
    def program():
        with pg.data_plate():
            pg.sample("x", declared)

    return program


@functools.cache
def log_probs_of(backend, levels):
    """`fn(loc, scale, values)` -> [n] log-probabilities; one program for all locs and scales."""

    def run(loc, scale, values):
        declared = dist.DiscretizedLogistic(loc, scale, num_levels=levels)
        sites = backend.trace(
            program_of(declared), {}, values={"x": values}, batch_size=len(values)
        )
        return sites["x"].log_prob

    return backend.compile(run, num_calls=8)


def log_prob(backend, loc, scale, levels, values) -> np.ndarray:
    numbers = (backend.asarray(np.float32(x)) for x in (loc, scale, values))
    return backend.to_numpy(log_probs_of(backend, levels)(*numbers))


def brute_force(values, loc, scale, levels, low=0.0, high=1.0):
    """Differences of the logistic cdf in float64, by the tail that keeps its digits."""
    half = 0.5 * (high - low) / (levels - 1)
    upper = np.where(values > high - half, np.inf, (values + half - loc) / scale)
    lower = np.where(values < low + half, -np.inf, (values - half - loc) / scale)
    flip = lower > 0  # on the right side the survival function is the small one
    a, b = np.where(flip, -upper, lower), np.where(flip, -lower, upper)
    return np.log(sp.expit(b) - sp.expit(a))


@given(
    loc=hs.floats(-0.5, 1.5), scale=hs.floats(0.005, 5.0), levels=hs.sampled_from([2, 5, 32, 256])
)
def test_discretized_logistic_sums_to_one_and_is_the_cdf_difference(backend, loc, scale, levels):
    grid = np.linspace(0, 1, levels)
    got = log_prob(backend, loc, scale, levels, grid).astype(np.float64)
    assert abs(np.exp(got).sum() - 1.0) < 1e-4
    expected = brute_force(grid, np.float64(np.float32(loc)), np.float64(np.float32(scale)), levels)
    # float32 rounds (x - loc) / scale by 6e-8 / scale, which a log-probability feels directly.
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5 + 1e-6 / scale)


@pytest.fixture(scope="module")
def total_and_slope(backend):
    """`fn(theta, grid)`: the sum of log densities of 256 levels, and its gradient; one program."""

    def total(theta, grid):
        found = discretized.log_prob(grid, theta["loc"], theta["scale"], 0.0, 1.0, 256)
        return backend.ops.sum(found)

    return backend.compile(backend.value_and_grad(total), num_calls=16)


@pytest.mark.parametrize("scale", [1e-3, 1e-2, 1.0, 1e3])
@pytest.mark.parametrize("loc", [-10.0, 0.0, 0.5, 10.0])
def test_discretized_logistic_and_its_gradient_are_finite_far_out(
    backend, total_and_slope, loc, scale
):
    grid = backend.asarray(np.linspace(0, 1, 256).astype(np.float32))
    theta = {"loc": backend.asarray(np.float32(loc)), "scale": backend.asarray(np.float32(scale))}
    value, grad = total_and_slope(theta, grid)
    assert np.isfinite(backend.to_numpy(value))
    assert all(np.isfinite(backend.to_numpy(g)).all() for g in grad.values())


@pytest.mark.parametrize("loc, scale", [(0.5, 0.1), (0.05, 0.2), (1.2, 0.3)])
def test_discretized_logistic_draws_have_its_frequencies(backend, loc, scale):
    """Chi-square over 16 levels: p-value above 1e-6."""
    levels = 16
    declared = dist.DiscretizedLogistic(loc, scale, num_levels=levels)
    key = backend.key(5)
    drawn, _ = terms_of(
        backend, backend.trace, program_of(declared), {}, key=key, batch_size=NUM_DRAWS
    )["x"]
    drawn = np.round(drawn * (levels - 1)).astype(int)
    counts = np.bincount(drawn, minlength=levels)
    expected = NUM_DRAWS * np.exp(brute_force(np.linspace(0, 1, levels), loc, scale, levels))
    big = expected > 5
    observed = np.append(counts[big], counts[~big].sum())
    wanted = np.append(expected[big], expected[~big].sum())
    keep = wanted > 1e-6
    statistic = ((observed - wanted)[keep] ** 2 / wanted[keep]).sum()
    assert st.chi2(keep.sum() - 1).sf(statistic) > 1e-6


def test_discretized_logistic_support_is_its_levels(backend):
    declared = dist.DiscretizedLogistic(0.5, 0.1, low=-1.0, high=1.0, num_levels=5)
    points = np.array([-1.5, -1.0, -0.5, -0.3, 0.0, 0.5, 1.0, 1.5], np.float32)
    kinds = []

    def run(points):
        fn = backend.trace(program_of(declared), {}, key=backend.key(0), batch_size=1)["x"].fn
        kinds.append(backend.is_discrete(fn))
        return backend.in_support(fn, points)

    inside = at_once(backend, run, backend.asarray(points))
    np.testing.assert_array_equal(inside, [False, True, True, False, True, True, True, False])
    assert kinds[0]
