"""Models whose log p(x) is a closed form, for the tests of annealing."""

import math

import numpy as np
from scipy import stats

import probgen as pg
from probgen import dist, nets
from probgen.engine.fitted import Fitted
from probgen.models import VAE, Generator, likelihoods

D, LATENT, NOISE = 16, 4, 0.3
WEIGHT = np.random.default_rng(0).normal(size=(LATENT, D)).astype(np.float32)
COV = WEIGHT.T.astype(np.float64) @ WEIGHT + NOISE**2 * np.eye(D)


def ppca():
    """Probabilistic PCA: x = z W + noise, 16 values of 4 latents."""
    model = Generator(
        latent=dist.Normal(0, 1).expand([LATENT]).to_event(1),
        decoder=nets.MLP(hidden=(), out=(D,)),
        likelihood=likelihoods.Normal(scale=NOISE),
    )
    params = {"decoder": {"out": {"weight": WEIGHT, "bias": np.zeros(D, np.float32)}}}
    return Fitted(model, params, shapes={"x": (D,)})


def ppca_data(count, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, LATENT)) @ WEIGHT + NOISE * rng.normal(size=(count, D))
    return x.astype(np.float32)


def ppca_exact(x):
    return stats.multivariate_normal(np.zeros(D), COV).logpdf(np.asarray(x, np.float64))


def guided(scale):
    """x = z W + noise with 3 values of one latent; the guide is exact but for its spread."""
    w = np.array([[1.0, -0.5, 0.3]], np.float32)
    variance = 1.0 / (1.0 + float((w**2).sum()) / 0.25)
    gain = variance * w.T / 0.25
    model = VAE(
        latent=dist.Normal(0, 1).expand([1]).to_event(1),
        decoder=nets.MLP(hidden=(), out=(3,)),
        likelihood=likelihoods.Normal(scale=0.5),
        encoder=nets.MLP(hidden=(), out=1, heads=("loc", "log_scale")),
    )
    params = {
        "decoder": {"out": {"weight": w, "bias": np.zeros(3, np.float32)}},
        "encoder": {
            "out": {
                "weight": np.concatenate([gain, np.zeros_like(gain)], 1).astype(np.float32),
                "bias": np.array([0.0, 0.5 * math.log(variance) + math.log(scale)], np.float32),
            }
        },
    }
    return Fitted(model, params, shapes={"x": (3,)})


def guided_data(count, seed=0):
    rng = np.random.default_rng(seed)
    w = guided(1.0).params["decoder"]["out"]["weight"]
    return (rng.normal(size=(count, 1)) @ w + 0.5 * rng.normal(size=(count, 3))).astype(np.float32)


def guided_exact(x):
    w = guided(1.0).params["decoder"]["out"]["weight"].astype(np.float64)
    return stats.multivariate_normal(np.zeros(3), w.T @ w + 0.25 * np.eye(3)).logpdf(x)


@pg.model
def waiting():
    """A rate that is gamma distributed, and two waiting times: neither on the real line."""
    with pg.data_plate():
        rate = pg.sample("rate", dist.Gamma(2.0, 1.5))
        pg.sample("x", dist.Exponential(rate))


def waiting_data(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.exponential(1.0 / rng.gamma(2.0, 1.0 / 1.5, size=count)).astype(np.float32)


def waiting_exact(x):
    """Lomax: p(x) = a r^a / (r + x)^(a + 1)."""
    return math.log(2.0) + 2.0 * math.log(1.5) - 3.0 * np.log(1.5 + np.asarray(x, np.float64))


@pg.model
def clusters():
    """A latent with two modes."""
    with pg.data_plate():
        modes = dist.Normal(np.array([-2.0, 2.0], np.float32), 0.5)
        weights = dist.Categorical(probs=np.array([0.3, 0.7], np.float32))
        z = pg.sample("z", dist.MixtureSameFamily(weights, modes))
        pg.sample("x", dist.Normal(z, 0.8))


def clusters_data(count, seed=0):
    rng = np.random.default_rng(seed)
    mode = np.where(rng.uniform(size=count) < 0.3, -2.0, 2.0)
    return (mode + math.hypot(0.5, 0.8) * rng.normal(size=count)).astype(np.float32)


def clusters_exact(x):
    s = math.hypot(0.5, 0.8)
    parts = [math.log(p) + stats.norm(m, s).logpdf(x) for p, m in ((0.3, -2.0), (0.7, 2.0))]
    return np.logaddexp(*parts)


CASES = {
    "ppca": (ppca, ppca_data, ppca_exact),
    "guided": (lambda: guided(1.6), guided_data, guided_exact),
    "waiting": (lambda: Fitted(waiting, {}, shapes={"x": ()}), waiting_data, waiting_exact),
    "clusters": (lambda: Fitted(clusters, {}, shapes={"x": ()}), clusters_data, clusters_exact),
}


def within(values, truth, num_errors=4.5):
    """The mean of independent values is `truth`, within so many standard errors."""
    error = values.std(ddof=1) / math.sqrt(len(values)) + 1e-5
    assert abs(values.mean() - truth) < num_errors * error, (values.mean(), truth, error)
