"""Recursions: `ops.scan` against closed forms and enumeration, in programs, at any length."""

import itertools

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

import probgen as pg
from probgen import dist, ops
from probgen.engine.bind import bind
from probgen.errors import DeclarationError, ShapeError

Y = np.array([0.3, -1.2, 2.0, 1.5], "float32")
P = np.array([[0.9, 0.1], [0.3, 0.7]], "float32")
MEANS = np.array([-1.0, 1.5], "float32")


def test_recursion_and_its_gradient(b):
    """x_t = phi x_{t-1} + e_t: the states are sum_k phi^k e_{t-k}; trees are carried, stacked."""
    noise = b.asarray(Y)

    def end(phi):
        def step(carry, e):
            x = phi * carry["x"] + e
            return {"x": x, "count": carry["count"] + 1.0}, (x, 2.0 * x)

        start = {"x": 0.0 * phi, "count": 0.0 * phi}
        last, (states, twice) = ops.scan(step, start, noise)
        return ops.sum(states) + 0.0 * ops.sum(twice) + 0.0 * last["count"], (states, last["count"])

    (_, (states, count)), grad = b.value_and_grad(end, has_aux=True)(b.asarray(np.float32(0.5)))
    want = [sum(0.5**k * Y[t - k] for k in range(t + 1)) for t in range(4)]
    slope = sum(k * 0.5 ** (k - 1) * Y[t - k] for t in range(4) for k in range(1, t + 1))
    np.testing.assert_allclose(b.to_numpy(states), want, rtol=1e-5)
    np.testing.assert_allclose(b.to_numpy(grad), slope, rtol=1e-5)
    assert float(count) == 4


@pg.model
def hidden_markov(y):
    """Two states, summed out by the forward recursion."""

    def step(log_alpha, y_t):
        moved = ops.logsumexp(log_alpha[:, None] + ops.log(ops.asarray(P)), axis=0)
        after = moved - 0.5 * ops.square(y_t - MEANS) - 0.5 * np.log(2 * np.pi)
        return after, None

    start = ops.log(ops.asarray(np.array([0.5, 0.5], "float32") @ np.linalg.inv(P)))
    pg.factor("y", ops.logsumexp(ops.scan(step, start, y)[0]))


def test_a_hidden_markov_model_is_its_enumeration(b):
    bound, params = bind(hidden_markov, b, constants={"y": Y})
    found = bound.trace(params, {"y": b.asarray(Y)})["y"].log_prob
    paths = []
    for path in itertools.product(range(2), repeat=4):
        moves = sum(np.log(P[i, j]) for i, j in itertools.pairwise(path))
        paths.append(np.log(0.5) + moves + stats.norm(MEANS[list(path)]).logpdf(Y).sum())
    np.testing.assert_allclose(b.to_numpy(found), logsumexp(paths), rtol=1e-5)


def test_the_program_does_not_grow_with_the_length():
    jax = pytest.importorskip("jax")

    def walk(noise):
        return ops.scan(lambda x, e: (0.5 * x + e, x), 0.0 * noise[0], noise)[1]

    sizes = [len(str(jax.make_jaxpr(walk)(np.zeros(n, "float32")).eqns)) for n in (10, 10_000)]
    assert abs(sizes[1] - sizes[0]) < 40  # a few digits


def test_what_a_scan_cannot_do_is_refused_in_words(b):
    @pg.model
    def inside():
        def step(x, t):
            return pg.sample("e", dist.Normal(x, 1.0)), None

        ops.scan(step, ops.asarray(0.0), length=3)

    with pytest.raises(DeclarationError, match=r"site 'e': .* inside a step of ops.scan"):
        bind(inside, b)
    with pytest.raises(ShapeError, match="expected one length T"):
        ops.scan(lambda c, x: (c, x), b.asarray(np.float32(0.0)))
