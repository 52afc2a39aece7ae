"""Tables of measures and data sets: a winner only where it is significant, and what gets printed.

Figures are read back: their artists, what lies inside the page, and text that a phone can show.
"""

import json

import numpy as np
import pytest
from scipy.stats import norm

from probgen.errors import AlgorithmError, DataError, DeclarationError, ShapeError, UnknownName
from probgen.evaluation import detection as d
from probgen.evaluation.detection.figures import shared_edges
from probgen.evaluation.detection.records import shown


def measures_of(rng, areas, sets, *, size=60, correlation=0.5):
    """{measure: (in, {set: out})} with the given AUROCs [measures][sets] on common data."""
    mix = np.sqrt([1 - correlation, correlation])
    common_in, common_out = rng.normal(size=size), rng.normal(size=(len(sets), size))
    found = {}
    for name, row in areas.items():
        outside = {
            each: np.sqrt(2) * norm.ppf(area) + mix[0] * rng.normal(size=size) + mix[1] * common
            for each, area, common in zip(sets, row, common_out, strict=True)
        }
        found[name] = (mix[0] * rng.normal(size=size) + mix[1] * common_in, outside)
    return found


@pytest.fixture(scope="module")
def measures():
    """Regret is best on black, ties with complexity on letters; nothing finds the patches."""
    rng = np.random.default_rng(0)
    areas = {
        "regret": (0.9, 0.97, 0.5), "complexity": (0.9, 0.7, 0.5), "nll": (0.4, 0.05, 0.5),
    }  # fmt: skip
    return measures_of(rng, areas, ("letters", "black", "patches"), size=300)


@pytest.fixture(scope="module")
def table(measures):
    return d.compare(measures, num_resamples=200)


# --- who wins ----------------------------------------------------------------------------------


@pytest.mark.repeated("test_verdicts_follow_from_the_comparisons_of_the_table")
@pytest.mark.parametrize("num_measures, num_sets", [(2, 5), (4, 1)])
def test_equally_good_measures_have_a_winner_in_at_most_5_of_100_tables(num_measures, num_sets):
    """Without Holm's correction two measures on five sets would have one in 1 - .95^5 = 23 %."""
    rng = np.random.default_rng(1)
    names, sets = [f"m{i}" for i in range(num_measures)], [f"s{i}" for i in range(num_sets)]
    won, repeats = 0, 100
    for _ in range(repeats):
        same = measures_of(rng, {each: (0.8,) * num_sets for each in names}, sets)
        found = d.compare(same, num_resamples=100)
        won += any(each.winner for each in found.verdicts)
    assert won / repeats < 0.05 + 3 * np.sqrt(0.05 * 0.95 / repeats)


def test_a_clearly_better_measure_wins_and_names_nobody_beside_it():
    rng = np.random.default_rng(2)
    for _ in range(8):
        found = d.compare(
            measures_of(rng, {"a": (0.7,), "b": (0.95,), "c": (0.7,)}, ("s",), size=200),
            num_resamples=100,
        )
        verdict = found.verdict("s")
        assert (verdict.best, verdict.winner, verdict.tied) == ("b", "b", ())


def test_two_good_measures_hide_each_others_victory_over_the_third():
    """The best must beat EVERY other; being far above one of them is not enough."""
    rng = np.random.default_rng(3)
    areas = {"a": (0.9,), "b": (0.9,), "c": (0.4,)}
    found = d.compare(measures_of(rng, areas, ("s",), size=300), num_resamples=100)
    assert found.verdict("s").winner is None
    assert found.verdict("s").tied == ("a", "b")


def test_verdicts_follow_from_the_comparisons_of_the_table(table):
    """Every pair on every set is one comparison, and Holm's correction is over all of them."""
    assert len(table.comparisons) == 3 * 3
    raw = [each.p_value for each in table.comparisons]
    np.testing.assert_allclose([each.p_holm for each in table.comparisons], d.holm(raw))
    for each in table.comparisons:
        areas = [table.cell(m, each.data_set).auroc.value for m in (each.first, each.second)]
        assert each.difference.value == pytest.approx(areas[0] - areas[1], abs=1e-12)
    for verdict in table.verdicts:
        areas = {m: table.cell(m, verdict.data_set).auroc.value for m in table.measures}
        assert verdict.best == max(areas, key=areas.get)
        p = {
            ({c.first, c.second} - {verdict.best}).pop(): c.p_holm
            for c in table.comparisons
            if c.data_set == verdict.data_set and verdict.best in (c.first, c.second)
        }
        rivals = {m for m in p if p[m] > table.alpha}
        assert (verdict.winner is None) == bool(rivals or not verdict.beats_chance)
        if rivals:
            assert set(verdict.tied) == rivals | {verdict.best}
    assert table.verdict("black").winner == "regret"
    assert table.verdict("letters").tied == ("regret", "complexity")
    assert table.verdict("patches").winner is None


def test_the_best_of_measures_worse_than_chance_has_not_won():
    rng = np.random.default_rng(4)
    found = d.compare(
        measures_of(rng, {"a": (0.4,), "b": (0.05,)}, ("s",), size=300), num_resamples=100
    )
    assert found.comparisons[0].p_holm < 1e-6
    assert found.verdict("s") == d.Verdict("s", "a", None, ("a",), False)
    said = "no measure is shown to be better than chance on: s"
    assert said in " ".join(repr(found).split())
    assert "*" not in repr(found).splitlines()[1] and "~" not in repr(found)


def test_one_measure_alone_wins_nothing():
    rng = np.random.default_rng(5)
    found = d.compare(measures_of(rng, {"a": (0.9,)}, ("s",)), num_resamples=100)
    assert found.comparisons == () and found.verdict("s").winner is None
    assert "Holm" not in repr(found)


def test_direction_is_turned_for_the_measure_that_asks_for_it(measures):
    inside, sets = measures["nll"]
    turned = {**measures, "nll": (-inside, {k: -v for k, v in sets.items()})}
    plain = d.compare(measures, num_resamples=100)
    other = d.compare(turned, larger_is_stranger={"nll": False}, num_resamples=100)
    for name in ("auroc", "aupr_ood", "aupr_in", "fpr_ood", "fpr_in"):
        for each in plain.data_sets:
            assert getattr(plain.cell("nll", each), name) == getattr(other.cell("nll", each), name)
    assert other.comparisons == plain.comparisons
    assert "smaller = stranger, turned round here: nll" in repr(other)
    assert not other.cell("nll", "black").larger_is_stranger


def test_a_cell_is_what_the_single_functions_say(measures):
    inside, sets = measures["regret"]
    found = d.detection(inside, sets, name="regret", num_resamples=200, seed=3)
    assert list(found) == list(sets)
    cell, outside = found["letters"], sets["letters"]
    assert cell.auroc.value == pytest.approx(d.auroc(inside, outside), abs=1e-12)
    np.testing.assert_allclose(cell.auroc[1:], d.delong(inside, outside).interval())
    for positive in ("ood", "in"):
        aupr, fpr = getattr(cell, f"aupr_{positive}"), getattr(cell, f"fpr_{positive}")
        expected = d.average_precision(inside, outside, positive=positive)
        assert aupr.value == pytest.approx(expected, abs=1e-12)
        assert fpr.value == d.fpr_at_tpr(inside, outside, positive=positive)
        assert aupr == d.bootstrap_interval(
            inside, outside, metric=d.Metric("aupr", positive), num_resamples=200, seed=3
        )
    one = d.detection(inside, outside[:100], num_resamples=200, tpr=0.8)
    assert (one.num_in, one.num_out) == (300, 100)
    assert (one.prevalence_ood, one.prevalence_in) == (0.25, 0.75)
    assert one.fpr_in.value == d.fpr_at_tpr(inside, outside[:100], tpr=0.8, positive="in")
    assert "FPR at 80 % TPR, in positive" in repr(one) and "baseline 0.250" in repr(one)


# --- what is printed and stored ----------------------------------------------------------------


def test_the_printed_table_is_aligned_and_says_what_it_means(table):
    lines = repr(table).splitlines()
    head, regret, complexity, nll = lines[:4]
    for data_set in table.data_sets:
        column = head.index(data_set)
        for measure, line in (("regret", regret), ("complexity", complexity), ("nll", nll)):
            cell = table.cell(measure, data_set).auroc
            limits = f"{shown(cell.value)} [{shown(cell.lower)}, {shown(cell.upper)}]"
            assert line[column:].startswith(f"{limits} {table.mark(measure, data_set)}".rstrip())
    text = " ".join(repr(table).split())
    assert max(map(len, repr(table).splitlines())) <= 100
    assert "95 % intervals" in text and "OOD positive" in text
    assert "n = 300 in distribution, 300 out of it, on every set" in text
    assert "Holm's correction over all 9 comparisons" in text


def test_many_data_sets_are_printed_in_blocks_and_unequal_sizes_said():
    rng = np.random.default_rng(6)
    inside = rng.normal(size=20)
    sets = {f"set number {i}": 1 + rng.normal(size=20 + i) for i in range(6)}
    text = repr(d.compare({"regret": (inside, sets)}, num_resamples=100))
    assert max(map(len, text.splitlines())) <= 100
    for i in range(6):
        assert f"set number {i} (20 in, {20 + i} out)" in text
    assert "average precisions are not comparable" in text


@pytest.mark.parametrize(
    "value, text",
    [(1.0, "1.000"), (0.99951, ">.999"), (0.9994, "0.999"), (0.0, "0.000"), (0.0004, "<.001")],
)
def test_only_an_exact_one_is_printed_as_one(value, text):
    assert shown(value) == text


def test_markdown_has_a_bold_winner_and_as_many_cells_in_every_row(table):
    lines = table.to_markdown().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert {row.count("|") for row in rows} == {5}
    assert [row for row in rows if "**" in row] == [rows[2]]
    assert rows[2].startswith("| regret |")
    assert "- 95 % intervals" in table.to_markdown()


def test_json_gives_back_every_number(table):
    stored = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert stored == table.to_dict()
    assert len(stored["detections"]) == 9 and len(stored["comparisons"]) == 9
    first = stored["detections"][0]
    cell = table.cell(first["measure"], first["data_set"])
    assert first["auroc"] == {
        "value": cell.auroc.value, "lower": cell.auroc.lower, "upper": cell.auroc.upper,
    }  # fmt: skip
    assert first["prevalence_ood"] == 0.5
    assert stored["verdicts"][0]["tied"] == ["regret", "complexity"]


def test_pandas_has_a_row_for_every_cell(table):
    frame = table.to_pandas().set_index(["measure", "data_set"])
    assert len(frame) == 9
    row = frame.loc[("regret", "black")]
    cell = table.cell("regret", "black")
    assert row["fpr_ood_upper"] == cell.fpr_ood.upper
    assert row["is_winner"] and not row["is_tied"] and row["num_out"] == 300
    assert frame["is_winner"].sum() == 1


def test_spread_between_runs_is_kept_apart_from_the_interval_within_a_run():
    rng = np.random.default_rng(7)
    tables = [
        d.compare(measures_of(rng, {"a": (p,), "b": (0.6,)}, ("s",)), num_resamples=100)
        for p in (0.7, 0.8, 0.95)
    ]
    runs = d.between_runs(tables)
    areas = [each.cell("a", "s").auroc for each in tables]
    mean = sum(each.value for each in areas) / 3
    sd = (sum((each.value - mean) ** 2 for each in areas) / 2) ** 0.5
    assert (runs.mean[0, 0], runs.sd[0, 0]) == pytest.approx((mean, sd))
    assert runs.within_lower[0, 0] == pytest.approx(sum(each.lower for each in areas) / 3)
    assert runs.within_upper[0, 0] == pytest.approx(sum(each.upper for each in areas) / 3)
    assert len(runs.to_pandas()) == 2 and "3 runs" in repr(runs)
    json.dumps(runs.to_dict(), allow_nan=False)
    with pytest.raises(DataError, match="at least 2 runs"):
        d.between_runs(tables[:1])
    other = d.compare(measures_of(rng, {"a": (0.7,)}, ("s",)), num_resamples=100)
    with pytest.raises(AlgorithmError, match="compare like with like"):
        d.between_runs([tables[0], other])


# --- what is refused ---------------------------------------------------------------------------

X, Y = np.arange(5.0), np.arange(4.0)


@pytest.mark.parametrize(
    "bad, error, says",
    [
        ({}, DataError, "measures: got none"),
        ({"a": (X, {})}, DataError, "expected at least one"),
        ({"a": X}, DataError, "expected a pair"),
        ({"a": (X, Y)}, DataError, "expected a pair"),
        ({"a": (X, {"s": Y}), "b": (X, {"t": Y})}, AlgorithmError, "same data sets"),
        ({"a": (X, {"s": Y}), "b": (Y, {"s": Y})}, ShapeError, "a on s .* b on s.*got 5 and 4"),
        ({"a": (X, {"s": Y}), "b": (X, {"s": X})}, ShapeError, "expected the same data"),
        ({"a": (X, {"s": Y}), "b": (X * 0, {"s": Y * 0})}, DataError, "b on s: got 0 for every"),
        ({"a": (X, {"s": [np.nan, 1]})}, DataError, "a on s .*NaN in 1 of 2"),
    ],
)
def test_measures_that_cannot_be_compared_are_refused_by_name(bad, error, says):
    with pytest.raises(error, match=says):
        d.compare(bad, num_resamples=100)


def test_wrong_options_and_names_are_refused(table):
    good = {"a": (X, {"s": Y})}
    with pytest.raises(UnknownName, match="got measure 'elbo'"):
        d.compare(good, larger_is_stranger={"elbo": False})
    with pytest.raises(DeclarationError, match="got alpha=5"):
        d.compare(good, alpha=5)
    with pytest.raises(DataError, match="no out-of-distribution data set"):
        d.detection(X, {})
    with pytest.raises(UnknownName, match="expected measures"):
        table.cell("regret", "faces")
    with pytest.raises(UnknownName, match="expected one of the sets"):
        table.verdict("faces")


# --- figures -----------------------------------------------------------------------------------


def texts(figure):
    """Every piece of text that a reader sees, with its artist."""
    from matplotlib.text import Text

    return {
        each.get_text(): each for each in figure.findobj(Text)
        if each.get_visible() and each.get_text()
        and not (each.axes is not None and not each.axes.get_visible())
    }  # fmt: skip


def assert_legible(figure):
    """At 360 pixels' width all text is inside the page, and at least 8 points of 86 to the inch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(360 / figure.get_figwidth())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page = figure.bbox
    ticks = {t for axes in figure.axes for t in [*axes.get_xticklabels(), *axes.get_yticklabels()]}
    for text, artist in texts(figure).items():
        box = artist.get_window_extent(canvas.get_renderer())
        assert artist.get_fontsize() >= 8, text
        inside = box.x0 >= -1 and box.x1 <= page.x1 + 1 and box.y0 >= -1 and box.y1 <= page.y1 + 1
        assert inside or artist in ticks, (text, box, page)


def test_roc_figure_draws_the_curves_and_names_them(measures):
    figure = d.roc_figure(measures, num_resamples=100)
    assert_legible(figure)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == ["letters", "black", "patches"]
    for axes, data_set in zip(panels, measures["regret"][1], strict=True):
        assert len(axes.collections) == 3  # bands
        for line, (inside, sets) in zip(axes.lines[1:], measures.values(), strict=True):
            curve = d.roc_curve(inside, sets[data_set])
            np.testing.assert_array_equal(line.get_xdata(), curve.fpr)
            np.testing.assert_array_equal(line.get_ydata(), curve.tpr)
    assert set(measures) <= set(texts(figure))


def test_roc_figure_of_one_set_gives_areas_and_tells_24_measures_apart():
    rng = np.random.default_rng(8)
    inside, outside = rng.normal(size=50), 1 + rng.normal(size=50)
    many = {f"measure {i}": (inside, {"s": outside}) for i in range(25)}
    with pytest.raises(AlgorithmError, match="at most 24"):
        d.roc_figure(many)
    del many["measure 24"]
    figure = d.roc_figure(many, bands=False)
    assert_legible(figure)
    lines = figure.axes[0].lines[1:]
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}
    assert len(looks) == 24
    assert len({line.get_color() for line in lines[:6]}) == 6  # no need of dashes yet
    assert f"measure 3, AUROC {d.auroc(inside, outside):.3f}" in texts(figure)


def test_auroc_figure_has_a_dot_and_an_interval_for_every_cell(table):
    figure = d.auroc_figure(table)
    assert_legible(figure)
    for axes, data_set in zip(figure.axes, table.data_sets, strict=True):
        assert axes.lines[0].get_xdata()[0] == 0.5
        drawn = axes.lines[1:]
        for row, measure in enumerate(table.measures):
            value, lower, upper = table.cell(measure, data_set).auroc
            assert list(drawn[2 * row].get_xdata()) == [lower, upper]
            assert list(drawn[2 * row + 1].get_xdata()) == [value]
            is_diamond = drawn[2 * row + 1].get_marker() == "D"
            assert is_diamond == (table.mark(measure, data_set) == "*")
    assert any("diamond" in each for each in texts(figure))


def test_histograms_share_bins_and_say_what_lies_beyond_them():
    rng = np.random.default_rng(9)
    inside = rng.normal(size=400)
    far = np.r_[rng.normal(size=100), np.full(60, 1e6), np.full(40, np.inf)]
    low = np.r_[rng.uniform(-1, 1, size=198), -np.inf, -1e9]
    figure = d.histogram_figure(
        inside, {"far": far, "low": low}, name="negative log-likelihood", unit="nats"
    )
    assert_legible(figure)
    seen = texts(figure)
    assert "far: 50 % beyond →" in seen and "← low: 1 % beyond" in seen
    assert "negative log-likelihood, nats (larger = stranger)" in seen
    edges = [patch.get_data().edges for axes in figure.axes for patch in axes.patches]
    assert all(np.array_equal(edges[0], each) for each in edges)
    assert edges[0][0] > -12 and edges[0][-1] < 12
    share = figure.axes[0].patches[0].get_data().values.sum()
    beyond = np.mean((inside < edges[0][0]) | (inside > edges[0][-1]))
    assert share == pytest.approx(100 * (1 - beyond))
    assert figure.axes[0].patches[1].get_data().values.sum() == pytest.approx(50)


def test_histogram_of_constant_scores_in_distribution_still_has_width():
    edges = shared_edges(np.full(9, 2.0), [np.full(9, 2.0)])
    assert edges[0] < 2 < edges[-1] and np.isfinite(edges).all()
    edges = shared_edges(np.zeros(9), [np.arange(9.0)])
    assert edges[0] < 0 and edges[-1] > 7.9
    assert_legible(d.histogram_figure(np.zeros(9), {"s": np.arange(9.0)}))
    with pytest.raises(DataError, match="only infinite scores"):
        shared_edges(np.full(3, np.inf), [np.zeros(3)])
    with pytest.raises(DataError, match="no out-of-distribution data set"):
        d.histogram_figure(np.zeros(3), {})
