"""Normalizing flows: every layer and map, in both directions, against the Jacobian and quadrature.

Parameters are drawn away from the identity in numpy, so that both backends see the same numbers.
"""

import functools
import math
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.stats as st
from at_once import at_once

import probgen as pg
from probgen import backends, dist, nets, ops
from probgen.engine.bind import bind
from probgen.engine.spaces import model_target
from probgen.errors import DeclarationError, ShapeError
from probgen.inference import ELBO, SVI
from probgen.models import VAE, Affine, Coupling, Flow, MaskedAutoregressive, Spline, Tilted
from probgen.models.flow.flow import Chain
from probgen.trees import tree_items, tree_map

SMALL, MADE = nets.MLP((5,), activation="tanh"), nets.MADE((6,), activation="tanh")
CONV = nets.Sequential((nets.Conv(3), "tanh", nets.Conv(1)))
BINS = Spline(4, bound=2.0)
FLOWS = {
    "affine coupling": Flow(3, Coupling(SMALL, masks=("parity", "halves")), num_layers=2),
    "spline coupling": Flow(3, Coupling(SMALL, BINS), num_layers=2),
    "autoregressive": Flow(3, MaskedAutoregressive(MADE), num_layers=2),
    "autoregressive splines": Flow(3, MaskedAutoregressive(MADE, BINS), num_layers=1),
    "inverse autoregressive": Flow(3, MaskedAutoregressive(MADE, fast="draws"), num_layers=2),
    "checkerboard": Flow((3, 2, 1), Coupling(CONV), num_layers=2),
    "channels": Flow((1, 2, 3), Coupling(SMALL, masks=("checkerboard", "parity")), num_layers=2),
}
LAW = pytest.mark.parametrize("name", [
    # An autoregressive layer and splines, each of which has a case of its own.
    pytest.param(name, marks=pytest.mark.repeated(
        "test_the_density_is_that_of_the_noise_over_the_jacobian_determinant"
    )) if name == "autoregressive splines" else name
    for name in FLOWS
])  # fmt: skip
IAF = FLOWS["inverse autoregressive"]
NUM = 5


def away(b, params):
    """Parameters of that form at which a flow does something: numbers by their names."""

    def drawn(path, leaf):
        rng = np.random.default_rng(zlib.crc32("/".join(path).encode()))
        scale = math.prod(leaf.shape[:-1]) ** -0.5
        return b.asarray(rng.normal(0, scale, tuple(leaf.shape)).astype(np.float32))

    found = iter([drawn(path, leaf) for path, leaf in tree_items(params)])
    return tree_map(lambda leaf: next(found), params)


def noise(flow):
    return np.random.default_rng(3).normal(size=(NUM, *flow.event_shape)).astype(np.float32)


@functools.cache
def measured(backend_name, name):
    """What a flow makes of noise, there and back, as numpy arrays."""
    options = {"compile": "graph"} if backend_name == "torch" else {}
    b, flow = backends.load(backend_name, "cpu", **options), FLOWS[name]
    bound, params = bind(flow, b)
    params, eps = away(b, params), b.asarray(noise(flow))
    size = math.prod(flow.event_shape)

    def value(eps):
        return bound.trace(params, {}, noise={"x": eps}, batch_size=NUM)["x"].value

    def along(eps, direction):
        return ops.sum(value(eps) * direction)

    def compute(eps):
        site = bound.trace(params, {}, noise={"x": eps}, batch_size=NUM)["x"]
        again = bound.trace(params, {}, {"x": site.value}, batch_size=NUM)["x"]
        basis = ops.eye_like(size, eps)
        directions = ops.broadcast_to(basis[:, None], (size, NUM, size))
        shape = (size, NUM, *flow.event_shape)
        rows = b.vmap(b.grad(along), (None, 0))(eps, ops.reshape(directions, shape))
        chain = dict(flow.distribution().arguments)["forward"]
        back = b.trace(lambda: pg.deterministic("eps", chain.inverse_and_log_det(site.value)[0]),
                       params)["eps"].value  # fmt: skip
        return {"x": site.value, "own": site.log_prob, "given": again.log_prob,
                "jacobian": ops.reshape(rows, (size, NUM, size)), "back": back}  # fmt: skip

    return tree_map(b.to_numpy, b.compile(compute)(eps))


@LAW
def test_the_density_is_that_of_the_noise_over_the_jacobian_determinant(backend_name, name):
    """log p(x) = log N(eps) - log |det dx/d eps|, known with the draw and asked for x alone; and
    what x came from is found again."""
    found, eps = measured(backend_name, name), noise(FLOWS[name]).reshape(NUM, -1)
    log_det = np.linalg.slogdet(found["jacobian"].swapaxes(0, 1).astype(np.float64))[1]
    want = st.norm.logpdf(eps).sum(-1) - log_det
    np.testing.assert_allclose(found["own"], want, atol=2e-4)
    np.testing.assert_allclose(found["given"], want, atol=2e-4)
    np.testing.assert_allclose(found["back"].reshape(NUM, -1), eps, atol=2e-4)
    assert np.abs(found["x"].reshape(NUM, -1) - eps).min(0).max() > 0.1  # no value stays


@pytest.mark.skipif(not all(backends.available().values()), reason="one backend is missing")
@pytest.mark.parametrize("name", [
    # Of layers and masks that the other cases have too.
    pytest.param(name, marks=pytest.mark.repeated("test_both_backends_have_the_same_flow"))
    if name in ("autoregressive splines", "inverse autoregressive", "channels") else name
    for name in FLOWS
])  # fmt: skip
def test_both_backends_have_the_same_flow(name):
    """To 1e-5 of the largest: log densities are sums whose terms cancel."""
    one, other = measured("torch", name), measured("jax", name)
    for key in ("x", "own", "given"):
        np.testing.assert_allclose(one[key], other[key], atol=1e-5 * np.abs(one[key]).max())


@pytest.mark.repeated("test_the_density_is_that_of_the_noise_over_the_jacobian_determinant")
def test_a_flow_integrates_to_one(b):
    """All four kinds of layers in one, on a grid in two dimensions."""
    layers = (Coupling(SMALL), Coupling(SMALL, BINS), MaskedAutoregressive(MADE, fast="draws"),
              MaskedAutoregressive(MADE, BINS))  # fmt: skip
    bound, params = bind(Flow(2, layers, num_layers=1), b)
    edge = np.linspace(-9.0, 9.0, 301, dtype=np.float32)
    grid = np.stack(np.meshgrid(edge, edge), -1).reshape(-1, 2)
    params = tree_map(lambda p: 0.3 * p, away(b, params))

    def log_prob(params, x):
        return bound.trace(params, {}, {"x": x}, batch_size=len(grid))["x"].log_prob

    log_p = b.to_numpy(b.compile(log_prob)(params, b.asarray(grid)))
    mass = np.exp(log_p.astype(np.float64)).sum() * 0.06**2
    assert abs(mass - 1.0) < 2e-3


# ---- the maps ------------------------------------------------------------------------------------


def test_a_spline_increases_with_one_continuous_derivative_and_stays_outside(b):
    """Its slope integrates to its rise (so it is the derivative, and has no jump that a grid could
    miss): inside, over both ends, and outside it is the identity with slope 1."""
    raw = b.asarray(np.random.default_rng(0).normal(0, 1, (BINS.count, 4)).astype(np.float32))
    x = np.linspace(-2.5, 2.5, 4001, dtype=np.float32)

    def both(x, raw):
        y, slope = BINS.apply(x, raw)
        return y, slope, *BINS.invert(y, raw)

    found = b.compile(both)(b.asarray(np.repeat(x[:, None], 4, 1)), raw)
    y, slope, back, less = (b.to_numpy(v).astype(np.float64) for v in found)
    assert (np.diff(y, axis=0) > 0).all()
    np.testing.assert_allclose(back, np.repeat(x[:, None], 4, 1), atol=2e-5)
    np.testing.assert_allclose(less, -slope, atol=2e-3)
    d = np.exp(slope)
    risen = np.concatenate([np.zeros((1, 4)), np.cumsum((d[1:] + d[:-1]) / 2 * 0.00125, 0)])
    np.testing.assert_allclose(y - y[0], risen, atol=2e-4)
    jumps = [np.abs(slope[n:] - slope[:-n]).max() for n in (1, 2)]
    assert jumps[0] < 0.6 * jumps[1]  # half over half the way: no jump of its own
    outside = np.abs(x) > 2.0
    np.testing.assert_array_equal(y[outside], np.repeat(x[outside, None], 4, 1))
    assert (slope[outside] == 0.0).all() and not (slope[~outside] == 0.0).all()


@pytest.mark.parametrize("map", [Affine(), BINS, Spline()])
def test_raw_zeros_are_the_identity(b, map):
    x = np.linspace(-6, 6, 12, dtype=np.float32).reshape(3, 4)
    zeros = b.asarray(np.zeros((3, map.count, 4), np.float32))
    ways = at_once(b, lambda *given: [map.apply(*given), map.invert(*given)], b.asarray(x), zeros)
    for y, slope in ways:
        np.testing.assert_allclose(y, x, atol=2e-6)
        np.testing.assert_allclose(slope, 0.0, atol=2e-6)


def test_layers_in_turn_come_to_both_sides_each():
    """Of two in turn the first moves both numbers, and so does the second."""
    net = nets.MLP((4,))
    flow = Flow(2, (Coupling(net), Coupling(net, Spline(num_bins=4))), num_layers=2)
    layers = Chain(flow, "", ())._layers()
    turns = [(type(layer.map).__name__, turn % 2) for layer, turn, _ in layers]
    assert sorted(turns) == [("Affine", 0), ("Affine", 1), ("Spline", 0), ("Spline", 1)]


def test_a_number_that_is_none_stays_none(b):
    raw = b.asarray(np.zeros((BINS.count, 1), np.float32))
    for map in (BINS.apply, BINS.invert):
        assert np.isnan(b.to_numpy(b.compile(map)(b.asarray(np.float32([np.nan])), raw)[0])).all()


# ---- the net -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("hidden", [(), (7, 9)])
def test_outputs_of_made_read_the_inputs_before_their_own(b, hidden, reverse):
    """To the bit: and each of those before it. A context is read by all."""
    net = nets.MADE(hidden, out=2, reverse=reverse, activation="tanh")
    drawn = net.init(np.random.default_rng(0), (4,), (3,))
    params = tree_map(b.asarray, drawn)
    x, c = (np.random.default_rng(1).normal(size=(1, n)).astype(np.float32) for n in (4, 3))

    def at(x, c):
        return b.to_numpy(net.apply(params, b.asarray(x), b.asarray(c)))[0]

    changed = np.stack([(at(x + np.eye(4, dtype=np.float32)[j], c) != at(x, c)).all(0)
                        for j in range(4)])  # fmt: skip
    before = np.tri(4, k=-1, dtype=bool).T  # j < i
    np.testing.assert_array_equal(changed, before.T if reverse else before)
    assert (at(x, c + 1) != at(x, c)).all()


def test_an_inverse_flow_knows_the_density_of_its_draws_without_inverting(b, monkeypatch):
    """One call of each net, where d of each would be needed for any other value."""
    bound, params = bind(IAF, b)
    calls, apply = [], nets.MADE.apply
    monkeypatch.setattr(nets.MADE, "apply", lambda *a: (calls.append(1), apply(*a))[1])

    def log_prob(params, key):
        return bound.trace(params, {}, key=key, batch_size=2)["x"].log_prob

    assert np.isfinite(at_once(b, log_prob, params, b.key(0))).all()
    assert len(calls) == IAF.num_layers


# ---- fits ----------------------------------------------------------------------------------------


def banana(n, seed):
    """x1 = 3 + 10 z1 and x2 = z1^2 + z2 / 2 of standard normal z."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 2))
    return np.stack([3 + 10 * z[:, 0], z[:, 0] ** 2 + 0.5 * z[:, 1]], -1).astype(np.float32)


ENTROPY = math.log(2 * math.pi * math.e) + math.log(10.0 * 0.5)
GAUSSIAN = math.log(2 * math.pi * math.e) + math.log(10.0 * 1.5)  # of the best: variances 100, 9/4


@pytest.fixture(scope="module")
def fitted(backend):
    flow = Flow(2, Coupling(nets.MLP((16,), activation="silu")), num_layers=2)
    return pg.fit(
        flow, banana(2000, 0), SVI(ELBO(), pg.Adam(pg.CosineDecay(0.03, 300))), num_steps=300,
        batch_size=200, backend=backend, seed=0, progress_bar=False,
    )  # fmt: skip


@pytest.mark.repeated("test_the_density_is_that_of_the_noise_over_the_jacobian_determinant")
def test_maximum_likelihood_comes_close_to_the_entropy(b, fitted):
    """Far below what any Gaussian can reach, on held-out data; draws have the data's moments."""
    held_out = banana(2000, 1)
    table = pg.evaluate(fitted, held_out, [ELBO()], seed=0, backend=b)
    log_p = table["ELBO(1)"]["estimate"].values
    error = log_p.std() / math.sqrt(len(log_p))
    assert -log_p.mean() < GAUSSIAN - 0.8
    assert ENTROPY - 4 * error < -log_p.mean() < ENTROPY + 4 * error + 0.08
    draws = pg.generate(fitted, 2000, seed=0, backend=b)["x"]
    for each in (draws - held_out, draws**2 - held_out**2):
        assert (np.abs(each.mean(0)) < 5 * each.std(0) / math.sqrt(2000) + 0.05).all()


def test_a_weight_file_holds_all_of_a_flow(b, fitted, tmp_path):
    """The declaration with its layers and maps, and the same density after."""
    fitted.save_pretrained(tmp_path / "flow")
    again = pg.Fitted.from_pretrained(tmp_path / "flow")
    assert again.model == fitted.model
    one, other = (
        pg.evaluate(f, banana(3, 2), [ELBO()], seed=0, backend=b) for f in (fitted, again)
    )
    np.testing.assert_array_equal(*(t["ELBO(1)"]["estimate"].values for t in (one, other)))


def test_a_fit_starts_from_the_moments_of_its_first_batch(b, fitted):
    """By parameters of their own, which a channel that does not move leaves at scale 1."""
    x = np.stack([banana(50, 3)[:, 0], np.full(50, 7.0)], -1).astype(np.float32)
    start = nets.LocScale().init(None, (2,), data=(b.asarray(x),))
    loc, log_scale = (b.to_numpy(start[k]) for k in ("loc", "log_scale"))
    np.testing.assert_allclose(loc, [x[:, 0].mean(), 7.0], rtol=1e-5)
    np.testing.assert_allclose(log_scale, [np.log(x[:, 0].std()), 0.0], atol=1e-5)
    assert abs(fitted.params["standardize"]["log_scale"][0] - math.log(10.0)) < 1.0


def test_a_tilted_flow_moves_in_its_noise_and_stays_as_it_was_fitted(b, fitted):
    """The chain's density is log N(eps) - E(x(eps)): the Jacobian cancels."""
    bound, params = bind(Tilted(fitted, nets.MLPEnergy((4,))), b)
    eps = {"x": b.asarray(noise(fitted.model))}

    def run(eps, params):
        x = bound.trace(params, {}, noise=eps, batch_size=NUM)["x"].value
        energy = bound.nets["energy"].apply(params["energy"], x)
        return energy, model_target(bound, "noise").log_density(eps, params, {})

    energy, found = at_once(b, run, eps, params)
    want = st.norm.logpdf(noise(fitted.model)).sum(-1) - energy
    np.testing.assert_allclose(found, want, rtol=1e-5)
    assert {"layer0", "layer1", "standardize"} <= bound.model.frozen()


# ---- as a part -----------------------------------------------------------------------------------


def test_a_flow_is_a_latents_prior_and_another_its_guide(b):
    """q is a flow over the encoder's Gaussian; both take steps."""
    prior = Flow(2, Coupling(SMALL), num_layers=1, standardize=False)
    vae = VAE(prior, nets.MLP((4,), 3), dist.Normal, nets.MLP((4,), 2, heads=("loc", "log_scale")))

    @vae.with_guide
    def guide(x):
        h = pg.net("encoder", vae.encoder)(x)
        base = dist.Normal(h["loc"], ops.exp(h["log_scale"])).to_event(1)
        with pg.data_plate():
            pg.sample("z", Q.distribution(base, "q/"))

    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    done = pg.fit(
        guide, x, SVI(ELBO()), num_steps=2, batch_size=4, backend=b, seed=0, progress_bar=False
    )
    assert {"prior/layer0", "q/layer0", "encoder", "decoder"} <= set(done.params)
    for name in ("prior/layer0", "q/layer0"):
        assert np.abs(done.params[name]["out"]["weight"]).max() > 0  # zero before the first step
    assert np.isfinite(np.asarray(done.history["elbo"])).all()


Q = Flow(2, MaskedAutoregressive(MADE, fast="draws"), num_layers=1, standardize=False)


@pytest.mark.parametrize("layer", [Coupling(SMALL), MaskedAutoregressive(MADE)])
def test_a_conditional_flow_reads_each_datum_s_own_input(b, layer):
    """Swapped inputs give swapped densities, in both directions."""
    flow = Flow(3, layer, num_layers=2, inputs=("c",))
    x, c = (
        np.random.default_rng(i).normal(size=(2, n)).astype(np.float32) for i, n in ((0, 3), (1, 2))
    )
    bound, params = bind(flow, b, data={"x": x, "c": c})
    params = away(b, params)

    def run(c):
        batch = {"x": b.asarray(np.repeat(x[:1], 2, 0)), "c": c}
        site = bound.trace(params, batch)["x"]
        eps = {"x": b.asarray(np.zeros((2, 3), np.float32))}
        drawn = bound.trace(params, {"c": batch["c"]}, noise=eps, batch_size=2, condition=False)
        return site.log_prob, drawn["x"].value

    of_one, of_other = (at_once(b, run, b.asarray(v)) for v in (c, c[::-1].copy()))
    for one, other in zip(of_one, of_other, strict=True):
        np.testing.assert_allclose(one, other[::-1], atol=1e-5)
        assert np.abs(one - other).min() > 1e-3


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Flow(1), "expected at least two values to part"),
        (lambda: Flow((4, 4, 1), Coupling(masks=("halves",))), "expected at least two values"),
        (lambda: Flow(4, Coupling(masks=("checkerboard",))), "expected images"),
        (lambda: Flow(()), "event_shape"),
        (lambda: Flow(2, Coupling(), num_layers=0), "num_layers"),
        (lambda: Spline(1), "num_bins"),
        (lambda: Spline(100, min_size=0.1), "leave room"),
        (lambda: Spline(min_derivative=1.0), "min_derivative"),
        (lambda: Coupling(nets.MLP), "a net"),
        (lambda: MaskedAutoregressive(nets.MLP()), "a MADE"),
    ],
)
def test_what_makes_no_flow_is_refused_where_it_is_declared(make, words):
    with pytest.raises(DeclarationError, match=words):
        make()


class Wrong:
    def init(self, key, *shapes):
        return {}

    def apply(self, params, x):
        return ops.concatenate([x, x, x], axis=-1)


def test_a_net_of_another_size_and_data_of_another_shape_are_refused(b):
    with pytest.raises(ShapeError, match=r"the net gives \(1, 6\), expected \[..., 4\], 2 numbers"):
        bind(Flow(4, Coupling(Wrong())), b)
    strided = nets.Sequential((nets.Conv(2), nets.Conv(1, stride=2)))
    with pytest.raises(ShapeError, match="convolutions that keep an image's sides"):
        bind(Flow((4, 4, 1), Coupling(strided)), b)
    base = dist.Normal(0, 1).expand([3]).to_event(1)
    with pytest.raises(ShapeError, match="as declared by event_shape"):
        bind(Flow(2, Coupling(SMALL), base=base), b)


@pytest.mark.slow
def test_the_page_on_flows_runs():
    """Its spline flow finds the ring, and what it declares binds."""
    pytest.importorskip("jax")
    page = (Path(__file__).resolve().parents[2] / "docs" / "flows.md").read_text("utf-8")
    space: dict = {"__name__": "page"}
    program = "".join(re.findall(r"^```python\n(.*?)^```", page, re.S | re.M))
    exec(compile(program, "docs/flows.md", "exec"), space)
    assert np.abs(np.linalg.norm(space["draws"], axis=-1).mean() - 1.0) < 0.05
    b, x = backends.load("jax", "cpu"), space["x"][:2]
    for name in ("vae", "vae_with_flow_posterior", "tilted"):
        bind(space[name], b, data={"x": x})
    bind(space["images"], b)
    bind(space["conditional"], b, data={"x": x, "c": x})
