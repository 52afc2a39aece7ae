"""Maps put into another pass: one's own change nothing, kept columns change nothing, and what they
give is the formula."""

import numpy as np
import pytest
from at_once import at_once

from probgen import nets
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError, DeclarationError, ShapeError, UnknownName
from probgen.language.declared import declaration
from probgen.models import Diffusion
from probgen.nets import MapReplacement
from probgen.trees import tree_map

RNG = np.random.default_rng(0)
IMAGE, CONTEXT = (4, 4, 1), (3, 6)
KEPT = np.array([False, True, False])
DENOISERS = [
    nets.UNet((4,), num_heads=2, num_groups=2),
    nets.PatchTransformer(2, 4, 2, 2),
]


def moved(b, params, seed=1):
    """Weights away from their start, at which paths are zero."""
    rng = np.random.default_rng(seed)
    return tree_map(
        lambda v: b.asarray(b.to_numpy(v) + 0.3 * rng.normal(size=v.shape).astype("f")), params
    )


def arrays(b, *shapes):
    return [b.asarray(RNG.normal(size=shape).astype("f")) for shape in shapes]


def by_hand(maps, stored, params, context):
    """The output with the columns of `stored` that are not kept, and that of renormalised rows."""
    value = context @ params["value"]["weight"] + params["value"]["bias"]
    mixed = np.where(KEPT, maps, stored)
    found = []
    for used in (mixed, mixed / mixed.sum(-1, keepdims=True)):
        heads = [used[:, h] @ value[..., 2 * h : 2 * h + 2] for h in (0, 1)]
        found.append(np.concatenate(heads, -1) @ params["out"]["weight"] + params["out"]["bias"])
    return found


def test_replaced_attention_is_its_formula(b):
    net, rng = nets.CrossAttention(2), np.random.default_rng(0)
    params = net.init(rng, (5, 4), CONTEXT)
    x, context, other = arrays(b, (2, 5, 4), (2, *CONTEXT), (2, *CONTEXT))

    def run(params):
        _, stored = net.apply(params, x, other, return_maps=True)
        own = net.apply(params, x, context, return_maps=True)
        each = [
            net.apply(params, x, context, True, replace=MapReplacement(stored, KEPT, way))
            for way in (False, True)
        ]
        return stored, own, each

    stored, (_, maps), each = at_once(b, run, tree_map(b.asarray, params))
    for (y, used), expected in zip(
        each, by_hand(maps, stored, params, b.to_numpy(context)), strict=True
    ):
        np.testing.assert_allclose(y, expected, atol=1e-5)
        np.testing.assert_allclose(used[..., 1] / used[..., 0], maps[..., 1] / stored[..., 0], 1e-4)
    np.testing.assert_allclose(each[1][1].sum(-1), 1, atol=1e-6)
    assert np.abs(each[0][1].sum(-1) - 1).max() > 1e-3


@pytest.mark.repeated("test_own_maps_and_kept_columns_change_nothing")
def test_unet_hands_out_its_maps(b):
    net = nets.UNet((4, 8), attention_levels=(1,), num_heads=2)
    params = tree_map(b.asarray, net.init(np.random.default_rng(0), (8, 8, 3), (), (4, 6)))
    xs = arrays(b, (2, 8, 8, 3), (2,), (2, 4, 6))
    y, maps = at_once(b, lambda p: net.apply(p, *xs, return_maps=True), params)
    assert y.shape == (2, 8, 8, 3) and "middle_attention" in maps and len(maps) == 4
    for each in maps.values():
        assert each.shape == (2, 2, 16, 4)
        np.testing.assert_allclose(each.sum(-1), 1, rtol=1e-5)


OF_PATCHES = pytest.mark.repeated("test_a_diffusion_hands_out_the_maps_of_its_conditional_branch")


@pytest.mark.parametrize(
    "net", [DENOISERS[0], pytest.param(DENOISERS[1], marks=OF_PATCHES)],
    ids=lambda net: type(net).__name__,
)  # fmt: skip
def test_own_maps_and_kept_columns_change_nothing(b, net):
    params = net.init(np.random.default_rng(0), IMAGE, (), CONTEXT)
    params = moved(b, tree_map(b.asarray, params))
    x, t, context, other = arrays(b, (2, *IMAGE), (2,), (2, *CONTEXT), (2, *CONTEXT))

    def run(params):
        y, maps = net.apply(params, x, t, context, return_maps=True)
        _, theirs = net.apply(params, x, t, other, return_maps=True)
        none, every = np.zeros(3, bool), np.ones(3, bool)
        first = sorted(maps)[0]
        replacements = {
            "own": MapReplacement(maps, none, True),
            "kept": MapReplacement(theirs, every),
            "one layer": MapReplacement({first: theirs[first]}, none),
        }
        asked = {
            name: net.apply(params, x, t, context, return_maps=True, replace=each)
            for name, each in replacements.items()
        }
        return y, maps, theirs, asked

    y, maps, theirs, asked = at_once(b, run, params)
    for name in ("own", "kept"):
        np.testing.assert_allclose(asked[name][0], y, atol=2e-6)
    first = sorted(maps)[0]
    changed, used = asked["one layer"]
    assert np.abs(changed - y).max() > 1e-3
    np.testing.assert_allclose(used[first], theirs[first], rtol=1e-6)
    assert set(used) == set(maps) and all(m.shape[1] == 2 for m in maps.values())
    for each in maps.values():
        np.testing.assert_allclose(each.sum(-1), 1, rtol=1e-5)


@declaration
class Mean:
    """A context's mean as the prediction: a denoiser without maps."""

    def init(self, key, *shapes):
        return {}

    def apply(self, params, x, t, context):
        return x * 0 + context.mean()


def test_a_diffusion_hands_out_the_maps_of_its_conditional_branch(b):
    """Guidance is the line of `predict`; maps put in reach the conditional branch alone."""
    rows = nets.ClassEmbedding(3, 6, num_tokens=3)
    model = Diffusion(nets.PatchTransformer(2, 4, 1, 2), IMAGE, condition=rows)
    x, t = arrays(b, (2, *IMAGE), (2,))
    words, others = np.array([0, 1]), np.array([2, 0])
    start = bind(model, b, data={"x": b.to_numpy(x), "condition": words}, seed=0)[1]
    ids, other = b.asarray(words), b.asarray(others)

    def run(params):
        batch = {"condition": ids}
        plain = [model.predict(params, x, t, batch, s) for s in (0.0, 1.0, 3.0)]
        one, maps = model.predict_with_maps(params, x, t, batch)
        three = model.predict_with_maps(params, x, t, batch, 3.0)[0]
        _, stored = model.predict_with_maps(params, x, t, {"condition": other})
        replace = MapReplacement(stored, KEPT)
        swapped = [
            model.predict_with_maps(params, x, t, batch, s, replace=replace)[0] for s in (1.0, 3.0)
        ]
        return plain, one, three, maps, swapped

    (null, plain, line), one, three, maps, swapped = at_once(b, run, moved(b, start))
    np.testing.assert_allclose(one, plain, atol=1e-6)
    np.testing.assert_allclose(three, line, atol=1e-5)
    assert {m.shape for m in maps.values()} == {(2, 2, 4, 3)} and set(maps) == {"layer0"}
    assert np.abs(swapped[0] - plain).max() > 1e-3
    np.testing.assert_allclose(swapped[1], null + 3.0 * (swapped[0] - null), atol=1e-5)


def test_what_fits_no_layer_is_refused(b):
    net = DENOISERS[1]
    params = tree_map(b.asarray, net.init(np.random.default_rng(0), IMAGE, (), CONTEXT))
    x, t, context = arrays(b, (2, *IMAGE), (2,), (2, *CONTEXT))
    good = b.asarray(np.ones((2, 4, 3), "f"))

    def ask(*replacement):
        replace = MapReplacement(*replacement)
        at_once(b, lambda p: net.apply(p, x, t, context, replace=replace), params)

    with pytest.raises(UnknownName, match="layer 'layer9', expected .* did you mean 'layer"):
        ask({"layer9": good}, KEPT)
    with pytest.raises(UnknownName, match="expected them by layer, of layer0, layer1"):
        ask(good, KEPT)
    with pytest.raises(ShapeError, match=r"maps of shape \(2, 4, 3\) and 2 columns_kept"):
        ask({"layer0": good}, KEPT[:2])
    with pytest.raises(ShapeError, match=r"maps are \(2, 2, 4, 3\), expected"):
        ask({"layer0": good[..., :2]}, KEPT)
    with pytest.raises(DeclarationError, match="booleans, one for each row"):
        MapReplacement({}, np.ones(3))
    for model, words in (
        (Diffusion(net, IMAGE), "a model without a condition"),
        (
            Diffusion(Mean(), IMAGE, condition=nets.GivenContext(CONTEXT)),
            "Mean, which has no maps",
        ),
    ):
        with pytest.raises(AlgorithmError, match=words):
            at_once(b, lambda m=model: m.predict_with_maps({}, x, t, {"condition": context}))
