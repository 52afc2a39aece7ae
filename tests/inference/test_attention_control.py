"""Attention control: its two ends are the source and the sampler, whatever the network says."""

import numpy as np
import pytest
from null_cases import data, two_modes

import probgen as pg
from probgen import nets
from probgen.errors import AlgorithmError, DataError, DeclarationError, ShapeError
from probgen.inference import DDIM, AttentionControl, NullTextInversion
from probgen.models import Diffusion, NoiseSchedule
from probgen.trees import tree_map

STEPS, ROWS = 3, 2
GUIDED = DDIM(STEPS, guidance_scale=2.0)
MODEL = Diffusion(
    nets.PatchTransformer(2, 4, 1, 2), (4, 4, 1), NoiseSchedule(10), "v_prediction",
    condition=nets.ClassEmbedding(3, 4, ROWS),
)  # fmt: skip
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 4, 4, 1)).astype("float32")
SOURCE, OTHER = np.array([0, 1]), np.array([2, 2])
NONE, EVERY = np.zeros(ROWS, bool), np.ones(ROWS, bool)


@pytest.fixture(scope="module")
def fitted(b):
    net, told = MODEL.denoiser, MODEL.condition
    params = {
        "denoiser": net.init(np.random.default_rng(1), (4, 4, 1), (), (ROWS, 4)),
        "condition": told.init(np.random.default_rng(2), ()),
    }
    moved = tree_map(lambda v: v + 0.3 * RNG.normal(size=v.shape).astype("float32"), params)
    return pg.Fitted(MODEL, moved, info={"backend": b.name})


@pytest.fixture(scope="module")
def codes(fitted):
    method = NullTextInversion(GUIDED, inner_steps=2, keeps_maps=True)
    return fitted.encode(X, {"condition": SOURCE}, method=method)


def draw(b, fitted, method, codes, condition):
    how = {"inputs": {"condition": condition}, "seed": 0, "backend": b}
    return pg.generate(fitted, 2, method=method, start=codes, **how)["x"]


def test_own_maps_change_nothing_and_kept_columns_neither(b, fitted, codes):
    assert codes["maps/layer0"].shape == (2, STEPS, 2, 4, ROWS)
    source, other = (draw(b, fitted, GUIDED, codes, c) for c in (SOURCE, OTHER))
    again = draw(b, fitted, AttentionControl(GUIDED, NONE), codes, SOURCE)
    np.testing.assert_allclose(again, source, atol=1e-5)
    free = draw(b, fitted, AttentionControl(GUIDED, EVERY), codes, OTHER)
    np.testing.assert_allclose(free, other, atol=1e-5)
    mixed = [
        draw(b, fitted, AttentionControl(GUIDED, kept), codes, OTHER)
        for kept in (NONE, np.array([True, False]))
    ]
    assert all(np.abs(m - other).max() > 1e-4 for m in mixed)
    assert np.abs(mixed[0] - mixed[1]).max() > 1e-4


def test_what_does_not_fit_is_refused_in_words(b, fitted, codes):
    control = AttentionControl(GUIDED, NONE)
    with pytest.raises(DataError, match="no maps in start"):
        draw(b, fitted, control, {"x_10": codes["x_10"]}, OTHER)
    with pytest.raises(DataError, match="AttentionControl without start"):
        draw(b, fitted, control, None, OTHER)
    with pytest.raises(ShapeError, match=r"maps/layer0'. of shape .* expected \[2, 3, heads"):
        short = {**codes, "maps/layer0": codes["maps/layer0"][:, :2]}
        draw(b, fitted, control, short, OTHER)
    with pytest.raises(ShapeError, match="3 columns_kept"):
        draw(b, fitted, AttentionControl(GUIDED, np.zeros(3, bool)), codes, OTHER)
    x, y = data(2)
    with pytest.raises(AlgorithmError, match="which has no maps of a context"):
        two_modes(b).encode(x, {"condition": y}, method=NullTextInversion(GUIDED, keeps_maps=True))
    with pytest.raises(DeclarationError, match="booleans, one for each row"):
        AttentionControl(GUIDED, np.zeros(2))
