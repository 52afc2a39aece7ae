"""Linear-Gaussian models whose every expectation is a closed form, for scores of several models."""

import math

import numpy as np

from probgen import dist, nets
from probgen.engine.fitted import Fitted
from probgen.models import VAE, likelihoods

S = 0.5
W = np.array([[1.0, -0.5, 0.3]])  # x = z W + b + s eps
B = np.array([0.2, 0.0, -1.0])


def affine(weight, bias):
    return {"weight": np.asarray(weight, np.float32), "bias": np.asarray(bias, np.float32)}


def latent(size):
    return dist.Normal(0, 1).expand([size]).to_event(1)


def heads(size):
    return nets.MLP(hidden=(), out=size, heads=("loc", "log_scale"))


def linear(weight=W, bias=B, *, noise=S, width=1.0):
    """x = z weight + bias + noise eps, one latent; the guide is the posterior, `width` times."""
    variance = 1.0 / (1.0 + float((weight**2).sum()) / noise**2)
    gain = variance * weight.T / noise**2
    size = weight.shape[1]
    model = VAE(
        latent(1), nets.MLP(hidden=(), out=(size,)), likelihoods.Normal(scale=noise), heads(1)
    )
    encoder = affine(
        np.concatenate([gain, 0 * gain], 1),
        [-(bias @ gain)[0], 0.5 * math.log(variance) + math.log(width)],
    )
    params = {"decoder": {"out": affine(weight, bias)}, "encoder": {"out": encoder}}
    return Fitted(model, params, shapes={"x": (size,)})


def exact(x, weight=W, bias=B, noise=S):
    """log p(x) of `linear`."""
    cov = weight.T @ weight + noise**2 * np.eye(weight.shape[1])
    d = np.asarray(x, np.float64) - bias
    squares = np.einsum("ni,ij,nj->n", d, np.linalg.inv(cov), d)
    return -0.5 * squares - 0.5 * np.linalg.slogdet(2 * math.pi * cov)[1]


def draws(count, weight=W, bias=B, noise=S, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, 1))
    return (z @ weight + bias + noise * rng.normal(size=(count, weight.shape[1]))).astype("float32")


class Hierarchy:
    """top ~ N(0, I_2), z = top A + a + t eps, x = z V + c + s eps, and a guide that is near.

    q(z | x) = N(x P + p, diag(e)^2), q(top | z) = N(z R + r, diag(f)^2).
    """

    A = np.array([[0.9, -0.4, 0.2], [0.1, 0.7, -0.6]])
    a = np.array([0.1, -0.2, 0.3])
    V = np.array([[1.0, 0.2, 0.0, -0.3], [0.1, 0.8, 0.5, 0.0], [-0.2, 0.0, 0.9, 0.6]])
    c = np.array([0.0, 0.1, -0.1, 0.2])
    t, s = 0.6, 0.5

    def __init__(self):
        # Posterior means of the exact model; spreads a little wider than the posterior's diagonal.
        prior = self.A.T @ self.A + self.t**2 * np.eye(3)
        cov = np.linalg.inv(np.linalg.inv(prior) + self.V @ self.V.T / self.s**2)
        self.P = self.V.T @ cov / self.s**2
        self.p = self.a @ np.linalg.inv(prior) @ cov - self.c @ self.P
        self.e = 1.2 * np.sqrt(np.diag(cov))
        top = np.linalg.inv(np.eye(2) + self.A @ self.A.T / self.t**2)
        self.R = self.A.T @ top / self.t**2
        self.r = -self.a @ self.R
        self.f = 1.2 * np.sqrt(np.diag(top))

    def fitted(self):
        top = VAE(latent(2), nets.MLP(hidden=(), out=3), likelihoods.Normal(self.t), heads(2))
        model = VAE(top, nets.MLP(hidden=(), out=(4,)), likelihoods.Normal(self.s), heads(3))
        params = {
            "decoder": {"out": affine(self.V, self.c)},
            "encoder": {"out": self._guide(self.P, self.p, self.e)},
            "prior/decoder": {"out": affine(self.A, self.a)},
            "prior/encoder": {"out": self._guide(self.R, self.r, self.f)},
        }
        return Fitted(model, params, shapes={"x": (4,)})

    @staticmethod
    def _guide(weight, bias, scale):
        return affine(
            np.concatenate([weight, 0 * weight], 1), np.concatenate([bias, np.log(scale)])
        )

    def draws(self, count, seed=0):
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(count, 2)) @ self.A + self.a + self.t * rng.normal(size=(count, 3))
        return (z @ self.V + self.c + self.s * rng.normal(size=(count, 4))).astype("float32")

    def moments(self, x):
        """Means and covariances under the guide: z, top, and of z - top A - a."""
        m1, c1 = x @ self.P + self.p, np.diag(self.e**2)
        m2, c2 = m1 @ self.R + self.r, self.R.T @ c1 @ self.R + np.diag(self.f**2)
        cross = c1 @ self.R  # cov(z, top)
        m3 = m1 - m2 @ self.A - self.a
        c3 = c1 - cross @ self.A - (cross @ self.A).T + self.A.T @ c2 @ self.A
        return (m1, c1), (m2, c2), (m3, c3)

    def elbo(self, x):
        (m1, c1), (m2, c2), (m3, c3) = self.moments(x)
        return (
            mean_log_normal(x - m1 @ self.V - self.c, self.V.T @ c1 @ self.V, self.s)
            + mean_log_normal(m3, c3, self.t)
            + mean_log_normal(m2, c2, 1.0)
            + entropy(self.e)
            + entropy(self.f)
        )

    def elbo_above(self, x, at_mode):
        _, (m2, c2), _ = self.moments(x)
        mean, cov = m2 @ self.A + self.a, self.A.T @ c2 @ self.A
        cov = cov if at_mode else cov + self.t**2 * np.eye(3)
        return (
            mean_log_normal(x - mean @ self.V - self.c, self.V.T @ cov @ self.V, self.s)
            + mean_log_normal(m2, c2, 1.0)
            + entropy(self.f)
        )


def mean_log_normal(mean, cov, scale):
    """E log N(r; 0, scale^2 I) for r ~ N(mean, cov)."""
    d = mean.shape[-1]
    squares = (mean**2).sum(-1) + np.trace(cov)
    return -0.5 * d * math.log(2 * math.pi * scale**2) - 0.5 * squares / scale**2


def entropy(scales):
    return 0.5 * len(scales) * math.log(2 * math.pi * math.e) + np.log(scales).sum()
