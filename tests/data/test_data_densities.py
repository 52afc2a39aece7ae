"""The plane's densities are what they say: they integrate to one, and their draws follow them.

Draws are held to their own density by a chi-square over grid cells, five standard deviations wide.
"""

import functools

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.datasets import make_moons

from probgen.data import Density2D, checkerboard, gaussian_mixture, pinwheel, rings, two_moons
from probgen.errors import DataError, ShapeError

CORRELATED = gaussian_mixture(
    np.array([[0.0, 0.0], [1.5, -0.5]]),
    covariances=np.array([[[0.3, 0.2], [0.2, 0.4]], [[0.1, -0.02], [-0.02, 0.05]]]),
    weights=np.array([3.0, 1.0]),
)
DENSITIES = {
    "gaussian_mixture": gaussian_mixture(),
    "correlated": CORRELATED,
    "two_moons": two_moons(),
    "two_moons_wide": two_moons(0.3),
    "rings": rings(),
    "rings_uneven": rings((0.5, 1.5), scale=0.2, weights=(1.0, 4.0)),
    "ring_without_hole": rings((0.2,), scale=0.5),
    "pinwheel": pinwheel(),
    "pinwheel_three": pinwheel(3, rate=0.5),
    "checkerboard": checkerboard(),
    "checkerboard_six": checkerboard(6, extent=3.0),
}
CELLS, FINE = 24, 10


@pytest.fixture(params=list(DENSITIES))
def density(request: pytest.FixtureRequest) -> Density2D:
    return DENSITIES[request.param]


@functools.cache
def cell_masses(density: Density2D) -> np.ndarray:
    """[CELLS, CELLS] the mass of each cell of the extent, by the midpoint rule."""
    num = CELLS * FINE
    side = 2 * density.extent / num
    at = -density.extent + (np.arange(num) + 0.5) * side
    x, y = np.meshgrid(at, at, indexing="ij")
    mass = np.exp(density.log_prob(np.stack([x, y], axis=-1))) * side**2
    return mass.reshape(CELLS, FINE, CELLS, FINE).sum(axis=(1, 3))


def chi_square(x: np.ndarray, density: Density2D) -> tuple[float, int]:
    """The statistic and its degrees of freedom; cells that expect fewer than five are pooled."""
    edges = np.linspace(-density.extent, density.extent, CELLS + 1)
    observed = np.histogram2d(x[:, 0], x[:, 1], bins=(edges, edges))[0].ravel()
    expected = cell_masses(density).ravel() * len(x)
    full = expected >= 5
    rest = max(len(x) - expected[full].sum(), 5.0)
    statistic = ((observed[full] - expected[full]) ** 2 / expected[full]).sum()
    statistic += (len(x) - observed[full].sum() - (len(x) - expected[full].sum())) ** 2 / rest
    return float(statistic), int(full.sum())


def test_density_integrates_to_one(density):
    assert cell_masses(density).sum() == pytest.approx(1.0, abs=1e-5)


def test_draws_follow_the_density(density):
    statistic, freedom = chi_square(density.sample(60_000, seed=3).astype(float), density)
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


def test_chi_square_sees_a_small_defect():
    """The judge itself: draws from rings 3% wider are refused."""
    x = rings(scale=0.12).sample(60_000, seed=3) * 1.03
    statistic, freedom = chi_square(x.astype(float), rings(scale=0.12))
    assert statistic > freedom + 5 * np.sqrt(2 * freedom)


def test_every_draw_has_positive_density(density):
    assert np.isfinite(density.log_prob(density.sample(20_000, seed=5))).all()


def test_same_seed_same_draws_and_the_global_state_is_left_alone(density):
    before = np.random.get_state()[1].copy()
    np.testing.assert_array_equal(density.sample(50, seed=1), density.sample(50, seed=1))
    assert not np.array_equal(density.sample(50, seed=1), density.sample(50, seed=2))
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_two_moons_is_the_density_of_scikit_learns_simulator():
    """An independent route: its arcs are evenly spaced points, ours a continuous blur of them."""
    x = make_moons(40_000, noise=0.1, random_state=0)[0] - [0.5, 0.25]
    statistic, freedom = chi_square(x, DENSITIES["two_moons"])
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


def test_gaussian_mixture_equals_scipys_normals():
    x = np.random.default_rng(0).normal(size=(100, 2))
    first = multivariate_normal([0, 0], [[0.3, 0.2], [0.2, 0.4]]).pdf(x)
    second = multivariate_normal([1.5, -0.5], [[0.1, -0.02], [-0.02, 0.05]]).pdf(x)
    np.testing.assert_allclose(
        CORRELATED.log_prob(x), np.log(0.75 * first + 0.25 * second), rtol=1e-10
    )


def test_pinwheel_repeats_itself_after_one_arm():
    x = np.random.default_rng(0).normal(size=(100, 2))
    angle = 2 * np.pi / 5
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(pinwheel().log_prob(x @ turn.T), pinwheel().log_prob(x), rtol=1e-9)


def test_checkerboard_is_flat_inside_and_nothing_outside():
    board = checkerboard()
    assert board.log_prob(np.array([-3.0, -3.0])) == pytest.approx(-np.log(32))
    assert (board.log_prob(np.array([[-1.0, -3.0], [5.0, 0.0]])) == -np.inf).all()


def test_log_prob_keeps_the_batch_axes(density):
    x = density.sample(12, seed=0)
    np.testing.assert_array_equal(
        density.log_prob(x.reshape(3, 4, 2)), density.log_prob(x).reshape(3, 4)
    )
    assert density.log_prob(x[0]).shape == ()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: two_moons(0.0), "scale"),
        (lambda: rings((-1.0,)), "positive"),
        (lambda: rings((1.0, 2.0), weights=(1.0,)), "weights"),
        (lambda: pinwheel(0), "num_arms"),
        (lambda: checkerboard(extent=-1.0), "extent"),
        (lambda: gaussian_mixture(np.zeros((2, 3))), "means"),
        (lambda: gaussian_mixture(covariances=-1.0), "covariances"),
        (lambda: gaussian_mixture(covariances=np.array([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
        (lambda: two_moons().sample(0, seed=0), "count"),
    ],
)
def test_a_density_that_cannot_be_is_refused(make, words):
    with pytest.raises(DataError, match=words):
        make()


def test_points_that_are_not_on_the_plane_are_refused(density):
    with pytest.raises(ShapeError, match="two coordinates"):
        density.log_prob(np.zeros((4, 3)))
