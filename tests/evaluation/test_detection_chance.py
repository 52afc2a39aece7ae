"""AUROCs against 1/2: of many that are pure noise, none is called better than chance, or worse."""

import json

import numpy as np
import pytest
from scipy.stats import t as student

from probgen.evaluation import detection as d
from probgen.evaluation.detection.delong import chance_test
from probgen.evaluation.page import limits, verdicts
from probgen.evaluation.page.verdict import DETECTS, INVERTS, UNCLEAR


def noise(rng, num_measures, num_sets, size, shift=0.0):
    return {
        f"m{i}": (
            rng.normal(size=size),
            {f"s{j}": rng.normal(shift, size=size) for j in range(num_sets)},
        )
        for i in range(num_measures)
    }


LARGER = pytest.mark.repeated("test_any_claim_about_pure_noise_is_made_in_at_most_5_of_100_tables")
SIZES = [(20, 1000), *(pytest.param(*each, marks=LARGER) for each in ((60, 400), (200, 100)))]


@pytest.mark.parametrize("size, repeats", SIZES)
def test_any_claim_about_pure_noise_is_made_in_at_most_5_of_100_tables(size, repeats):
    """72 AUROCs of 1/2: uncorrected, 95 % intervals would clear it in 1 - .95^72 = 98 %."""
    rng, wrong, raw = np.random.default_rng(size), 0, []
    for _ in range(repeats // 100):
        found = d.delong(rng.normal(size=(100, 72, size)), rng.normal(size=(100, 72, size)))
        above, below = chance_test(found)
        raw.append((above <= 0.05).mean())
        for p in np.stack([above, below], 1):
            wrong += min(d.holm(np.minimum(2 * each, 1.0)).min() for each in p) <= 0.05
    assert wrong / repeats < 0.05 + 3 * np.sqrt(0.05 * 0.95 / repeats)
    assert 0.03 < np.mean(raw) < 0.055  # each p-value is one, of small sets a safe one


def test_a_best_of_many_that_clears_one_half_by_chance_is_no_claim_and_said():
    """Twelve measures on six sets; of one the interval of the AUROC lies above 1/2."""
    table = d.compare(noise(np.random.default_rng(0), 12, 6, 60), num_resamples=100)
    said = verdicts(table)
    assert {kind for v in said for kind in v.readings.values()} == {UNCLEAR}
    above = [c for c in table.detections if c.auroc.lower > 0.5]
    text = next(v.text for v in said if v.data_set == above[0].data_set)
    assert "of 72 intervals, so much may clear 0.5 by chance" in text
    assert "better than chance." not in text.replace("shown to be better than chance.", "")


def test_one_that_detects_beside_one_that_may_is_not_called_the_best():
    rng = np.random.default_rng(1)
    own = rng.normal(size=(2, 40))
    tables = {
        name: (x, {"s": rng.normal(shift, 1.0, 40)})
        for name, x, shift in zip(("strong", "weak"), own, (0.75, 0.45), strict=True)
    }
    (said,) = verdicts(d.compare(tables, num_resamples=100))
    assert said.readings == {"strong": DETECTS, "weak": UNCLEAR} and said.winner is None
    assert said.text.endswith("None is shown to be the best.")


@pytest.mark.repeated("test_any_claim_about_pure_noise_is_made_in_at_most_5_of_100_tables")
def test_tables_of_pure_noise_claim_nothing_and_say_why():
    """Twelve measures on six sets, 15 tables; the best of so many does clear 1/2 on its own."""
    rng, wrong, cleared = np.random.default_rng(0), 0, 0
    for _ in range(15):
        table = d.compare(noise(rng, 12, 6, 60), num_resamples=100, show_progress=False)
        said = verdicts(table)
        claims = {kind for v in said for kind in v.readings.values()} - {UNCLEAR}
        assert bool(claims & {DETECTS}) == any(v.beats_chance for v in table.verdicts)
        wrong += bool(claims)
        above = [c for c in table.detections if c.auroc.lower > 0.5]
        cleared += bool(above)
        if above and not claims:
            text = next(v.text for v in said if v.data_set == above[0].data_set)
            assert "of 72 intervals, so much may clear 0.5 by chance" in text
            assert "better than chance." not in text.replace("shown to be better than chance.", "")
    assert cleared >= 9  # of the old rule, a claim
    assert wrong <= 15 * (0.05 + 3 * np.sqrt(0.05 * 0.95 / 15))


def test_p_values_are_those_of_the_interval_that_ends_at_one_half():
    rng = np.random.default_rng(1)
    for shift in (-1.0, -0.2, 0.3, 0.8):
        found = d.delong(rng.normal(size=80), rng.normal(shift, size=70))
        above, below = chance_test(found)
        assert above + below == pytest.approx(1.0)
        ends = found.interval(level=1.0 - 2.0 * min(above, below))
        assert min(abs(end - 0.5) for end in ends) < 1e-9
        assert (above < below) == (found.auroc > 0.5)


def test_perfect_separation_of_a_few_is_as_likely_as_as_many_coins():
    x = np.arange(6.0)
    above, below = chance_test(d.delong(x, x + 10))
    assert (float(above), float(below)) == (0.5**6, 1.0)
    above, below = chance_test(d.delong(x + 10, x))
    assert (float(above), float(below)) == (1.0, 0.5**6)


def test_the_table_corrects_over_its_cells_and_both_directions():
    rng = np.random.default_rng(2)
    measures = {
        "good": (rng.normal(size=90), {"a": rng.normal(1.0, size=90), "b": rng.normal(size=90)}),
        "turned": (rng.normal(size=90), {"a": rng.normal(-1, size=90), "b": rng.normal(size=90)}),
    }
    table = d.compare(measures, num_resamples=100, show_progress=False)
    assert len(table.chance) == 4
    for side, sign in (("above", 1), ("below", -1)):
        raw = np.array([getattr(each, f"p_{side}") for each in table.chance])
        found = [getattr(each, f"p_{side}_holm") for each in table.chance]
        np.testing.assert_allclose(found, d.holm(np.minimum(2 * raw, 1.0)))
        for p, cell in zip(raw, table.detections, strict=True):
            measure = d.delong(measures[cell.measure][0], measures[cell.measure][1][cell.data_set])
            area = float(measure.auroc)
            error = np.sqrt(float(measure.variance)) / (area * (1 - area))  # of logit A
            assert p == pytest.approx(student.sf(sign * np.log(area / (1 - area)) / error, 89))
    assert table.chance_test("turned", "a").p_below_holm < 1e-6
    readings = {v.data_set: v.readings for v in verdicts(table)}
    assert readings["a"] == {"good": DETECTS, "turned": INVERTS}
    assert table.verdict("a").beats_chance and not table.verdict("b").beats_chance
    record = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert record["chance"][0]["p_above_holm"] == table.chance[0].p_above_holm
    frame = table.to_pandas()
    assert list(frame["p_above_holm"]) == [each.p_above_holm for each in table.chance]
    text = " ".join(repr(table).split())
    assert "better than chance on: b (one-sided DeLong tests, Holm's correction over all 4" in text
    assert "Holm's correction over all 4 AUROCs and both directions" in " ".join(limits(table))


def test_the_best_must_beat_chance_itself_to_win():
    """A measure far above another is no winner where its own AUROC may be 1/2."""
    rng = np.random.default_rng(3)
    scores = {
        "coin": (rng.normal(size=200), {"s": rng.normal(size=200)}),
        "turned": (rng.normal(size=200), {"s": rng.normal(-2.0, size=200)}),
    }
    table = d.compare(scores, num_resamples=100, show_progress=False)
    assert table.comparisons[0].p_holm < 1e-6
    assert table.verdict("s") == d.Verdict("s", "coin", None, ("coin",), False)
