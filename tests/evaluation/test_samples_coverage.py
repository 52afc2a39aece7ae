"""Laws of coverage and modes: brute force, the formula for equal laws, a mixture that is known."""

import json

import numpy as np
import pytest
from scipy import stats

from probgen.errors import AlgorithmError, DataError, DeclarationError, ShapeError
from probgen.evaluation.samples import (
    count_classes,
    count_modes,
    expected_coverage,
    mode_figure,
    prdc,
)
from probgen.evaluation.samples.modes import histogram_kl
from probgen.evaluation.samples.prdc import measures, radii
from probgen.evaluation.samples.resampling import deal, jackknife, jackknife_error


def normal(seed, n, d, shift=0.0):
    return shift + np.random.default_rng(seed).standard_normal((n, d))


def brute_prdc(real, fake, k):
    """The definitions, one pair at a time."""

    def distance(a, b):
        return float(np.sqrt(sum((s - t) ** 2 for s, t in zip(a, b, strict=True))))

    def radius(points):
        return [
            sorted(distance(p, q) for j, q in enumerate(points) if j != i)[k - 1]
            for i, p in enumerate(points)
        ]

    d = [[distance(r, f) for f in fake] for r in real]
    around_real, around_fake = radius(real), radius(fake)
    n, m = len(real), len(fake)
    held = [sum(d[i][j] < around_real[i] for i in range(n)) for j in range(m)]
    precision = sum(count > 0 for count in held) / m
    recall = sum(any(d[i][j] < around_fake[j] for j in range(m)) for i in range(n)) / n
    coverage = sum(any(d[i][j] < around_real[i] for j in range(m)) for i in range(n)) / n
    return precision, recall, sum(held) / (k * m), coverage


@pytest.mark.parametrize(("n", "m", "k", "shift"), [(60, 60, 5, 0.0), (70, 40, 3, 0.8)])
def test_prdc_equals_brute_force(n, m, k, shift):
    x, y = normal(0, n, 3), normal(1, m, 3, shift)
    got = [each.value for each in prdc(x, y, k=k, num_groups=5)]
    np.testing.assert_allclose(got, brute_prdc(x, y, k), atol=1e-12, rtol=0)


def test_prdc_is_strict_on_the_boundary_of_a_ball():
    """On a grid of whole numbers distances tie: a fake datum on a ball's edge is outside."""
    x = np.arange(40.0)[:, None]
    y = np.arange(40.0, 80.0)[:, None]
    got = [each.value for each in prdc(x, y, k=1, num_groups=2)]
    np.testing.assert_allclose(got, brute_prdc(x, y, 1), atol=1e-12, rtol=0)
    assert got == [0.0, 0.0, 0.0, 0.0]
    closer = [each.value for each in prdc(x, y - 1e-9, k=1, num_groups=2)]
    assert closer == [1 / 40, 1 / 40, 1 / 40, 1 / 40]


def test_prdc_without_a_group_is_prdc_of_the_rest(monkeypatch):
    monkeypatch.setitem(measures.__globals__, "CHUNK", 400)  # several chunks
    x, y, rng = normal(0, 45, 2), normal(1, 36, 2, 0.3), np.random.default_rng(0)
    gx, gy = deal(45, 3, rng), deal(36, 3, rng)
    got = measures(x, y, 4, gx, gy, 3)
    for g in range(3):
        expected = brute_prdc(x[gx != g], y[gy != g], 4)
        np.testing.assert_allclose(got[1 + g], expected, atol=1e-12, rtol=0)
    np.testing.assert_allclose(got[0], brute_prdc(x, y, 4), atol=1e-12, rtol=0)


def test_radii_survive_a_group_that_holds_all_near_neighbours():
    """Forty data in a clump and all of one group: without it the neighbours are far away."""
    clump, rest = 0.01 * normal(0, 60, 2), normal(1, 30, 2, 50.0)
    x, group = np.concatenate([clump, rest]), np.repeat([0, 1], [60, 30])
    got = radii(x, 2, group, 2)
    for i in (0, 70):
        for g in (0, 1):
            others = [j for j in range(90) if j != i and group[j] != g]
            expected = np.sort(np.linalg.norm(x[others] - x[i], axis=1))[1]
            assert got[1 + g, i] == pytest.approx(expected, rel=1e-12)


def test_coverage_of_equal_laws_follows_its_formula():
    """.9690 at N = M = 1000 and k = 5; density is 1."""
    assert expected_coverage(1000, 1000) == pytest.approx(0.9690, abs=5e-5)
    for n, m in ((400, 400), (300, 600)):
        runs = np.array(
            [measures(normal([i, 0], n, 4), normal([i, 1], m, 4), 5)[0] for i in range(15)]
        )
        error = runs.std(0, ddof=1) / 15**0.5
        assert error[3] < 0.005
        assert abs(runs[:, 3].mean() - expected_coverage(n, m)) < min(0.01, 4 * error[3])
        assert abs(runs[:, 2].mean() - 1) < 4 * error[2]


def test_prdc_errors_are_those_of_new_data_or_safely_more():
    runs = [prdc(normal([i, 0], 300, 6), normal([i, 1], 300, 6, 0.3), seed=i) for i in range(40)]
    for j in range(4):
        spread = np.std([run[j].value for run in runs], ddof=1)
        error = np.mean([run[j].standard_error for run in runs])
        assert 0.8 * spread < error < 2.5 * spread
        assert all(run[j].low <= run[j].value <= run[j].high for run in runs)


def test_prdc_of_a_set_and_itself_and_of_far_sets():
    x = normal(0, 100, 3)
    same = prdc(x, x.copy())
    assert [round(each.value, 12) for each in same[:2]] == [1.0, 1.0] == [1, same.coverage.value]
    far = prdc(x, x + 100)
    assert [each.value for each in far] == [0, 0, 0, 0]
    assert 0 < far.precision.high < 0.06 and far.precision.low == 0
    with pytest.raises(AlgorithmError, match="k=95"):
        prdc(x, x, k=95)
    with pytest.raises(DataError, match="jackknife of 20 groups"):
        prdc(x[:30], x)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    """With one datum a group it is sd / sqrt(n) exactly; with 20 groups on average."""
    x = normal(0, 50, 1)[:, 0]
    one_each = np.array([np.delete(x, i).mean() for i in range(50)])
    assert jackknife_error(one_each) == pytest.approx(x.std(ddof=1) / 50**0.5, rel=1e-12)
    errors = [
        jackknife(
            lambda a, b: a.mean() - b.mean(), normal([i, 0], 200, 1), normal([i, 1], 400, 1),
            num_groups=20, seed=i, where="test",
        )
        for i in range(60)
    ]  # fmt: skip
    expected = (1 / 200 + 1 / 400) ** 0.5
    assert abs(np.mean(errors) / expected - 1) < 4 * np.std(errors) / expected / 60**0.5 + 0.02
    sizes = np.bincount(deal(47, 5, np.random.default_rng(0)))
    assert sizes.sum() == 47 and set(sizes) <= {9, 10}


# ---- modes ---------------------------------------------------------------------------------------

CENTRES = np.array([[4 * i, 4 * j] for i in range(5) for j in range(5)], float)  # the 25 of a grid
SD = 0.2


def mixture(seed, n, shares=None):
    rng = np.random.default_rng(seed)
    which = rng.choice(25, n, p=shares)
    return CENTRES[which] + SD * rng.standard_normal((n, 2)), which


def test_modes_of_a_known_mixture_are_counted():
    x, which = mixture(0, 5000)
    found = count_modes(x, CENTRES, sd=SD)
    assert (found.hit.value, found.hit_strictly.value) == (25, 25)
    # |z|^2 is chi-square with two degrees of freedom: 1 - exp(-9/2) within 3 sd
    assert found.good.expected == pytest.approx(1 - np.exp(-4.5), rel=1e-12)
    assert abs(found.good.value - found.good.expected) < 4 * found.good.standard_error
    inside = np.linalg.norm(x - CENTRES[which], axis=1) <= 3 * SD
    np.testing.assert_array_equal(found.counts, np.bincount(which[inside], minlength=25))
    assert found.kl.value < found.kl.expected + 4 * found.kl.standard_error


def test_missed_modes_and_noise_are_seen():
    shares = np.zeros(25)
    shares[:10] = 0.1
    x, _ = mixture(1, 900, shares)
    x = np.concatenate([x, CENTRES[[20, 21]], np.full((98, 2), 2.0)])  # 2 lone samples, 98 bad ones
    found = count_modes(x, CENTRES, sd=np.full(25, SD))
    assert (found.hit.value, found.hit_strictly.value) == (12, 10)
    assert any("13 modes are missed; each has a share below 0.003" in n for n in found.hit.notes)
    assert abs(found.good.value - 0.9 * 0.989) < 0.02
    p = found.counts / found.counts.sum()
    assert found.kl.value == pytest.approx(np.log(25) - stats.entropy(p), rel=1e-10)
    assert found.kl.details["p_value"] < 1e-12
    matched = count_modes(x[:900], CENTRES, sd=SD, truth=np.r_[np.full(10, 1.0), np.full(15, 1e-9)])
    assert matched.kl.value < matched.kl.expected + 4 * matched.kl.standard_error


@pytest.mark.parametrize("tilt", [0.0, 1.0])
def test_the_kl_of_a_histogram_has_the_error_that_it_says(tilt):
    truth = np.full(10, 0.1)
    law = np.exp(tilt * np.arange(10) / 5)
    law /= law.sum()
    rng = np.random.default_rng(0)
    runs = [histogram_kl(rng.multinomial(500, law), truth) for _ in range(400)]
    values = np.array([run.value for run in runs])
    spread = values.std(ddof=1)
    assert 0.85 < np.mean([run.standard_error for run in runs]) / spread < 1.25
    mean = stats.entropy(law, truth) + 9 / 1000  # the first-order bias
    assert abs(values.mean() - mean) < 4 * spread / 20 + 0.02 * 9 / 1000
    assert runs[0].expected == pytest.approx(9 / 1000)
    if tilt == 0:
        p = [run.details["p_value"] for run in runs]
        assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_the_error_of_modes_hit_is_the_spread_over_new_samples():
    """Thirty modes of small share: how many of them 60 samples hit is itself random."""
    rng, share = np.random.default_rng(0), np.full(30, 1 / 30)
    hits = [(rng.multinomial(60, share) > 0).sum() for _ in range(2000)]
    x = np.arange(30.0)[:, None]
    found = count_modes(np.repeat(x, 2, axis=0), x, sd=0.1)  # exactly the expected counts
    assert found.hit.standard_error == pytest.approx(
        (30 * (p := (1 - 2 / 60) ** 60) * (1 - p)) ** 0.5
    )
    # Modes compete for samples, which the formula leaves out: safe.
    assert np.std(hits) < found.hit.standard_error < 1.6 * np.std(hits)


def test_classes_are_counted_by_confidence():
    p = np.array([[0.95, 0.05], [0.5, 0.5], [0.02, 0.98], [0.01, 0.99]])
    found = count_classes(np.zeros((4, 1)), lambda x: p)
    np.testing.assert_array_equal(found.counts, [1, 2])
    assert found.good.value == 0.75 and found.hit.value == 2 and found.hit_strictly.value == 0
    assert mode_figure(found, what="class").axes[0].get_xlabel() == "class"
    assert found.intervals().shape == (2, 2) and found.to_dict()["counts"] == [1, 2]


def test_bad_modes_are_one_clear_error():
    x = normal(0, 20, 2)
    with pytest.raises(ShapeError, match="samples of 2 numbers and centres of 3"):
        count_modes(x, np.zeros((4, 3)), sd=1.0)
    with pytest.raises(DeclarationError, match="got sd=-1, expected .*above 0"):
        count_modes(x, x, sd=-1)
    with pytest.raises(ShapeError, match="a share a mode"):
        count_modes(x, x, sd=1.0, truth=[0.5, 0.5])
    with pytest.raises(DataError, match="got 0 data"):
        count_modes(x[:0], x, sd=1.0)
    with pytest.raises(DataError, match="softmax"):
        count_classes(x, lambda x: x)
    with pytest.raises(DataError, match="infinite"):
        histogram_kl(np.array([1, 1]), np.array([1.0, 0.0]))
    with pytest.raises(DataError, match="counts that are all 0"):
        histogram_kl(np.array([0, 0]), np.array([0.5, 0.5]))


def test_no_good_sample_is_no_mode_and_no_kl():
    x, _ = mixture(0, 200)
    found = count_modes(x + 50, CENTRES, sd=SD)
    assert (found.hit.value, found.hit_strictly.value, found.good.value) == (0, 0, 0)
    assert found.good.low == 0 and 0 < found.good.high < 0.02  # Wilson's: 3.84 / (200 + 3.84)
    assert found.kl is None and found.estimates == (found.hit, found.hit_strictly, found.good)
    assert "none of 200 samples is good" in found.good.notes[0] and "none of 200" in repr(found)
    np.testing.assert_array_equal(found.intervals(), np.tile([0.0, 1.0], (25, 1)))
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["kl"] is None and record["notes"] == list(found.good.notes)
    assert mode_figure(found).axes[0].get_ylim()[1] > 0


def test_samples_where_the_truth_has_none_have_no_finite_kl():
    x = np.array([[0.0], [1.0], [1.0]])
    found = count_modes(x, x[:2], sd=0.1, truth=[1.0, 0.0])
    assert found.kl is None and found.good.value == 1
    np.testing.assert_array_equal(found.counts, [1, 2])
    (note,) = found.good.notes
    assert "2 good samples" in note and "mode 1" in note and "infinite" in note
