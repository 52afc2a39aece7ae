"""What a denoising diffusion GAN's networks promise: filters, latent norms, and how they start."""

import numpy as np
import pytest

from probgen import nets
from probgen.errors import ShapeError
from probgen.nets.conv_discriminator import minibatch_deviation
from probgen.nets.resampling import double, halve
from probgen.trees import tree_map

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 4, 6, 2)).astype("f")


def by_hand(x, up, taps):
    """Zeros between pixels, the filter along both sides, every second pixel: as upfirdn does."""
    for axis in (1, 2):
        shape = list(x.shape)
        if up:
            shape[axis] *= 2
            wide = np.zeros(shape)
            wide[(slice(None),) * axis + (slice(None, None, 2),)] = x
            x, pads = wide, (2, 1)
        else:
            pads = (1, 1)
        width = [(0, 0)] * 4
        width[axis] = pads
        padded = np.pad(x, width)
        rows = padded.shape[axis] - 3
        x = sum(w * np.take(padded, range(i, i + rows), axis) for i, w in enumerate(taps))
        if not up:
            x = np.take(x, range(0, rows, 2), axis)
    return x


def test_images_are_halved_and_doubled_through_the_filter(b):
    taps = np.array([1, 3, 3, 1]) / 8
    x = b.asarray(IMAGES)
    np.testing.assert_allclose(b.to_numpy(halve(x)), by_hand(IMAGES, False, taps), atol=1e-6)
    np.testing.assert_allclose(b.to_numpy(double(x)), by_hand(IMAGES, True, 2 * taps), atol=1e-6)
    with pytest.raises(ShapeError, match="expected even sides"):
        halve(x[:, :3])


def test_a_latent_norm_starts_as_a_plain_one_and_is_linear_in_the_latent(b):
    norm, x, w = nets.LatentGroupNorm(2), IMAGES.repeat(4, -1), RNG.normal(size=(4, 3)).astype("f")
    params = norm.init(np.random.default_rng(1), x.shape[1:], (3,))
    assert set(params) == {"style"} and set(params["style"]) == {"weight", "bias"}
    on = tree_map(b.asarray, params)
    normal = norm._norm(8).normal(b.asarray(x))
    at = [b.to_numpy(norm.apply(on, b.asarray(x), b.asarray(v))) for v in (0 * w, w, 3 * w)]
    np.testing.assert_allclose(at[0], b.to_numpy(normal), atol=1e-6)
    np.testing.assert_allclose(at[2] - at[0], 3 * (at[1] - at[0]), rtol=1e-4, atol=1e-4)


def assert_as_on_torch(net, params, xs, found):
    torch = pytest.importorskip("torch")

    def tensor(v):
        return torch.as_tensor(np.float32(v))

    there = net.apply(tree_map(tensor, params), *map(tensor, xs)).numpy()
    np.testing.assert_allclose(found, there, rtol=1e-4, atol=2e-5)


def test_the_generator_starts_near_zero_and_reads_latent_and_time(b):
    net = nets.LatentUNet((4, 8), latent_width=5, latent_layers=1)
    x, z, t = RNG.normal(size=(2, 4, 4, 1)), RNG.normal(size=(2, 3)), np.float32([0, 3])
    params = net.init(np.random.default_rng(0), (4, 4, 1), (3,), ())
    ask = b.compile(net.apply)

    def out(params, z, t):
        return b.to_numpy(ask(tree_map(b.asarray, params), *map(b.asarray, (x, z, t))))

    assert np.abs(out(params, z, t)).max() < 1e-3
    moved = tree_map(lambda p: p + 0.3 * np.random.default_rng(1).normal(size=p.shape), params)
    first = out(moved, z, t)
    assert_as_on_torch(net, moved, (x, z, t), first)
    assert np.abs(first).max() <= 1.0 and np.abs(first - out(moved, -z, t)).max() > 1e-4
    assert np.abs(first - out(moved, z, t[::-1].copy())).max() > 1e-4
    np.testing.assert_allclose(first, out(moved, 7.0 * z, t), atol=1e-5)  # of unit length


def test_a_deviation_tells_how_alike_a_group_is(b):
    """Data i and i + 2 of four are a group of two."""
    found = b.to_numpy(minibatch_deviation(b.asarray(IMAGES), 2))
    pairs = np.stack([IMAGES[:2], IMAGES[2:]])
    each = np.sqrt(pairs.var(0) + 1e-8).mean((1, 2, 3))
    assert found.shape == (4, 4, 6, 1)
    np.testing.assert_allclose(found[:, 0, 0, 0], [*each, *each], rtol=1e-5)
    with pytest.raises(ShapeError, match="got a batch of 3, expected a multiple of the group, 2"):
        minibatch_deviation(b.asarray(IMAGES[:3]), 2)


def test_the_discriminator_of_images_reads_them_all_and_the_step(b):
    net, t = nets.ConvDiscriminator((4, 6), 8, 5, group=1), np.float32([0, 1, 2, 3])
    x, y = IMAGES[..., :1], IMAGES[..., 1:]
    rng = np.random.default_rng(1)
    params = net.init(rng, (4, 6, 1), (4, 6, 1), ())
    moved = tree_map(lambda p: p + 0.3 * rng.normal(size=p.shape), params)
    ask = b.compile(net.apply)

    def out(*xs):
        return b.to_numpy(ask(tree_map(b.asarray, moved), *map(b.asarray, xs)))

    first = out(x, y, t)
    assert_as_on_torch(net, moved, (x, y, t), first)
    for other in (out(y, y, t), out(x, x, t), out(x, y, t[::-1].copy())):
        assert (np.abs(first - other) > 1e-5).any()


WRONG = [
    (nets.TimedDiscriminator(), [(2,), (2,)], "the last of them a time"),
    (nets.LatentUNet((4, 8, 8)), [(6, 6, 1), (3,), ()], "4 dividing h and w"),
    (nets.LatentUNet((4, 8)), [(8, 8, 1)], r"expected \(h, w, c\), perhaps a latent"),
    (nets.ConvDiscriminator((4, 8)), [(8, 8, 1), (8, 4, 1)], "the same sides"),
]


@pytest.mark.parametrize(("net", "shapes", "message"), WRONG)
def test_wrong_event_shapes_are_refused(net, shapes, message):
    with pytest.raises(ShapeError, match=message):
        net.init(np.random.default_rng(0), *shapes)
