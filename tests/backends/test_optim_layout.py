"""An optimiser's step is a function of numbers, not of how they lie in memory."""

import numpy as np
import pytest

from probgen import optim

DECLARED = [
    optim.Adam(0.1), optim.AdamW(0.1, weight_decay=0.1), optim.SGD(0.1),
    optim.SGD(0.1, momentum=0.9), optim.Adam(0.1, clip_norm=0.5),
]  # fmt: skip


@pytest.mark.parametrize("declared", DECLARED, ids=repr)
def test_a_step_does_not_depend_on_the_order_of_a_gradient_in_memory(backend, declared):
    """A convolution's gradient comes with its axes stored in another order than its weights'."""
    rng = np.random.default_rng(0)
    start, gradient = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    turned = backend.asarray(np.ascontiguousarray(gradient.transpose(1, 0, 2)))
    results = []
    for given in (backend.asarray(gradient), backend.ops.transpose(turned, (1, 0, 2))):
        optimizer = backend.optimizer(declared)
        params = {"w": backend.asarray(start.copy())}
        state = optimizer.init(params)
        for _ in range(3):
            params, state = optimizer.update({"w": given}, state, params)
        results.append(backend.to_numpy(params["w"]))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)
    assert np.abs(results[0] - start).max() > 0.01
