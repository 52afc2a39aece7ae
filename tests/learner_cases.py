"""Algorithms as a user writes them, over public names alone: what the learner contracts are for."""

import dataclasses
from typing import Any

import numpy as np

import probgen as pg
from probgen import dist, nets
from probgen.models import Generator, likelihoods

EM_STEPS = pg.Adam(2e-2)
WEIGHT, SCALE = np.array([2.0, 1.0, -1.0]), 1.4


def factor_data(size=300, seed=0):
    """x = w z + SCALE eps with one factor z: probabilistic PCA."""
    rng = np.random.default_rng(seed)
    noise = SCALE * rng.normal(size=(size, 3))
    return (rng.normal(size=(size, 1)) * WEIGHT + noise).astype(np.float32)


def ppca(x, num_factors):
    """Covariance of the maximum-likelihood factor model. Tipping & Bishop 1999, equations 7, 8."""
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    noise = values[:-num_factors].mean()
    top = vectors[:, -num_factors:] * (values[-num_factors:] - noise)
    return top @ vectors[:, -num_factors:].T + noise * np.eye(len(values))


def factor_model():
    return Generator(
        dist.Normal(0, 1).expand([1]).to_event(1), nets.MLP((), out=3, in_ndim=1),
        likelihoods.Normal("learned"),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EM:
    """Monte Carlo EM with one Langevin chain a datum, kept from one visit to the next.

    E-step: z_i <- z_i + h grad log p(z_i, x_i) + sqrt(2h) xi;  M-step: a step on -log p(z_i, x_i).
    """

    optimizer: Any = EM_STEPS
    step_size: float = 0.02
    num_steps: int = 10

    def bind(self, bound):
        b, ops, h = bound.backend, bound.backend.ops, self.step_size
        shape = bound.structure.sites["z"].event_shape

        def log_joint(z, params, batch):
            sites = bound.trace(params, batch, {"z": z})
            return ops.sum(sites["z"].log_prob + sites["x"].log_prob)

        drift = b.compile(b.grad(log_joint))

        def chains(bound, params, batch, key, extras):
            return {"z": bound.kept("z", b.normal(key, (bound.num_data, *shape)), extras)}

        def e_step(bound, state, batch, key):
            params, chains = {**state["params"], **state["frozen"]}, state["own"]["z"]

            def move(z, k):
                noise = b.normal(k, tuple(z.shape))
                return z + h * drift(z, params, batch) + (2 * h) ** 0.5 * noise, None

            start = ops.take(chains, batch[pg.ROW])
            z, _ = b.scan(move, start, b.split(key, self.num_steps))
            return z, {"z": ops.put(chains, batch[pg.ROW], z)}, {}

        def m_step(bound, params, batch, key, z):
            return -log_joint(z, params, batch) / z.shape[0]

        return pg.GradientLearner(
            m_step, self.optimizer, own=chains, before=e_step, needs_rows=True,
            extras=lambda bound, state: state["own"],
        ).bind(bound)  # fmt: skip


def follow(drift):
    """A generator whose draws x move along a drift: x' = x + h drift(x), by its own parameters."""

    def loss(bound, params, batch, key):
        ops, size = bound.backend.ops, bound.num_draws
        x = bound.trace(params, batch, key=key, batch_size=size, condition=False)["x"].value
        return -ops.mean(ops.sum(ops.stop_gradient(drift(x)) * x, axis=-1))

    return pg.GradientLearner(loss, pg.Adam(2e-2), needs_data=False)
