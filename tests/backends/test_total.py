"""`Backend.total`, however it is made: the sum, its gradient, and what is infinite or no number."""

import numpy as np
import pytest


@pytest.mark.parametrize("shape", [(), (7,), (3, 600)])
def test_it_is_the_sum_over_all_of_each_chain(b, shape):
    x = np.random.default_rng(0).normal(-3.0, 1.0, size=(4, *shape)).astype("float32")
    value, slope = b.value_and_grad(lambda x: b.ops.sum(b.vmap(b.total)(x) ** 2))(b.asarray(x))
    axes = tuple(range(1, x.ndim))
    whole = x.astype(np.float64).sum(axes)
    np.testing.assert_allclose(b.to_numpy(b.vmap(b.total)(b.asarray(x))), whole, rtol=1e-5)
    np.testing.assert_allclose(float(value), (whole**2).sum(), rtol=1e-5)
    wanted = np.broadcast_to(2 * whole.reshape(4, *[1] * len(shape)), x.shape)
    np.testing.assert_allclose(b.to_numpy(slope), wanted, rtol=1e-5)


@pytest.mark.parametrize("size", [5, 300])
def test_what_is_infinite_or_no_number_stays_so(b, size):
    x = np.zeros((3, size), "float32")
    x[0, 2], x[1, 3], x[2, 1], x[2, 2] = -np.inf, np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(
        b.to_numpy(b.vmap(b.total)(b.asarray(x))), [-np.inf, np.nan, np.nan]
    )
