"""Digits by their class: a one-step student of a conditional teacher (checks A7 and A8).

    teacher   `Denoising` on scikit-learn's 8x8 digits, classes as the condition
    students  `OneStep(teacher)` untrained, by K = 1 (mode seeking) and by K = 8

Judged by the Frechet distance to held-out digits in the features of a classifier, recall among its
neighbours, and the entropy of the classes that the classifier sees.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

import probgen as pg
from probgen import nets
from probgen.evaluation.samples import digit_classifier, frechet_distance, prdc
from probgen.inference import DDIM, Denoising, EMDistillation
from probgen.language.declared import declaration
from probgen.language.kinds import Count, Many, Positive, Share, Width
from probgen.models import Diffusion, NoiseSchedule, OneStep

NUM_TRAIN = 1437


@declaration
class Settings:
    """Sizes of this part.

    Args:
        hidden: of the denoiser, an MLP of 64 pixels, the time and the class.
        teacher_steps, num_steps: of the teacher, of a student. batch_size: of both.
        learning_rate: of the student, Adam with b1 = 0 and half a cosine; its score's is twice it.
        times: range of levels. gamma_z: of K = 8. log_snr: lambda* of the students.
    """

    hidden: tuple[Width, ...] = (128, 128, 128)
    teacher_steps: Count = 3000
    num_steps: Count = 4000
    batch_size: Many = 128
    learning_rate: Positive = 1e-3
    times: tuple[Share, Share] = (0.02, 0.98)
    gamma_z: Positive = 1.6e-4
    log_snr: float = -2.0

    @property
    def diffusion(self) -> Diffusion:
        net = nets.MLPDenoiser(64, self.hidden)
        return Diffusion(
            net, (64,), NoiseSchedule(1000), "v_prediction", nets.ClassEmbedding(10, 16)
        )

    def learn(self, teacher: pg.Fitted, num_chain_steps: int, **options: Any) -> EMDistillation:
        """The algorithm: z moves where there are several steps."""
        rate = self.learning_rate
        return EMDistillation(
            teacher, pg.Adam(pg.CosineDecay(rate, self.num_steps), b1=0.0, b2=0.99),
            pg.Adam(2.0 * rate, b1=0.0, b2=0.99), num_steps=num_chain_steps, times=self.times,
            gamma_z=self.gamma_z if num_chain_steps > 1 else 0.0, **options,
        )  # fmt: skip


def data(seed: int) -> tuple[Any, Any]:
    """(learned from, held out); pixels in [-1, 1] as 64 numbers, by `flat`."""
    train, test = pg.data.split(pg.data.digits(), (NUM_TRAIN, 360), seed=seed, stratify=True)
    return train, test


def flat(images: np.ndarray) -> np.ndarray:
    """[n, 64] in [-1, 1]."""
    return (2.0 * images.reshape(len(images), -1) - 1.0).astype(np.float32)


def learn_teacher(settings: Settings, seed: int, backend: str) -> pg.Fitted:
    """The conditional denoiser, by its own data."""
    train, _ = data(seed)
    optimizer = pg.Adam(pg.CosineDecay(2e-3, settings.teacher_steps))
    return pg.fit(
        settings.diffusion, flat(train.images), Denoising(optimizer),
        inputs={"condition": train.labels.astype(np.int64)}, ema_decay=0.995,
        num_steps=settings.teacher_steps, batch_size=settings.batch_size, seed=seed,
        backend=backend, device="cpu", progress_bar=False,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Draws:
    """Samples and what they are worth.

    Attributes:
        frechet: to held-out digits, in the classifier's features, `half` of its 95 % interval over
            the draws; recall: of held-out digits.
        entropy: of the classes that the classifier sees, in nats (log 10 = 2.303 is even).
        right: share whose class the classifier sees as the one that was asked for.
        raw: `frechet` of the last weights, not averaged; NaN where they were not asked.
    """

    x: np.ndarray
    frechet: float
    half: float
    recall: float
    entropy: float
    right: float
    raw: float = math.nan


def judge(x: np.ndarray, asked: np.ndarray, held_out: np.ndarray) -> Draws:
    """Of draws [n, 64] in [-1, 1] beside as many held-out digits."""
    net = digit_classifier("digits")
    fake = np.clip(0.5 * (x.reshape(-1, 8, 8, 1) + 1.0), 0.0, 1.0)
    seen = net.predict(fake)
    shares = np.bincount(seen, minlength=10) / len(seen)
    some = shares[shares > 0]
    distance = frechet_distance(held_out, fake, features=net).fd
    return Draws(
        x, float(distance.value), float(distance.high - distance.low) / 2.0,
        float(prdc(held_out, fake, features=net).recall.value),
        float(-(some * np.log(some)).sum()), float((seen == asked).mean()),
    )  # fmt: skip


def draw(fitted: pg.Fitted, seed: int, backend: str, **how: Any) -> tuple[np.ndarray, np.ndarray]:
    """(draws as many as held-out digits, the classes asked for: those of held-out digits)."""
    asked = data(seed)[1].labels.astype(np.int64)
    drawn = pg.generate(
        fitted, len(asked), seed=seed, backend=backend, inputs={"condition": asked}, **how
    )
    return np.asarray(drawn["x"]), asked


def compare(
    settings: Settings, seed: int, backend: str, teacher: pg.Fitted | None = None
) -> dict[str, Draws]:
    """Teacher (a given one, or learned), untrained student, students by K; data beside data."""
    train, test = data(seed)
    teacher = teacher or learn_teacher(settings, seed, backend)
    labels = {"condition": train.labels.astype(np.int64)}
    found = {
        "teacher, 50 steps": judge(*draw(teacher, seed, backend, method=DDIM(50)), test.images)
    }
    start = pg.Fitted(OneStep(teacher, settings.log_snr), dict(teacher.params))
    found["untrained"] = judge(*draw(start, seed, backend), test.images)
    for steps in (1, 8):
        fitted = pg.fit(
            OneStep(teacher, settings.log_snr), labels, settings.learn(teacher, steps),
            num_steps=settings.num_steps, ema_decay=0.99, batch_size=settings.batch_size, seed=seed,
            backend=backend, device="cpu", progress_bar=False,
        )  # fmt: skip
        last = judge(*draw(fitted.raw, seed, backend), test.images)
        found[f"K = {steps}"] = dataclasses.replace(
            judge(*draw(fitted, seed, backend), test.images), raw=last.frechet
        )
    few = train.images[: len(test.images)]
    found["other digits"] = judge(flat(few), train.labels[: len(few)], test.images)
    return found


def starts(teacher: pg.Fitted, seed: int, backend: str) -> dict[float, tuple[float, float]]:
    """(sd, roughness) of what an untrained student draws, by lambda*: roughness is the root mean
    square difference of neighbours over that of pixels dealt at random (1 for white noise)."""
    out = {}
    for log_snr in (0.0, -2.0, -6.0, -10.0):
        student = pg.Fitted(OneStep(teacher, log_snr), dict(teacher.params))
        x = draw(student, seed, backend)[0].reshape(-1, 8, 8)
        step = np.concatenate([np.diff(x, axis=1).ravel(), np.diff(x, axis=2).ravel()])
        dealt = np.random.default_rng(0).permutation(x.ravel())
        out[log_snr] = (
            float(x.std()), float(np.sqrt((step**2).mean() / (np.diff(dealt) ** 2).mean()))
        )  # fmt: skip
    return out
