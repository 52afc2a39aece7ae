"""Small, saturated and copied sets: intervals that claim no more than the data allow; options."""

import numpy as np
import pytest
from scipy.stats import norm

import probgen as pg
from probgen.errors import (
    AlgorithmError,
    DataError,
    DeclarationError,
    MissingSeed,
    ShapeError,
    UnknownName,
)
from probgen.evaluation import detection as d
from probgen.evaluation.detection.delong import chance_test

REPEATS = 3000


def draws(rng, area, num_in, num_out, *, spread=1.0, repeats=REPEATS):
    """Normal scores (in [repeats, n], out [repeats, m]) of that AUROC."""
    shift = np.sqrt(1 + spread**2) * norm.ppf(area)
    inside = rng.normal(size=(repeats, num_in))
    return inside, shift + spread * rng.normal(size=(repeats, num_out))


# --- coverage ----------------------------------------------------------------------------------


FEW = [(2, 2), (5, 5), (200, 2), (200, 3), (200, 5)]
MORE = [
    pytest.param(sizes, marks=pytest.mark.repeated(
        "test_an_interval_covers_the_truth_however_few_the_data"
    )) for sizes in ((10, 10), (50, 50), (200, 10))
]  # fmt: skip


@pytest.mark.parametrize("sizes", [*FEW, *MORE])
@pytest.mark.parametrize("area", [0.5, 0.76, 0.95])
@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_an_interval_covers_the_truth_however_few_the_data(sizes, area, spread):
    """3000 data sets: coverage of .95 at least; at .5 neither side is missed more than in 2.5 %.

    Of the normal law without a floor: .70 at (200, 2), .82 at (200, 3).
    """
    rng = np.random.default_rng(sum(sizes))
    lower, upper = d.delong(*draws(rng, area, *sizes, spread=spread)).interval()
    assert np.mean((lower <= area) & (area <= upper)) > 0.95 - 3 * np.sqrt(0.95 * 0.05 / REPEATS)
    if area == 0.5:
        most = 0.025 + 3 * np.sqrt(0.025 * 0.975 / REPEATS)
        assert np.mean(lower > 0.5) < most and np.mean(upper < 0.5) < most


@pytest.mark.parametrize("sizes", [(200, 2), (200, 3), (10, 10), (200, 10)])
def test_of_few_data_a_claim_is_made_no_more_often_than_it_may(sizes):
    rng = np.random.default_rng(3)
    found = d.delong(*draws(rng, 0.5, *sizes))
    above, below = chance_test(found)
    most = 0.025 + 3 * np.sqrt(0.025 * 0.975 / REPEATS)
    assert np.mean(above <= 0.025) < most and np.mean(below <= 0.025) < most
    other = d.delong(*draws(rng, 0.5, *sizes))
    differ = d.delong_test(found, other)
    assert np.mean(differ.p_value <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / REPEATS)
    covered = np.mean((differ.lower <= 0) & (differ.upper >= 0))
    assert covered > 0.95 - 3 * np.sqrt(0.95 * 0.05 / REPEATS)


@pytest.mark.parametrize("sizes", [(100, 100), (30, 12), (5, 400)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_who_loses_a_pair_is_not_surer_for_it(sizes, level):
    """From perfect separation, one neighbouring pair after another swapped: both limits fall."""
    order = np.r_[np.zeros(sizes[0]), np.ones(sizes[1])]
    ends = []
    for step in range(4):
        at = np.arange(len(order), dtype=float)
        found = d.delong(at[order == 0], at[order == 1])
        estimate = d.bootstrap_interval(
            at[order == 0], at[order == 1], level=level, num_resamples=200
        )
        mirror = d.delong(at[order == 0], at[order == 1], larger_is_stranger=False)
        lower, upper = found.interval(level=level)
        ends.append((lower, upper, estimate.lower, estimate.upper))
        np.testing.assert_allclose(mirror.interval(level=level), (1 - upper, 1 - lower))
        first = np.flatnonzero(order)[0]  # the lowest out datum goes below one more in datum
        order[first - step - 1], order[first] = 1, order[first - step - 1]
    assert (np.diff(np.array(ends), axis=0) <= 1e-12).all()
    assert ends[0][0] == pytest.approx((1 - level) ** (1 / min(sizes)))


def test_tied_and_saturated_sets_have_no_interval_of_zero_width():
    """80 copies of 39 below everything: AUPR 80 / 160; q = 1 - .05^(1/80) of the ins above less."""
    inside = np.random.default_rng(0).normal(size=80) + 100
    for low, high in ((inside, np.full(80, 39.0)), (np.full(80, 39.0), inside),
                      (np.full(5, 1.0), np.full(9, 0.0))):  # fmt: skip
        found = d.detection(low, high, num_resamples=100)
        for name in ("auroc", "aupr_ood", "aupr_in", "fpr_ood", "fpr_in"):
            estimate = getattr(found, name)
            assert estimate.lower < estimate.upper, name
            assert estimate.lower <= estimate.value <= estimate.upper
    share = 0.05 ** (1 / 80)
    found = d.detection(inside, np.full(80, 39.0), num_resamples=100)
    assert found.aupr_ood == pytest.approx((0.5, 0.5, 80 / (80 + share * 80)))


# --- copies ------------------------------------------------------------------------------------


def test_copies_keep_their_weight_and_count_once():
    """Each of 12 out data five times: the interval of the 12, at the same AUROC."""
    rng = np.random.default_rng(1)
    inside, few = rng.normal(size=90), 0.8 + rng.normal(size=12)
    once = d.delong(inside, few)
    many = d.delong(inside, np.repeat(few, 5), distinct=(90, 12))
    assert many.auroc == pytest.approx(once.auroc)
    assert many.variance == pytest.approx(once.variance)
    np.testing.assert_allclose(many.interval(), once.interval())
    np.testing.assert_allclose(chance_test(many), chance_test(once))
    both = d.delong(np.stack([inside, -inside]), np.stack([np.repeat(few, 5)] * 2),
                    distinct=(90, 12))  # fmt: skip
    np.testing.assert_allclose(np.diag(both.covariance), both.variance)
    unaware = np.diff(d.delong(inside, np.repeat(few, 5)).interval())
    assert np.diff(many.interval()) > 1.3 * unaware


def test_copies_widen_the_bootstrap_as_fewer_data_do():
    """sd of AUPR of 20 distinct out data, each five times, is that of 20 and not of 100."""
    rng = np.random.default_rng(2)
    inside, few = rng.normal(size=100), 1 + rng.normal(size=20)
    scores = d.as_scores(inside, np.repeat(few, 5), distinct=(100, 20))
    from probgen.evaluation.detection.intervals import bootstrap_intervals

    for metric in (d.Metric("auroc"), d.Metric("aupr"), d.Metric("fpr", "in")):
        (told,) = bootstrap_intervals(scores, [metric], num_resamples=2000)
        alone = d.bootstrap_interval(inside, np.repeat(few, 5), metric=metric)
        assert told.value == alone.value
        assert told.upper - told.lower > 1.3 * (alone.upper - alone.lower)
    band, narrow = (d.roc_band(inside, np.repeat(few, 5), distinct=each, num_resamples=500)
                    for each in ((100, 20), None))  # fmt: skip
    assert (band.upper - band.lower).mean() > 1.3 * (narrow.upper - narrow.lower).mean()


def test_one_datum_alone_says_nothing():
    rng = np.random.default_rng(3)
    inside = rng.normal(size=50)
    found = d.delong(inside, np.full(60, 0.3), distinct=(50, 1))
    assert found.interval() == (0.0, 1.0)
    assert min(chance_test(found)) == 0.5
    apart = d.delong(inside, np.full(60, 99.0), distinct=(50, 1))
    assert apart.interval() == (pytest.approx(0.05), 1.0)
    assert d.delong_test(apart, found).p_value == 1.0


def test_of_a_table_with_few_distinct_data_nothing_is_claimed():
    rng = np.random.default_rng(4)
    inside = {m: rng.normal(size=60) for m in "ab"}
    values = {m: {"far": 50 + rng.normal(size=60), "copies": np.repeat([60.0, 70.0], 30)}
              for m in "ab"}  # fmt: skip
    values["b"]["far"] = rng.normal(size=60)
    measures = {m: (inside[m], values[m]) for m in "ab"}
    table = d.compare(measures, num_distinct=(None, {"copies": 2}), num_resamples=100)
    assert table.verdict("far").winner == "a"
    assert table.verdict("copies") == d.Verdict("copies", "a", None, (), False)
    assert table.cell("a", "copies").auroc == (1.0, pytest.approx(0.05**0.5), 1.0)
    text = " ".join(repr(table).split())
    assert "copies (60 in, 60 (2 distinct) out)" in text
    assert "too few for a verdict: copies" in text and "chance on" not in text
    unaware = d.compare(measures, num_resamples=100)
    assert "a on copies: only 2 distinct scores among 60 out-of-distribution data" in " ".join(
        repr(unaware).split())  # fmt: skip
    assert "far: only" not in repr(unaware)
    assert "2 distinct scores" in repr(d.detection(inside["a"], values["a"]["copies"]))
    assert unaware.to_dict()["detections"][1]["notes"] == list(unaware.cell("a", "copies").notes)


@pytest.mark.parametrize("size, claims", [(9, False), (10, True)])
def test_nine_data_are_too_few_and_ten_are_not(size, claims):
    x = np.arange(40.0)
    table = d.compare({"m": (x, {"s": 100 + x[:size]})}, num_resamples=100)
    assert table.verdict("s").beats_chance is claims


# --- tables of `evaluate` ----------------------------------------------------------------------


def evaluation(values, larger=True):
    return pg.Evaluation.from_values(
        {m: {"estimate": v} for m, v in values.items()},
        units=dict.fromkeys(values, "nats"),
        larger_is_stranger=dict.fromkeys(values, larger),
    )


def test_tables_are_compared_as_their_scores_are():
    rng = np.random.default_rng(5)
    own = evaluation({"elbo": rng.normal(size=50), "nll": rng.normal(size=50)}, larger=False)
    far = evaluation({"nll": rng.normal(-1, 1, 40), "elbo": rng.normal(-2, 1, 40)}, larger=False)
    found = d.compare(own, {"far": far}, num_resamples=100)
    by_hand = {m: (own.strangeness(m), {"far": far.strangeness(m)}) for m in own.names}
    assert found.to_dict() == d.compare(by_hand, num_resamples=100).to_dict()
    assert found.cell("elbo", "far").auroc.value > 0.8


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda t: d.compare(t), "got no table for the other data sets"),
        (lambda t: d.compare(t, t), "compare: got out_tables="),
        (
            lambda t: d.compare(t, {"s": t, "o": 3}),
            "out_tables=.*: <Evaluation>, 'o': 3.*each entry an Eval",
        ),
        (lambda t: d.compare(t, {"s": evaluation({"k": np.arange(4.0)})}), r"measures \['k'\]"),
        (lambda t: d.compare({"m": 1}, {"s": t}), "got dict and a second argument"),
        (lambda t: d.compare(t, {"s": t}, larger_is_stranger=False), "beside an Evaluation"),
        (lambda t: d.compare([t]), "compare: got measures=.*expected a Mapping"),
        (lambda t: d.roc_figure(t), "roc_figure: got measures=.*expected a Mapping"),
    ],
)
def test_tables_that_cannot_be_compared_are_refused(call, says):
    with pytest.raises((AlgorithmError, DeclarationError), match=says):
        call(evaluation({"m": np.arange(4.0)}))
    with pytest.raises(DataError, match="at least one"):
        d.compare(evaluation({"m": np.arange(4.0)}), {})


# --- options -----------------------------------------------------------------------------------

X, Y = np.arange(20.0), 5 + np.arange(20.0)
PAIR = {"m": (X, {"s": Y})}


@pytest.mark.parametrize(
    "call, says",
    [
        (
            lambda: d.detection(X, Y, num_resamples=1e3),
            "got num_resamples=1000.0, expected a whole number",
        ),
        (lambda: d.bootstrap_interval(X, Y, num_resamples=True), "got num_resamples=True"),
        (lambda: d.detection(X, Y, level="0.95"), "got level='0.95', expected a finite number in"),
        (lambda: d.compare(PAIR, alpha=None), "got alpha=None"),
        (lambda: d.fpr_at_tpr(X, Y, tpr="95"), "got tpr='95'"),
        (
            lambda: d.bootstrap_interval(X, Y, metric="auroc"),
            "got metric='auroc', expected a Metric",
        ),
        (lambda: d.delong_test(X, Y), "delong_test: got first=.*expected a DeLong"),
        (
            lambda: d.between_runs(d.compare(PAIR, num_resamples=100)),
            "got tables=<Det",
        ),
        (lambda: d.between_runs([1, 2]), r"got tables=\[1, 2\], expected"),
        (lambda: d.auroc(X, Y, larger_is_stranger="no"), "got larger_is_stranger='no'"),
        (lambda: d.delong(X, Y, larger_is_stranger=0), "got larger_is_stranger=0"),
        (lambda: d.compare(PAIR, larger_is_stranger="no"), "got larger_is_stranger='no'"),
        (lambda: d.compare(PAIR, larger_is_stranger={"m": "no"}), "got larger_is_stranger=.*'no'"),
        (lambda: d.delong(X, Y, distinct=(20, 21)), r"distinct: got \(20, 21\)"),
        (lambda: d.delong(X, Y, distinct=2), "got distinct=2, expected a tuple of 2"),
        (lambda: d.compare(PAIR, num_distinct={"s": 2}), "got num_distinct=.*expected a tuple"),
        (lambda: d.compare(PAIR, num_distinct=(0, {})), r"got num_distinct=\(0, \{\}\), expected"),
    ],
)
def test_an_option_of_the_wrong_kind_is_one_clear_error(call, says):
    with pytest.raises((AlgorithmError, DeclarationError), match=says):
        call()


@pytest.mark.parametrize("seed", [-1, None, 0.5, True])
def test_a_seed_is_an_integer_that_is_given(seed):
    for call in (d.detection, d.roc_band):
        with pytest.raises(MissingSeed, match="expected an integer"):
            call(X, Y, seed=seed)


def test_names_and_axes_that_do_not_fit_are_told_as_they_are():
    with pytest.raises(UnknownName, match="got the set 't'"):
        d.compare(PAIR, num_distinct=(None, {"t": 2}))
    with pytest.raises(DataError, match=r"1 of them on the last axis of shape \(20, 1\)"):
        d.delong(X[:, None], Y)
    with pytest.raises(ShapeError, match="one batch"):
        d.delong(X[None], Y)
