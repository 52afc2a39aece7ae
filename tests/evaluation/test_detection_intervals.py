"""DeLong against its definition, the bootstrap and repeated sampling; the paired test; Holm.

Two normal laws a distance delta apart have AUROC Phi(delta / sqrt 2), which gives every simulation
here its truth.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, norm
from sklearn.metrics import average_precision_score

from probgen.errors import DataError, ShapeError
from probgen.evaluation import detection as d
from probgen.evaluation.detection.average_precision import average_precision_interval, delete_one
from probgen.evaluation.detection.counts import counts, resampled_counts
from probgen.evaluation.detection.intervals import bootstrap_intervals
from probgen.evaluation.detection.roc import _tpr_on_grid

TIED = st.lists(st.integers(0, 6).map(float), min_size=2, max_size=12)


def distance(area):
    return np.sqrt(2) * norm.ppf(area)


def two_measures(rng, areas, *, num_in, num_out, correlation, batch=()):
    """Scores (in [2, *batch, n], out [2, *batch, m]) of two correlated measures of given AUROC."""
    mix = np.sqrt([1 - correlation, correlation])
    sides = []
    for size in (num_in, num_out):
        common = rng.normal(size=(1, *batch, size))
        sides.append(mix[0] * rng.normal(size=(2, *batch, size)) + mix[1] * common)
    shift = np.reshape([distance(each) for each in areas], (2,) + (1,) * (len(batch) + 1))
    return sides[0], sides[1] + shift


def placements(inside, outside):
    """V_out [m] and V_in [n] by looking at every pair."""
    won = (outside[:, None] > inside) + 0.5 * (outside[:, None] == inside)
    return won.mean(1), won.mean(0)


@given(inside=TIED, outside=TIED, seed=st.integers(0, 9))
def test_delong_is_the_covariance_of_placements_ties_included(inside, outside, seed):
    """Three measures at once, against the definition by pairs, to 1e-12."""
    rng = np.random.default_rng(seed)
    ins = np.stack([inside, rng.permutation(inside), np.round(rng.normal(size=len(inside)))])
    outs = np.stack([outside, rng.permutation(outside), np.round(rng.normal(size=len(outside)))])
    ins[:, 0], outs[:, 0] = 2.5, 3.5  # never all equal
    each = [placements(i, o) for i, o in zip(ins, outs, strict=True)]
    v_out, v_in = np.stack([v for v, _ in each]), np.stack([v for _, v in each])
    expected = np.cov(v_out) / outs.shape[1] + np.cov(v_in) / ins.shape[1]
    found = d.delong(ins, outs)
    np.testing.assert_allclose(found.auroc, v_out.mean(1), atol=1e-12)
    np.testing.assert_allclose(found.covariance, expected, atol=1e-12)
    np.testing.assert_allclose(found.variance, np.diag(expected), atol=1e-12)
    pair = d.delong_test(d.delong(ins[0], outs[0]), d.delong(ins[2], outs[2]))
    assert pair.difference == pytest.approx(found.auroc[0] - found.auroc[2], abs=1e-12)
    of_difference = expected[0, 0] + expected[2, 2] - 2 * expected[0, 2]
    assert pair.standard_error**2 == pytest.approx(of_difference, abs=1e-12)


def test_many_measures_at_once_are_each_alone():
    rng = np.random.default_rng(0)
    ins, outs = rng.normal(size=(2, 3, 20)), rng.normal(0.5, 1, size=(2, 3, 30))
    together = d.delong(ins, outs, larger_is_stranger=False)
    lower, upper = together.interval(level=0.9)
    for index in np.ndindex(2, 3):
        alone = d.delong(ins[index], outs[index], larger_is_stranger=False)
        assert together.auroc[index] == alone.auroc
        assert alone.auroc == pytest.approx(d.auroc(-ins[index], -outs[index]), abs=1e-12)
        assert together.variance[index] == pytest.approx(alone.variance, rel=1e-12)
        np.testing.assert_allclose((lower[index], upper[index]), alone.interval(level=0.9))


@pytest.mark.parametrize("decimals", [8, 0], ids=["distinct", "tied"])
def test_delong_variance_agrees_with_the_bootstrap(decimals):
    """The bootstrap's variance over B draws has relative error sqrt(2 / B), 0.7 % at 20,000.

    It also counts 1 / n where DeLong counts 1 / (n - 1): 0.5 % more at n = 200.
    """
    rng = np.random.default_rng(1)
    inside, outside = rng.normal(size=200).round(decimals), rng.normal(1, 1, 400).round(decimals)
    scores = d.as_scores(inside, outside)
    drawn = np.concatenate(
        [
            d.Metric().of_counts(*chunk)
            for chunk in resampled_counts(scores, num_resamples=20_000, seed=2)
        ]
    )
    assert drawn.var() / d.delong(inside, outside).variance == pytest.approx(1, abs=0.04)
    limits = d.bootstrap_interval(inside, outside, num_resamples=20_000)
    lower, upper = d.delong(inside, outside).interval()
    np.testing.assert_allclose((limits.lower, limits.upper), (lower, upper), atol=0.003)


@pytest.mark.parametrize("area", [0.7, 0.9])
def test_delong_variance_is_unbiased(area):
    """Its mean over repeated data is the variance of the AUROC, with n and m far apart."""
    rng = np.random.default_rng(3)
    repeats = 20_000
    found = d.delong(
        rng.normal(size=(repeats, 15)), distance(area) + rng.normal(size=(repeats, 60))
    )
    centred = (found.auroc - found.auroc.mean()) ** 2
    error = np.hypot(centred.std(), found.variance.std()) / np.sqrt(repeats)
    # Unbiased up to a term of order 1 / (n m), which is there by design of the estimator.
    slack = found.auroc.mean() * (1 - found.auroc.mean()) / (15 * 60)
    assert abs(found.variance.mean() - centred.mean()) < 4 * error + slack


@pytest.mark.parametrize("area", [0.7, 0.9, 0.98])
def test_logit_interval_covers_the_truth_as_often_as_it_says(area):
    """The sheet's acceptance check: 2000 data sets, m = n = 200, coverage .93 to .97."""
    rng = np.random.default_rng(4)
    inside = rng.normal(size=(2000, 200))
    outside = distance(area) + rng.normal(size=(2000, 200))
    lower, upper = d.delong(inside, outside).interval()
    assert 0.93 <= np.mean((lower <= area) & (area <= upper)) <= 0.97


@pytest.mark.parametrize("level", [0.5, 0.8, 0.99])
def test_the_level_is_the_coverage(level):
    rng = np.random.default_rng(5)
    found = d.delong(rng.normal(size=(4000, 150)), 1 + rng.normal(size=(4000, 100)))
    lower, upper = found.interval(level=level)
    truth = norm.cdf(1 / np.sqrt(2))
    error = np.sqrt(level * (1 - level) / 4000)
    assert abs(np.mean((lower <= truth) & (truth <= upper)) - level) < 4 * error


@pytest.mark.parametrize("sizes", [(5, 5), (200, 50), (3, 1000)])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_a_perfect_detector_is_not_certain(sizes, level):
    """k independent pairs all won still allow a chance p of winning with p^k = 1 - level."""
    inside, outside = np.arange(sizes[0]), 1e6 + np.arange(sizes[1])
    smallest = (1 - level) ** (1 / min(sizes))
    assert d.delong(inside, outside).interval(level=level) == (pytest.approx(smallest), 1.0)
    mirror = d.delong(inside, outside, larger_is_stranger=False).interval(level=level)
    assert mirror == (0.0, pytest.approx(1 - smallest))
    for name in ("auroc", "fpr", "aupr"):
        for positive in ("ood", "in"):
            estimate = d.bootstrap_interval(
                inside, outside, metric=d.Metric(name, positive), level=level, num_resamples=100
            )
            perfect = 0.0 if name == "fpr" else 1.0
            assert estimate.value == perfect
            assert estimate.lower < estimate.upper
            assert perfect in (estimate.lower, estimate.upper)
            if name != "aupr":
                assert estimate.upper - estimate.lower == pytest.approx(1 - smallest)


def test_average_precision_of_perfect_and_reversed_detectors_by_hand():
    """Four in, two out, level .75: k = 2, q = 1 - sqrt(.25) = .5, so two negatives may come first.

    Precision at the two positives is then 1/3 and 2/4; all four first give 1/5 and 2/6.
    """
    options = {"metric": d.Metric("aupr"), "level": 0.75, "num_resamples": 100}
    perfect = d.bootstrap_interval([0, 1, 2, 3], [8, 9], **options)
    assert perfect == pytest.approx((1, (1 / 3 + 2 / 4) / 2, 1))
    worst = d.bootstrap_interval([5, 6, 7, 8], [1, 2], **options)
    assert worst == pytest.approx(((1 / 5 + 2 / 6) / 2, (1 / 5 + 2 / 6) / 2, (1 / 3 + 2 / 4) / 2))


def test_of_copies_of_one_datum_an_average_precision_may_be_anything():
    scores = d.as_scores([1.0, 1.0, 1.0], [0.5, 2.0, 3.0], distinct=(1, 3))
    value, *ends = average_precision_interval(scores, d.Metric("aupr"), 0.95)
    assert 0 < value < 1 and ends == [0.0, 1.0]


def true_average_precision(delta, prevalence):
    """Of N(delta, 1) among N(0, 1): the precision at each positive, integrated over their law."""
    t = np.linspace(-12, 12, 20_001)
    hit, false = norm.sf(t, delta), norm.sf(t)  # by symmetry for either class
    with np.errstate(invalid="ignore"):
        precision = prevalence * hit / (prevalence * hit + (1 - prevalence) * false)
    return np.trapezoid(np.nan_to_num(precision, nan=1.0) * norm.pdf(t, delta), t)


MORE = pytest.mark.repeated("test_the_interval_of_an_average_precision_covers_it")
SIZES = [(20, 20), pytest.param((50, 50), marks=MORE), (200, 20), (20, 200)]


@pytest.mark.parametrize("delta", [0.0, pytest.param(1.0, marks=MORE), 2.5])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_interval_of_an_average_precision_covers_it(delta, sizes):
    """Nominal .95; 500 data sets, whose share has a standard error of .01.

    Percentiles of a bootstrap held .88 to .93. Wider than nominal near 0 and 1, where no interval
    claims more than independent pairs that all went one way; never as narrow as .92. What is
    missed lies on both sides: a coin's whole interval above the prevalence at most 6 % of the time.
    """
    num_in, num_out = sizes
    truth = true_average_precision(delta, num_out / (num_in + num_out))
    rng, covered, above = np.random.default_rng(6), 0, 0
    for _ in range(500):
        inside, outside = rng.normal(size=num_in), delta + rng.normal(size=num_out)
        scores = d.as_scores(inside, outside)
        (found,) = bootstrap_intervals(scores, [d.Metric("aupr")])
        covered += found.lower <= truth <= found.upper
        above += found.lower > truth
    assert covered / 500 > 0.95 - 0.015 - 3 * 0.01
    assert above / 500 < 0.06


@pytest.mark.parametrize("positive", ["ood", "in"])
@pytest.mark.parametrize("decimals", [6, 0])
def test_leaving_one_datum_out_is_what_the_sums_say(positive, decimals):
    """Against scikit-learn with the datum away and the weights of its class raised, ties too."""
    rng = np.random.default_rng(3)
    inside, outside = rng.normal(size=9).round(decimals), rng.normal(1, 1, 7).round(decimals)
    hits, others = (outside, inside) if positive == "ood" else (-inside, -outside)
    scores = d.as_scores(inside, outside)
    groups = counts(scores)
    pair = (groups[1], groups[0]) if positive == "ood" else (groups[0][::-1], groups[1][::-1])
    value, without_hit, without_other = delete_one(*pair)
    values = np.unique(np.concatenate([hits, others]))[::-1]
    labels, at = np.r_[np.ones(len(hits)), np.zeros(len(others))], np.concatenate([hits, others])
    assert value == pytest.approx(average_precision_score(labels, at))
    for i in range(len(at)):
        size = len(hits) if labels[i] else len(others)
        weights = np.where(labels == labels[i], size / (size - 1), 1.0)
        weights[i] = 0.0
        group = int(np.flatnonzero(values == at[i])[0])
        got = (without_hit if labels[i] else without_other)[group]
        assert got == pytest.approx(average_precision_score(labels, at, sample_weight=weights))


TURNED = pytest.param("in", marks=pytest.mark.repeated("test_bootstrap_intervals_cover_the_truth"))


@pytest.mark.parametrize("positive", ["ood", TURNED])
def test_bootstrap_intervals_cover_the_truth(positive):
    """200 data sets, n = 150, m = 100; nominal .95, percentile intervals fall short by a little.

    The truth of FPR comes from the two normal laws.
    """
    metric, delta = d.Metric("fpr", positive), 1.5
    truth = norm.sf(norm.isf(0.95, delta))
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(200):
        inside, outside = rng.normal(size=150), delta + rng.normal(size=100)
        found = d.bootstrap_interval(inside, outside, metric=metric, num_resamples=300)
        covered += found.lower <= truth <= found.upper
    assert abs(covered / 200 - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 200) + 0.02


def test_the_same_seed_gives_the_same_interval_and_another_gives_another():
    rng = np.random.default_rng(7)
    pair = rng.normal(size=30), 1 + rng.normal(size=30)
    first, again, other = (d.bootstrap_interval(*pair, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("delta", [-4.0, -2.5, -1.0, 0.0, 2.5, 4.0])
def test_an_interval_holds_its_own_value(delta):
    """Also where a likelihood is almost always wrong, and every resample's AUPR is a bit higher."""
    rng = np.random.default_rng(15)
    for size in (5, 40):
        found = d.detection(rng.normal(size=size), delta + rng.normal(size=size), num_resamples=200)
        for name in ("auroc", "aupr_ood", "aupr_in", "fpr_ood", "fpr_in"):
            estimate = getattr(found, name)
            assert 0 <= estimate.lower <= estimate.value <= estimate.upper <= 1
            assert estimate.lower < estimate.upper


# --- the paired test ---------------------------------------------------------------------------


APART = pytest.param(0.0, marks=pytest.mark.repeated(
    "test_paired_test_is_calibrated_when_measures_are_equally_good"
))  # fmt: skip


@pytest.mark.parametrize("correlation", [APART, 0.6])
def test_paired_test_is_calibrated_when_measures_are_equally_good(correlation):
    """4000 data sets, both AUROCs .8: p is uniform, and below .05 as often as that."""
    rng = np.random.default_rng(8)
    inside, outside = two_measures(
        rng, (0.8, 0.8), num_in=100, num_out=150, correlation=correlation, batch=(4000,)
    )
    test = d.delong_test(d.delong(inside[0], outside[0]), d.delong(inside[1], outside[1]))
    error = np.sqrt(0.05 * 0.95 / 4000)
    assert abs(np.mean(test.p_value <= 0.05) - 0.05) < 3 * error
    assert kstest(test.p_value, "uniform").pvalue > 1e-3
    assert abs(np.mean((test.lower <= 0) & (test.upper >= 0)) - 0.95) < 3 * error


def test_paired_test_has_the_power_that_its_standard_error_promises():
    """AUROC .85 against .75, n = m = 150: power = P(|N(d / se, 1)| > 1.96) within 3 s.e."""
    rng = np.random.default_rng(9)
    inside, outside = two_measures(
        rng, (0.85, 0.75), num_in=150, num_out=150, correlation=0.6, batch=(2000,)
    )
    test = d.delong_test(d.delong(inside[0], outside[0]), d.delong(inside[1], outside[1]))
    z = 0.1 / test.difference.std()
    promised = norm.sf(1.96 - z) + norm.sf(1.96 + z)
    power = np.mean(test.p_value < 0.05)
    assert promised > 0.9
    assert abs(power - promised) < 3 * np.sqrt(promised * (1 - promised) / 2000) + 0.01
    assert np.mean((test.lower <= 0.1) & (test.upper >= 0.1)) == pytest.approx(0.95, abs=0.015)


def test_pairing_pays():
    """Correlated measures have a smaller standard error of the difference than separate data."""
    rng = np.random.default_rng(10)
    inside, outside = two_measures(rng, (0.8, 0.8), num_in=300, num_out=300, correlation=0.9)
    both = d.delong(inside, outside)
    test = d.delong_test(*(d.delong(i, o) for i, o in zip(inside, outside, strict=True)))
    assert test.standard_error < 0.5 * np.sqrt(both.variance.sum())


def test_measures_that_order_the_data_alike_do_not_differ_at_all():
    rng = np.random.default_rng(11)
    inside, outside = rng.normal(size=333), 0.7 + rng.normal(size=77)
    first = d.delong(inside, outside)
    bent = d.delong(-np.exp(inside), -np.exp(outside), larger_is_stranger=False)
    test = d.delong_test(first, bent)
    assert (test.difference, test.standard_error, test.p_value) == (0, 0, 1)
    slack = 1 - 0.05 ** (1 / 77)
    assert (test.lower, test.upper) == (pytest.approx(-slack), pytest.approx(slack))


def test_always_right_against_always_wrong_is_a_sign_test():
    """No variance at all: ten pairs that all speak for the first have p = 2 / 2^10."""
    inside, outside = np.arange(10), 100 + np.arange(12)
    right, wrong = d.delong(inside, outside), d.delong(-inside, -outside)
    test = d.delong_test(right, wrong)
    assert test.difference == 1
    assert test.p_value == pytest.approx(2 / 2**10)
    assert test.upper == 1 and test.lower == pytest.approx(2 * 0.05**0.1 - 1)
    assert d.delong_test(wrong, right).p_value == test.p_value


def test_tiny_sets_prove_nothing():
    """Five against five: no outcome whatever is significant at .05."""
    rng = np.random.default_rng(12)
    inside, outside = rng.normal(size=(2, 2000, 5)), rng.normal(size=(2, 2000, 5))
    outside[0] += 5
    outside[1] -= 5
    test = d.delong_test(d.delong(inside[0], outside[0]), d.delong(inside[1], outside[1]))
    assert test.p_value.min() >= 2 / 2**5


def test_unlike_lengths_cannot_be_the_same_data():
    rng = np.random.default_rng(13)
    first = d.delong(rng.normal(size=10), rng.normal(size=10))
    for sizes in ((9, 10), (10, 11)):
        other = d.delong(rng.normal(size=sizes[0]), rng.normal(size=sizes[1]))
        with pytest.raises(ShapeError, match="paired"):
            d.delong_test(first, other)
    with pytest.raises(ShapeError, match="one batch for both"):
        d.delong(rng.normal(size=(2, 10)), rng.normal(size=(3, 10)))
    with pytest.raises(ShapeError, match="stack the measures"):
        _ = first.covariance


# --- Holm --------------------------------------------------------------------------------------


def test_holm_by_hand():
    """Sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, and never smaller than before."""
    np.testing.assert_allclose(d.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(d.holm([0.5, 0.9]), [1.0, 1.0])
    np.testing.assert_allclose(d.holm([[0.02], [0.02]]), [[0.04], [0.04]])
    assert d.holm([]).shape == (0,)
    assert d.holm([0.3]) == 0.3


@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_exactly_what_stepping_down_rejects(p):
    adjusted = d.holm(p)
    assert (adjusted >= np.array(p)).all() and (adjusted <= 1).all()
    alpha, rejected = 0.05, set()
    for step, index in enumerate(np.argsort(p, kind="stable")):
        if p[index] * (len(p) - step) > alpha:
            break
        rejected.add(int(index))
    assert {i for i, each in enumerate(adjusted) if each <= alpha} == rejected


@pytest.mark.parametrize("bad", [[0.1, np.nan], [-0.1], [1.1]])
def test_holm_refuses_what_is_no_p_value(bad):
    with pytest.raises(DataError, match="expected numbers from 0 to 1"):
        d.holm(bad)


# --- the band around a curve -------------------------------------------------------------------


@given(inside=TIED, outside=TIED)
def test_height_of_a_curve_on_a_grid_is_its_highest_point_there(inside, outside):
    grid = np.linspace(0, 1, 24)
    found = _tpr_on_grid(*counts(d.as_scores(inside, outside)), grid)
    curve = d.roc_curve(inside, outside)
    for at, height in zip(grid, found, strict=True):
        on = curve.tpr[np.isclose(curve.fpr, at, atol=1e-12)]
        expected = on.max() if on.size else np.interp(at, curve.fpr, curve.tpr)
        assert height == pytest.approx(expected, abs=1e-9)


def test_band_covers_the_true_curve_at_each_point_as_often_as_it_says():
    """300 data sets: pointwise coverage of Phi(delta + Phi^-1(fpr)), within 3 s.e. and 2 %."""
    rng = np.random.default_rng(14)
    covered = np.zeros(11)
    for _ in range(300):
        band = d.roc_band(
            rng.normal(size=120), 1 + rng.normal(size=120), num_grid=11, num_resamples=200
        )
        truth = norm.cdf(1 + norm.ppf(band.fpr))
        covered += (band.lower <= truth) & (truth <= band.upper)
    inner = covered[1:8] / 300
    assert np.abs(inner - 0.95).max() < 3 * np.sqrt(0.95 * 0.05 / 300) + 0.02


def test_band_of_a_perfect_curve_is_not_certain():
    inside, outside = np.arange(40.0), 100 + np.arange(60.0)
    band = d.roc_band(inside, outside, num_resamples=100)
    assert band.lower[:-1] == pytest.approx(0.05 ** (1 / 40))
    assert (band.upper == 1).all() and band.lower[-1] == 1
    mirror = d.roc_band(inside, outside, num_resamples=100, larger_is_stranger=False)
    assert mirror.upper[:-1] == pytest.approx(1 - 0.05 ** (1 / 40))
    assert (mirror.lower[:-1] == 0).all() and mirror.upper[-1] == 1
