"""`Backend.cond`: one of two functions, by a scalar that only the run knows."""

import numpy as np


def test_cond_is_the_branch_that_holds_also_inside_compiled_code_and_a_gradient(b):
    """d/dx of x^2 if x > 0 else -3 x."""

    def value(x):
        return b.cond(x > 0, lambda x: x * x, lambda x: -3.0 * x, x)

    grad = b.compile(b.grad(value))
    for x, wanted, slope in ((2.0, 4.0, 4.0), (-2.0, 6.0, -3.0)):
        at = b.asarray(x)
        for run in (value, b.compile(value)):
            np.testing.assert_allclose(b.to_numpy(run(at)), wanted)
        np.testing.assert_allclose(b.to_numpy(grad(at)), slope)
    many = b.vmap(value)(b.asarray(np.float32([2.0, -2.0])))
    np.testing.assert_allclose(b.to_numpy(many), [4.0, 6.0])


def test_cond_gives_trees_and_takes_keys(b):
    def draw(low, key):
        noise = b.normal(key, (3,))
        return b.cond(
            low > 0, lambda k: {"x": noise, "n": b.normal(k, (2,))},
            lambda k: {"x": -noise, "n": 0.0 * b.normal(k, (2,))}, key,
        )  # fmt: skip

    plain, compiled = draw, b.compile(draw)
    for sign in (1.0, -1.0):
        one, other = (fn(b.asarray(sign), b.key(3)) for fn in (plain, compiled))
        np.testing.assert_allclose(b.to_numpy(one["x"]), b.to_numpy(other["x"]), rtol=1e-6)
        assert b.to_numpy(one["n"]).any() == (sign > 0)
