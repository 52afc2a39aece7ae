"""Laws of distances between samples: closed forms on Gaussians, and errors that mean what they say.

Random quantities are held to standard errors over replicates, not to a seed.
"""

import numpy as np
import pytest
from scipy import stats

from probgen.errors import AlgorithmError, DataError, MissingSeed, NonFiniteError, ShapeError
from probgen.evaluation.samples import (
    Estimate,
    c2st,
    frechet_bias,
    frechet_distance,
    frechet_from_moments,
    gaussian_mmd2,
    kid,
    memorisation,
    mmd_test,
    sliced_wasserstein,
)
from probgen.evaluation.samples.estimate import wilson
from probgen.evaluation.samples.mmd import (
    gaussian_kernel,
    median_bandwidth,
    permuted_mmd2,
    polynomial_kernel,
    unbiased_mmd2,
)
from probgen.evaluation.samples.two_sample import wasserstein_1d


def normal(seed, n, d, shift=0.0, scale=1.0):
    return shift + scale * np.random.default_rng(seed).standard_normal((n, d))


def random_law(seed, d):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((d, d))
    return rng.standard_normal(d), root @ root.T / d + 0.1 * np.eye(d)


# ---- Frechet distance ----------------------------------------------------------------------------


def test_frechet_equals_the_closed_form_for_commuting_covariances():
    """|m|^2 + sum (sqrt a - sqrt b)^2 in a common eigenbasis, here a random one."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    a, b, m = rng.uniform(0.1, 3, 5), rng.uniform(0.1, 3, 5), rng.standard_normal(5)
    got = frechet_from_moments(m, basis * a @ basis.T, np.zeros(5), basis * b @ basis.T)
    assert got == pytest.approx(m @ m + ((a**0.5 - b**0.5) ** 2).sum(), rel=1e-12)


def test_frechet_equals_the_one_with_a_general_matrix_root():
    """tr (S1 S2)^1/2 by the eigenvalues of the product, another route to the same trace."""
    (m1, s1), (m2, s2) = random_law(0, 6), random_law(1, 6)
    cross = np.sqrt(np.linalg.eigvals(s1 @ s2).real).sum()
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2) - 2 * cross
    assert frechet_from_moments(m1, s1, m2, s2) == pytest.approx(expected, rel=1e-10)
    assert frechet_from_moments(m2, s2, m1, s1) == pytest.approx(expected, rel=1e-10)


def test_frechet_of_a_law_and_itself_is_zero_also_when_singular():
    mean, cov = random_law(2, 4)
    flat = np.outer(mean, mean)  # rank one: tiny negative eigenvalues by rounding
    assert frechet_from_moments(mean, cov, mean, cov) == pytest.approx(0, abs=1e-12)
    assert frechet_from_moments(mean, flat, mean, flat) == pytest.approx(0, abs=1e-6)
    assert frechet_from_moments(mean, flat, mean, 0 * flat) == pytest.approx(np.trace(flat))


@pytest.mark.parametrize("bits", [0.0, 1.0, 0.3])
def test_frechet_of_a_set_and_itself_is_zero_with_a_note(bits):
    """Exactly 0 (of data that never vary), or 0 but for rounding, on either side."""
    x = bits * np.random.default_rng(0).integers(0, 2, (64, 3))
    found = frechet_distance(x, x).fd
    assert found.value == pytest.approx(0, abs=1e-12)
    if bits:
        assert any("would give about" in n and "no less than this" in n for n in found.notes)


def test_the_note_on_the_bias_says_what_part_of_the_value_it_is():
    from probgen.evaluation.samples.frechet import _notes

    for fd in (0.0, -1e-16, 1e-16, 0.5):
        (note,) = _notes(fd, 0.5, 1000, 3)
        assert "equal laws would give about 0.5" in note and "no less than this" in note
    assert "80 % of the value" in _notes(0.5, 0.4, 1000, 3)[0] and not _notes(0.9, 0.4, 1000, 3)


@pytest.mark.parametrize(
    ("n", "predicted"), [(200, 0.84), (500, 0.336), (1000, 0.168), (5000, 0.034)]
)
def test_the_bias_formula_holds_within_a_tenth(n, predicted):
    """D 16, equal N(0, I): (2 D + D (D + 1) / 2) / N, and what simulation gives."""
    assert frechet_bias(np.eye(16), n, n) == pytest.approx((32 + 136) / n)
    assert frechet_bias(np.eye(16), n, n) == pytest.approx(predicted, rel=0.02)
    seen = []
    for i in range(12):
        x, y = normal([n, i, 0], n, 16), normal([n, i, 1], n, 16)
        seen.append(frechet_from_moments(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T)))
    error = np.std(seen, ddof=1) / 12**0.5
    assert abs(np.mean(seen) / predicted - 1) < 0.10 + 2 * error / predicted
    assert error / predicted < 0.06


def test_the_bias_formula_holds_for_unequal_variances_and_sizes():
    scale = np.linspace(0.2, 2, 10)
    seen = []
    for i in range(60):
        x, y = normal([i, 0], 400, 10) * scale, normal([i, 1], 1200, 10) * scale
        seen.append(frechet_from_moments(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T)))
    expected = frechet_bias(np.diag(scale**2), 400, 1200)
    error = np.std(seen, ddof=1) / 60**0.5
    assert abs(np.mean(seen) - expected) < 4 * error + 0.02 * expected
    assert error < 0.05 * expected


EQUAL = pytest.param(0.0, marks=pytest.mark.repeated(
    "test_frechet_of_samples_tends_to_the_closed_form"
))  # fmt: skip


@pytest.mark.parametrize("shift", [EQUAL, 0.4])
def test_frechet_of_samples_tends_to_the_closed_form(shift):
    """FD is too large by its bias, FD_inf is not; errors are those of new data, or safely more."""
    truth = 8 * shift**2 + 8 * (0.5 * (shift > 0)) ** 2
    num = 60 if shift else 30  # by how far the bias stands out
    runs = [
        frechet_distance(
            normal([i, 0], 400, 8), normal([i, 1], 400, 8, shift, 1 + 0.5 * (shift > 0)), seed=i
        )
        for i in range(num)
    ]
    fd, inf = (np.array([run[j].value for run in runs]) for j in (0, 1))
    se = np.array([[run[j].standard_error for j in (0, 1)] for run in runs]).mean(0)
    spread = np.array([fd.std(ddof=1), inf.std(ddof=1)])
    assert abs(inf.mean() - truth) < 4 * spread[1] / num**0.5
    assert fd.mean() > truth + 3 * spread[0] / num**0.5
    assert (se > 0.75 * spread).all() and (se < 2.2 * spread).all()


def test_unequal_sizes_are_refused_unless_asked_for():
    x, y = normal(0, 200, 3), normal(1, 300, 3)
    with pytest.raises(AlgorithmError, match="200 real and 300 fake"):
        frechet_distance(x, y)
    fd, inf = frechet_distance(x, y, allow_unequal=True, features=lambda x: x)
    assert (fd.name, inf.name) == ("FD[<lambda>]", "FD_inf[<lambda>]")
    assert (fd.n_real, fd.n_fake, fd.details["unequal"]) == (200, 300, True)
    assert abs(inf.value) < 4 * inf.standard_error


def test_too_few_data_for_the_dimension_are_said():
    fd, inf = frechet_distance(normal(0, 60, 80), normal(1, 60, 80))
    assert any("singular" in note for note in fd.notes)
    assert any("cannot be trusted" in note for note in inf.notes)
    fd, inf = frechet_distance(normal(0, 3000, 3), normal(1, 3000, 3, shift=1.0))
    assert fd.notes == () == inf.notes


# ---- kernels -------------------------------------------------------------------------------------


def test_unbiased_mmd_equals_its_double_sums():
    x, y = normal(0, 7, 3), normal(1, 5, 3, 0.5)
    k = gaussian_kernel(1.3)
    xx, yy, xy = k(x, x), k(y, y), k(x, y)

    def brute(a, b):
        total = sum(xx[i, j] for i in a for j in a if i != j) / (len(a) * (len(a) - 1))
        total += sum(yy[i, j] for i in b for j in b if i != j) / (len(b) * (len(b) - 1))
        return total - 2 * np.mean([xy[i, j] for i in a for j in b])

    value, error = unbiased_mmd2(x, y, k)
    a, b = range(7), range(5)
    assert value == pytest.approx(brute(a, b), abs=1e-14)
    out_x = [brute([i for i in a if i != out], b) for out in a]
    out_y = [brute(a, [j for j in b if j != out]) for out in b]
    assert error**2 == pytest.approx(6 * np.var(out_x) + 4 * np.var(out_y), rel=1e-10)


def test_mmd_of_gaussians_tends_to_the_closed_form():
    (m1, s1), (m2, s2) = random_law(3, 4), random_law(4, 4)
    truth = gaussian_mmd2(m1, s1, m2, s2, bandwidth=1.5)
    values, errors = [], []
    for i in range(40):
        rng = np.random.default_rng([i, 9])
        x, y = rng.multivariate_normal(m1, s1, 500), rng.multivariate_normal(m2, s2, 400)
        value, error = unbiased_mmd2(x, y, gaussian_kernel(1.5))
        values.append(value), errors.append(error)
    spread = np.std(values, ddof=1)
    assert abs(np.mean(values) - truth) < 4 * spread / 40**0.5
    assert spread / 40**0.5 < 0.01 * truth
    assert 0.75 < np.mean(errors) / spread < 1.35
    assert gaussian_mmd2(m1, s1, m1, s1, bandwidth=0.7) == pytest.approx(0, abs=1e-14)


def test_mmd_of_gaussians_in_closed_form_equals_quadrature():
    grid = np.linspace(-12, 12, 1201)
    p = stats.norm.pdf(grid, 0.3, 0.8) - stats.norm.pdf(grid, -0.5, 1.4)
    k = gaussian_kernel(0.9)(grid[:, None], grid[:, None])
    expected = p @ k @ p * (grid[1] - grid[0]) ** 2
    got = gaussian_mmd2([0.3], [[0.64]], [-0.5], [[1.96]], bandwidth=0.9)
    assert got == pytest.approx(expected, rel=1e-9)


def test_permutation_p_values_are_uniform_for_equal_laws():
    """B = 19: p is uniform on 1/20 ... 1, exactly, whatever n is."""
    p = [
        mmd_test(
            normal([i, 0], 15, 2), normal([i, 1], 12, 2), num_permutations=19, seed=i
        ).details["p_value"]
        for i in range(800)
    ]  # fmt: skip
    counts = np.bincount(np.rint(np.array(p) * 20).astype(int), minlength=21)[1:]
    assert counts.sum() == 800
    assert stats.chisquare(counts).pvalue > 1e-3
    assert abs(np.mean(np.array(p) <= 0.05) - 0.05) < 4 * (0.05 * 0.95 / 800) ** 0.5


def test_the_p_value_is_as_small_as_it_can_be_for_a_shift():
    x, y = normal(0, 100, 3), normal(1, 100, 3, shift=1.0)
    test = mmd_test(x, y, num_permutations=199)
    assert test.details["p_value"] == 1 / 200
    assert test.value > 5 * test.standard_error
    assert mmd_test(x, x.copy(), num_permutations=199).details["p_value"] > 0.9


def test_a_dealing_that_ties_with_the_data_counts_as_reached():
    """Three against three far away: of 20 dealings the data's own and its mirror reach it."""
    x = np.array([[0.0], [0.1], [0.3]])
    test = mmd_test(x, x + 10, num_permutations=2000, seed=0)
    reached = test.details["p_value"] * 2001 - 1
    assert abs(reached - 200) < 4 * (2000 * 0.1 * 0.9) ** 0.5


def test_kernel_matrices_in_chunks_are_those_in_one(monkeypatch):
    x, y = normal(0, 11, 2), normal(1, 8, 2, 0.4)
    whole = unbiased_mmd2(x, y, gaussian_kernel(1.0))
    monkeypatch.setitem(unbiased_mmd2.__globals__, "ROWS", 3)
    assert unbiased_mmd2(x, y, gaussian_kernel(1.0)) == pytest.approx(whole, rel=1e-12)


def test_permuted_values_are_those_of_dealt_data():
    pooled = normal(0, 12, 2)
    kernel = gaussian_kernel(1.0)
    got = permuted_mmd2(kernel(pooled, pooled), 5, 4, np.random.default_rng(7))
    rng = np.random.default_rng(7)
    for value in got:
        order = rng.permutation(12)
        expected = unbiased_mmd2(pooled[order[:5]], pooled[order[5:]], kernel)[0]
        assert value == pytest.approx(expected, abs=1e-13)


def test_median_bandwidth_is_the_median_of_all_distances():
    assert median_bandwidth(np.array([[0.0], [1.0], [5.0]])) == 4.0
    with pytest.raises(DataError, match="half of whose pairs are equal"):
        median_bandwidth(np.zeros((10, 2)))
    x = np.random.default_rng(0).normal(size=(2000, 2))
    some = [median_bandwidth(x, seed=seed, max_points=500) for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    whole = 2 * np.sqrt(np.log(2))  # of |x - y|^2 / 2, a chi-square of two degrees of freedom
    np.testing.assert_allclose(some, whole, rtol=0.1)


def test_kid_is_zero_for_equal_laws_and_far_from_it_for_a_shift():
    """The sheet's check 8: within 3 SE of 0; more than 10 SE for a shift of half an sd."""
    equal = [kid(normal([i, 0], 300, 16), normal([i, 1], 300, 16), seed=i) for i in range(8)]
    values = np.array([each.value for each in equal])
    assert all(abs(each.value) < 3 * each.standard_error for each in equal)
    assert abs(values.mean()) < 3 * values.std(ddof=1) / 8**0.5 + 1e-12
    assert np.mean([each.standard_error for each in equal]) < 2.2 * values.std(ddof=1) + 0.002
    far = normal([1, 0], 2000, 16), normal([1, 1], 2000, 16, shift=0.5)
    moved = kid(*far, num_subsets=20, seed=0)
    assert moved.value > 10 * moved.standard_error
    assert moved.details["subset_size"] == 1000
    assert moved.details["subset_error"] < moved.standard_error


def test_kid_of_whole_sets_is_the_cubic_mmd():
    x, y = normal(0, 40, 4), normal(1, 40, 4, 0.3)
    got = kid(x, y, subset_size=40, num_subsets=2)
    cubic = [(a @ b.T / 4 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    off = [m[~np.eye(40, dtype=bool)].mean() for m in cubic[:2]]
    assert got.value == pytest.approx(sum(off) - 2 * cubic[2].mean(), rel=1e-12)
    assert got.value == pytest.approx(unbiased_mmd2(x, y, polynomial_kernel(3))[0], rel=1e-12)
    assert got.details["subset_error"] == pytest.approx(0, abs=1e-12)


# ---- classifier, projections, memorisation -------------------------------------------------------


@pytest.mark.parametrize("classifier", ["logistic", "knn"])
def test_c2st_holds_its_level_and_finds_a_shift(classifier):
    tests = [
        c2st(normal([i, 0], 80, 3), normal([i, 1], 80, 3), classifier=classifier, seed=i)
        for i in range(150)
    ]
    hit = np.mean([each.low <= 0.5 <= each.high for each in tests])
    assert hit > 0.95 - 3 * (0.05 * 0.95 / 150) ** 0.5
    assert np.mean([t.details["p_value"] <= 0.05 for t in tests]) < 0.05 + 3 * 0.0178
    mean = np.mean([each.value for each in tests])
    assert abs(mean - 0.5) < 4 * 0.5 / (80 * 150) ** 0.5


def test_c2st_reaches_the_best_accuracy_for_shifted_normals():
    """Phi(|shift| / 2) is the Bayes accuracy, and a logistic regression's here."""
    test = c2st(normal(0, 4000, 2, 0.5), normal(1, 4000, 2, -0.5), seed=0)
    best = stats.norm.cdf(2**0.5 / 2)
    assert abs(test.value - best) < 4 * test.standard_error + 0.002
    assert test.details["p_value"] < 1e-12
    ring = normal(2, 2000, 2)
    ring /= np.linalg.norm(ring, axis=1, keepdims=True)  # same mean: only knn can tell
    assert c2st(normal(3, 2000, 2), 1.2 * ring, classifier="knn").value > 0.75
    assert c2st(normal(3, 2000, 2), 1.2 * ring).value < 0.5 + 5 * 0.0112


def test_wasserstein_on_a_line_equals_the_integral_of_quantiles():
    x, y = normal(0, 12, 3), normal(1, 8, 3, 0.4)
    levels = (np.arange(24 * 50) + 0.5) / (24 * 50)
    qx, qy = (np.quantile(v, levels, axis=0, method="inverted_cdf") for v in (x, y))
    np.testing.assert_allclose(wasserstein_1d(x, y), ((qx - qy) ** 2).mean(0), rtol=1e-10)
    twice = np.concatenate([y, y])
    np.testing.assert_allclose(wasserstein_1d(x, twice), wasserstein_1d(x, y), rtol=1e-12)
    np.testing.assert_allclose(wasserstein_1d(y, twice), 0, atol=1e-15)


def test_sliced_wasserstein_of_shifted_normals_is_shift_over_root_d():
    """E over directions of (theta . m)^2 is |m|^2 / d."""
    got = sliced_wasserstein(
        normal(0, 2000, 4), normal(1, 2000, 4, shift=1.0), num_projections=250, seed=0
    )
    assert abs(got.value - 1.0) < 4 * got.standard_error
    assert got.standard_error < 0.05
    same = sliced_wasserstein(normal(0, 500, 1), normal(0, 500, 1), num_projections=2)
    assert same.value == 0.0


def test_memorisation_finds_copies_and_nothing_else():
    train, test = normal(0, 1000, 5), normal(1, 1000, 5)
    fresh = normal(2, 1000, 5)
    ratio, copies = memorisation(fresh, train, test, seed=0)
    assert abs(ratio.value - 1) < 4 * ratio.standard_error and copies.value == 0
    assert ratio.standard_error < 0.05
    fresh[:250] = train[:250] + 1e-6
    ratio, copies = memorisation(fresh, train, test, seed=0)
    assert copies.value == 0.25 and ratio.value < 1 - 4 * ratio.standard_error
    with pytest.raises(DataError, match="never saw"):
        memorisation(fresh, train, train)


# ---- the record, and the door --------------------------------------------------------------------


def test_wilson_covers_at_its_level():
    n, p = 60, 0.03
    k = np.arange(n + 1)
    inside = [low <= p <= high for low, high in (wilson(i / n, n) for i in k)]
    assert stats.binom.pmf(k, n, p)[inside].sum() > 0.93
    assert wilson(0.0, 50)[0] == 0.0 < wilson(0.0, 50)[1] < 0.1
    assert wilson(1.0, 50)[1] == 1.0


def test_an_estimate_without_an_error_is_refused():
    with pytest.raises(NonFiniteError, match="FD"):
        Estimate("FD[raw]", 1.0, float("nan"), 5, 5)
    one = Estimate("FD[raw]", 1.0, 0.5, 5, 6, expected=0.0, notes=("few",))
    assert one.interval == pytest.approx((0.02, 1.98), abs=1e-3)
    assert "5/6" in str(one) and "note: few" in str(one) and "± 0.5" in str(one)


JUDGES = {
    "frechet": frechet_distance, "kid": kid, "mmd": mmd_test, "c2st": c2st,
    "sliced": sliced_wasserstein,
}  # fmt: skip


@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_bad_input_is_one_clear_error(judge):
    good, bad = normal(0, 60, 3), normal(1, 60, 3)
    bad[4, 1] = np.nan
    with pytest.raises(DataError, match="first in datum 4"):
        judge(good, bad)
    for few in (0, 1):
        with pytest.raises(DataError, match=f"got {few} data"):
            judge(good, good[:few])
    with pytest.raises(ShapeError, match="expected one shape"):
        judge(good, normal(0, 60, 4))
    with pytest.raises(DataError, match="array of real"):
        judge(good, np.full((60, 3), "a"))
    with pytest.raises(MissingSeed):
        judge(good, good, seed=None)


def test_all_equal_data_are_refused_or_exact():
    flat = np.ones((60, 2))
    with pytest.raises(DataError, match="collapsed"):
        mmd_test(flat, flat)
    assert frechet_distance(flat, flat).fd.value == 0
    assert sliced_wasserstein(flat, flat).value == 0
    assert kid(flat, flat).value == pytest.approx(0, abs=1e-12)
    assert c2st(flat, flat).value == 0.5
