"""One-pass scores on models whose truth is a closed form, on both backends."""

import math

import numpy as np
import pytest
from scipy.stats import chi2
from test_generate_evaluate import B, S, W, data, exact_log_prob, linear_vae

import probgen as pg
from probgen.inference import ELBO, IWAE
from probgen.inference.ood import (
    BiasCorrected,
    CombinedTest,
    DoSE,
    GradientNorm,
    KLTerm,
    LPath,
    Mahalanobis,
    NegativeLogLikelihood,
    ReconstructionError,
    Typicality,
)

X = data(80)
X, REFERENCE = X[:20], X[20:]
LABELS = np.arange(60) % 3
PARTICLES = 6

NLL = NegativeLogLikelihood(PARTICLES)
PARTS = (NLL, ReconstructionError(8), KLTerm(8))
COMBINED = CombinedTest(REFERENCE, (Typicality(REFERENCE, PARTICLES), KLTerm(8)))
SCORES = [
    *PARTS, IWAE(PARTICLES), Mahalanobis(REFERENCE), Mahalanobis(REFERENCE, LABELS),
    Typicality(REFERENCE, PARTICLES), LPath(REFERENCE), DoSE(REFERENCE, (NLL, KLTerm(8))),
    COMBINED,
    BiasCorrected(num_particles=PARTICLES), GradientNorm(REFERENCE, data_at_once=4),
    GradientNorm(REFERENCE, "density", data_at_once=4), GradientNorm(method="norm", nets="guide"),
]  # fmt: skip
# One gradient of three: they differ in what is made of the norms.
MADE_OF = [*PARTS, SCORES[4], SCORES[-4], SCORES[-2]]


@pytest.fixture(scope="module")
def tables(backend):
    """The scores of 20 data in chunks of 10; and all at once those that the others are made of."""
    fitted = linear_vae()
    one = pg.evaluate(fitted, X, SCORES, seed=0, backend=backend, chunk_size=10)
    return one, pg.evaluate(fitted, X, MADE_OF, seed=0, backend=backend)


def estimate(table, score):
    return table[score.name]["estimate"].values


def code(x):
    """Mean of the exact posterior, [n, 1], and its variance."""
    variance = 1.0 / (1.0 + float((W**2).sum()) / S**2)
    return (x - B) @ (variance * W.T / S**2), variance


def exact_kl(x):
    mean, v = code(x)
    return 0.5 * (mean[:, 0] ** 2 + v - 1.0 - math.log(v))


def tails(known, s):
    """Shares of `known` with the datum at or above it, and at or below: one by one."""
    right = [(1 + sum(k >= t for k in known)) / (1 + len(known)) for t in s]
    left = [(1 + sum(k <= t for k in known)) / (1 + len(known)) for t in s]
    return np.array(right), np.array(left)


def test_the_parts_are_closed_forms_where_the_guide_is_the_posterior(tables):
    table = tables[0]
    np.testing.assert_allclose(estimate(table, NLL), -exact_log_prob(X), rtol=2e-5)
    np.testing.assert_array_equal(estimate(table, NLL), -estimate(table, IWAE(PARTICLES)))
    np.testing.assert_allclose(estimate(table, KLTerm(8)), exact_kl(X), rtol=1e-5)
    assert table[KLTerm(8).name]["standard_error"].max() < 1e-6
    expected = -exact_log_prob(X) - exact_kl(X)  # E_q -log p(x | z) = -log p + KL(q || post) - KL
    off = estimate(table, ReconstructionError(8)) - expected
    spread = math.sqrt(np.mean(table[ReconstructionError(8).name]["standard_error"] ** 2) / len(X))
    assert abs(off.mean()) < 5 * spread
    errors = table[ReconstructionError(8).name]["standard_error"].values
    assert 0.3 < np.mean(off**2) / np.mean(errors**2) < 3.0  # as large as what is seen
    assert all(table.larger_is_stranger[s.name] for s in SCORES if not isinstance(s, IWAE))


def test_reconstruction_and_kl_of_one_draw_sum_to_the_negative_bound(backend):
    """With the exact posterior log p(x, z) - log q(z | x) = log p(x) for every z, so the parts of
    the same draws sum to -log p(x); with a wide guide they sum to -ELBO up to noise."""
    sampled = KLTerm(8, analytic_kl=False)
    scores = [ReconstructionError(8), sampled]
    table = pg.evaluate(linear_vae(), X, scores, seed=3, backend=backend)
    total = estimate(table, scores[0]) + estimate(table, sampled)
    np.testing.assert_allclose(total, -exact_log_prob(X), rtol=2e-5)
    assert estimate(table, sampled).std() > 0.1  # and not since each part is constant
    scores = [ReconstructionError(64), KLTerm(64), ELBO(num_particles=64)]
    table = pg.evaluate(linear_vae(1.5), REFERENCE, scores, seed=3, backend=backend)
    off = sum(estimate(table, s) for s in scores)
    assert abs(off.mean()) < 5 * off.std() / math.sqrt(len(off)) and off.std() < 0.5


def test_mahalanobis_is_the_distance_among_reference_codes(tables):
    codes, known = code(X)[0][:, 0], code(REFERENCE)[0][:, 0]
    exact = (codes - known.mean()) ** 2 / known.var(ddof=1)
    np.testing.assert_allclose(estimate(tables[0], SCORES[4]), exact, rtol=1e-4)
    means = np.array([known[c == LABELS].mean() for c in range(3)])
    within = sum(((known[c == LABELS] - means[c]) ** 2).sum() for c in range(3)) / (60 - 3)
    table = tables[0]["Mahalanobis(3 classes)"]
    np.testing.assert_allclose(
        table["distances"], (codes[:, None] - means) ** 2 / within, rtol=1e-4
    )
    np.testing.assert_array_equal(table["estimate"], table["distances"].min(axis=1))


def test_typicality_is_zero_where_the_likelihood_is_the_mean_one(backend):
    """-log p(B + t d) = -log p(B) + a t^2 for the direction d: solved for the mean of REFERENCE."""
    entropy = -exact_log_prob(REFERENCE).mean()
    d = np.array([0.3, 1.0, -0.5])
    lowest, one = -exact_log_prob(np.stack([B, B + d]))
    t = math.sqrt((entropy - lowest) / (one - lowest))
    x = np.stack([B + t * d, B, B + 2 * t * d]).astype(np.float32)
    score = Typicality(REFERENCE, PARTICLES)
    table = pg.evaluate(linear_vae(), x, [score], seed=0, backend=backend)
    found = estimate(table, score)
    assert found[0] < 1e-4
    expected = [0.0, entropy - lowest, 3 * (entropy - lowest)]  # too probable is strange as well
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(table[score.name]["entropy"], entropy, rtol=1e-5)


def path(x):
    mean, v = code(x)
    off = np.linalg.norm(x - (mean @ W + B), axis=1)
    return np.stack([off, np.abs(mean[:, 0]), np.full(len(x), math.sqrt(v))], axis=1)


def test_lpath_is_the_rarest_side_of_the_norms(tables):
    table, known, seen = tables[0]["LPath(copod)"], path(REFERENCE), path(X)
    np.testing.assert_allclose(table["norms"], seen, rtol=1e-4, atol=1e-5)
    # sigma is the same for all data: every tail of it is 1.
    right, left = zip(*(tails(known[:, j], seen[:, j]) for j in range(2)), strict=True)
    right, left = -np.log(right), -np.log(left)  # [2, n]
    skew = [((k - k.mean()) ** 3).mean() for k in known[:, :2].T]
    third = sum(left[j] if skew[j] < 0 else right[j] for j in range(2))
    exact = np.max([right.sum(0), left.sum(0), third], axis=0)
    np.testing.assert_allclose(table["estimate"], exact, rtol=1e-6)


def test_dose_sums_minus_log_kernel_densities(tables):
    table = tables[0][DoSE(REFERENCE, (NLL, KLTerm(8))).name]
    pairs = [(-exact_log_prob(REFERENCE), -exact_log_prob(X)), (exact_kl(REFERENCE), exact_kl(X))]
    exact = 0.0
    for known, t in pairs:
        width = known.std(ddof=1) * len(known) ** -0.2  # Scott's rule
        kernels = np.exp(-0.5 * ((t[:, None] - known) / width) ** 2)
        exact = exact - np.log(kernels.mean(1) / (width * math.sqrt(2 * math.pi)))
    np.testing.assert_allclose(table["estimate"], exact, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(-table["log_densities"].sum(axis=1), table["estimate"], rtol=1e-6)


def test_combined_p_values_are_ranks_among_the_reference(tables):
    table = tables[0][COMBINED.name]
    nll = -exact_log_prob(REFERENCE)
    first, _ = tails(np.abs(nll - nll.mean()), np.abs(-exact_log_prob(X) - nll.mean()))
    second, _ = tails(exact_kl(REFERENCE), exact_kl(X))
    np.testing.assert_allclose(table["p_values"], np.stack([first, second], 1), atol=1.01 / 61)
    statistic = -2 * np.log(table["p_values"]).sum(axis=1)
    np.testing.assert_allclose(table["estimate"], statistic, rtol=1e-6)
    # Brown: c = variance / (4 k) = (8 + 8 rho) / 8, rho of the reference's own -log p
    first, _ = tails(np.abs(nll - nll.mean()), np.abs(nll - nll.mean()))
    second, _ = tails(exact_kl(REFERENCE), exact_kl(REFERENCE))
    c = 1 + np.corrcoef(np.log(first), np.log(second))[0, 1]
    np.testing.assert_allclose(table["p_value"], chi2.sf(statistic / c, 4 / c), rtol=0.02)
    assert abs(c - 1) > 0.1
    assert (np.argsort(table["p_value"].values) == np.argsort(-statistic.values)).all()


def test_how_data_are_cut_changes_no_score(tables):
    one, whole = tables
    for name in whole.names:
        np.testing.assert_allclose(
            one[name]["estimate"], whole[name]["estimate"], rtol=2e-4, atol=1e-4, err_msg=name
        )


# Each of these scores is a closed form of its own datum and the reference, above.
@pytest.mark.repeated("test_the_parts_are_closed_forms_where_the_guide_is_the_posterior")
def test_the_order_of_data_changes_no_score_without_noise(backend, tables):
    order = np.random.default_rng(0).permutation(len(X))
    scores = [KLTerm(8), Mahalanobis(REFERENCE), LPath(REFERENCE)]
    moved = pg.evaluate(linear_vae(), X[order], scores, seed=1, backend=backend, chunk_size=10)
    for score in scores:
        want = estimate(tables[0], score)[order]
        np.testing.assert_allclose(estimate(moved, score), want, rtol=1e-4, atol=1e-5)
