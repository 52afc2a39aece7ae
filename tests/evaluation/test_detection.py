"""Detection metrics against scikit-learn and against counting every pair; what the door refuses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from probgen.errors import AlgorithmError, DataError, DeclarationError, ShapeError
from probgen.evaluation import detection as d
from probgen.evaluation.detection.counts import counts, resampled_counts

# Few distinct values, so that ties within and between the sets are the rule.
TIED = st.lists(st.integers(0, 6).map(float) | st.sampled_from([np.inf, -np.inf]), min_size=2)


def pairs_won(inside, outside):
    """AUROC by the definition: every pair looked at."""
    wins = sum((o > i) + 0.5 * (o == i) for o in outside for i in inside)
    return wins / (len(inside) * len(outside))


def sk(inside, outside, positive="ood"):
    """Labels and scores as scikit-learn wants them; infinities become the outermost numbers."""
    labels = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
    values = np.clip(np.r_[inside, outside], -1e6, 1e6)
    return (labels, values) if positive == "ood" else (1 - labels, -values)


@given(inside=TIED, outside=TIED)
def test_auroc_is_the_share_of_pairs_won_ties_counting_one_half(inside, outside):
    expected = pairs_won(inside, outside)
    assert d.auroc(inside, outside) == pytest.approx(expected, abs=1e-12)
    assert metrics.roc_auc_score(*sk(inside, outside)) == pytest.approx(expected, abs=1e-12)
    if len({*inside, *outside}) > 1:
        assert d.delong(inside, outside).auroc == pytest.approx(expected, abs=1e-12)
        estimate = d.bootstrap_interval(inside, outside, num_resamples=100)
        assert estimate.value == pytest.approx(expected, abs=1e-12)


@given(inside=TIED, outside=TIED, positive=st.sampled_from(["ood", "in"]))
def test_average_precision_is_scikit_learns_for_either_class(inside, outside, positive):
    expected = metrics.average_precision_score(*sk(inside, outside, positive))
    assert d.average_precision(inside, outside, positive=positive) == pytest.approx(expected)
    pair = d.as_scores(inside, outside)
    counted = d.Metric("aupr", positive).of_counts(*counts(pair))
    assert counted == pytest.approx(expected, abs=1e-12)


def fpr_by_trying_every_threshold(inside, outside, tpr, positive):
    hit, other = (outside, inside) if positive == "ood" else (-inside, -outside)
    reached = [t for t in np.r_[hit, other] if np.mean(hit >= t) >= tpr]
    return np.mean(other >= max(reached))


@given(
    inside=TIED, outside=TIED, tpr=st.sampled_from([0.05, 0.5, 0.8, 0.95, 0.99]),
    positive=st.sampled_from(["ood", "in"]),
)  # fmt: skip
def test_fpr_is_read_at_the_largest_threshold_that_reaches_the_tpr(inside, outside, tpr, positive):
    expected = fpr_by_trying_every_threshold(np.array(inside), np.array(outside), tpr, positive)
    found = d.fpr_at_tpr(inside, outside, tpr=tpr, positive=positive)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [20, 40, 60, 100, 500, 2000])
def test_exactly_95_of_100_positives_are_enough(size):
    """m TPR = .95 m is reached, in floating point too; one positive fewer would not do."""
    outside = np.arange(size, dtype=float)
    threshold = outside[size - round(0.95 * size)]
    inside = np.array([threshold - 0.5, threshold + 0.5])
    assert d.fpr_at_tpr(inside, outside) == 0.5


@given(inside=TIED, outside=TIED, positive=st.sampled_from(["ood", "in"]))
def test_points_of_a_roc_curve_are_the_rates_at_their_thresholds(inside, outside, positive):
    inside, outside = np.array(inside), np.array(outside)
    for larger in (True, False):
        curve = d.roc_curve(inside, outside, positive=positive, larger_is_stranger=larger)
        up = larger == (positive == "ood")  # positive is what lies above the threshold
        hit, other = (outside, inside) if positive == "ood" else (inside, outside)
        for fpr, tpr, t in list(zip(curve.fpr, curve.tpr, curve.thresholds, strict=True))[1:]:
            assert fpr == pytest.approx(np.mean(other >= t if up else other <= t))
            assert tpr == pytest.approx(np.mean(hit >= t if up else hit <= t))
        assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)
        area = np.trapezoid(curve.tpr, curve.fpr)
        assert area == pytest.approx(d.auroc(inside, outside, larger_is_stranger=larger))


@given(inside=TIED, outside=TIED, positive=st.sampled_from(["ood", "in"]))
def test_points_of_a_pr_curve_are_precision_and_recall_at_their_thresholds(
    inside, outside, positive
):
    inside, outside = np.array(inside), np.array(outside)
    curve = d.pr_curve(inside, outside, positive=positive)
    hit, other = (outside, inside) if positive == "ood" else (-inside, -outside)
    for p, r, t in zip(curve.precision, curve.recall, curve.thresholds, strict=False):
        level = t if positive == "ood" else -t
        hits, false = np.sum(hit >= level), np.sum(other >= level)
        assert r == pytest.approx(hits / len(hit))
        assert p == pytest.approx(hits / (hits + false))
    assert curve.prevalence == len(hit) / (len(hit) + len(other))


@given(inside=TIED, outside=TIED)
def test_only_the_order_of_scores_counts_and_turning_twice_changes_nothing(inside, outside):
    inside, outside = np.clip(inside, -9, 9), np.clip(outside, -9, 9)
    bent, other = np.exp(inside), np.exp(outside)
    for metric in (d.auroc, d.average_precision, d.fpr_at_tpr):
        value = metric(inside, outside)
        assert metric(bent, other) == value
        assert metric(-inside, -outside, larger_is_stranger=False) == value
    assert d.auroc(outside, inside) == pytest.approx(1 - d.auroc(inside, outside))


def test_the_two_sides_of_fpr_and_precision_are_each_others_mirror():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=50), rng.normal(1, 2, size=80)
    for metric in (d.average_precision, d.fpr_at_tpr):
        assert metric(inside, outside, positive="in") == metric(-outside, -inside)
        assert metric(inside, outside, positive="in") != metric(inside, outside)


def test_constant_scores_have_an_auroc_of_one_half_and_no_interval():
    """An exact linear encoder gives every datum one likelihood regret: it knows nothing."""
    same = np.full(5, 1.176)
    assert d.auroc(same, same) == 0.5
    assert d.fpr_at_tpr(same, same) == 1.0
    assert d.average_precision(same, same) == 0.5
    for refuses in (
        lambda: d.delong(same, same),
        lambda: d.bootstrap_interval(same, same),
        lambda: d.detection(same, same),
        lambda: d.roc_band(same, same),
        lambda: d.delong(np.stack([np.arange(5), same]), np.stack([np.arange(5), same])),
    ):
        with pytest.raises(DataError, match=r"got 1\.176 for every datum"):
            refuses()
    # Constant within each set, but not over both, is a detector that never errs.
    assert d.delong(same, same + 1).auroc == 1


GOOD = np.array([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    "bad, error, says",
    [
        ([], DataError, "got 0 of them, expected at least 2"),
        ([1.0], DataError, "got 1 of them, expected at least 2"),
        ([1.0, np.nan, 3.0, np.nan], DataError, r"got NaN in 2 of 4 places \(index 1, 3\)"),
        (np.full(9, np.nan), DataError, r"NaN in 9 of 9 places \(index 0, 1, 2, 3, 4, \.\.\.\)"),
        (np.ones((3, 1)), ShapeError, r"got shape \(3, 1\), expected \[size\]"),
        (3.0, ShapeError, r"got shape \(\)"),
        (["a", "b"], DataError, "no array of real numbers"),
        ([1j, 2j], DataError, "no array of real numbers"),
        ([[1.0], [1.0, 2.0]], DataError, "no array of real numbers"),
        (None, DataError, "no array of real numbers"),
    ],
)
@pytest.mark.parametrize("side", ["in-distribution", "out-of-distribution"])
def test_bad_scores_are_one_clear_error_everywhere(bad, error, says, side):
    pair = (bad, GOOD) if side == "in-distribution" else (GOOD, bad)
    doors = [
        d.as_scores, d.auroc, d.average_precision, d.fpr_at_tpr, d.roc_curve, d.pr_curve,
        d.roc_band, d.bootstrap_interval, d.detection,
        lambda i, o: d.compare({"nll": (i, {"letters": o})}),
        lambda i, o: d.histogram_figure(i, {"letters": o}),
        lambda i, o: d.roc_figure({"nll": (i, {"letters": o})}),
    ]  # fmt: skip
    if error is DataError:  # one that takes batches
        doors.append(d.delong)
    for door in doors:
        with pytest.raises(error, match=says) as caught:
            door(*pair)
        assert side in str(caught.value)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: d.average_precision(GOOD, GOOD, positive="out"), "expected one of 'ood', 'in'"),
        (lambda: d.roc_curve(GOOD, GOOD, positive="1"), "expected one of 'ood', 'in'"),
        (lambda: d.fpr_at_tpr(GOOD, GOOD, tpr=95), "got tpr=95"),
        (lambda: d.Metric("auc"), "got kind='auc'"),
        (lambda: d.delong(GOOD, GOOD).interval(level=95), "got level=95"),
        (lambda: d.bootstrap_interval(GOOD, GOOD, level=1.0), "got level=1.0"),
        (lambda: d.bootstrap_interval(GOOD, GOOD, num_resamples=10), "at least 100"),
        (lambda: d.roc_band(GOOD, GOOD, level=0), "got level=0"),
    ],
)
def test_options_outside_their_range_are_refused(call, says):
    with pytest.raises((AlgorithmError, DeclarationError), match=says):
        call()


def test_whole_numbers_booleans_and_tensors_are_scores_too():
    torch = pytest.importorskip("torch")
    inside, outside = [0, 1, 0], [True, True, False]
    expected = d.auroc(np.array(inside, float), np.array(outside, float))
    assert d.auroc(inside, outside) == expected
    assert d.auroc(torch.tensor(inside), torch.tensor(outside)) == expected


def test_resamples_keep_each_sets_size_and_draw_every_datum_alike():
    """Counts of a datum are Binomial(n, 1/n): mean 1, variance 1 - 1/n, within 5 s.e."""
    num_in, num_out, draws = 7, 11, 20_000
    scores = d.as_scores(np.arange(num_in), 100.0 + np.arange(num_out))
    chunks = list(resampled_counts(scores, num_resamples=draws, seed=3))
    in_drawn = np.concatenate([each[0] for each in chunks])
    out_drawn = np.concatenate([each[1] for each in chunks])
    assert in_drawn.shape == out_drawn.shape == (draws, num_in + num_out)
    assert (in_drawn.sum(1) == num_in).all() and (out_drawn.sum(1) == num_out).all()
    assert not in_drawn[:, :num_out].any()  # the strangest first: the out data
    for drawn, size in ((in_drawn[:, num_out:], num_in), (out_drawn[:, :num_out], num_out)):
        error = np.sqrt((1 - 1 / size) / draws)
        assert np.abs(drawn.mean(0) - 1).max() < 5 * error
        assert np.abs(drawn.var(0) - (1 - 1 / size)).max() < 5 * np.sqrt(3 / draws)


@given(inside=TIED, outside=TIED, seed=st.integers(0, 99))
def test_metrics_of_a_resample_are_scikit_learns_on_the_resampled_data(inside, outside, seed):
    scores = d.as_scores(inside, outside)
    values = np.arange(len(scores.groups()[2]))[::-1]
    in_counts, out_counts = next(iter(resampled_counts(scores, num_resamples=100, seed=seed)))
    for in_row, out_row in zip(in_counts[:3], out_counts[:3], strict=True):
        new_in, new_out = np.repeat(values, in_row), np.repeat(values, out_row)
        for positive in ("ood", "in"):
            found = [
                d.Metric(kind, positive).of_counts(in_row, out_row)
                for kind in ("auroc", "aupr", "fpr")
            ]
            expected = [
                metrics.roc_auc_score(*sk(new_in, new_out, positive)),
                metrics.average_precision_score(*sk(new_in, new_out, positive)),
                fpr_by_trying_every_threshold(new_in, new_out, 0.95, positive),
            ]
            np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_two_sets_are_resampled_independently():
    """Counts of any in datum and any out datum have covariance 0, within 5 s.e. = 5 / sqrt(B)."""
    size, draws = 6, 20_000
    scores = d.as_scores(np.arange(size), 100.0 + np.arange(size))
    chunks = list(resampled_counts(scores, num_resamples=draws, seed=0))
    in_drawn = np.concatenate([each[0][:, size:] for each in chunks])
    out_drawn = np.concatenate([each[1][:, :size] for each in chunks])
    covariance = (in_drawn - 1).T @ (out_drawn - 1) / draws
    assert np.abs(covariance).max() < 5 / np.sqrt(draws)
