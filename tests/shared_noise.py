"""Noise that both backends share, for the laws that compare their numbers.

Noise is injected at the source of randomness: torch's keys are made JAX's for the length of a test
(fold_in and every draw by threefry, `split` on both sides as fold_in), so that the two backends
draw the same numbers from the same seed and everything else runs as it always does. What is no
function of noise (a gamma's draw, a Bernoulli's) is drawn by each framework itself, and not shared.
"""

import contextlib
import functools

import floats
import numpy as np
import pytest

from probgen import backends


def share_noise(monkeypatch):
    """torch draws what JAX draws: normals, uniforms and integers."""
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    pytest.importorskip("pyro")
    pytest.importorskip("numpyro")
    from probgen.backends import keys
    from probgen.backends.jax.backend import JaxBackend
    from probgen.backends.torch import random
    from probgen.backends.torch.backend import TorchBackend

    def to_int(key):
        high, low = (int(v) for v in np.asarray(jax.random.key_data(key)))
        return high << 32 | low

    def to_key(seed):
        data = np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)
        return jax.random.wrap_key_data(data)

    fold = jax.jit(jax.random.fold_in)

    @functools.cache
    def mix(seed, data):
        return to_int(fold(to_key(seed), np.uint32(data & 0x7FFFFFFF)))

    kinds = {
        "normal": lambda key, slot: jax.random.normal(key, slot.shape),
        "uniform": lambda key, slot: jax.random.uniform(key, slot.shape),
        "randint": lambda key, slot: jax.random.randint(key, slot.shape, slot.low, slot.high),
    }

    def draw(slot, seed):
        if isinstance(seed, tuple):
            one = slot._replace(shape=(1, *slot.shape[1:]))
            return torch.cat([draw(one, s) for s in seed])
        return torch.tensor(np.asarray(kinds[slot.kind](to_key(seed), slot)))

    def split(self, key, num=2):
        if key.ndim:
            parts = [jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(key) for i in range(num)]
        else:
            parts = [jax.random.fold_in(key, i) for i in range(num)]
        return jax.numpy.stack(parts)

    monkeypatch.setattr(keys, "mix", mix)
    monkeypatch.setattr(random, "draw", draw)
    monkeypatch.setattr(
        TorchBackend, "key", lambda self, seed: keys.Key(to_int(jax.random.key(seed)))
    )
    monkeypatch.setattr(JaxBackend, "split", split)


@contextlib.contextmanager
def each_backend(*, float64):
    """[torch, JAX]; torch draws by JAX's numbers, so both are in float64 for either's run."""
    both = [
        backends.load("torch", "cpu", compile="graph"),
        backends.load("jax", "cpu"),
    ]
    with contextlib.ExitStack() as stack:
        if float64:
            for b in both:
                stack.enter_context(floats.float64(b))
        yield both


def agree(one, other, *, atol, rtol, what=""):
    """Two dicts of arrays hold the same quantities and, but for NaN on both sides, numbers."""
    assert set(one) == set(other), what
    for name in one:
        np.testing.assert_allclose(
            one[name], other[name], atol=atol, rtol=rtol, err_msg=f"{what} {name}"
        )
