"""An energy of scikit-learn's 8x8 digits, learned by chains that are kept, or short and fresh.

Pixels are 2 v - 1 + 0.2 xi, xi ~ N(0, 1): grey levels and constant corners have no density, data
with noise have one, and chains a length to step. Judged by samples of long chains (do they look
like digits to a classifier?), by log p of data that were and were not learned from (overfitting),
by log Z from annealing beside a Gaussian mixture's log-likelihood, and by whether the energy tells
letters and textures from held-out digits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

import probgen as pg
from probgen import dist, nets
from probgen.evaluation.detection import auroc
from probgen.evaluation.page.overfitting import Difference, difference
from probgen.evaluation.samples import count_classes, digit_classifier
from probgen.inference import (
    AIS,
    Langevin,
    LogPartition,
    UnnormalizedLogDensity,
    log_partition,
)
from probgen.language.declared import declaration
from probgen.language.kinds import Count, Many, NonNegative, OpenShare, Positive, Share, Width
from probgen.models import EBM
from studies.ebm.study import draw, gap, learn

NOISE = 0.2
NUM_TRAIN = 1437


@declaration
class Settings:
    """How a run goes; names as in `study.Settings`.

    Args:
        copies: of each digit, each with noise of its own.
        levels: temperatures of AIS. long: steps of chains that are judged.
    """

    chains: Literal["kept", "fresh"] = "kept"
    penalty: NonNegative = 0.0
    refresh: Share = 0.05
    hidden: tuple[Width, ...] = (128, 128)
    step_size: Positive = 0.015
    num_steps: Many = 25
    num_updates: Count = 2500
    batch_size: Many = 128
    learning_rate: Positive = 1e-3
    ema_decay: OpenShare = 0.99
    copies: Many = 10
    num_samples: Many = 500
    long: Many = 1000
    levels: Many = 1000

    def model(self, x: np.ndarray) -> EBM:
        """The declaration; its base has the mean and deviation of each pixel of the data."""
        base = dist.Normal(x.mean(0), x.std(0)).to_event(3)
        return EBM(nets.MLPEnergy(self.hidden), base)

    def sampler(self, num_steps: int) -> Langevin:
        """So many steps, tested."""
        return Langevin(self.step_size, num_steps, metropolis=True)

    @property
    def title(self) -> str:
        """What is special about the run."""
        return f"digits, {self.chains} chains of {self.num_steps}"


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One energy of digits, learned and judged.

    Attributes:
        log_p: {set: [n] log p~ + log of the base, known up to a constant}: "learned from",
            "held out", "letters", "textures".
        overfit: how much likelier digits that were learned from are, nats.
        auroc: {set: of the energy plus the base against held-out digits}.
        log_z: by AIS from the base. log_likelihood: of held-out digits, above the truth in
            expectation; `mixture` that of ten Gaussians fitted to the same data by scikit-learn.
        good: share of `long`-step samples that a classifier is sure of; `good_short` of K steps;
            `good_data` of held-out digits with the same noise.
        classes: of ten, with a quarter of their due among samples.
        samples: [num_samples, 8, 8, 1].
    """

    settings: Settings
    seed: int
    fitted: pg.Fitted
    log_p: dict[str, np.ndarray]
    overfit: Difference
    auroc: dict[str, float]
    log_z: LogPartition
    log_likelihood: float
    mixture: float
    good: float
    good_short: float
    good_data: float
    classes: float
    gap: float
    samples: np.ndarray
    events: tuple[str, ...]


def noisy(images: np.ndarray, seed: int, copies: int = 1) -> np.ndarray:
    """[copies n, 8, 8, 1] pixels as the energy sees them."""
    x = np.tile(2.0 * np.asarray(images, np.float64) - 1.0, (copies, 1, 1, 1))
    return (x + NOISE * np.random.default_rng(seed).normal(size=x.shape)).astype(np.float32)


def sets(seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(digits to learn from, {set: data to judge by}); a split of its own for each seed."""
    train, test = pg.data.split(pg.data.digits(), (NUM_TRAIN, 360), seed=seed, stratify=True)
    judged = {
        "learned from": train.images[:360], "held out": test.images,
        "letters": pg.data.letters(8, seed=seed, per_letter=7).images[:360],
        "textures": pg.data.patches(8, 360, seed=seed).images,
    }  # fmt: skip
    return train.images, {n: noisy(x, 77 + i) for i, (n, x) in enumerate(judged.items())}


def run(settings: Settings, seed: int = 0, backend: str = "jax") -> Run:
    """One energy of digits, learned and judged."""
    images, judged = sets(seed)
    x = noisy(images, seed, settings.copies)
    fitted = learn(settings, settings.model(x), x, seed, backend)
    options: Any = {"backend": backend, "device": "cpu"}
    raw = UnnormalizedLogDensity()
    tables = {n: pg.evaluate(fitted, x, [raw], seed=0, **options) for n, x in judged.items()}
    log_p = {n: t[raw.name]["estimate"].values for n, t in tables.items()}
    z = log_partition(fitted, AIS(settings.levels, num_leapfrog=5), seed=seed, **options)
    samples, short = (
        draw(fitted, settings, steps, seed, backend)
        for steps in (settings.long, settings.num_steps)
    )
    good = seen(samples)
    return Run(
        settings, seed, fitted, log_p,
        difference(tables["learned from"], tables["held out"], raw.name),
        {n: auroc(-log_p["held out"], -log_p[n]) for n in ("letters", "textures")},
        z, float(log_p["held out"].mean() - z.estimate),
        mixture(x, judged["held out"]),
        good.good.value, seen(short).good.value, seen(judged["held out"]).good.value,
        float((good.counts >= 0.25 * len(samples) / 10).sum()),
        gap(fitted, settings.num_updates), samples, tuple(fitted.history.events),
    )  # fmt: skip


def seen(x: np.ndarray) -> Any:
    """What a classifier of digits makes of pictures; see `count_classes`."""
    return count_classes(np.clip((x + 1.0) / 2.0, 0.0, 1.0), digit_classifier("digits"))


def mixture(x: np.ndarray, held_out: np.ndarray) -> float:
    """Mean log-likelihood of held-out data under ten Gaussians fitted to the others, nats."""
    from sklearn.mixture import GaussianMixture

    flat = x.reshape(len(x), -1).astype(np.float64)
    found = GaussianMixture(10, random_state=0).fit(flat)
    return float(found.score(held_out.reshape(len(held_out), -1)))


NUMBERS: Mapping[str, Any] = {
    "log p held out": lambda r: r.log_likelihood, "of 10 Gaussians": lambda r: r.mixture,
    "learned - held out": lambda r: r.overfit.nats, "good, long": lambda r: r.good,
    "good, short": lambda r: r.good_short, "good, data": lambda r: r.good_data,
    "classes": lambda r: r.classes, "AUROC letters": lambda r: r.auroc["letters"],
    "AUROC textures": lambda r: r.auroc["textures"], "gap": lambda r: r.gap,
    "log Z runs differ": lambda r: r.log_z.standard_error,
}  # fmt: skip


def table(groups: list[list[Run]]) -> str:
    """A line a number, a column a setting: means over seeds and their spread."""
    lines = [f"{'':<20}" + "".join(f"{runs[0].settings.title:>30}" for runs in groups)]
    for name, of in NUMBERS.items():
        cells = []
        for runs in groups:
            values = np.array([of(r) for r in runs])
            spread = values.std(ddof=1) if len(values) > 1 else float("nan")
            cells.append(f"{values.mean():.3f} +- {spread:.3f}")
        lines.append(f"{name:<20}" + "".join(f"{c:>30}" for c in cells))
    lines += [f"seed {r.seed}: {event}" for runs in groups for r in runs for event in r.events]
    return "\n".join(lines)
