"""Digits of 8 x 8 pixels by four steps of a U-Net that a latent steers.

Samples are scored by a classifier of held-out digits, as arrays: no image file lies in between.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np

import probgen as pg
from probgen import nets
from probgen.backends.protocol import Backend
from probgen.engine.fitted import Fitted
from probgen.evaluation.samples import count_classes, digit_classifier, frechet_distance
from probgen.inference import Adversarial
from probgen.language.declared import declaration
from probgen.language.kinds import Count, Many, NonNegative, OpenShare, Positive, Width, Widths
from probgen.models import ImplicitDiffusion, NoiseSchedule
from studies.ddgan.study import on


@declaration
class Settings:
    """Sizes of a run; `quick()` is for tests of the functions.

    Args:
        channels, latent_dim, latent_width: of the generator.
        judge: channels of the discriminator.
        r1, r1_every: its penalty.
        num_updates, batch_size, learning_rate, ema_decay: of the fit, Adam with half a cosine.
        num_samples: how many are judged.
    """

    channels: Widths = (16, 32)
    latent_dim: Width = 32
    latent_width: Width = 64
    judge: Widths = (16, 32, 32)
    r1: NonNegative = 0.05
    r1_every: Many = 5
    num_updates: Count = 8000
    batch_size: Many = 64
    learning_rate: Positive = 4e-4
    ema_decay: OpenShare = 0.998
    num_samples: Many = 1797

    @classmethod
    def quick(cls) -> Settings:
        """Seconds of work."""
        return cls((4,), 2, 4, (4,), num_updates=1, batch_size=4, num_samples=64)

    @property
    def model(self) -> ImplicitDiffusion:
        """Data in [-1, 1]."""
        generator = nets.LatentUNet(self.channels, latent_width=self.latent_width, latent_layers=2)
        return ImplicitDiffusion(
            generator, (8, 8, 1), self.latent_dim, NoiseSchedule(4, "vp_sde"), (-1.0, 1.0)
        )

    @property
    def learner(self) -> Adversarial:
        """Both players by the same optimiser."""
        adam = pg.Adam(pg.CosineDecay(self.learning_rate, self.num_updates), b1=0.5, b2=0.9)
        judge = nets.ConvDiscriminator(self.judge, time_dim=32, time_width=64)
        return Adversarial(judge, adam, adam, r1=self.r1, r1_every=self.r1_every)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One fit.

    Attributes:
        shares: [10] of the classes that the classifier finds likeliest in samples; `least` of them.
        sure: share of samples of which it is sure by 0.9.
        raw: `sure` of the last weights, not averaged.
        frechet: of samples and one half of the digits in the classifier's features, as many of each
            (898); `floor`: of both halves.
        seconds: of the fit.
        samples: [num_samples, 8, 8, 1] in [0, 1].
    """

    seed: int
    shares: np.ndarray
    sure: float
    raw: float
    frechet: float
    floor: float
    seconds: float
    fitted: Fitted
    samples: np.ndarray

    @property
    def least(self) -> float:
        return float(self.shares.min())


def run(settings: Settings, seed: int = 0, backend: str | Backend = "torch") -> Run:
    """Fitted to all digits, and judged."""
    b, images = on(backend), pg.data.digits().images
    begun = time.perf_counter()
    fitted = pg.fit(
        settings.model, (2.0 * images - 1.0).astype(np.float32), settings.learner,
        num_steps=settings.num_updates, batch_size=settings.batch_size,
        ema_decay=settings.ema_decay, seed=seed, backend=b, progress_bar=False,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    samples, raw = (
        np.clip((pg.generate(f, settings.num_samples, seed=seed, backend=b)["x"] + 1.0) / 2.0, 0, 1)
        for f in (fitted, fitted.raw)
    )
    judge = digit_classifier("digits")
    shares = np.bincount(judge.predict(samples), minlength=10) / len(samples)
    # Distances fall with the number of data, so that both are of as many.
    half, other = images[::2], images[1::2]
    n = min(len(other), len(samples))
    distance = frechet_distance(half[:n], samples[:n], features=judge)
    floor = frechet_distance(half[:n], other[:n], features=judge)
    return Run(
        seed, shares, count_classes(samples, judge).good.value,
        count_classes(raw, judge).good.value, distance.fd.value,
        floor.fd.value, seconds, fitted, samples,
    )  # fmt: skip


def table(runs: list[Run]) -> str:
    """A line a run."""
    lines = [
        "| run | least class | sure | raw weights | Frechet | of two halves | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in runs:
        lines.append(
            f"| digits, seed {r.seed} | {r.least:.3f} | {r.sure:.2f} | {r.raw:.2f} "
            f"| {r.frechet:.1f} | {r.floor:.1f} | {r.seconds:.0f} |"
        )
    return "\n".join(lines)
