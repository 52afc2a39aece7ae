"""The self-adversarial study on 8x8 digits: samples with and without noise, and log q.

Pixels are 2 v - 1 + 0.2 xi, xi ~ N(0, 1): grey levels and constant corners have no density, data
with noise have one. An energy is trained by chains without noise or with all of it; a classifier
says how far their samples are from held-out digits. Of the first, log q by probes of held-out
digits is set beside that of uniform noise and of digits whose pixels changed places.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np

import probgen as pg
from probgen.backends import load
from probgen.backends.protocol import Backend
from probgen.engine.fitted import Fitted
from probgen.evaluation.detection import auroc
from probgen.evaluation.samples import count_classes, digit_classifier, frechet_distance
from probgen.language.declared import declaration
from probgen.language.kinds import Count, Many, OpenShare, Positive, Width
from studies.self_adversarial_ebm.training import Training, energies, learn

NOISE = 0.2
NUM_TRAIN, NUM_HELD_OUT = 1000, 797


@declaration
class Settings(Training):
    """Sizes of the study on digits.

    Args:
        copies: of each digit, each with noise of its own.
        num_judged: data of each set whose log q is computed.
    """

    hidden: tuple[Width, ...] = (128, 128)
    spread: Positive = 1.0
    num_steps: Many = 40
    num_updates: Count = 3000
    batch_size: Count = 100
    learning_rate: Positive = 2e-3
    ema_decay: OpenShare = 0.99
    copies: Many = 10
    num_judged: Many = 100

    size: ClassVar[int] = 64
    measured: ClassVar[dict[str, Any]] = {
        "log_det": "hutchinson", "num_probes": 8, "num_terms": 6, "num_iterations": 8,
        "num_newton": 1,
    }  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One energy of digits, trained at one noise and seed.

    Attributes:
        frechet: of samples and held-out digits, as many, in the features of a classifier;
            `floor` that of digits that were learned from.
        good: share of samples of which the classifier is sure; `classes` of ten, with a quarter of
            their due among these; `least` of these samples in a class.
        energy_gap: mean E of held-out data minus mean E of samples.
        log_q: {"held out", "permuted", "uniform": [num_judged] nats}, NaN where the map has no
            density; sharpness: max |eta lambda| along the paths of held-out digits, as far as the
            probes see it. Of training without noise only.
        samples: [797, 64].
    """

    noise: float
    seed: int
    frechet: float
    floor: float
    good: float
    classes: int
    least: int
    energy_gap: float
    log_q: dict[str, np.ndarray]
    sharpness: float
    samples: np.ndarray

    def auroc(self, other: str) -> float:
        """Share of pairs in which a held-out digit has the larger log q."""
        return auroc(-self.log_q["held out"], -self.log_q[other])


def noisy(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[n, 64] pixels as the energy sees them."""
    x = 2.0 * np.asarray(images, np.float64).reshape(len(images), -1) - 1.0
    return (x + NOISE * rng.normal(size=x.shape)).astype(np.float32)


def sets(settings: Settings, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(digits to learn from, {set: data to judge by}); a split of its own for each seed."""
    rng = np.random.default_rng(seed)
    train, test = pg.data.split(
        pg.data.digits(), (NUM_TRAIN, NUM_HELD_OUT), seed=seed, stratify=True
    )
    held_out = noisy(test.images, rng)
    judged = {
        "held out": held_out,
        "permuted": rng.permuted(held_out[: settings.num_judged], axis=1),
        "uniform": noisy(pg.data.noise(settings.num_judged, (8, 8, 1), seed).images, rng),
    }
    return noisy(np.tile(train.images, (settings.copies, 1, 1, 1)), rng), judged


def run(settings: Settings, noise: float = 0.0, seed: int = 0, backend: str = "jax") -> Run:
    """One energy of digits, trained and judged.

    Raises:
        NonFiniteError: the fit left the numbers, as with full noise it may.
    """
    b = load(backend, "cpu")
    x, judged = sets(settings, seed)
    trained = learn(settings, x, noise, seed, b)
    held_out = judged["held out"]
    samples = pg.generate(
        trained, NUM_HELD_OUT, method=settings.sampler(noise), chunk_size=NUM_HELD_OUT, seed=seed,
        backend=b,
    )["x"]  # fmt: skip
    found = count_classes(seen(samples), digit_classifier("digits"))
    log_q, sharpness = ({}, math.nan) if noise else density(settings, trained, judged, b)
    return Run(
        noise, seed, distance(held_out, samples), distance(held_out, x[:NUM_HELD_OUT]),
        found.good.value, int((found.counts >= 0.25 * NUM_HELD_OUT / 10).sum()),
        int(found.counts.min()),
        float(energies(trained, held_out, b).mean() - energies(trained, samples, b).mean()),
        log_q, sharpness, samples,
    )  # fmt: skip


def density(
    settings: Settings, trained: Fitted, judged: dict[str, np.ndarray], b: Backend
) -> tuple[dict[str, np.ndarray], float]:
    """(log q of each set, the sharpness of the map at held-out digits), one pass for both: that of
    `ELBO()` and `Invertibility()`, with NaN for each datum without a density."""
    generator, params = settings.generator, b.tree_map(b.asarray, dict(trained.params))
    undo = b.compile(lambda params, x: tuple(generator.undone(params, x)[:4]))
    log_q, sharpness = {}, math.nan
    for name, x in judged.items():
        parts = undo(params, b.asarray(x[: settings.num_judged]))
        z, log_det, _, sharp = (b.to_numpy(v).astype(np.float64) for v in parts)
        scaled = z / settings.spread
        constant = settings.size * math.log(settings.spread * math.sqrt(2.0 * math.pi))
        log_q[name] = -0.5 * (scaled**2).sum(-1) - constant + log_det
        sharpness = float(sharp.max()) if name == "held out" else sharpness
    return log_q, sharpness


def seen(x: np.ndarray) -> np.ndarray:
    """Pixels as the classifier knows them."""
    return np.clip((x + 1.0) / 2.0, 0.0, 1.0)


def distance(held_out: np.ndarray, x: np.ndarray) -> float:
    """Frechet distance in the classifier's features."""
    net: Any = digit_classifier("digits")
    return float(frechet_distance(seen(held_out), seen(x), features=net).fd.value)


def table(runs: list[Run]) -> str:
    """A line a run."""
    lines = [
        "| digits | Frechet | of digits | good | classes | least | log q held out | permuted | "
        "uniform | max eta lambda | gap |",
        "| --- " * 11 + "|",
    ]
    for r in runs:
        log_q = " | ".join(
            f"{np.nanmean(v):.1f} ({np.isnan(v).sum()} none)" for v in r.log_q.values()
        )
        lines.append(
            f"| sigma {r.noise:.3g}, seed {r.seed} | {r.frechet:.2f} | {r.floor:.2f} | "
            f"{r.good:.2f} | {r.classes} | {r.least} | {log_q or '| | '} | {r.sharpness:.2f} | "
            f"{r.energy_gap:+.2f} |"
        )
    return "\n".join(lines)
