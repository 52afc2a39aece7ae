"""Ranks and their uniformity, interval coverage, symmetry: held against simulated closed forms."""

import numpy as np
import pytest
from arviz_stats.ecdf_utils import ecdf_pit
from scipy import stats

from probgen.errors import (
    AlgorithmError,
    DataError,
    DeclarationError,
    NonFiniteError,
    ShapeError,
    UnknownName,
)
from probgen.evaluation.calibration import (
    SBC,
    chi_square,
    ecdf_test,
    envelope,
    interval_coverage,
    ranks,
    symmetry,
    vsbc,
)

N, L = 1000, 99


def conjugate(rng, scale=1.0, shift=0.0, num=N, num_draws=L):
    """theta ~ N(0, 1), 5 data of N(theta, 1): (draws [N, L] of a spoilt posterior, truths [N])."""
    theta = rng.normal(size=num)
    y = theta[:, None] + rng.normal(size=(num, 5))
    mean, sd = y.sum(1) / 6, 6**-0.5
    draws = mean[:, None] + shift * sd + scale * sd * rng.normal(size=(num, num_draws))
    return draws, theta


def test_a_rank_counts_the_draws_below():
    draws = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(ranks(draws, np.array([0.0, 2.5])), [0, 2])
    both = ranks(np.stack([draws, -draws], -1), np.array([[0.0, 0.0], [2.5, -2.5]]))
    np.testing.assert_array_equal(both, [[0, 3], [2, 1]])


def test_ties_are_broken_evenly():
    """Truth and draws of one coin: without the tie-breaking, ranks take two values only."""
    rng, band, p = np.random.default_rng(0), envelope(500, 19), []
    for repeat in range(80):
        draws, truth = rng.random((500, 19)) < 0.3, rng.random(500) < 0.3
        found = ranks(draws, truth, seed=repeat)
        p.append((chi_square(found, 19), ecdf_test(found, 19, band)))
    assert (np.mean(np.array(p) < 0.05, axis=0) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 80)).all()
    assert chi_square((draws < truth[:, None]).sum(1), 19) < 1e-6


# Rejections in 50 of the chi-square test at .01, N 1000, L 99 (evaluation sheet, section 7).
POWER = {
    "correct": ({}, 0), "sd x 0.8": ({"scale": 0.8}, 50), "sd x 1.25": ({"scale": 1.25}, 50),
    "shift 0.25 sd": ({"shift": 0.25}, 50), "sd x 0.9": ({"scale": 0.9}, 23),
    "shift 0.1 sd": ({"shift": 0.1}, 12), "sd x 0.95": ({"scale": 0.95}, 2),
}  # fmt: skip


AGAIN = pytest.mark.repeated("test_the_power_is_the_published_one")
PLAIN = (
    "correct",
    "sd x 0.8",
    "sd x 1.25",
    "shift 0.25 sd",
    "sd x 0.95",
)  # never, always, or hardly seen


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=AGAIN if each in PLAIN else ()) for each in POWER]
)
def test_the_power_is_the_published_one(name):
    options, published = POWER[name]
    rng, repeats = np.random.default_rng(3), 100
    rejected = sum(chi_square(ranks(*conjugate(rng, **options)), L) < 0.01 for _ in range(repeats))
    rate, known = rejected / repeats, published / 50
    pooled = (rejected + published + 1) / (repeats + 50 + 2)
    error = np.sqrt(pooled * (1 - pooled) * (1 / repeats + 1 / 50))
    assert abs(rate - known) < 3 * error, (rate, known, error)


def test_both_tests_reject_a_right_method_as_often_as_they_say():
    rng, repeats = np.random.default_rng(4), 200
    for num, num_draws in ((200, 99), (150, 30)):  # 31 ranks do not fill 20 bins evenly
        band = envelope(num, num_draws)
        sets = rng.integers(0, num_draws + 1, (repeats, num))
        for p in (
            np.array([chi_square(s, num_draws) for s in sets]),
            np.array([ecdf_test(s, num_draws, band) for s in sets]),
        ):
            for level in (0.05, 0.5):
                # The envelope's statistic is discrete: its test is at most as large as it says.
                error = np.sqrt(level * (1 - level) / repeats)
                assert level - 4.5 * error < (p <= level).mean() < level + 4 * error


def test_the_band_is_simultaneous_and_arvizs():
    rng = np.random.default_rng(5)
    band = envelope(500, L, prob=0.9)
    sets = np.sort(rng.integers(0, L + 1, (2000, 500)), axis=1)
    cuts = np.round(band.points * (L + 1)).astype(int)
    below = np.array([np.searchsorted(s, cuts) for s in sets]) / 500
    inside = ((below >= band.lower - 1e-9) & (below <= band.upper + 1e-9)).all(1)
    assert abs(inside.mean() - 0.9) < 4 * np.sqrt(0.09 / 2000) + 0.01
    points, _, lower, upper = ecdf_pit(rng.uniform(size=500), 0.9, 1000, rng=rng)
    at = np.searchsorted(points, band.points - 1e-9)
    assert abs(lower[at] - band.lower).max() < 0.008  # 4 of 500: the simulations' own error
    assert abs(upper[at] - band.upper).max() < 0.008


def test_with_one_draw_the_p_value_is_that_of_a_fair_coin_tossed_30_times():
    """Both sides of the one cut alike: p = 2 P(K <= k) for k zeros or k ones, K ~ Binomial."""
    band = envelope(30, 1)
    for k in (8, 11, 13):
        p = 2 * stats.binom.cdf(k, 30, 0.5)
        for zeros in (k, 30 - k):
            found = ecdf_test((np.arange(30) >= zeros).astype(int), 1, band)
            assert abs(found - p) < 5 * np.sqrt(p * (1 - p) / len(band.null))


def test_the_envelope_sees_a_small_shift_better_than_bins_do():
    rng = np.random.default_rng(6)
    band = envelope(N, L)
    sets = [ranks(*conjugate(rng, shift=0.1)) for _ in range(30)]
    by_ecdf = sum(ecdf_test(s, L, band) < 0.01 for s in sets)
    by_bins = sum(chi_square(s, L) < 0.01 for s in sets)
    assert by_ecdf > by_bins + 5


@pytest.mark.parametrize("kind", ["central", "hdi"])
def test_intervals_of_the_posterior_cover_as_promised(kind):
    rng = np.random.default_rng(7)
    right = interval_coverage(*conjugate(rng, num=2000, num_draws=1000), prob=0.8, kind=kind)
    assert right.low < 0.8 < right.high or abs(right.rate - 0.8) < 0.03
    narrow = interval_coverage(
        *conjugate(rng, scale=0.8, num=2000, num_draws=1000), prob=0.8, kind=kind
    )
    expected = 2 * stats.norm.cdf(0.8 * stats.norm.ppf(0.9)) - 1
    assert abs(narrow.rate - expected) < 4 * np.sqrt(expected * (1 - expected) / 2000) + 0.006
    assert not narrow.is_nominal and "not as promised" in str(narrow)
    known = stats.binomtest(round(narrow.rate * 2000), 2000).proportion_ci(method="exact")
    assert (narrow.low, narrow.high) == pytest.approx((known.low, known.high))


def test_few_truths_are_no_promise_kept():
    """Ten truths of ten: the interval of the rate is 69 % to 100 %, which holds most promises."""
    draws = np.tile(np.linspace(-3, 3, 101), (10, 1))
    few = interval_coverage(draws, np.zeros(10))
    assert few.is_nominal and str(few).endswith("too few truths to tell")
    assert "as promised" not in str(few)
    truth = np.repeat([0.0, 9.0], [450, 50])
    assert str(interval_coverage(np.tile(draws[:1], (500, 1)), truth)).endswith(": as promised")
    wrong = interval_coverage(draws, np.full(10, 9.0))
    assert str(wrong).endswith("not as promised")


def test_an_hdi_is_not_a_central_interval():
    """Exponential draws: the shortest 50 % interval starts at zero, the central one does not."""
    draws = np.tile(stats.expon.ppf((np.arange(2000) + 0.5) / 2000), (2, 1))
    truth = np.array([0.01, 0.01])
    assert interval_coverage(draws, truth, prob=0.5, kind="hdi").rate == 1.0
    assert interval_coverage(draws, truth, prob=0.5, kind="central").rate == 0.0


def test_symmetry_is_the_distance_of_the_papers_test_and_its_p_value_is_honest():
    """Against scipy's statistic; at 5 % it rejects 5 % of right methods, the paper's more."""
    rng = np.random.default_rng(8)
    sets = [rng.beta(0.5, 0.5, size=150) for _ in range(500)]  # too narrow, but symmetric
    found = [symmetry(p, num_mirrored=400) for p in sets]
    for p, result in zip(sets[:50], found[:50], strict=True):
        d = np.round(p - 0.5, 12)
        assert result.statistic == pytest.approx(stats.ks_2samp(d, -d).statistic, abs=1e-12)
    error = np.sqrt(0.05 * 0.95 / 500)
    assert abs(np.mean([r.p_value <= 0.05 for r in found]) - 0.05) < 4 * error
    assert np.mean([r.p_value_ks <= 0.05 for r in found]) > 0.05 + 3 * error
    # Beta(1/2, 1/2) has variance 1/8, 12/8 of the uniform's.
    assert abs(np.mean([r.spread for r in found]) - 1.5) < 0.02
    one = found[0]
    assert abs(one.spread - 1.5) < 5 * one.spread_error and abs(one.bias) < 5 * one.bias_error


def test_vsbc_tells_bias_from_overconfidence():
    rng = np.random.default_rng(9)
    columns = [
        ranks(*conjugate(rng, **o))
        for o in ({"scale": 0.5}, {"shift": -0.5}, {"shift": 0.5, "scale": 0.7})
    ]
    names = ("narrow", "low", "high")
    result = vsbc(SBC.from_ranks(names, np.stack(columns, 1), L))
    assert result.biased == ("low", "high")
    narrow, low, high = result.results
    assert low.bias > 5 * low.bias_error and high.bias < -5 * high.bias_error
    assert narrow.spread > 1 + 5 * narrow.spread_error
    text = repr(result).splitlines()
    assert text[1].endswith("  draws are too narrow") and "too low" in text[2]
    assert "too high" in text[3]


def test_a_table_says_what_is_wrong():
    rng = np.random.default_rng(10)
    kinds = {
        "right": {}, "narrow": {"scale": 0.7}, "wide": {"scale": 1.4}, "low": {"shift": -0.4},
    }  # fmt: skip
    values = np.stack([ranks(*conjugate(rng, **o)) for o in kinds.values()], 1)
    result = SBC.from_ranks(tuple(kinds), values, L)
    assert result.rejected == ("narrow", "wide", "low") and not result.accepted
    assert "at level 0.01 (" in result.verdict()
    right = SBC.from_ranks(("right",), values[:, :1], L, alpha=0.001)
    assert "No departure from the posterior was found at level 0.001 (" in right.verdict()
    assert [result.shape(n) for n in kinds] == [
        "neither shifted nor too wide or narrow", "draws are too narrow", "draws are too wide",
        "draws lie too low",
    ]  # fmt: skip
    assert "rejected" in repr(result) and "not the posterior's" in result.verdict()
    table = result.to_pandas()
    assert list(table.index) == list(kinds) and list(table.rejected) == [False, True, True, True]
    correlated = SBC.from_ranks(tuple(kinds), values, L, autocorrelation=np.full(4, 0.4))
    assert "thin further" in correlated.verdict()
    good = SBC.from_ranks(("right",), values[:, :1], L)
    assert good.accepted and "No departure" in repr(good)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: ranks(np.zeros((3, 0)), np.zeros(3)), ShapeError, "at least one"),
        (lambda: ranks(np.zeros((3, 4)), np.zeros(4)), ShapeError, "draws on axis 1"),
        (lambda: ranks(np.full((3, 4), np.nan), np.zeros(3)), NonFiniteError, "12 draws"),
        (lambda: chi_square(np.zeros(5), 9), ShapeError, "at least 20"),
        (lambda: chi_square(np.full(50, 10), 9), AlgorithmError, "0 .. num_draws"),
        (lambda: ecdf_test(np.full(50, 0.5), 9), AlgorithmError, "whole numbers"),
        (lambda: envelope(10, 9, prob=1.0), DeclarationError, "prob=1.0"),
        (lambda: SBC.from_ranks(("a",), np.zeros((50, 2)), 9), ShapeError, "1 quantities"),
        (lambda: SBC.from_ranks(("a",), np.zeros((50, 1)), 9, alpha=2), DeclarationError, "2"),
        (lambda: symmetry(np.zeros(3)), ShapeError, "at least 20"),
        (lambda: symmetry(np.full(30, 1.5)), DataError, "1.5"),
        (lambda: symmetry(np.full(30, np.nan)), DeclarationError, "finite numbers"),
        (lambda: vsbc(np.zeros(30)), DeclarationError, "expected a SBC"),
        (lambda: interval_coverage(np.zeros((3, 1)), np.zeros(3)), ShapeError, "two draws"),
        (lambda: interval_coverage(np.zeros((0, 5)), np.zeros(0)), ShapeError, "got 0 truths"),
        (lambda: interval_coverage(np.zeros((1, 5)), np.zeros(1)), ShapeError, "got 1 truths"),
        (lambda: interval_coverage(np.zeros((3, 5)), np.zeros(4)), ShapeError, "a row of draws"),
        (lambda: interval_coverage(np.zeros((3, 5)), np.zeros(3), prob=9), DeclarationError, "9"),
        (lambda: interval_coverage(np.full((3, 5), np.inf), np.zeros(3)), NonFiniteError, "finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


def test_figures_can_be_drawn_and_refuse_strangers():
    rng = np.random.default_rng(11)
    values = np.stack([ranks(*conjugate(rng)), ranks(*conjugate(rng, scale=0.8))], 1)
    result = SBC.from_ranks(("mean of theta", "sd of theta"), values, L)
    assert len(result.plot().axes) >= 2 and len(vsbc(result).plot(("sd of theta",)).axes) == 1
    with pytest.raises(UnknownName, match="did you mean"):
        result.plot(("sd of thetta",))
