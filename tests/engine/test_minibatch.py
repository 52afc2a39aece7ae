"""The minibatch law: objectives of equal minibatches average to that of the full data."""

import functools

import numpy as np
import scipy.stats as st

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.inference import ELBO
from probgen.models import VAE, Generator
from probgen.trees import tree_leaves

RNG = np.random.default_rng(0)
LAYER = Generator(
    latent=dist.Normal(0, 1).expand([2]).to_event(1),
    decoder=nets.MLP(hidden=(4,), out=2),
    likelihood=dist.Normal,
)
N, BATCH = 12, 3
SCALE = 0.7


@pg.model
def global_and_local():
    """A global mean with a prior, a latent per datum, an observation; all Gaussian."""
    mu = pg.sample("mu", dist.Normal(0.0, 2.0))
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(mu, 1.0))
        pg.factor("tilt", -0.1 * z * z)
        pg.sample("x", dist.Normal(z, SCALE))


@global_and_local.with_guide
def with_guide(x):
    pg.sample("mu", dist.Normal(0.4, 1e-6))
    with pg.data_plate():
        pg.sample("z", dist.Normal(0.5 * x, 1e-6))


def test_minibatch_objectives_average_to_the_full_one(backend):
    """Guides of width 1e-6 leave no noise: the mean over all minibatches is the full bound."""
    x = RNG.normal(size=N).astype(np.float32)
    bound, params = bind(with_guide, backend, data={"x": x}, num_data=N)
    loss = ELBO(analytic_kl=True)
    key = backend.key(0)

    @functools.partial(backend.compile, num_calls=5)
    def compiled(rows):
        return loss.evaluate(bound, params, {"x": rows}, key)["elbo"]

    def elbo(rows):
        return float(compiled(backend.asarray(rows)))

    full = elbo(x)
    parts = [elbo(x[i : i + BATCH]) for i in range(0, N, BATCH)]
    assert np.std(parts) > 1e-2  # the minibatches differ, so the law says something
    np.testing.assert_allclose(np.mean(parts), full, rtol=2e-5)


def test_the_full_objective_is_the_log_joint_minus_log_q_per_datum(backend):
    """Against scipy, with the minibatch of size 3 standing for 12 data."""
    x = RNG.normal(size=N).astype(np.float32)
    bound, params = bind(with_guide, backend, data={"x": x}, num_data=N)
    rows = x[:BATCH]
    found = ELBO().evaluate(bound, params, {"x": backend.asarray(rows)}, backend.key(0))
    mu, z, s = 0.4, 0.5 * rows.astype(np.float64), 1e-6

    def kl(m, p_mean, p_scale):
        return np.log(p_scale / s) + (s**2 + (m - p_mean) ** 2) / (2 * p_scale**2) - 0.5

    local = st.norm(z, SCALE).logpdf(rows) - 0.1 * z**2 - kl(z, mu, 1.0)
    expected = local.mean() - kl(mu, 0.0, 2.0) / N
    np.testing.assert_allclose(float(found["elbo"]), expected, rtol=1e-4)


def test_accumulated_parts_give_the_gradient_of_the_whole(backend):
    """A mean over equal parts is the mean over all, when the noise is the same: none here."""
    x = RNG.normal(size=(8, 2)).astype(np.float32)

    def grads(parts):
        bound, params = bind(LAYER, backend, data={"x": x}, num_data=8, accumulate=parts)

        def loss(trainable, frozen, extra, batch, key):
            z = {"z": batch["x"] * 0.5}
            sites = bound.trace(trainable, batch, z)
            return -bound.backend.ops.mean(sites["x"].log_prob), {}

        fn = bound.value_and_grad(loss)
        _, out = fn(params, {}, (), {"x": backend.asarray(x)}, backend.key(0))
        return [backend.to_numpy(leaf) for leaf in tree_leaves(out)]

    for whole, split in zip(grads(1), grads(4), strict=True):
        np.testing.assert_allclose(whole, split, rtol=1e-4, atol=1e-6)


def test_a_vae_in_minibatches_averages_to_the_full_one_with_fixed_noise(backend):
    """Local latents only: same draws, so the mean of minibatch log joints is the full one."""
    vae = VAE(
        latent=dist.Normal(0, 1).expand([2]).to_event(1),
        decoder=nets.MLP(hidden=(5,), out=3),
        likelihood=dist.Bernoulli,
        encoder=nets.MLP(hidden=(5,), out=2, heads=("loc", "log_scale")),
    )
    x = (RNG.random((8, 3)) < 0.5).astype(np.float32)
    z = RNG.normal(size=(8, 2)).astype(np.float32)
    bound, params = bind(vae, backend, data={"x": x})

    @functools.partial(backend.compile, num_calls=5)
    def compiled(x, z):
        sites = bound.trace(params, {"x": x}, {"z": z})
        return sum(backend.ops.mean(s.log_prob) for s in sites.values())

    def joint(rows):
        return float(compiled(backend.asarray(x[rows]), backend.asarray(z[rows])))

    parts = [joint(slice(i, i + 2)) for i in range(0, 8, 2)]
    np.testing.assert_allclose(np.mean(parts), joint(slice(0, 8)), rtol=1e-5)
