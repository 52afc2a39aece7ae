"""What nets promise of their weights holds after hundreds of steps of any optimiser."""

import numpy as np
import pytest
from at_once import at_once
from fit_cases import assert_same_bits, leaves

import probgen as pg
from probgen import dist, nets
from probgen.errors import DeclarationError
from probgen.nets import activation, residual_energy
from probgen.trees import tree_map

X = (np.random.default_rng(0).normal(size=(128, 3)) * [1, 4, 0.5] + [5, 0, -2]).astype("f")
OPTIMIZERS = {
    "Adam": pg.Adam(1e-2, weight_decay=0.1),
    "AdamW": pg.AdamW(1e-2, weight_decay=0.1),
    "SGD": pg.SGD(1e-2, momentum=0.5, weight_decay=0.1),
}
NORMED = nets.MLP((8,), 3, weight_norm=True, activation="tanh")


@pg.model
def chain(x):
    """x through four nets, each of which promises something of its weights."""
    with pg.data_plate():
        h = pg.net("normed", NORMED)(x)
        h = pg.net("spectral", nets.MLP((8,), 3, spectral=True))(h)
        h = pg.net("still", nets.Dense(3))(h)
        loc = pg.net("quiet", nets.Dense(3))(h)
        pg.sample("y", dist.Normal(loc, 1.0).to_event(1))


def minus_log_prob(bound, params, batch, key):
    return -pg.ops.mean(bound.trace(params, batch)["y"].log_prob)


def fit(b, optimizer, num_steps, **options):
    groups = pg.Groups({"quiet": pg.SGD(1e-30)}, rest=optimizer)
    return pg.fit(
        chain, {"x": X, "y": X[:, ::-1].copy()}, pg.GradientLearner(minus_log_prob, groups),
        num_steps=num_steps, batch_size=32, seed=0, backend=b, freeze=("still",),
        progress_bar=False, **options,
    )  # fmt: skip


class Keep(pg.Callback):
    """The parameters that a fit starts from, by net."""

    def __init__(self):
        self.first = {}

    def on_start(self, progress):
        self.first.update(progress.params())


LIKE_ADAM = pytest.mark.repeated("test_norms_groups_and_frozen_nets_hold_after_300_steps")
OTHERS = (pytest.param(name, marks=LIKE_ADAM) for name in ("AdamW", "SGD"))


@pytest.mark.parametrize("name", ["Adam", *OTHERS])
def test_norms_groups_and_frozen_nets_hold_after_300_steps(b, name):
    start = Keep()
    fitted = fit(b, OPTIMIZERS[name], 300, callbacks=[start])
    assert fitted.history["loss"][-20:].mean() < 0.7 * fitted.history["loss"][0]
    assert_same_bits(fitted.params["still"], start.first["still"])
    quiet = [of["quiet"]["weight"] for of in (fitted.params, start.first)]  # hardly moves
    np.testing.assert_array_equal(*quiet)
    eye = b.asarray(np.eye(3, dtype="f"))
    for layer in fitted.params["spectral"].values():
        w, u = np.float64(layer["inner"]["weight"]), np.float64(layer["u"])
        v = w @ u / np.linalg.norm(w @ u)
        assert 1 - 1e-5 < np.linalg.norm(w, 2) / (v @ w @ u) < 1.01
    layer = fitted.params["normed"]["layer0"]
    assert (layer["scale"] != start.first["normed"]["layer0"]["scale"]).all()
    bare = tree_map(b.asarray, {**layer, "inner": {**layer["inner"], "bias": np.zeros(8, "f")}})
    used = b.to_numpy(nets.WeightNorm(nets.Dense(8)).apply(bare, eye))
    np.testing.assert_allclose(np.linalg.norm(used, axis=0), np.abs(layer["scale"]), rtol=1e-5)


def test_a_weight_norm_starts_from_the_first_batch(b):
    """Every layer's outputs have mean 0 and variance 1 there, whatever came before it."""
    start = Keep()
    fitted = fit(b, OPTIMIZERS["Adam"], 1, callbacks=[start])
    first = start.first["normed"]
    x = pg.data.as_source({"x": X}, batch_size=32, seed=0).example()["x"]
    h = b.asarray(x)
    for name, size in (("layer0", 8), ("out", 3)):
        h = nets.WeightNorm(nets.Dense(size)).apply(tree_map(b.asarray, first[name]), h)
        seen = b.to_numpy(h)
        np.testing.assert_allclose(seen.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(seen.std(0), 1, rtol=1e-4)
        h = b.ops.tanh(h)
    again = fit(b, pg.SGD(1e-30), 1, init=fitted.params)  # what is given is not started anew
    assert_same_bits(again.params["normed"], fitted.params["normed"])


def test_without_data_a_weight_norm_is_the_layer_itself_and_a_unit_that_stays_is_left(b):
    layer, rng = nets.Dense(4), lambda: np.random.default_rng(0)
    normed, plain = nets.WeightNorm(layer).init(rng(), (3,)), layer.init(rng(), (3,))
    x = b.asarray(X)
    got, wanted = (
        b.to_numpy(net.apply(tree_map(b.asarray, params), x))
        for net, params in ((nets.WeightNorm(layer), normed), (layer, plain))
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    same = b.asarray(np.ones((5, 3), "f"))  # data that do not vary
    started = nets.Sequential((nets.WeightNorm(layer),)).init(rng(), (3,), data=(same,))
    found = {k: b.to_numpy(v) for k, v in leaves(tree_map(b.to_numpy, started)).items()}
    np.testing.assert_allclose(found["layer0/scale"], normed["scale"], rtol=1e-6)
    assert np.isfinite(found["layer0/inner/bias"]).all()
    with pytest.raises(DeclarationError, match="at most one of them"):
        nets.MLP(spectral=True, weight_norm=True)


def test_a_residual_energy_starts_flat_from_its_first_batch(b):
    """Of every convolution the outputs there have mean 0 and standard deviation 1 / 5."""
    net, x = nets.ResidualEnergy((3, 4)), b.asarray(rng_images(16))

    def run(x):
        params, seen = net.init(np.random.default_rng(0), (4, 4, 1), data=(x,)), {}
        params = tree_map(b.asarray, params)

        def look(name, layer, h):
            seen[name] = layer.apply(params[name], h)
            return seen[name]

        net._run(look, x, residual_energy._half, activation("lipswish"), lambda h, skip: h + skip)
        return net.apply(params, x), seen

    energy, seen = at_once(b, run, x)
    assert energy.shape == (16,) and net.out_shape((4, 4, 1)) == ()
    assert set(seen) == {
        "stem",
        *(f"block{i}_conv{j}" for i in (0, 1) for j in (0, 1)),
        "block1_skip",
    }
    for h in seen.values():
        np.testing.assert_allclose(h.mean((0, 1, 2)), 0, atol=1e-5)
        np.testing.assert_allclose(h.std((0, 1, 2)), 0.2, rtol=1e-3)
    v = np.linspace(-8, 8, 1001, dtype=np.float32)
    slope = np.gradient(at_once(b, activation("lipswish"), b.asarray(v)), v)
    assert np.abs(slope).max() <= 1.0
    with pytest.raises(DeclarationError, match="3 x 3 pixels to halve, expected even"):
        nets.ResidualEnergy((2, 2, 2)).init(np.random.default_rng(0), (6, 6, 1))


def rng_images(count):
    return np.random.default_rng(1).normal(0.5, 1.0, (count, 4, 4, 1)).astype(np.float32)
