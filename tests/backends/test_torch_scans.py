"""Long loops over time on torch are one operator of the graph, with the values of the loop."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from probgen import backends, ops  # noqa: E402

LENGTH = 40


def numbers(*shape, seed=0):
    return 0.5 * torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def recursion(p, xs):
    """A carry of parts, one of them shifted and one handed on; a row of two outputs, one of which
    the next step carries too."""

    def step(carry, x):
        level, past, count = carry
        mean = ops.sum(p["a"] * past)
        level = 0.5 * level + ops.stop_gradient(0.1 * mean) + 0.2 * (x - mean) ** 2
        past = ops.concatenate([ops.reshape(x, (1,)), past[:-1]])
        return (level, past, count + 1), (level, level * ops.exp(-p["b"]), count)

    start = (1.0, np.zeros(3, np.float32), np.int64(0))
    (level, past, _), (told, scaled, counts) = ops.scan(step, start, xs)
    return ops.sum(told * counts) / LENGTH + ops.sum(scaled**2) + level * p["b"] + ops.sum(past)


def table(p, xs):
    """An index that another row of xs has at each moment, and a small matrix product."""
    states = ops.cast(xs > 0, "int64")

    def step(probs, at):
        state, x = at
        new = ops.softmax(ops.matmul(ops.reshape(p["a"], (3, 1)) * ops.eye_like(3, x), probs) + x)
        return new, p["a"][state] * new[0] * p["b"]

    probs, told = ops.scan(step, np.ones(3, np.float32) / 3, (states, xs))
    return ops.sum(told) + probs[1]


def filtering(p, xs):
    """Kalman's, with a factor that no kernel has: a step that calls more than kernels."""
    noise = ops.exp(p["b"]) * ops.eye_like(3, xs)

    def step(carry, x):
        mean, cov = carry
        tril = ops.cholesky(cov + noise)
        solved = ops.solve_triangular(tril, ops.concatenate([(x - mean)[:, None], cov], axis=1))
        half, gain = solved[:, 0], solved[:, 1:]
        cov = 0.9 * (cov - 0.5 * ops.matmul(ops.transpose(gain), gain)) + noise
        return (0.9 * mean + 0.1 * p["a"] * x, cov), ops.sum(half**2) + ops.sum(
            ops.log(ops.diagonal(tril))
        )

    start = (np.zeros(3, np.float32), np.eye(3, dtype=np.float32))
    return ops.sum(ops.scan(step, start, xs)[1])


def without_rows(p, xs):
    """No xs, and nothing told; the constant is a part of an array with axes turned."""
    turned = ops.transpose(ops.reshape(xs, (4, 10)))[:3, 1]
    return ops.sum(
        ops.scan(lambda z, _: (ops.tanh(p["a"] * z + turned), None), p["a"], None, 30)[0]
    )


CASES = [recursion, table, filtering, pytest.param(without_rows, marks=pytest.mark.slow)]


def short(p, xs):
    """A loop whose step is compiled in no time."""
    return ops.sum(ops.scan(lambda z, x: (ops.tanh(p["b"] * z + x), z), 0.1, xs)[1])


def graphs(fn, policy="inductor", num_calls=None):
    """(backend, value and gradient at one point and, mapped over, at three)."""
    b = backends.load("torch", "cpu", compile=policy)
    one = b.value_and_grad(fn)
    many = b.compile(lambda p, xs: b.each(lambda q: one(q, xs))(p), num_calls=num_calls)
    return b, b.compile(one, num_calls=num_calls), many


def point(fn):
    p = {"a": numbers(3, 3), "b": numbers(3, seed=1)}
    return p, numbers(LENGTH, 3, seed=2) if fn is filtering else numbers(LENGTH, seed=2)


def same(found, wanted):
    (value, grads), (told, slopes) = found, wanted
    for a, c in ((value, told), *((grads[n], slopes[n]) for n in slopes)):
        np.testing.assert_allclose(a, c, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("fn", CASES)
def test_a_compiled_loop_has_the_values_and_gradients_of_the_live_one(fn):
    """Mapped over; the filter, whose libraries' calls cut its step in many kernels, by itself."""
    backends.forget()
    p, xs = point(fn)
    b, one, many = graphs(fn)
    _, live, live_many = graphs(fn, "live")
    if fn is filtering:
        p, many, live_many = {n: v[0] for n, v in p.items()}, one, live
    for sign in (1, -1, 1):  # its buffers are used again
        same(many(p, sign * xs), live_many(p, sign * xs))
    assert b.info()["routes"] == ["inductor"] and not b.info()["fallbacks"]


def test_what_is_compiled_does_not_grow_with_the_length():
    """Loops that run often are compiled, though their function is not."""
    p = {"b": numbers(1)[0]}
    b, one, _ = graphs(short, "auto", num_calls=200)
    _, live, _ = graphs(short, "live")
    for length in (20, 400):
        same(one(p, numbers(length)), live(p, numbers(length)))
    assert b.info()["routes"] == ["graph"]
    assert [len(built.graph.loops) for built in one.graphs.values()] == [2, 2]  # there and back


class _Doubled(torch.autograd.Function):
    """x, with twice the derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, above):
        return 2 * above


@pytest.mark.parametrize("kind", ["by hand", "second", "grows", "quiet"])
def test_what_an_operator_cannot_show_goes_to_the_next_route(kind):
    """A derivative by hand in the step, a derivative of a derivative, a carry that takes another
    shape; and what stands under no_grad is a constant."""

    def fn(p, xs):
        def step(z, x):
            if kind == "by hand":
                return _Doubled.apply(p["b"] * z) + x, z
            if kind == "quiet":
                with torch.no_grad():
                    slope = p["b"] * 1.0
                return slope * z + x * p["b"], z
            if kind == "grows":
                return p["b"] * z + ops.reshape(x, (1,)) + z, ops.sum(z)
            return ops.tanh(p["b"] * z + x), z

        return ops.sum(ops.scan(step, 0.1, xs)[1])

    def slope(p, xs):
        inner = ops.grad(lambda q: fn({"b": q}, xs))(p["b"])
        return inner**2

    used = slope if kind == "second" else fn
    p, xs = {"b": numbers(1)[0]}, numbers(LENGTH)
    b, one, _ = graphs(used)
    _, live, _ = graphs(used, "live")
    same(one(p, xs), live(p, xs))
    info = b.info()
    if kind == "quiet":
        assert info["routes"] == ["inductor"] and not info["fallbacks"]
    else:
        assert info["routes"] != ["inductor"] and "loop" in info["fallbacks"][0]


def test_loops_in_a_loop_are_the_live_ones():
    """Where the inner one is short it is written out in the step; else the next route has it."""

    def fn(p, xs, length):
        def step(z, x):
            inner = ops.scan(lambda u, _: (ops.tanh(p["b"] * u + x), u), z, None, length)
            return inner[0], ops.sum(inner[1])

        return ops.sum(ops.scan(step, 0.1, xs)[1])

    p, xs = {"b": numbers(1)[0]}, numbers(LENGTH)
    for length, routes in ((3, ["inductor"]), (20, ["live"])):
        b, one, _ = graphs(lambda p, xs, n=length: fn(p, xs, n))
        _, live, _ = graphs(lambda p, xs, n=length: fn(p, xs, n), "live")
        same(one(p, xs), live(p, xs))
        assert b.info()["routes"] == routes, b.info()
