"""A network of blocks of pixels: which pixel is where, and that nothing is lost."""

import numpy as np
from at_once import at_once

from probgen import nets
from probgen.nets.unshuffled import shuffle, unshuffle
from probgen.trees import tree_map


def test_a_block_holds_its_pixels_row_by_row_and_gives_them_back(b):
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    blocks = b.to_numpy(unshuffle(b.asarray(x), 2))
    for i, j, a, c, k in np.ndindex(2, 3, 2, 2, 3):
        np.testing.assert_array_equal(
            blocks[:, i, j, (2 * a + c) * 3 + k], x[:, 2 * i + a, 2 * j + c, k]
        )
    np.testing.assert_array_equal(b.to_numpy(shuffle(b.asarray(blocks), 2)), x)


def test_a_net_of_blocks_gives_its_maps_beside_the_image(b):
    """The pixels move, and what else the net is given and gives stays its own."""
    net = nets.Unshuffled(nets.PatchTransformer(1, 4, 1, 2))
    params = net.init(np.random.default_rng(0), (4, 4, 1), (), (3, 5))
    rng = np.random.default_rng(1)
    params["pixels"]["weight"] = rng.normal(size=(4, 4)).astype(np.float32)
    params = tree_map(b.asarray, params)
    x, t, context = (b.asarray(v) for v in (rng.normal(size=(2, 4, 4, 1)), [3.0, 5.0],
                                            rng.normal(size=(2, 3, 5))))  # fmt: skip

    def run(params):
        y, maps = net.apply(params, x, t, context, return_maps=True)
        inner = net.net.apply(params, unshuffle(x, 2), t, context, return_maps=True)
        return y, unshuffle(y, 2), maps, inner

    y, blocks, maps, (inner, inner_maps) = at_once(b, run, params)
    assert y.shape == (2, 4, 4, 1) and y.std() > 0.1
    np.testing.assert_allclose(blocks, inner, rtol=1e-6)
    assert set(maps) == set(inner_maps)
    for name, found in inner_maps.items():
        np.testing.assert_allclose(maps[name], found, rtol=1e-6)
