"""Gaussian data under a diffusion whose denoiser is exact: everything here has a closed form.

With x ~ N(0, U diag(lam) U^T) the noised datum has variances v = a^2 lam + sigma^2 along U, so that
E[eps | x_t] = sigma/v x_t and E[x | x_t] = a lam / v x_t. The schedule is beta(t) = 0.1 + 19.9 t on
t in (0, 1], exactly: alpha_bar = exp(-(0.1 t + 9.95 t^2)) at t = (index + 1) / T.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from probgen import ops
from probgen.engine.fitted import Fitted
from probgen.models import Diffusion, NoiseSchedule

TYPES = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True)
class LinearBeta(NoiseSchedule):
    def betas(self):
        t = np.arange(self.num_train_timesteps + 1) / self.num_train_timesteps
        return -np.expm1(-np.diff(0.1 * t + 9.95 * t**2))


@dataclass(frozen=True)
class GaussianDenoiser:
    """The exact prediction for N(0, U diag(lam) U^T), for a schedule of `num` levels."""

    num: int
    kind: str = "epsilon"

    def init(self, key, *shapes):
        raise NotImplementedError

    def apply(self, params, x, t):
        time = (t[..., None] + 1.0) / self.num
        total = 0.1 * time + 9.95 * time * time
        lam, bar = params["lam"], ops.exp(-total)
        noise2 = -ops.expm1(-total)
        a, sigma = ops.sqrt(bar), ops.sqrt(noise2)
        gain = {
            "epsilon": sigma,
            "sample": a * lam,
            "v_prediction": a * sigma * (1.0 - lam),
        }[self.kind] / (bar * lam + noise2)
        flat = ops.reshape(x, (*t.shape, -1))
        out = (gain * (flat @ params["u"])) @ ops.transpose(params["u"])
        return ops.reshape(out, x.shape)


@dataclass(frozen=True)
class MixtureDenoiser:
    """The exact eps for a mixture of round Gaussians, equal weights, variance `spread`."""

    num: int
    means: tuple = ((-1.0, -0.5), (1.0, 0.2), (0.3, 1.4))
    spread: float = 0.04

    def init(self, key, *shapes):
        return {}

    def apply(self, params, x, t):
        time = ((t + 1.0) / self.num)[..., None]
        bar = ops.exp(-(0.1 * time + 9.95 * time * time))
        variance = bar * self.spread + 1.0 - bar
        off = [x - ops.sqrt(bar) * ops.asarray_like(np.array(m), x) for m in self.means]
        logits = [-0.5 * ops.sum(d * d, axis=-1, keepdims=True) / variance for d in off]
        weights = ops.softmax(ops.concatenate(logits, axis=-1), axis=-1)
        mean = sum(weights[..., i : i + 1] * d for i, d in enumerate(off))
        return ops.sqrt(1.0 - bar) * mean / variance

    def log_prob(self, x, bar):
        """[n] of the noised mixture, with its score [n, 2] and the score's divergence [n]."""
        variance = bar * self.spread + 1.0 - bar
        off = x[:, None] - np.sqrt(bar) * np.array(self.means)
        logits = -0.5 * (off**2).sum(-1) / variance
        total = logsumexp(logits, axis=1)
        w = np.exp(logits - total[:, None])[..., None]
        mean = (w * off).sum(1)
        spread = (w[..., 0] * (off**2).sum(-1)).sum(1) - (mean**2).sum(1)
        log_p = total - np.log(len(self.means)) - np.log(2 * np.pi * variance)
        return log_p, -mean / variance, -2.0 / variance + spread / variance**2


def covariance(dim, seed=0):
    """(U, lam) of a random covariance with a floor of 0.05 under its eigenvalues."""
    a = np.random.default_rng(seed).normal(size=(dim, dim))
    lam, u = np.linalg.eigh(a @ a.T / dim + 0.05 * np.eye(dim))
    return u, lam


def exact_diffusion(dim=8, *, steps=100, kind="epsilon", shape=None):
    """(fitted, u, lam): a diffusion of Gaussian data that knows its score."""
    u, lam = covariance(dim)
    model = Diffusion(GaussianDenoiser(steps, kind), shape or (dim,), LinearBeta(steps), kind)
    params = {"denoiser": {"u": u.astype(np.float32), "lam": lam.astype(np.float32)}}
    return Fitted(model, params, shapes={"x": shape or (dim,)}), u, lam


def draws(u, lam, count, seed=1):
    z = np.random.default_rng(seed).normal(size=(count, len(lam)))
    return ((z * np.sqrt(lam)) @ u.T).astype(np.float32)


def log_normal(x, u, variances):
    """[n] log N(x; 0, U diag(variances) U^T)."""
    y = x.reshape(len(x), -1).astype(np.float64) @ u
    return -0.5 * (y**2 / variances + np.log(2 * np.pi * variances)).sum(1)


def marginal(lam, bar):
    return bar * lam + 1.0 - bar


def measuring(b, measure, fitted):
    """x -> the measure of it as numpy arrays."""
    bound, params = fitted.bind(b)
    run = b.compile(measure.device_function(bound), over="steps")

    def measured(x, seed=0):
        out = run(params, {"x": b.asarray(x)}, b.key(seed))
        return {k: b.to_numpy(v) for k, v in out.items()}

    return measured


def measured(b, measure, fitted, x, seed=0):
    """The measure of x as numpy arrays."""
    return measuring(b, measure, fitted)(x, seed)
