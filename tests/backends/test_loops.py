"""`Backend.loop` is a scan of small steps, however its steps come to run."""

import numpy as np
import pytest

from probgen import backends


def step(carry, x, rate, table):
    """A carry that swaps its parts, a matrix product, and an output."""
    a, c = carry
    return (c, a * rate + x @ table), {"sum": a.sum(-1), "kept": c + x}


def by_hand(a, c, xs, rate, table):
    told = []
    for x in xs:
        told.append((a.sum(-1), c + x))
        a, c = c, a * rate + x @ table
    return (a, c), [np.stack(t) for t in zip(*told, strict=True)]


def held(b):
    """Calls from where the last one ended, with other rows, fewer of them, another rate, another
    table: each is the scan."""
    rng = np.random.default_rng(0)
    loop = b.loop(step, num_calls=10**6).run
    table, other = (rng.normal(size=(3, 3)).astype(np.float32) for _ in range(2))
    (a, c), carry = np.zeros((2, 4, 3), np.float32), None
    carry = (b.asarray(a), b.asarray(c))
    for rate, tab, num in ((0.5, table, 6), (0.25, table, 4), (0.25, other, 6)):
        xs = rng.normal(size=(num, 4, 3)).astype(np.float32)
        args = b.asarray(np.float32(rate)), b.asarray(tab)
        carry, ys = loop(carry, b.asarray(xs), *args)
        (a, c), (sums, kept) = by_hand(a, c, xs, rate, tab)
        np.testing.assert_allclose(b.to_numpy(ys["sum"]), sums, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(b.to_numpy(ys["kept"]), kept, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(carry, (a, c), strict=True):
        np.testing.assert_allclose(b.to_numpy(mine), theirs, rtol=1e-4, atol=1e-5)


def test_a_loop_is_a_scan(b):
    held(b)


def test_launches_that_are_made_again_are_the_loop():
    """By inductor the kernels of one step are launched again, and nothing is called."""
    pytest.importorskip("torch")
    b = backends.load("torch", "cpu", compile="inductor")
    held(b)
    assert b.info()["routes"] == ["inductor"], b.info()["fallbacks"]
