"""Linear-Gaussian models for `test_elbo`, `test_elbo_gradients` and `test_collapse`.

z ~ N(0, I),  x | z ~ N(W z + c, s^2 I):    p(x) = N(c, W W' + s^2 I), the posterior is Gaussian
"""

import numpy as np
from scipy import stats

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.inference.objectives.terms import compute, log_weights
from probgen.trees import tree_map

W = np.array([[1.0, 0.5], [-0.3, 0.8], [0.2, -0.6]], np.float32)
C = np.array([0.1, -0.2, 0.3], np.float32)
S = 0.7
X = np.array([[0.3, -1.0, 0.8], [2.0, 0.4, -0.5], [-1.2, 0.1, 0.6]], np.float32)
COV = np.linalg.inv(np.eye(2) + W.T @ W / S**2)
EXACT = stats.multivariate_normal(C, W @ W.T + S**2 * np.eye(3)).logpdf(X)


@pg.model
def story():
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        w = pg.ops.asarray_like(W, z)
        mean = pg.ops.einsum("...i,ji->...j", z, w) + pg.ops.asarray_like(C, z)
        pg.sample("x", dist.Normal(mean, S).to_event(1))


def posterior_mean(x):
    gain = pg.ops.asarray_like((COV @ W.T / S**2).astype(np.float32), x)
    return pg.ops.einsum("...i,ji->...j", x - pg.ops.asarray_like(C, x), gain)


@story.with_guide
def exact(x):
    with pg.data_plate():
        root = pg.ops.asarray_like(np.linalg.cholesky(COV).astype(np.float32), x)
        pg.sample("z", dist.MultivariateNormal(posterior_mean(x), scale_tril=root))


@story.with_guide
def off(x):
    """Off the posterior in mean and scale, and wider, so that weights have a variance."""
    with pg.data_plate():
        pg.sample("z", dist.Normal(posterior_mean(x) + 0.3, 0.8).to_event(1))


@story.with_guide
def learned(x):
    with pg.data_plate():
        loc = pg.net("loc", nets.Parameter((2,), 0.4))()
        scale = pg.ops.exp(pg.net("log_scale", nets.Parameter((2,), -0.2))())
        pg.sample("z", dist.Normal(posterior_mean(x) * 0.5 + loc, scale).to_event(1))


def bound_to(b, model, x, **fields):
    bound, params = bind(model, b, data={"x": x}, seed=0, num_data=len(x), **fields)
    return bound, params, {"x": b.asarray(x)}


def weights(b, model, x, num_particles, seed=0):
    """[K, batch] log importance weights."""
    bound, params, batch = bound_to(b, model, x)

    def draw(params, batch, key):
        terms = compute(bound, params, batch, key, num_particles=num_particles, analytic_kl=False)
        return log_weights(terms)

    return b.to_numpy(b.compile(draw, 8)(params, batch, b.key(seed))).astype(np.float64)


def mean_and_error(values, axis=0):
    values = np.asarray(values, np.float64)
    return values.mean(axis), values.std(axis, ddof=1) / np.sqrt(values.shape[axis])


def gradients(b, model, loss, x, num_keys):
    """Gradients of a loss, one for each key: dict of net -> [num_keys, ...]."""
    bound, params, batch = bound_to(b, model, x)
    state = tree_map(b.asarray, loss.init(bound))

    def value(params, batch, key):
        return loss.loss(bound, params, state, b.asarray(0.0), batch, key)[0]

    both = b.compile(b.value_and_grad(value), 100)
    found = [both(params, batch, b.key(k))[1] for k in range(num_keys)]
    return {n: np.stack([b.to_numpy(g[n]["value"]) for g in found]) for n in found[0]}
