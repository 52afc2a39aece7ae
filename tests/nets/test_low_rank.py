"""A net with low-rank additions starts as the net, keeps its weights to the bit, and learns what a
product of that rank can: fine-tuned to a map a rank away, it finds it."""

import dataclasses

import numpy as np
import pytest
from at_once import at_once
from fit_cases import assert_same_bits

import probgen as pg
from probgen import dist, nets
from probgen.errors import DeclarationError, UnknownName
from probgen.inference import Denoising
from probgen.models import Diffusion, NoiseSchedule
from probgen.trees import tree_items, tree_map

RNG = np.random.default_rng(0)
AWAY = np.outer(RNG.normal(size=5), RNG.normal(size=3))
X = RNG.normal(size=(256, 5)).astype("f")
LINEAR = nets.Sequential((nets.Dense(3),))


def linear(net):
    @pg.model
    def program(x):
        with pg.data_plate():
            pg.sample("y", dist.Normal(pg.net("map", net)(x), 0.1).to_event(1))

    return program


def minus_log_prob(bound, params, batch, key):
    return -pg.ops.mean(bound.trace(params, batch)["y"].log_prob)


def test_a_rank_away_is_found_with_the_weights_held(b):
    """y = x (W + u v^T) + b: the merged weight is that; W does not move, by weight decay either."""
    low = nets.LowRank(LINEAR, rank=1, layers=("layer0",), scale=2.0)
    plain = LINEAR.init(np.random.default_rng(1), (5,))
    goal = plain["layer0"]["weight"] + AWAY
    fitted = pg.fit(
        linear(low), {"x": X, "y": (X @ goal).astype("f")},
        pg.GradientLearner(minus_log_prob, pg.AdamW(pg.CosineDecay(0.1, 400), weight_decay=1e-4)),
        num_steps=400, batch_size=64, seed=0, backend=b, init={"map": low.params_of(plain)},
        ema_decay=0.9, progress_bar=False,
    )  # fmt: skip
    for params in (fitted.params["map"], fitted.raw.params["map"]):
        assert_same_bits(params["net"], plain)
    merged = low.merged(fitted.params["map"])
    np.testing.assert_allclose(merged["layer0"]["weight"], goal, atol=0.02)
    assert np.linalg.matrix_rank(merged["layer0"]["weight"] - plain["layer0"]["weight"], 1e-4) == 1


def test_it_starts_as_the_net_and_merged_weights_are_its_own(b):
    """Output and attention maps of a denoiser; biases, norms and its MLPs are not touched."""
    net, shapes = nets.PatchTransformer(2, 4, 1, 2), [(4, 4, 1), (), (3, 6)]
    low = nets.LowRank(net, rank=2, scale=3.0)
    base = net.init(np.random.default_rng(0), *shapes)
    start = low.params_of(base, seed=1)
    assert {path[-3:-1] for path, _ in tree_items(start["low_rank"])} == {
        (part, name) for part in ("self", "cross") for name in low.layers
    }
    xs = [b.asarray(RNG.normal(size=(2, *s)).astype("f")) for s in shapes]
    moved = tree_map(lambda v: v + 0.3 * RNG.normal(size=v.shape).astype("f"), start)

    def run(base, start, moved, merged):
        plain = net.apply(base, *xs, return_maps=True)
        at_start = low.apply(start, *xs, return_maps=True)
        return plain, at_start, low.apply(moved, *xs), net.apply(merged, *xs)

    trees = (base, start, moved, low.merged(moved))
    plain, at_start, one, other = at_once(b, run, *(tree_map(b.asarray, t) for t in trees))
    for ours, theirs in zip(
        pg.trees.tree_leaves(at_start), pg.trees.tree_leaves(plain), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(one, other, atol=1e-5)
    weight, added = (moved[part]["layer0"]["cross"]["key"] for part in ("net", "low_rank"))
    by_hand = weight["weight"] + 1.5 * added["down"] @ added["up"]
    np.testing.assert_allclose(trees[3]["layer0"]["cross"]["key"]["weight"], by_hand, rtol=1e-6)
    assert np.abs(one).max() > 0.1 and low.has_maps and low.out_shape(*shapes) == (4, 4, 1)


@pytest.mark.repeated("test_a_rank_away_is_found_with_the_weights_held")
def test_a_fitted_diffusion_is_tuned_in_three_lines(b):
    """Of a fit of denoiser and condition net nothing moves but A and B."""
    y = RNG.integers(0, 2, 64)
    x = RNG.normal(size=(64, 2)).astype("f")
    net = nets.MLPDenoiser(2, hidden=(8,))
    model = Diffusion(
        net, (2,), NoiseSchedule(4, "linear", 0.1), condition=nets.ClassEmbedding(2, 3)
    )
    options = {
        "inputs": {"condition": y}, "num_steps": 3, "batch_size": 32, "seed": 0, "backend": b,
        "progress_bar": False,
    }  # fmt: skip
    fitted = pg.fit(model, x, Denoising(), **options)

    low = nets.LowRank(net, rank=2, layers=("layer0", "out"))
    init = {**fitted.params, "denoiser": low.params_of(fitted.params["denoiser"])}
    tuned = pg.fit(
        dataclasses.replace(model, denoiser=low), x, Denoising(), init=init,
        freeze=("condition",), **options,
    )  # fmt: skip

    assert_same_bits(tuned.params["denoiser"]["net"], fitted.params["denoiser"])
    assert_same_bits(tuned.params["condition"], fitted.params["condition"])
    for path, leaf in tree_items(tuned.params["denoiser"]["low_rank"]):
        assert np.abs(leaf).max() > 0, path


def test_a_layer_that_is_not_there_is_refused():
    net = nets.MLP((4,), 2)
    with pytest.raises(UnknownName, match="layer 'query', expected .* of MLP, layer0, out"):
        nets.LowRank(net).init(RNG, (3,))
    with pytest.raises(UnknownName, match="did you mean 'layer0'"):
        nets.LowRank(net, layers=("layer",)).init(RNG, (3,))
    with pytest.raises(DeclarationError, match="with buffers of its own"):
        nets.LowRank(nets.MLP((4,), 2, spectral=True), layers=("out",)).init(RNG, (3,))
    low = nets.LowRank(nets.TextEncoder(("red",), 3, 4), layers=("query",))
    assert low.in_ndim == 1 and hasattr(low, "null") and not hasattr(low, "penalty")
