"""Small models and data for the tests of `fit`, saving and resuming: seconds, not minutes."""

import numpy as np

import probgen as pg
from probgen import backends, dist, nets
from probgen.inference import ELBO, SVI
from probgen.models import VAE

SHAPE = (4,)


def small_vae(latent=None, hidden=(8,), **options):
    """A VAE on four binary values."""
    return VAE(
        latent=dist.Normal(0, 1).expand([2]).to_event(1) if latent is None else latent,
        decoder=nets.MLP(hidden=hidden, out=SHAPE),
        likelihood=dist.Bernoulli,
        encoder=nets.MLP(hidden=hidden, out=2, heads=("loc", "log_scale")),
        **options,
    )


@pg.model
def coins():
    """Four coins and nothing latent: the least that the driver can be tried on."""
    logits = pg.net("logits", nets.Parameter(SHAPE))()
    with pg.data_plate():
        pg.sample("x", dist.Bernoulli(logits=logits).to_event(1))


@coins.with_guide
def coins():
    """Nothing to draw."""


def binary_data(size=64, seed=0):
    """Rows of four bits of which the last two repeat the first two: something to learn."""
    first = np.random.default_rng(seed).integers(0, 2, (size, 2))
    return np.concatenate([first, first], axis=1).astype(np.float32)


def svi(rate=1e-2, **options):
    return SVI(ELBO(), pg.Adam(rate, **options))


def quick(name):
    """A backend that spends no time on inductor, which is not the point of these tests."""
    return backends.load(name, "cpu", **({"compile": "graph"} if name == "torch" else {}))


def leaves(params):
    """Flat {name: array} of a tree of parameters."""
    from probgen.records.store import flatten

    return flatten(params)


def assert_same_bits(a, b):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def are_same_bits(a, b):
    a, b = leaves(a), leaves(b)
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)
