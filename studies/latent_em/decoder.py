"""A decoder without an encoder: one chain a datum, beside a VAE with the same decoder.

    x ~ Bernoulli(f(z)),  z ~ N(0, I)       digits of 8x8 pixels, black and white

The log-likelihood of held-out digits is estimated by annealing from the prior, for both alike, so
that neither the VAE's bound nor its encoder is in the number.

Source: Han et al. 2017, arXiv:1606.08571 (chains a datum under a generator).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

import probgen as pg
from probgen.backends import load
from probgen.evaluation.samples import count_classes, digit_classifier
from probgen.inference import AIS, ELBO, EM, IWAE, SVI, Langevin
from studies.latent_em.study import Settings, data

NUMBERS = ("log_p", "log_p_train", "more_levels", "bound", "reconstruction", "good")


@dataclasses.dataclass(frozen=True, eq=False)
class Decoder:
    """One decoder, learned in one of the two ways; nats per datum.

    Attributes:
        log_p: of held-out digits by AIS, a lower bound in expectation; `log_p_train` of some that
            were learned from; `more_levels`, what twice the temperatures add, on 50 of them.
        reconstruction: E log p(x | z) of 50 held-out digits over p(z | x), by chains.
        bound: IWAE(1000) on held-out digits; NaN without a guide.
        good: share of decoder means at draws of the prior that a classifier is sure of.
        means, back: those means, and E[x | z] of held-out digits, [n, 8, 8, 1].
    """

    fitted: pg.Fitted
    log_p: float
    log_p_train: float
    more_levels: float
    reconstruction: float
    bound: float
    good: float
    means: np.ndarray
    back: np.ndarray


def learn_decoder(settings: Settings, way: str, seed: int, backend: str) -> pg.Fitted:
    """The decoder by "chains", or with an encoder, by "vae"."""
    x = pg.data.binarize(data(seed)[0])
    optimizer = pg.Adam(pg.CosineDecay(settings.learning_rate, settings.num_updates))
    if way == "vae":
        model: Any = settings.vae
        learner: Any = SVI(ELBO(), optimizer)
    else:
        chains = Langevin(settings.step_size, settings.num_steps, metropolis=True)
        model, learner = settings.generator, EM(chains, optimizer)
    return pg.fit(
        model, x, learner, num_steps=settings.num_updates, batch_size=settings.batch_size,
        seed=seed, backend=backend, device="cpu", progress_bar=False,
    )  # fmt: skip


def decoder(settings: Settings, way: str, seed: int, backend: str) -> Decoder:
    """One decoder, learned and judged."""
    fitted = learn_decoder(settings, way, seed, backend)
    train, test = (pg.data.binarize(x)[: settings.num_judged] for x in data(seed))
    options: Any = {"seed": 0, "backend": backend, "device": "cpu"}

    def by(measure: Any, x: np.ndarray) -> float:
        table = pg.evaluate(fitted, x, [measure], chunk_size=len(x), **options)
        return float(table[measure.name]["estimate"].mean())

    def ais(levels: int) -> AIS:
        return AIS(levels, num_chains=settings.num_chains, num_leapfrog=5, num_pilot_steps=50)

    b = load(backend, "cpu")
    few = test[:50]
    posterior = pg.infer(
        fitted, few, Langevin(0.02, num_steps=300, num_warmup=600, num_chains=2, thinning=30),
        progress_bar=False, **options,
    )["posterior"]["z"].values  # fmt: skip
    codes = posterior.reshape(-1, *posterior.shape[2:])  # [draws, n, d]
    probs = np.stack([decode(fitted, z, b) for z in codes])
    log_p = few * np.log(probs) + (1 - few) * np.log1p(-probs)
    prior = np.random.default_rng(seed).normal(size=(settings.num_samples, settings.latent_dim))
    means = decode(fitted, prior.astype(np.float32), b)
    levels = settings.levels
    return Decoder(
        fitted, by(ais(levels), test), by(ais(levels), train),
        by(ais(2 * levels), few) - by(ais(levels), few),
        float(log_p.sum((2, 3, 4)).mean()),
        by(IWAE(1000), test) if way == "vae" else math.nan,
        count_classes(means, digit_classifier("digits")).good.value, means, probs.mean(0),
    )  # fmt: skip


def decode(fitted: pg.Fitted, z: np.ndarray, b: Any) -> np.ndarray:
    """E[x | z], within (0, 1)."""
    bound, params = fitted.bind(b)
    model: Any = fitted.model
    x = b.compile(lambda params, z: model.mean(bound, params, z))(params, b.asarray(z))
    return np.clip(b.to_numpy(x).astype(np.float64), 1e-6, 1 - 1e-6)
