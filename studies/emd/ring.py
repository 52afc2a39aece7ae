"""A learned teacher: eight Gaussians on a ring, and a student from the teacher's weights (A4, A8).

    teacher   `Denoising` of an MLP on draws of the ring
    student   `OneStep(teacher)`, by EM distillation; its score from the teacher's weights too

Here broad noise and the teacher's weights keep a mode-seeking student from losing modes, so that
both ways are asked for all eight; what is shown is that many chain steps with a learned score do no
harm, and what gamma_z does.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

import probgen as pg
from probgen import nets
from probgen.inference import DDIM, Denoising, EMDistillation
from probgen.language.declared import declaration
from probgen.language.kinds import Count, Many, Positive, Share, Width
from probgen.models import Diffusion, NoiseSchedule, OneStep
from studies.emd.mixture import half_interval

MODES, RADIUS, SD = 8, 1.5, 0.1


@declaration
class Settings:
    """Sizes of this part.

    Args:
        hidden: of the denoiser. teacher_steps, num_steps: of the teacher, of a student.
        batch_size, learning_rate: of the student, Adam with b1 = 0 and half a cosine.
        times: range of levels. num_samples: that are judged.
    """

    hidden: tuple[Width, ...] = (96, 96, 96)
    teacher_steps: Count = 6000
    num_steps: Count = 4000
    batch_size: Many = 128
    learning_rate: Positive = 1e-3
    times: tuple[Share, Share] = (0.05, 0.9)
    num_samples: Many = 10_000

    @property
    def diffusion(self) -> Diffusion:
        net = nets.MLPDenoiser(2, self.hidden)
        return Diffusion(net, (2,), NoiseSchedule(1000), "v_prediction")

    def learn(self, teacher: pg.Fitted, num_chain_steps: int, **options: Any) -> EMDistillation:
        """The algorithm; z stays unless told otherwise."""
        rate = pg.CosineDecay(self.learning_rate, self.num_steps)
        player = pg.Adam(rate, b1=0.0, b2=0.99)
        return EMDistillation(
            teacher, player, pg.Adam(2.0 * self.learning_rate, b1=0.0, b2=0.99),
            num_steps=num_chain_steps, times=self.times, **{"gamma_z": 0.0, **options},
        )  # fmt: skip


def ring(num: int, seed: int) -> np.ndarray:
    """[num, 2] draws of the data."""
    rng = np.random.default_rng(seed)
    x = centres()[rng.integers(0, MODES, num)] + SD * rng.normal(size=(num, 2))
    return x.astype(np.float32)


def centres() -> np.ndarray:
    """[8, 2]."""
    angle = 2.0 * np.pi * np.arange(MODES) / MODES
    return RADIUS * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def learn_teacher(settings: Settings, seed: int, backend: str) -> pg.Fitted:
    """The denoiser, by its own data."""
    optimizer = pg.Adam(pg.CosineDecay(2e-3, settings.teacher_steps))
    return pg.fit(
        settings.diffusion, ring(20_000, seed), Denoising(optimizer), ema_decay=0.995,
        num_steps=settings.teacher_steps, batch_size=256, seed=seed, backend=backend, device="cpu",
        progress_bar=False,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Draws:
    """Samples and what they are worth.

    Attributes:
        precision: share within 4 sd of a mode, `half` of its 95 % interval over the draws.
        covered: modes with a fifth of their due at least.
        tv: total variation of the shares of the modes from the data's.
        raw: precision of the last weights, not averaged; NaN where they were not asked.
    """

    x: np.ndarray
    precision: float
    half: float
    covered: int
    tv: float
    raw: float = math.nan


def judge(x: np.ndarray) -> Draws:
    """Where draws lie."""
    off = np.linalg.norm(x[:, None] - centres()[None], axis=-1)
    hit = off.min(1) < 4.0 * SD
    counts = np.bincount(off.argmin(1)[hit], minlength=MODES) / len(x)
    shares = counts / max(counts.sum(), 1e-12)
    tv = 0.5 * float(np.abs(shares - 1.0 / MODES).sum())
    share = float(hit.mean())
    covered = int((counts >= 0.2 / MODES).sum())
    return Draws(x, share, half_interval(share, len(x)), covered, tv)


def distil(
    settings: Settings, teacher: pg.Fitted, num_chain_steps: int, seed: int, backend: str,
    **options: Any,
) -> tuple[pg.Fitted, Draws]:  # fmt: skip
    """A student and its draws."""
    fitted = pg.fit(
        OneStep(teacher), None, settings.learn(teacher, num_chain_steps, **options),
        num_steps=settings.num_steps, batch_size=settings.batch_size, seed=seed, ema_decay=0.99,
        backend=backend, device="cpu", progress_bar=False,
    )  # fmt: skip
    found = judge(draw(fitted, settings, seed, backend))
    last = judge(draw(fitted.raw, settings, seed, backend))
    return fitted, dataclasses.replace(found, raw=last.precision)


def draw(fitted: pg.Fitted, settings: Settings, seed: int, backend: str, **how: Any) -> np.ndarray:
    """[num_samples, 2]."""
    return np.asarray(
        pg.generate(fitted, settings.num_samples, seed=seed, backend=backend, **how)["x"]
    )


def of_teacher(settings: Settings, teacher: pg.Fitted, seed: int, backend: str) -> Draws:
    """The teacher by 50 steps of DDIM."""
    return judge(draw(teacher, settings, seed, backend, method=DDIM(50)))
