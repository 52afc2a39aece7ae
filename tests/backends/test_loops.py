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


def held(b, size=3):
    """Calls from where the last one ended, with other rows, fewer of them, another rate, another
    table: each is the scan."""
    rng = np.random.default_rng(0)
    loop = b.loop(step, num_calls=10**6).run
    table, other = (rng.normal(size=(size, size)).astype(np.float32) for _ in range(2))
    a, c = np.zeros((2, 4, size), np.float32)
    carry = (b.asarray(a), b.asarray(c))
    for rate, tab, num in ((0.5, table, 6), (0.25, table, 4), (0.25, other, 6)):
        xs = rng.normal(size=(num, 4, size)).astype(np.float32)
        args = b.asarray(np.float32(rate)), b.asarray(tab)
        carry, ys = loop(carry, b.asarray(xs), *args)
        (a, c), (sums, kept) = by_hand(a, c, xs, rate, tab)
        np.testing.assert_allclose(b.to_numpy(ys["sum"]), sums, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(b.to_numpy(ys["kept"]), kept, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(carry, (a, c), strict=True):
        np.testing.assert_allclose(b.to_numpy(mine), theirs, rtol=1e-4, atol=1e-5)


def test_a_loop_is_a_scan(b):
    held(b)


@pytest.mark.parametrize(("size", "calls"), [(3, 0), (192, 1)])
def test_launches_that_are_made_again_are_the_loop(monkeypatch, size, calls):
    """By inductor the kernels of one step are launched again, a small matrix product among them; a
    large one is a library's, called between them."""
    pytest.importorskip("torch")
    from probgen.backends.torch import loops, replay

    made = []

    class Seen(replay.Replay):
        def __init__(self, *args):
            super().__init__(*args)
            made.append([type(s).__name__ for s in self._segments])

    monkeypatch.setattr(loops, "Replay", Seen)
    b = backends.load("torch", "cpu", compile="inductor")
    held(b, size)
    assert b.info()["routes"] == ["inductor"], b.info()["fallbacks"]
    assert made
    assert all(kinds.count("_Call") == calls and "Player" in kinds for kinds in made)
