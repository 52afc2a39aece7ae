"""The likelihood freed of the bias of values, where its table and its best are closed forms."""

import math

import numpy as np
from test_generate_evaluate import S, data, exact_log_prob, linear_vae

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.engine.fitted import Fitted
from probgen.inference.ood import BiasCorrected, NegativeLogLikelihood
from probgen.inference.ood.bias_corrected import (
    best_bernoulli,
    best_continuous_bernoulli,
    nearest,
    stretch,
)
from probgen.models import VAE, likelihoods


def categorical_vae(rng):
    """Pixels of 4 levels that do not depend on z, and a guide that is the prior: all is exact."""
    logits = rng.normal(size=(3, 4)).astype(np.float32)
    params = {
        "decoder": {"out": {"weight": np.zeros((1, 12), np.float32), "bias": logits.reshape(-1)}},
        "encoder": {"out": {"weight": np.zeros((3, 2), np.float32), "bias": np.zeros(2, "f4")}},
    }
    return vae(likelihoods.Categorical(4), params, "int32"), logits


def vae(likelihood, params, dtype="float32"):
    model = VAE(
        latent=dist.Normal(0, 1).expand([1]).to_event(1),
        decoder=nets.MLP(hidden=(), out=(3,)),
        likelihood=likelihood,
        encoder=nets.MLP(hidden=(), out=1, heads=("loc", "log_scale")),
    )
    return Fitted(model, params, shapes={"x": (3,)}, dtypes={"x": dtype})


def test_the_correction_of_levels_is_their_mean_probability(backend):
    rng = np.random.default_rng(0)
    fitted, logits = categorical_vae(rng)
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    known, x = rng.integers(0, 3, (2, 50, 3)).astype(np.int32)
    x[0] = 3  # never in the reference: takes the correction of the level below
    score = BiasCorrected(known, num_particles=4)
    table = pg.evaluate(fitted, x, [score], seed=0, backend=backend, chunk_size=20)[score.name]
    pixel = np.take_along_axis(np.broadcast_to(probs, (50, 3, 4)), known[..., None], 2)[..., 0]
    log_means = np.log([pixel[known == v].mean() for v in range(3)] + [pixel[known == 2].mean()])
    nll = -np.log(np.take_along_axis(np.broadcast_to(probs, (50, 3, 4)), x[..., None], 2)).sum(
        (1, 2)
    )
    np.testing.assert_allclose(table["nll"], nll, rtol=1e-5)
    np.testing.assert_allclose(table["estimate"], nll + log_means[x].sum(1), rtol=1e-4, atol=1e-5)
    assert table["unseen_values"].values.tolist() == [3] + [0] * 49
    assert any("interpolated" in text for text in table.attrs["warnings"])


def test_a_datum_with_the_best_attainable_values_scores_zero(backend):
    """Pixels that all have one law: the table is that law, so nothing but the values remains."""
    fitted, _ = categorical_vae(np.random.default_rng(1))
    row = np.array([0.5, -1.0, 0.0, 0.3], np.float32)
    fitted.params["decoder"]["out"]["bias"] = np.tile(row, 3)
    x = np.random.default_rng(2).integers(0, 4, (50, 3)).astype(np.int32)
    score = BiasCorrected(x, num_particles=4)
    table = pg.evaluate(fitted, x, [score], seed=0, backend=backend, chunk_size=20)
    np.testing.assert_allclose(table[score.name]["estimate"], 0.0, atol=1e-5)
    assert table[score.name]["nll"].values.std() > 0.1


def test_a_normal_is_corrected_by_the_density_at_its_mode(backend):
    mode = 3 * (-math.log(S) - 0.5 * math.log(2 * math.pi))
    score = BiasCorrected(num_particles=4)
    table = pg.evaluate(linear_vae(), data(10), [score], seed=0, backend=backend)[score.name]
    np.testing.assert_allclose(table["correction"], mode, rtol=1e-5)
    np.testing.assert_allclose(table["estimate"], mode - exact_log_prob(data(10)), rtol=1e-4)


def test_binary_data_need_no_correction(backend):
    x = np.random.default_rng(0).integers(0, 2, (10, 3)).astype(np.float32)
    score, plain = BiasCorrected(num_particles=4), NegativeLogLikelihood(4)
    fitted = vae(dist.Bernoulli, linear_vae().params)
    table = pg.evaluate(fitted, x, [score, plain], seed=0, backend=backend)
    np.testing.assert_array_equal(table[score.name]["correction"], 0.0)
    np.testing.assert_array_equal(table[score.name]["estimate"], table[plain.name]["estimate"])


def test_stretched_contrast_forgives_what_dims_a_picture(backend):
    """A datum and the same with half the contrast, shifted, are one datum when stretched."""
    model = VAE(
        latent=dist.Normal(0, 1).expand([1]).to_event(1),
        decoder=nets.MLP(hidden=(), out=(40,)),
        likelihood=likelihoods.DiscretizedLogistic(num_levels=11),
        encoder=nets.MLP(hidden=(), out=1, heads=("loc", "log_scale")),
    )
    rng = np.random.default_rng(0)
    known = (rng.integers(0, 11, (20, 40)) / 10).astype(np.float32)
    bright = known[:5].copy()
    bright[:, :6], bright[:, 6:12] = 0.0, 1.0  # so that percentiles 5 and 95 are 0 and 1
    dim = np.float32(0.2) + bright * np.float32(0.5)
    on_levels = (np.round(dim * 10) / 10).astype(np.float32)
    _, params = bind(model, backend, data={"x": known[:1]}, seed=0)
    params = backend.tree_map(backend.to_numpy, params)
    fitted = Fitted(model, params, shapes={"x": (40,)})
    score = BiasCorrected(known, num_particles=4, stretch_contrast=True)
    one, other = (
        pg.evaluate(fitted, x, [score], seed=0, backend=backend)[score.name]
        for x in (bright, on_levels)
    )
    plain = pg.evaluate(fitted, bright, [NegativeLogLikelihood(4)], seed=0, backend=backend)
    np.testing.assert_allclose(one["nll"], plain["NegativeLogLikelihood(4)"]["estimate"], rtol=1e-5)
    assert (other["unseen_values"] == 0).all()
    # Levels in steps of 0.05 were rounded to 0.1, so that the pictures agree to that only.
    assert (
        np.abs(one["correction"] - other["correction"]).max()
        < 0.25 * np.abs(one["correction"]).min()
    )


def test_no_parameter_gives_a_value_more_than_its_best():
    x = np.array([0.0, 1e-3, 0.2, 0.5, 0.7, 1.0])
    p = np.linspace(1e-6, 1 - 1e-6, 200_001)[:, None]
    log_p = x * np.log(p) + (1 - x) * np.log1p(-p)
    np.testing.assert_allclose(best_bernoulli(x), log_p.max(0), atol=1e-5)
    assert (best_bernoulli(x)[[0, -1]] == 0).all()
    eta = np.linspace(-15, 15, 300_002)[:, None]  # without 0
    log_p = eta * x - np.log(np.expm1(eta) / eta)
    np.testing.assert_allclose(best_continuous_bernoulli(x), log_p.max(0), atol=1e-6)
    assert best_continuous_bernoulli(np.array([0.5]))[0] == 0.0  # the uniform law is the best


def test_stretching_moves_percentiles_to_the_ends():
    x = np.arange(101.0)[None] * 0.5 + 7.0
    y = stretch(x, 0.0, 1.0)
    np.testing.assert_allclose(y[0, [0, 5, 50, 95, 100]], [0, 0, 0.5, 1, 1])
    still = np.full((1, 4), 0.3)
    np.testing.assert_array_equal(stretch(still, 0.0, 1.0), still)
    levels = np.array([0.0, 1.0, 4.0])
    np.testing.assert_array_equal(
        nearest(levels, np.array([-1, 0.4, 0.6, 2.4, 2.6, 9])), [0, 0, 1, 1, 4, 4]
    )
    np.testing.assert_array_equal(nearest(levels[:1], np.array([3.0])), [0.0])
