"""One VAE of digits, four priors of its latent: a normal law, a flow, an energy, a diffusion.

    first     VAE with z ~ N(0, I), by its bound
    second    encoder and decoder frozen; the prior alone is fitted to z ~ q(z | x), fresh each step
    joint     all three at once, from the first on

Between priors on one frozen VAE the bound differs by E_q[log p(z)] alone. Source: Vahdat, Kreis &
Kautz 2021, arXiv:2106.05931 (diffusions), Rombach et al. 2022, arXiv:2112.10752 (two stages);
numbers and size are ours.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from typing import Any, Literal

import numpy as np

import probgen as pg
from probgen import dist, nets
from probgen.backends import resolve
from probgen.evaluation.samples import digit_classifier, frechet_distance
from probgen.inference import (
    ELBO,
    SVI,
    Denoising,
    EnergyLogLikelihood,
    Guide,
    ImportanceSampling,
    Langevin,
    MaximumLikelihood,
    log_partition,
)
from probgen.language.declared import declaration
from probgen.language.kinds import Count, Many, Positive, Width
from probgen.models import EBM, VAE, Diffusion, Flow, NoiseSchedule

WAYS = ("normal", "flow", "energy", "diffusion", "flow, joint", "diffusion, joint")
Way = Literal["normal", "flow", "energy", "diffusion", "flow, joint", "diffusion, joint"]
FROZEN = ("encoder", "decoder")


@declaration
class Settings:
    """Sizes of the study. `quick()` is for tests of the functions, not for numbers.

    Args:
        latent_dim, hidden: of encoder and decoder, MLPs with silu.
        prior_hidden: of flow, energy and denoiser.
        num_noise_steps: T of the diffusion.
        num_updates, prior_updates, batch_size, learning_rate: Adam with half a cosine.
        num_draws: of the bound, a datum. num_weights: of log Z, and in a step of the energy.
        chain_steps, step_size: of the energy's chains when it is sampled.
        num_samples: that are judged.
    """

    latent_dim: Width = 8
    hidden: tuple[Width, ...] = (128,)
    prior_hidden: tuple[Width, ...] = (64, 64)
    num_noise_steps: Width = 1000
    num_updates: Count = 2000
    prior_updates: Count = 2000
    batch_size: Many = 128
    learning_rate: Positive = 2e-3
    num_draws: Many = 100
    num_weights: Many = 50_000
    chain_steps: Many = 200
    step_size: Positive = 0.05
    num_samples: Many = 360

    @classmethod
    def quick(cls) -> Settings:
        """Seconds of work."""
        return cls(
            2, (4,), (4,), num_noise_steps=25, num_updates=4, prior_updates=4, batch_size=32,
            num_draws=2, num_weights=100, chain_steps=2, num_samples=40,
        )  # fmt: skip

    def vae(self, prior: Any) -> VAE:
        """The one declaration; the prior is its argument."""
        encoder = nets.MLP(
            self.hidden, self.latent_dim, heads=("loc", "log_scale"), activation="silu"
        )
        decoder = nets.MLP(self.hidden, out=(8, 8, 1), activation="silu")
        return VAE(prior, decoder, dist.Bernoulli, encoder)

    def prior(self, way: str) -> Any:
        """What is swapped."""
        d, kind = self.latent_dim, way.split(",")[0]
        normal = dist.Normal(0, 1).expand([d]).to_event(1)
        if kind == "flow":
            return Flow(d)
        if kind == "energy":
            return EBM(nets.MLPEnergy(self.prior_hidden, activation="silu"), normal)
        if kind == "diffusion":
            schedule = NoiseSchedule.rescaled(self.num_noise_steps)
            # Codes are near N(0, I), of which v is 0 on the mean and the large variances are exact.
            return Diffusion(
                nets.MLPDenoiser(d, self.prior_hidden), (d,), schedule, "v_prediction",
                variance_type="fixed_large",
            )  # fmt: skip
        return normal

    def learner(self, way: str) -> Any:
        """How it is fitted."""
        optimizer = pg.Adam(pg.CosineDecay(self.learning_rate, self.prior_updates))
        if way == "energy":
            return MaximumLikelihood(ImportanceSampling(512), optimizer=optimizer)
        if way == "diffusion":
            return Denoising(optimizer)
        return SVI(ELBO(), optimizer)


@functools.cache
def data(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(digits to learn from, digits held out), [n, 8, 8, 1] black and white."""
    digits = pg.data.binarize(pg.data.digits())
    train, test = pg.data.split(digits, (1437, 360), seed=seed, stratify=True)
    return train.images, test.images


@dataclasses.dataclass(frozen=True, eq=False)
class Prior:
    """One prior of one VAE.

    Attributes:
        bound: on log p(x) of held-out digits, nats; `error`, its standard error over them;
            `log_z_error`, that of an energy's log Z, else 0. `bound_train`: of those learned from.
        frechet: of `num_samples` decoder means against as many held-out digits, features of a
            classifier; of held-out digits' own codes, decoded, it is `best`.
        good: share of those samples of which that classifier is sure.
        seconds: of a CPU for 1,000 samples of z and x, the second time.
        codes: [n, d] z ~ q(z | x) of held-out digits, by the first VAE; `prior_draws`: z of the
            samples; `means`: their E[x | z].
    """

    fitted: pg.Fitted
    bound: float
    error: float
    log_z_error: float
    bound_train: float
    frechet: float
    best: float
    good: float
    seconds: float
    codes: np.ndarray
    prior_draws: np.ndarray
    means: np.ndarray


def first(settings: Settings, seed: int, backend: str) -> pg.Fitted:
    """The VAE with a normal prior."""
    optimizer = pg.Adam(pg.CosineDecay(settings.learning_rate, settings.num_updates))
    return pg.fit(
        settings.vae(settings.prior("normal")), data(seed)[0], SVI(ELBO(), optimizer),
        num_steps=settings.num_updates, batch_size=settings.batch_size, seed=seed,
        backend=backend, device="cpu", progress_bar=False,
    )  # fmt: skip


def fit_prior(settings: Settings, base: pg.Fitted, way: Way, seed: int, backend: str) -> pg.Fitted:
    """Another prior in the same declaration, from the first VAE's weights on."""
    if way == "normal":
        return base
    return pg.fit(
        settings.vae(settings.prior(way)), data(seed)[0], settings.learner(way),
        init=base.params, freeze=() if "joint" in way else FROZEN, ema_decay=0.995,
        num_steps=settings.prior_updates, batch_size=settings.batch_size, seed=seed,
        backend=backend, device="cpu", progress_bar=False,
    )  # fmt: skip


def codes_of(base: pg.Fitted, seed: int, backend: str) -> np.ndarray:
    """[n, d] a draw of the first VAE's encoder for each held-out digit."""
    drawn = pg.infer(base, data(seed)[1], Guide(1), seed=seed, backend=backend)
    return np.asarray(drawn.posterior["z"]).reshape(len(data(seed)[1]), -1)


def judged(
    settings: Settings, fitted: pg.Fitted, way: Way, codes: np.ndarray, seed: int, backend: str
) -> Prior:
    """Bound, samples, and how long they take."""
    train, test = data(seed)
    log_z_error, measure = 0.0, ELBO(settings.num_draws)  # of a diffusion by one step a draw
    if way == "energy":
        log_z = log_partition(
            fitted, ImportanceSampling(settings.num_weights), seed=seed, backend=backend
        )
        log_z_error, measure = float(log_z.standard_error), EnergyLogLikelihood(log_z, measure)
    bounds = [
        pg.evaluate(fitted, x, [measure], seed=seed, backend=backend, device="cpu")[measure.name][
            "estimate"].values for x in (test, train[: len(test)])
    ]  # fmt: skip
    method = None
    if way == "energy":
        method = Langevin(settings.step_size, settings.chain_steps, metropolis=True)
    options = {"method": method, "backend": backend, "device": "cpu"}
    n = settings.num_samples
    pg.generate(fitted, 1000, seed=seed, **options)
    began = time.process_time()
    drawn = pg.generate(fitted, 1000, seed=seed + 1, **options)
    seconds = time.process_time() - began
    b = resolve(backend, "cpu")
    bound, params = fitted.bind(b, {"x": test[:1]})

    def means_of(z: np.ndarray) -> np.ndarray:
        return b.to_numpy(fitted.model.mean(bound, params, b.asarray(z)))

    means = means_of(drawn["z"][:n])
    net, real = digit_classifier(), test[:n]
    shown = np.random.default_rng(seed).random(means.shape) < means
    back = means_of(codes[:n])
    seen = np.random.default_rng(seed).random(back.shape) < back
    sure = net.probabilities(means).max(1) > 0.9
    return Prior(
        fitted, float(bounds[0].mean()), float(bounds[0].std(ddof=1) / math.sqrt(len(test))),
        log_z_error, float(bounds[1].mean()),
        float(frechet_distance(real, shown.astype(np.float32), features=net).fd.value),
        float(frechet_distance(real, seen.astype(np.float32), features=net).fd.value),
        float(sure.mean()), seconds, codes, drawn["z"], means,
    )  # fmt: skip


def run(settings: Settings, seed: int, backend: str, ways: tuple[Way, ...] = WAYS) -> dict:
    """{way: Prior} on one first VAE."""
    base = first(settings, seed, backend)
    codes, found = codes_of(base, seed, backend), {}
    for way in ways:
        fitted = fit_prior(settings, base, way, seed, backend)
        found[way] = judged(settings, fitted, way, codes, seed, backend)
        print(f"seed {seed} {table({way: [found[way]]}).splitlines()[-1]}", flush=True)
    return found


NUMBERS = ("bound", "bound_train", "frechet", "best", "good", "seconds", "log_z_error")


def table(rows: dict[str, list[Prior]]) -> str:
    """A line a prior: means over seeds and their spread."""
    lines = [f"{'':<18}" + "".join(f"{name:>20}" for name in NUMBERS)]
    for way, runs in rows.items():
        cells = []
        for name in NUMBERS:
            values = np.array([getattr(r, name) for r in runs])
            spread = values.std(ddof=1) if len(values) > 1 else math.nan
            cells.append(f"{values.mean():.3f} +- {spread:.3f}")
        lines.append(f"{way:<18}" + "".join(f"{c:>20}" for c in cells))
    return "\n".join(lines)
