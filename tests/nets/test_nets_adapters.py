"""Networks that users bring along: modules of torch, flax and equinox under our protocol."""

import numpy as np
import pytest

from probgen import nets
from probgen.errors import DeclarationError, ShapeError
from probgen.trees import tree_leaves, tree_map

X = np.random.default_rng(0).standard_normal((2, 3, 5)).astype("f")


def test_torch_module_gives_its_own_output():
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    net = nets.from_torch(module)
    params = net.init(np.random.default_rng(0), (5,))
    assert set(params) == {"0", "2"} and params["0"]["weight"].shape == (4, 5)
    weights, x = tree_map(torch.as_tensor, params), torch.as_tensor(X)
    torch.testing.assert_close(net.apply(weights, x), module(x))
    doubled = tree_map(lambda w: 2 * w, weights)
    assert not torch.allclose(net.apply(doubled, x), module(x))
    torch.testing.assert_close(tree_map(torch.as_tensor, net.init(None, (5,))), weights)


def test_torch_module_of_images_gets_one_batch_axis():
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten())
    net = nets.from_torch(module, in_ndim=3)
    weights = tree_map(torch.as_tensor, net.init(np.random.default_rng(0), (1, 6, 6)))
    x = torch.randn(2, 3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = net.apply(weights, x)
    assert y.shape == (2, 3, 32)
    torch.testing.assert_close(y[1], module(x[1]))


def test_torch_module_is_traceable_and_keeps_its_buffers():
    torch = pytest.importorskip("torch")
    from torch.fx.experimental.proxy_tensor import make_fx

    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(5, 2)
            self.register_buffer("shift", torch.tensor(3.0))

        def forward(self, x):
            return self.linear(x) + self.shift

    module = Shifted()
    net = nets.from_torch(module)
    weights = tree_map(torch.as_tensor, net.init(np.random.default_rng(0), (5,)))
    assert set(weights) == {"linear"}
    x = torch.as_tensor(X)
    traced = make_fx(net.apply)(weights, x)
    torch.testing.assert_close(traced(weights, 2 * x), module(2 * x))
    gradient = torch.func.grad(lambda w: net.apply(w, x).sum())(weights)
    torch.testing.assert_close(gradient["linear"]["bias"], torch.full((2,), 6.0))


def test_batch_statistics_are_refused():
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))
    with pytest.raises(DeclarationError, match="BatchNorm1d '1' in training mode"):
        nets.from_torch(module)
    nets.from_torch(module.eval())
    without = torch.nn.BatchNorm1d(4, track_running_stats=False).eval()  # of the batch even so
    with pytest.raises(DeclarationError, match="keeps no running statistics.*track_running_stats"):
        nets.from_torch(torch.nn.Sequential(torch.nn.Linear(5, 4), without))
    linen = pytest.importorskip("flax.linen")
    with pytest.raises(DeclarationError, match="expected only 'params'"):
        nets.from_flax(linen.BatchNorm(use_running_average=False)).init(
            np.random.default_rng(0), (5,)
        )


def test_flax_module_gives_its_own_output():
    linen, jax = pytest.importorskip("flax.linen"), pytest.importorskip("jax")
    module = linen.Sequential([linen.Dense(4), linen.relu, linen.Dense(2)])
    net = nets.from_flax(module, in_ndim=1)
    params = net.init(np.random.default_rng(0), (5,))
    assert all(isinstance(p, np.ndarray) for p in tree_leaves(params))
    assert nets.count(params) == 5 * 4 + 4 + 4 * 2 + 2
    y = jax.jit(net.apply)(params, X)
    np.testing.assert_allclose(y, module.apply({"params": params}, X), rtol=1e-6)
    assert y.shape == (2, 3, 2)
    other = net.init(np.random.default_rng(1), (5,))
    assert not np.allclose(tree_leaves(other)[1], tree_leaves(params)[1])


def test_equinox_module_is_mapped_over_leading_axes():
    equinox, jax = pytest.importorskip("equinox"), pytest.importorskip("jax")
    module = equinox.nn.MLP(5, 2, 4, 1, key=jax.random.key(0))
    net = nets.from_equinox(module, in_ndim=1)
    params = net.init(np.random.default_rng(0), (5,))
    assert nets.count(params) == 5 * 4 + 4 + 4 * 2 + 2
    y = jax.jit(net.apply)(params, X)
    expected = np.stack([[module(x) for x in row] for row in X])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(net.apply(params, X[0, 0]), expected[0, 0], rtol=1e-5, atol=1e-6)
    doubled = tree_map(lambda w: 2 * w, params)
    assert not np.allclose(net.apply(doubled, X), expected)


def test_adapted_nets_are_layers_of_a_sequential():
    torch = pytest.importorskip("torch")
    inner = nets.from_torch(torch.nn.Linear(4, 3))
    net = nets.Sequential((nets.Dense(4), "relu", inner, nets.Dense(2)))
    params = net.init(np.random.default_rng(0), (5,))
    y = net.apply(tree_map(torch.as_tensor, params), torch.as_tensor(X))
    assert y.shape == (2, 3, 2)


def test_leading_axes_broadcast_or_are_refused():
    torch = pytest.importorskip("torch")
    net = nets.from_torch(torch.nn.Bilinear(5, 5, 2), in_ndim=1)
    weights = tree_map(torch.as_tensor, net.init(np.random.default_rng(0), (5,), (5,)))
    x = torch.as_tensor(X)
    assert net.apply(weights, x, x).shape == (2, 3, 2)
    torch.testing.assert_close(net.apply(weights, x, x[0]), net.apply(weights, x, x[:1] + 0 * x))
    with pytest.raises(ShapeError, match="expected axes that broadcast"):
        net.apply(weights, x, x[:, :2])
