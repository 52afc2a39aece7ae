"""Laws of network declarations, on torch and on JAX.

A new net joins with one line of NETS and obeys: both backends agree on the same parameters, leading
axes are only batch, one trace serves other values, a declaration is a value that JSON keeps.
Closed forms for the layers follow, and the nets' refusals.
"""

import dataclasses
import functools
import importlib
import math

import numpy as np
import pytest
from at_once import Twice

from probgen import nets
from probgen.errors import DeclarationError, ShapeError
from probgen.trees import tree_items, tree_leaves, tree_map

IMAGE, TOKENS = (8, 8, 3), (5, 12)

# (declaration, event shapes of its inputs)
NETS = [
    (nets.Dense(7), [(5,)]),
    (nets.Dense(7, bias=False), [(5,)]),
    (nets.Conv(4), [IMAGE]),
    (nets.Conv(4, 4, 2), [IMAGE]),
    (nets.Conv(4, 5, padding=0, bias=False), [IMAGE]),
    (nets.ConvTranspose(4), [IMAGE]),
    (nets.ConvTranspose(1, 3, 1), [IMAGE]),
    (nets.Upsample(4), [IMAGE]),
    (nets.Upsample(4, 5, 3), [IMAGE]),
    (nets.Reshape((-1,)), [IMAGE]),
    (nets.Reshape((3, 2), 1), [(6,)]),
    (nets.GroupNorm(3), [IMAGE]),
    (nets.GroupNorm(2, in_ndim=1), [(6,)]),
    (nets.GroupNorm(2, in_ndim=2), [TOKENS]),
    (nets.LayerNorm(), [TOKENS]),
    (nets.SpectralNorm(nets.Dense(7)), [(5,)]),
    (nets.SpectralNorm(nets.Conv(4)), [IMAGE]),
    (nets.TimeEmbedding(9), [()]),
    (nets.TimeEmbedding(8, 6, freq_shift=0.0, flip_sin_to_cos=True, time_scale=10.0), [()]),
    (nets.SelfAttention(3), [TOKENS]),
    (nets.SelfAttention(2, head_dim=5), [TOKENS]),
    (nets.CrossAttention(3), [TOKENS, (4, 6)]),
    (nets.AttentionBlock(3), [IMAGE]),
    (nets.AttentionBlock(3), [IMAGE, (4, 6)]),
    (nets.ResidualBlock(4), [IMAGE]),
    (nets.ResidualBlock(3, activation="relu"), [IMAGE]),
    (nets.ResidualBlock(4, out_scale=1.0), [IMAGE, (6,)]),
    (nets.Sequential((nets.Conv(4, 4, 2), "silu", nets.Reshape((-1,)), nets.Dense(2))), [IMAGE]),
    (nets.MLP((16, 16), 4), [(5,)]),
    (nets.MLP((), 4), [(5,)]),
    (nets.MLP((16,), (2, 3), activation="gelu"), [IMAGE]),
    (nets.MLP((16,), (), activation="tanh"), [IMAGE]),
    (nets.MLP((16,), 4, heads=("loc", "log_scale")), [(5,)]),
    (nets.MLP((16,), 4), [(5,), IMAGE, ()]),
    (nets.MLP((16,), 4, in_ndim=(1, 3, 0)), [(5,), IMAGE, ()]),
    (nets.MLP((16,), 4, in_ndim=0), [()]),
    (nets.MLP((16,), 4, spectral=True), [(5,)]),
    (nets.ConvEncoder((4, 6), 5), [IMAGE]),
    (nets.ConvEncoder((4,), (2, 2), heads=("a", "b"), hidden=(8,), kernel=3), [(7, 5, 1)]),
    (nets.ConvDecoder((6, 4), IMAGE), [(5,)]),
    (nets.ConvDecoder((6,), (6, 4, 2), 4, 2, (8,), ("loc", "log_scale")), [(5,), (2,)]),
    (nets.ConvEnergy((4, 6)), [IMAGE]),
    (nets.ConvEnergy((4,), (8,), spectral=True), [IMAGE]),
    (nets.MLPEnergy((16,)), [IMAGE]),
    (nets.UNet((4, 8), 2, 1, (0,), 2, 2, time_scale=10.0), [IMAGE, (), (4, 6)]),
    (nets.TransformerLayer(3, 2), [TOKENS]),
    (nets.TransformerLayer(2, 1, "relu"), [TOKENS, (4, 6), (5,)]),
    (nets.PatchTransformer(2, 6, 1, 2, 2), [IMAGE, (), (4, 5)]),
    (nets.Unshuffled(nets.Conv(8)), [IMAGE]),
    (nets.LatentDenoiser(5, (8,), 4, is_normed=True), [(5,), (3,), ()]),
    (nets.TimedDiscriminator((8,), 4), [(5,), (5,), ()]),
]
IDS = [f"{type(net).__name__}{i}" for i, (net, _) in enumerate(NETS)]
LAW = pytest.mark.parametrize(("net", "shapes"), NETS, ids=IDS)
EACH = {type(net): (net, shapes) for net, shapes in NETS[:-1]}
PARTS = pytest.mark.repeated("test_both_backends_agree_on_the_gradient")  # those they are made of
WHOLE = (nets.UNet, nets.PatchTransformer)
EACH |= {k: pytest.param(*EACH[k], marks=PARTS) for k in WHOLE}
TRACED = pytest.mark.repeated("test_one_trace_serves_other_values")  # of their parts too
TRACED = [pytest.param(*each, marks=TRACED if type(each[0]) in WHOLE else ()) for each in NETS]
LIBRARIES = ["torch", "jax"]


@pytest.fixture(params=LIBRARIES)
def lib(request):
    return module(request.param)


def module(name):
    pytest.importorskip(name)
    return importlib.import_module(f"probgen.backends.{name}.ops")


def declared(net, shapes, seed=0):
    """Initial parameters, moved a little, so that nothing hides behind a start at zero."""
    rng = np.random.default_rng(seed)
    params = net.init(rng, *shapes)
    return tree_map(lambda p: (p + 0.1 * rng.standard_normal(p.shape)).astype("f"), params)


def inputs(shapes, lead=(), seed=1):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((*lead, *shape)).astype("f") for shape in shapes]


def call(lib, net, params, xs, **options):
    """The net on one backend, back in numpy; on JAX one program, which is sooner compiled than each
    of its operations, and kept for the next law."""
    params, xs = tree_map(lib.asarray, params), [lib.asarray(x) for x in xs]
    if lib.__name__.endswith("jax.ops"):
        return tree_map(np.asarray, jitted(net, **options)(params, *xs))
    return tree_map(np.asarray, net.apply(params, *xs, **options))


@functools.cache
def jitted(net, **options):
    return importlib.import_module("jax").jit(functools.partial(net.apply, **options))


def close(got, expected, rtol=1e-5):
    """Leaf by leaf; rounding is measured on the largest entry of all, as sums of it cancel."""
    scale = max((np.abs(b).max() for b in tree_leaves(expected)), default=0.0)
    for (path, a), (_, b) in zip(tree_items(got), tree_items(expected), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale, err_msg=str(path))


@LAW
def test_both_backends_agree_on_the_same_parameters(net, shapes):
    params, xs = declared(net, shapes), inputs(shapes, (3,))
    results = [call(module(name), net, params, xs) for name in LIBRARIES]
    assert any(np.abs(y).max() > 0 for y in tree_leaves(results[0]))
    close(*results)


@pytest.mark.parametrize(("net", "shapes"), EACH.values())
def test_both_backends_agree_on_the_gradient(net, shapes):
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    params, xs = declared(net, shapes), inputs(shapes, (3,))

    def loss(lib):
        def fn(params, *xs):
            return sum(lib.sum(y * lib.sin(y + 1.0)) for y in tree_leaves(net.apply(params, *xs)))

        return fn

    def arguments(lib):
        return tree_map(lib.asarray, params), *(lib.asarray(x) for x in xs)

    every = tuple(range(1 + len(xs)))
    t, j = module("torch"), module("jax")
    ours = torch.func.grad(loss(t), argnums=every)(*arguments(t))
    theirs = jax.jit(jax.grad(loss(j), argnums=every))(*arguments(j))
    close(tree_map(np.asarray, ours), tree_map(np.asarray, theirs), rtol=2e-4)


@LAW
def test_leading_axes_are_only_batch(lib, net, shapes):
    """[K, n, ...] is K stacked calls, and one datum without batch is a row of its batch."""
    params, xs = declared(net, shapes), inputs(shapes, (2, 3))
    whole, single = call(lib, Twice(net), params, [*xs, *(x[0, 0] for x in xs)])
    rows = [call(lib, net, params, [x[k] for x in xs]) for k in range(2)]
    close(whole, tree_map(lambda *ys: np.stack(ys), *rows), rtol=2e-5)
    close(tree_map(lambda y: y[0, 0], whole), single, rtol=2e-5)


@pytest.mark.parametrize(("net", "shapes"), TRACED, ids=IDS)
def test_one_trace_serves_other_values(lib, net, shapes):
    """For them it gives what torch gives operation by operation."""
    params, xs, others = declared(net, shapes), inputs(shapes, (3,)), inputs(shapes, (3,), 2)
    if lib is module("jax"):
        call(lib, net, params, xs)
        traced = jitted(net)
    else:
        from torch.fx.experimental.proxy_tensor import make_fx

        given = tree_map(lib.asarray, params), *map(lib.asarray, xs)
        traced = make_fx(lambda weights, *xs: net.apply(weights, *xs))(*given)
    got = traced(tree_map(lib.asarray, params), *(lib.asarray(x) for x in others))
    close(tree_map(np.asarray, got), call(module("torch"), net, params, others))


@LAW
def test_out_shape_is_the_shape_that_comes_out(lib, net, shapes):
    if not hasattr(net, "out_shape"):
        pytest.skip("found by running the net, so nothing to compare")
    y = call(lib, net, declared(net, shapes), inputs(shapes, (3,)))
    assert {leaf.shape for leaf in tree_leaves(y)} == {(3, *net.out_shape(*shapes))}


@LAW
def test_a_declaration_is_a_value(net, shapes):
    """Equal, hashable, its repr is its constructor call, and lists from JSON are its tuples."""
    assert dataclasses.replace(net) == net and hash(dataclasses.replace(net)) == hash(net)
    names = {name: getattr(nets, name) for name in nets.__all__}
    assert eval(repr(net), names) == net
    fields = {f.name: getattr(net, f.name) for f in dataclasses.fields(net)}
    as_lists = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
    assert type(net)(**as_lists) == net
    hash(type(net)(**as_lists))


@LAW
def test_initial_parameters_are_float32_dicts_and_follow_the_key(net, shapes):
    first, again = (net.init(np.random.default_rng(4), *shapes) for _ in range(2))
    assert all(p.dtype == np.float32 for p in tree_leaves(first))
    close(first, again)
    assert nets.count(first) == sum(p.size for p in tree_leaves(first))


# ---- layers against their formulas ---------------------------------------------------------------


def test_parameter_is_a_learned_constant(lib):
    net = nets.Parameter((2, 3), value=1.5)
    params = net.init(np.random.default_rng(0))
    np.testing.assert_array_equal(net.apply(tree_map(lib.asarray, params)), np.full((2, 3), 1.5))
    assert nets.count(params) == 6 and nets.Parameter().init(None)["value"].shape == ()


def test_embedding_takes_rows(lib):
    net, idx = nets.Embedding(5, 3), np.array([[0, 4], [2, 2]])
    params = net.init(np.random.default_rng(0), ())
    np.testing.assert_array_equal(call(lib, net, params, [idx]), params["table"][idx])
    assert net.out_shape(()) == (3,)


def test_group_norm_is_its_formula(lib):
    net, shape = nets.GroupNorm(2, epsilon=1e-3), (4, 5, 6)
    params, (x,) = declared(net, [shape]), inputs([shape], (3,))
    expected = np.empty_like(x)
    for n in range(3):
        for part in (slice(0, 3), slice(3, 6)):
            group = x[n, :, :, part]
            expected[n, :, :, part] = (group - group.mean()) / np.sqrt(group.var() + 1e-3)
    close(call(lib, net, params, [x]), expected * params["scale"] + params["offset"], 1e-4)


def test_layer_norm_is_its_formula(lib):
    net = nets.LayerNorm()
    params, (x,) = declared(net, [(7,)]), inputs([(7,)], (3,))
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    close(call(lib, net, params, [x]), normal * params["scale"] + params["offset"], 1e-4)


def test_time_embedding_is_ddpms(lib):
    """Integer steps; the formula of Ho et al.'s code, term by term."""
    t, dim = np.array([0, 1, 7, 999]), 6
    half = dim // 2
    waves = [math.exp(-math.log(10_000) * i / (half - 1)) for i in range(half)]
    expected = [[fn(step * w) for fn in (math.sin, math.cos) for w in waves] for step in t]
    got = call(lib, nets.TimeEmbedding(dim), {}, [t])
    np.testing.assert_allclose(got, expected, atol=1e-4)  # float32 sine of 999 radians


def test_attention_is_its_formula_and_its_maps_sum_to_one(lib):
    net = nets.CrossAttention(num_heads=2)
    shapes = [(5, 4), (3, 6)]
    params, (x, context) = declared(net, shapes), inputs(shapes, (2,))
    y, maps = call(lib, net, params, [x, context], return_maps=True)
    assert maps.shape == (2, 2, 5, 3)
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)

    def dense(name, v):
        return v @ params[name]["weight"] + params[name]["bias"]

    q, k, v = dense("query", x), dense("key", context), dense("value", context)
    heads = []
    for part in (slice(0, 2), slice(2, 4)):
        scores = np.exp(q[..., part] @ k[..., part].swapaxes(-1, -2) / np.sqrt(2))
        heads.append(scores / scores.sum(-1, keepdims=True) @ v[..., part])
    close(y, dense("out", np.concatenate(heads, -1)), 1e-4)


def test_self_attention_is_equivariant_under_permutation(lib):
    net, order = nets.SelfAttention(3), np.random.default_rng(0).permutation(5)
    params, (x,) = declared(net, [TOKENS]), inputs([TOKENS])
    close(call(lib, net, params, [x[order]]), call(lib, net, params, [x])[order], 1e-4)


@pytest.mark.parametrize("layer", [nets.Dense(7), nets.Conv(4)])
def test_spectral_norm_tends_to_the_largest_singular_value(lib, layer):
    net, shape = nets.SpectralNorm(layer), (5,) if isinstance(layer, nets.Dense) else IMAGE
    params = declared(net, [shape])
    matrix = params["inner"]["weight"].reshape(-1, params["inner"]["weight"].shape[-1])
    sigma = np.linalg.svd(matrix, compute_uv=False)[0]
    params["u"] = np.random.default_rng(3).standard_normal(params["u"].shape).astype("f")
    moved = net.update(tree_map(lib.asarray, params), num_iterations=200)
    (x,) = inputs([shape], (3,))
    bias = params["inner"]["bias"]
    plain = call(lib, layer, params["inner"], [x]) - bias
    close(call(lib, net, tree_map(np.asarray, moved), [x]), plain / sigma + bias, 1e-4)


def test_spectral_norms_singular_vector_is_a_constant(lib):
    """No gradient through u; through the weight it is that of W / (v^T W u) with u, v held."""
    net = nets.SpectralNorm(nets.Dense(3, bias=False))
    params, (x,) = declared(net, [(4,)]), inputs([(4,)], (2,))

    def loss(params):
        return lib.sum(net.apply(params, lib.asarray(x)) ** 2)

    weights = tree_map(lib.asarray, params)
    if lib.__name__.endswith("torch.ops"):
        gradient = importlib.import_module("torch").func.grad(loss)(weights)
    else:
        gradient = (jax := importlib.import_module("jax")).jit(jax.grad(loss))(weights)
    np.testing.assert_array_equal(gradient["u"], np.zeros(3))
    w, u = params["inner"]["weight"].astype(float), params["u"].astype(float)
    v = w @ u / np.linalg.norm(w @ u)
    y, sigma = x @ w, v @ w @ u
    expected = 2 * x.T @ y / sigma**2 - 2 * np.sum(y**2) / sigma**3 * np.outer(v, u)
    close(np.asarray(gradient["inner"]["weight"]), expected, 1e-4)


def test_power_iteration_reaches_every_spectral_norm_and_nothing_else(lib):
    net = nets.ConvEnergy((4,), (8,), spectral=True)
    params = tree_map(lib.asarray, declared(net, [IMAGE]))
    before = dict(tree_items(tree_map(np.asarray, params)))
    after = dict(tree_items(tree_map(np.asarray, nets.power_iterate(params, 3))))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if path[-1] == "u"} and len(changed) == 3


def test_initial_weights_keep_the_scale(lib):
    """He: activations keep their second moment through ten rectified layers, within a factor 2."""
    net = nets.MLP((512,) * 10, 512)
    params, (x,) = net.init(np.random.default_rng(0), (512,)), inputs([(512,)], (64,))
    y = call(lib, net, params, [x])
    # Each layer's scale errs by about sqrt(5 / 512) in relative terms; ten of them by 0.3.
    assert 0.25 < np.mean(y**2) < 2
    assert list(params)[:-1] == sorted(params)[:-1] and "layer9" in params
    assert "layer00" in nets.MLP((2,) * 11).init(np.random.default_rng(0), (2,))


def test_untrained_unet_and_residual_block_start_as_zero_and_identity(lib):
    net = nets.UNet((4, 8), num_groups=2)
    params = net.init(np.random.default_rng(0), IMAGE, ())
    y = call(lib, net, params, inputs([IMAGE, ()], (3,)))
    np.testing.assert_array_equal(y, np.zeros_like(y))
    block, (x,) = nets.ResidualBlock(3), inputs([IMAGE], (2,))
    np.testing.assert_array_equal(
        call(lib, block, block.init(np.random.default_rng(0), IMAGE), [x]), x
    )


def test_unet_takes_one_time_for_all(lib):
    net = nets.UNet((4, 8), num_groups=2)
    params, (x,) = declared(net, [IMAGE, ()]), inputs([IMAGE], (3,))
    one = call(lib, net, params, [x, np.float32(7.0)])
    close(one, call(lib, net, params, [x, np.full(3, 7.0, "f")]))


def test_mlp_broadcasts_leading_axes_when_events_are_counted(lib):
    net = nets.MLP((8,), 2, in_ndim=1)
    params, (z, y) = declared(net, [(3,), (4,)]), inputs([(3,), (4,)], (2, 5))
    got = call(lib, net, params, [z, y[0]])
    close(got[1], call(lib, net, params, [z[1], y[0]]))


def test_a_net_of_ones_own_needs_two_methods(lib):
    class Scale:
        def init(self, key, *shapes):
            return {"by": np.float32([2.0, 3.0])}

        def apply(self, params, x):
            return (x * params["by"])[..., :1]

    net = nets.Sequential((nets.Dense(2), Scale(), "relu", nets.Dense(4)))
    params = net.init(np.random.default_rng(0), (5,))
    assert params["layer3"]["weight"].shape == (1, 4)
    assert call(lib, net, params, inputs([(5,)], (3,))).shape == (3, 4)
    assert isinstance(Scale(), nets.Net)


# ---- refusals ------------------------------------------------------------------------------------

WRONG_INIT = [
    (nets.Dense(2), [(2, 3)], r"expected \[features\]"),
    (nets.Dense(2), [(2,), (3,)], "got 2 input shapes"),
    (nets.Conv(2), [(8, 8)], r"expected \[h, w, c\]"),
    (nets.Conv(2, 5, padding=0), [(4, 4, 1)], "expected at least the kernel's 5"),
    (nets.ConvTranspose(2, 2, 1, padding=2), [(2, 2, 1)], "at least one pixel"),
    (nets.GroupNorm(4), [(8, 8, 6)], "expected a multiple"),
    (nets.SelfAttention(5), [TOKENS], "expected a multiple"),
    (nets.CrossAttention(), [TOKENS], "expected 2 like"),
    (nets.Reshape((4, -1)), [(3, 3, 1)], "expected 9 numbers"),
    (nets.UNet((4, 8, 8)), [(6, 6, 1), ()], "4 dividing h and w"),
    (nets.UNet((4, 8)), [(8, 8, 1)], r"expected \(h, w, c\), \(\)"),
    (nets.ResidualBlock(4), [IMAGE, (2, 2)], "embed the time first"),
    (nets.TransformerLayer(), [TOKENS, (5,), (4, 6)], "perhaps a time's embedding"),
    (nets.PatchTransformer(3), [IMAGE, ()], "patch=3 dividing h and w"),
    (nets.Unshuffled(nets.Conv(9), 3), [IMAGE], "factor=3 dividing h and w"),
    (nets.Unshuffled(nets.Conv(6)), [IMAGE], "expected a multiple of 4"),
]


@pytest.mark.parametrize(("net", "shapes", "message"), WRONG_INIT)
def test_wrong_event_shapes_are_refused(net, shapes, message):
    with pytest.raises(ShapeError, match=message):
        net.init(np.random.default_rng(0), *shapes)


FEW = [  # a net, the shapes it was made for, and those it gets
    (nets.Dense(2), [(3,)], [(4,)]),
    (nets.Conv(2), [IMAGE], [(8, 8, 4)]),
    (nets.ConvTranspose(2), [IMAGE], [(8, 8, 4)]),
    (nets.Upsample(2), [IMAGE], [(8, 8, 4)]),
    (nets.GroupNorm(3), [IMAGE], [(8, 8, 6)]),
    (nets.LayerNorm(), [(3,)], [(4,)]),
    (nets.SelfAttention(3), [TOKENS], [(5, 13)]),
    (nets.ResidualBlock(4), [IMAGE], [IMAGE, (6,)]),
    (nets.ResidualBlock(4), [IMAGE, (6,)], [IMAGE]),
    (nets.MLP((4,), 2), [IMAGE], [(8, 8, 4)]),
    (nets.MLP((4,), 2, in_ndim=1), [(3,)], [(4,)]),
    (nets.ConvEncoder((4,)), [IMAGE], [(6, 8, 3)]),
    (nets.ConvDecoder((4,), IMAGE), [(3,)], [(4,)]),
    (nets.ConvEnergy((4,)), [IMAGE], [(6, 8, 3)]),
    (nets.UNet((4, 8)), [IMAGE, ()], [IMAGE, (), (4, 6)]),
    (nets.UNet((4, 8)), [IMAGE, (), (4, 6)], [IMAGE, ()]),
    (nets.TransformerLayer(3), [TOKENS], [TOKENS, (4, 6)]),
    (nets.PatchTransformer(4, 4, 1), [IMAGE, (), (4, 6)], [IMAGE, ()]),
    (nets.PatchTransformer(4, 4, 1), [IMAGE, ()], [(4, 8, 3), ()]),
]


@pytest.mark.parametrize(("net", "shapes", "wrong"), FEW)
def test_wrong_inputs_are_refused_with_got_and_expected(lib, net, shapes, wrong):
    params = net.init(np.random.default_rng(0), *shapes)
    with pytest.raises(ShapeError, match=r"got .*, expected "):
        call(lib, net, params, inputs(wrong, (2,)))


def test_impossible_declarations_are_refused():
    with pytest.raises(DeclarationError, match="sides that 4 divides"):
        nets.ConvDecoder((8, 8), (6, 6, 1))
    with pytest.raises(DeclarationError, match="take kernel=4"):
        nets.ConvDecoder((8,), (6, 6, 1), kernel=3)
    with pytest.raises(DeclarationError, match="levels among"):
        nets.UNet((4, 8), attention_levels=(2,))
    with pytest.raises(DeclarationError, match="expected one of"):
        nets.MLP(activation="swish")
    with pytest.raises(DeclarationError, match="each entry one of"):
        nets.Sequential((nets.Dense(2), "swish"))
    with pytest.raises(DeclarationError, match="a 'weight' among them"):
        nets.SpectralNorm(nets.LayerNorm()).init(np.random.default_rng(0), (3,))
