"""Scores of several models and hierarchies, against closed forms of linear-Gaussian models."""

import numpy as np
import pytest
from scores_models_cases import Hierarchy, S, W, draws, exact, latent, linear

import probgen as pg
from probgen import nets
from probgen.engine.fitted import Fitted
from probgen.errors import AlgorithmError, DataError, DeclarationError, ShapeError, SupportError
from probgen.inference import IWAE
from probgen.inference.ood import WAIC, HierarchyRatio, LikelihoodRatio, Resultant
from probgen.inference.ood.resultant import svd_rank
from probgen.models import VAE, Generator, likelihoods

OTHER = np.array([[0.2, 0.4, 0.1]])
THIRD = np.array([[0.5, 0.5, -0.5]])


def evaluate(fitted, x, measures, b, **options):
    options = {"seed": 0, "progress_bar": False} | options
    return pg.evaluate(fitted, x, measures, backend=b, **options)


# ---- likelihood ratio ----------------------------------------------------------------------------


def test_the_ratio_of_equal_models_is_exactly_zero(b):
    """Two copies of the parameters, a guide that is off: the noise is shared, the error is zero."""
    table = evaluate(linear(width=1.5), draws(9), [LikelihoodRatio(linear(width=1.5), 30)], b)
    (name,) = table.names
    assert (table[name]["estimate"] == 0.0).all() and (table[name]["standard_error"] == 0.0).all()


def test_the_ratio_is_the_closed_form_where_the_guides_are_posteriors(b):
    x = draws(20)
    table = evaluate(linear(), x, [LikelihoodRatio(linear(OTHER), 5), IWAE(5)], b, chunk_size=7)
    ratio = table["LikelihoodRatio(5)"]
    truth = exact(x, OTHER) - exact(x)
    np.testing.assert_allclose(ratio["estimate"], truth, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(ratio["log_prob_background"], exact(x, OTHER), rtol=2e-5)
    np.testing.assert_array_equal(ratio["log_prob"], table["IWAE(5)"]["estimate"])
    assert table.larger_is_stranger["LikelihoodRatio(5)"] and table.units["LikelihoodRatio(5)"]


def test_the_standard_error_of_a_ratio_is_the_spread_that_is_seen(b):
    """400 copies of one datum, each with noise of its own; shared noise makes it less than that of
    two independent estimates."""
    x = np.repeat(draws(1), 400, axis=0)
    table = evaluate(
        linear(width=1.3), x, [LikelihoodRatio(linear(1.3 * W, width=1.4), 300)], b, chunk_size=400
    )
    found = table[table.names[0]]
    truth = exact(x[:1], 1.3 * W)[0] - exact(x[:1])[0]
    estimate = found["estimate"].values
    assert abs(estimate.mean() - truth) < 5 * estimate.std() / 20 + 1e-3
    # A variance from 400 draws is known to 7 %, its square root to 3.5 %.
    seen = estimate.std() / np.sqrt((found["standard_error"].values ** 2).mean())
    assert 0.82 < seen < 1.18
    assert estimate.std() < 0.8 * np.sqrt(2) * found["log_prob"].values.std()


def test_a_label_tells_two_backgrounds_apart(b):
    scores = [LikelihoodRatio(linear(w), 5, label) for w, label in ((OTHER, "a"), (THIRD, "b"))]
    table = evaluate(linear(), draws(4), scores, b)
    assert table.names == ["LikelihoodRatio(a, 5)", "LikelihoodRatio(b, 5)"]
    assert (table[table.names[0]]["estimate"] != table[table.names[1]]["estimate"]).all()


# ---- WAIC ----------------------------------------------------------------------------------------


def test_waic_is_its_closed_form(b):
    x, weights = draws(11), (W, OTHER, THIRD)
    score = WAIC([linear(w) for w in weights], 4)
    table = evaluate(linear(), x, [score], b, chunk_size=4)[score.name]
    log_prob = np.stack([exact(x, w) for w in weights], 1)
    truth = log_prob.var(1, ddof=1) - log_prob.mean(1)
    np.testing.assert_allclose(table["log_prob"], log_prob, rtol=2e-5)
    np.testing.assert_allclose(table["estimate"], truth, rtol=1e-4, atol=1e-4)


def test_waic_of_one_model_twice_is_its_negative_log_likelihood(b):
    fitted = linear(width=1.4)
    score = WAIC([fitted, linear(width=1.4)], 20)
    table = evaluate(fitted, draws(6), [score, IWAE(20)], b)
    ours, plain = table[score.name], table["IWAE(20)"]
    np.testing.assert_array_equal(ours["variance"], 0.0)
    np.testing.assert_allclose(ours["estimate"], -plain["estimate"], rtol=1e-12)
    np.testing.assert_allclose(ours["standard_error"], plain["standard_error"], rtol=1e-9)


def test_the_standard_error_of_waic_is_the_spread_that_is_seen(b):
    x = np.repeat(draws(1, seed=3), 400, axis=0)
    score = WAIC([linear(width=1.3), linear(OTHER, width=1.5)], 300)
    found = evaluate(linear(), x, [score], b, chunk_size=400)[score.name]
    seen = found["estimate"].values.std() / np.sqrt((found["standard_error"].values ** 2).mean())
    assert 0.82 < seen < 1.18


# ---- hierarchies ---------------------------------------------------------------------------------


def test_the_ratio_in_a_hierarchy_is_its_closed_form(b):
    """One particle: both terms are ELBOs, whose means over 1500 copies of a datum are known."""
    case, count = Hierarchy(), 1500
    x = case.draws(2, seed=1) * np.float32([[1.0], [3.0]])  # an ordinary and a strange one
    scores = [HierarchyRatio(1, 1, lowest=lowest) for lowest in ("sample", "mode")]
    table = evaluate(case.fitted(), np.repeat(x, count, axis=0), scores, b, chunk_size=2 * count)
    for score in scores:
        found = table[score.name]
        truth = case.elbo(x), case.elbo_above(x, score.lowest == "mode")
        wanted = {"bound": truth[0], "bound_above": truth[1], "estimate": truth[0] - truth[1]}
        for quantity, want in wanted.items():
            got = found[quantity].values.reshape(2, count)
            error = got.std(1) / np.sqrt(count)
            assert (np.abs(got.mean(1) - want) < 5 * error).all(), (score.lowest, quantity)
        assert "standard_error" not in found  # one particle does not tell


def test_both_bounds_of_a_hierarchy_tend_to_the_likelihood(b):
    """E[w] = p(x) with sampled low latents too, so that the ratio tends to zero with K."""
    case = Hierarchy()
    x = case.draws(30)
    score = HierarchyRatio(1, 400, 500, "sample", particles_at_once=200)
    found = evaluate(case.fitted(), x, [score], b, chunk_size=30)[score.name]
    weight = case.A @ case.V
    noise = case.t**2 * case.V.T @ case.V + case.s**2 * np.eye(4)
    cov = weight.T @ weight + noise
    d = x.astype(float) - case.a @ case.V - case.c
    truth = -0.5 * (d @ np.linalg.inv(cov) * d).sum(1)
    truth -= 0.5 * np.linalg.slogdet(2 * np.pi * cov)[1]
    # Heavy weights: no interval for a datum holds, the mean over data does, but for Jensen's slack.
    for off in (found["bound_above"].values - truth, found["estimate"].values):
        assert abs(off.mean()) < 5 * off.std() / np.sqrt(len(x)) + 0.05


def test_a_hierarchy_is_asked_for(b):
    with pytest.raises(AlgorithmError, match=r"latents \['z'\], expected a hierarchy"):
        evaluate(linear(), draws(3), [HierarchyRatio()], b)
    case = Hierarchy()
    with pytest.raises(AlgorithmError, match="at least 3"):
        evaluate(case.fitted(), case.draws(3), [HierarchyRatio(2)], b)
    for wrong in ({"num_lowest": 0}, {"lowest": "mean"}, {"num_particles_above": 0}):
        with pytest.raises(DeclarationError, match=f"HierarchyRatio: got {next(iter(wrong))}="):
            HierarchyRatio(**wrong)


# ---- resultant -----------------------------------------------------------------------------------


class Prior:
    """The model's own prior as an aggregate posterior."""

    def score_samples(self, z):
        return -0.5 * (z**2).sum(1) - 0.5 * z.shape[1] * np.log(2 * np.pi)


def test_an_aggregate_posterior_that_is_the_prior_gives_the_bound_back(b):
    x = draws(12)
    score = Resultant(draws(20, seed=1), 6, density=Prior(), complexity=False)
    found = evaluate(linear(), x, [score], b, chunk_size=5)[score.name]
    np.testing.assert_allclose(found["estimate"], -found["elbo"], rtol=1e-5)
    np.testing.assert_allclose(found["elbo"], exact(x), rtol=2e-5)  # the guide is the posterior
    assert (found["standard_error"] < 1e-4).all()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"num_components": 1},
            marks=pytest.mark.repeated(
                "test_an_aggregate_posterior_is_fitted_to_the_guides_latents"
            ),
        ),
        {"density": "kde"},
        {"num_components": 1, "latents": "means"},
    ],
)
def test_an_aggregate_posterior_is_fitted_to_the_guides_latents(b, options):
    """Data of the model: draws of q(z | x) are N(0, 1), means N(0, 1 - V), with V the posterior's
    variance; the mean of log qhat(z) follows."""
    reference, x = draws(2000, seed=1), draws(1000, seed=2)
    score = Resultant(reference, 1, complexity=False, **options)
    found = evaluate(linear(), x, [score], b, chunk_size=2000)[score.name]
    gain = (found["post_hoc_elbo"] - found["elbo"]).values
    spread = 1.0
    if options.get("latents") == "means":
        spread -= 1.0 / (1.0 + (W**2).sum() / S**2)
    # E[log N(z; 0, v) - log N(z; 0, 1)] for z ~ N(0, 1), and a Gaussian fit's or Scott's own bias
    truth = -0.5 * np.log(spread) - 0.5 * (1.0 / spread - 1.0)
    slack = 0.01 if options.get("density") == "kde" else 0.003
    assert abs(gain.mean() - truth) < 5 * gain.std() / np.sqrt(1000) + slack


def equal_singular_values(rank, count, rng, size=4):
    """Images [count, size^2] with `rank` singular values that are one, the others zero."""
    out = []
    for _ in range(count):
        u, v = (np.linalg.qr(rng.normal(size=(size, size)))[0][:, :rank] for _ in range(2))
        out.append((u @ v.T).ravel())
    return np.array(out, np.float32)


def test_complexity_is_highest_at_the_references_rank(b):
    """All reference images have rank 2: C is |E PHP| times 1/2, 1, 1/2, 0 for ranks 1 to 4."""
    rng = np.random.default_rng(0)
    fitted = linear(rng.normal(size=(1, 16)), np.zeros(16))
    x = np.concatenate([equal_singular_values(r, 2, rng) for r in (1, 2, 3, 4)])
    reference = equal_singular_values(2, 10, rng)
    score = Resultant(reference, 4, density=Prior(), image_shape=(4, 4))
    found = evaluate(fitted, x, [score], b, chunk_size=3)[score.name]
    np.testing.assert_array_equal(found["rank"], np.repeat([1, 2, 3, 4], 2))
    weight = abs(exact(reference, fitted.params["decoder"]["out"]["weight"], np.zeros(16)).mean())
    np.testing.assert_allclose(
        found["complexity"], weight * np.repeat([0.5, 1.0, 0.5, 0.0], 2), rtol=1e-4, atol=1e-4
    )
    total = -(found["post_hoc_elbo"] + found["complexity"])
    np.testing.assert_allclose(found["estimate"], total, rtol=1e-12)


def test_the_rank_counts_singular_values_of_every_channel():
    rng = np.random.default_rng(1)
    images = rng.normal(size=(5, 6, 4, 2))
    images[0] = 0.0
    images[1, ..., 1] = 0.0
    for share in (0.5, 0.9, 1.0):
        wanted = []
        for image in images:
            count = 0
            for c in range(2):
                s = np.linalg.svd(image[..., c])[1] ** 2
                count += next(k for k in range(5) if s[:k].sum() >= (share - 1e-9) * s.sum())
            wanted.append(count)
        np.testing.assert_array_equal(svd_rank(images, share), wanted)
    assert svd_rank(images, 1.0).tolist() == [0, 4, 8, 8, 8]


def test_a_reference_that_cannot_serve_is_refused(b):
    for data, options, match in (
        (draws(5), {"complexity": False}, "got 5 reference data, expected at least 11"),
        (draws(20)[:, :2], {"complexity": False}, "shape"),
        (np.zeros((20, 3), np.float32), {"image_shape": (3, 1), "density": Prior()}, "are zero"),
    ):
        with pytest.raises((DataError, ShapeError), match=match):
            evaluate(linear(), draws(3), [Resultant(data, **options)], b)
    with pytest.raises(ShapeError, match="image_shape"):
        evaluate(linear(), draws(3), [Resultant(draws(20))], b)
    with pytest.raises(DeclarationError, match="score_samples"):
        Resultant(draws(20), density="flow")
    with pytest.raises(DeclarationError, match="draws"):
        Resultant(draws(20), latents="modes")


# ---- all of them ---------------------------------------------------------------------------------


@pytest.mark.repeated("test_scores_onepass.py::test_how_data_are_cut_changes_no_score")
def test_chunks_change_no_number(b):
    case = Hierarchy()
    plain = [
        LikelihoodRatio(linear(OTHER, width=1.4), 6),
        Resultant(draws(9, seed=2), 3, num_components=2, image_shape=(3, 1)),
    ]
    steps = HierarchyRatio(1, 2, 2, "sample", particles_at_once=1)
    for fitted, x, scores in ((linear(), draws(7), plain), (case.fitted(), case.draws(7), [steps])):
        whole, parts = (evaluate(fitted, x, scores, b, chunk_size=size) for size in (7, 3))
        for name in whole.names:
            for quantity in whole[name]:
                np.testing.assert_allclose(
                    whole[name][quantity], parts[name][quantity], rtol=2e-4, atol=2e-5
                )


def test_a_score_is_known_by_its_settings_and_content(b, tmp_path):
    """Short text, equal for equal content alone; an evaluation in parts goes on by it."""
    scores = [
        lambda w: LikelihoodRatio(linear(w), 5),
        lambda w: WAIC([linear(), linear(w)], 5),
        lambda w: Resultant(draws(30, w), 2, num_components=1, complexity=False),
    ]
    for make in scores:
        assert repr(make(W)) == repr(make(W)) != repr(make(OTHER))
        assert len(repr(make(W))) < 300
    evaluate(linear(), draws(4), [s(W) for s in scores], b, chunk_size=2, path=tmp_path / "t")


def test_models_that_do_not_fit_are_refused_by_name(b):
    x = draws(3)
    wide = linear(np.ones((1, 4)), np.zeros(4))
    with pytest.raises(ShapeError, match="the background model: data 'x': got shape"):
        evaluate(linear(), x, [LikelihoodRatio(wide, 5)], b)
    with pytest.raises(ShapeError, match="model 1"):
        evaluate(linear(), x, [WAIC([linear(), wide], 5)], b)
    bare = Generator(latent(1), nets.MLP(hidden=(), out=(3,)), likelihoods.Normal(S))
    bare = Fitted(bare, {"decoder": linear().params["decoder"]}, shapes={"x": (3,)})
    for score in (LikelihoodRatio(bare, 5), WAIC([linear(), bare], 5)):
        with pytest.raises(AlgorithmError, match="no guide"):
            evaluate(linear(), x, [score], b)
    for score in (HierarchyRatio(), Resultant(draws(20), complexity=False)):
        with pytest.raises(AlgorithmError, match="no guide"):
            evaluate(bare, x, [score], b)


def test_a_probability_is_not_compared_with_a_density(b):
    binary = VAE(
        latent(1), nets.MLP(hidden=(), out=(3,)), likelihoods.Bernoulli(), linear().model.encoder
    )
    binary = Fitted(binary, linear().params, shapes={"x": (3,)})
    x = (draws(3) > 0).astype(np.float32)
    with pytest.raises(AlgorithmError, match="a probability in the evaluated model and a density"):
        evaluate(binary, x, [LikelihoodRatio(linear(), 5)], b)
    levels = likelihoods.DiscretizedLogistic(num_levels=3)
    three = VAE(latent(1), nets.MLP(hidden=(), out=(3,)), levels, linear().model.encoder)
    params = {
        "encoder": linear().params["encoder"],
        "decoder": {"out": {"weight": np.ones((1, 6), "f4"), "bias": np.zeros(6, "f4")}},
    }
    three = Fitted(three, params, shapes={"x": (3,)})
    with pytest.raises(SupportError, match="the background model: data 'x'"):
        evaluate(three, np.full((2, 3), 0.5, "f4"), [LikelihoodRatio(binary, 5)], b)


def test_an_ensemble_has_two_models_or_more():
    for models in ([], [linear()], linear()):
        with pytest.raises(DeclarationError, match="models=.*at least two"):
            WAIC(models)
    with pytest.raises(DeclarationError, match="each entry a Fitted"):
        WAIC([linear(), "model"])
    with pytest.raises(DeclarationError, match="got background=.*expected a Fitted"):
        LikelihoodRatio(linear().model)
    with pytest.raises(DeclarationError, match="LikelihoodRatio: got num_particles=0"):
        LikelihoodRatio(linear(), 0)
