"""Denoising diffusion held against what is known: 25 Gaussians, whose density is, and 8x8 digits.

    bound     DenoisingELBO, a lower bound on log p of the chain of 1,000 steps
    flow      ProbabilityFlow, log p of the deterministic flow of the same network
    samples   by the chain, and by 50 and 10 calls of the network, each with the interval of its n

Weights are judged as they are at the end of the fit, and as their moving average. Samples go from
arrays to the judges, through no image file.

Sources: Ho, Jain & Abbeel 2020, arXiv:2006.11239; Song et al. 2021, arXiv:2011.13456.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from typing import Any, Literal

import numpy as np

import probgen as pg
from probgen import nets
from probgen.backends import load
from probgen.evaluation.samples import (
    count_classes,
    count_modes,
    digit_classifier,
    frechet_distance,
)
from probgen.inference import (
    DDIM,
    Ancestral,
    Denoising,
    DenoisingELBO,
    DPMSolver,
    ProbabilityFlow,
    ProbabilityFlowODE,
)
from probgen.language.declared import declaration
from probgen.language.kinds import Count, Many, OpenShare, Positive, Width
from probgen.models import Diffusion, NoiseSchedule

SPREAD = 0.05 / 2.828  # of each of the 25 Gaussians, at {-4, -2, 0, 2, 4}^2 / 2.828
CENTRES = np.stack(np.meshgrid(*[np.arange(-2.0, 3.0) * 2.0 / 2.828] * 2), -1).reshape(-1, 2)
TRUTH = pg.data.gaussian_mixture(CENTRES, covariances=SPREAD**2, name="25 Gaussians")
LEVELS = 17  # of a pixel of the digits
Data = Literal["gaussians", "digits"]


@declaration
class Settings:
    """Sizes of the study. `quick()` is for tests of the functions, not for numbers.

    Args:
        num_updates, batch_size, learning_rate: Adam with half a cosine; `digit_updates` on digits,
            of which there are 1,437: longer fits learn them by heart.
        hidden: of the MLP that denoises; num_timesteps: T; ema_decay: of the moving average.
        num_samples: that are judged; num_held_out: data whose log p is.
        num_probes: of the flow's trace on digits.
    """

    num_updates: Count = 12000
    digit_updates: Count = 3000
    batch_size: Many = 256
    learning_rate: Positive = 2e-3
    hidden: tuple[Width, ...] = (192, 192, 192)
    num_timesteps: Many = 1000
    ema_decay: OpenShare = 0.999
    num_samples: Many = 1400
    num_held_out: Many = 300
    num_probes: Many = 8

    @classmethod
    def quick(cls) -> Settings:
        """Seconds of work."""
        return cls(
            6, 6, batch_size=16, hidden=(8,), num_timesteps=12, num_samples=80, num_held_out=4,
            num_probes=2,
        )  # fmt: skip

    def model(self, data: Data) -> Diffusion:
        """The declaration."""
        dim = 2 if data == "gaussians" else 64
        schedule = NoiseSchedule.rescaled(self.num_timesteps, "squaredcos_cap_v2")
        return Diffusion(nets.MLPDenoiser(dim, self.hidden), (dim,), schedule, "v_prediction")


@functools.cache
def sets(data: Data, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(data to learn from, held out): of digits dequantised, in [-1, 1]; a split a seed."""
    if data == "gaussians":
        return tuple(TRUTH.sample(n, seed=100 * seed + i) for i, n in enumerate((20000, count)))
    noisy = pg.data.dequantize(pg.data.to_levels(pg.data.digits(), LEVELS), seed, levels=LEVELS)
    train, test = pg.data.split(noisy, (1437, 360), seed=seed, stratify=True)
    return tuple(2.0 * s.images.reshape(-1, 64) - 1.0 for s in (train, test))


def learn(settings: Settings, data: Data, seed: int, backend: str) -> pg.Fitted:
    """One fit; its weights are their moving average, `fitted.raw` has those of the last step."""
    updates = settings.num_updates if data == "gaussians" else settings.digit_updates
    optimizer = pg.Adam(pg.CosineDecay(settings.learning_rate, updates))
    return pg.fit(
        settings.model(data), sets(data, seed, settings.num_held_out)[0], Denoising(optimizer),
        num_steps=updates, batch_size=settings.batch_size, seed=seed,
        ema_decay=settings.ema_decay, backend=backend, device="cpu",
        progress_bar=False,
    )  # fmt: skip


def samplers(settings: Settings) -> dict[str, Any]:
    """By name, with the calls of the network that each takes: T, 50 and 10."""
    total = settings.num_timesteps
    found: dict[str, Any] = {f"chain, {total:,}": Ancestral(total)}
    for calls in (50, 10) if total > 50 else (10,):
        found |= {
            f"chain, {calls}": Ancestral(calls), f"DDIM, {calls}": DDIM(calls),
            f"Heun, {2 * (calls // 2) - 1}": ProbabilityFlowODE(calls // 2),
            f"DPM-Solver++, {calls}": DPMSolver(calls),
        }  # fmt: skip
    return found


@dataclasses.dataclass(frozen=True)
class Quality:
    """Of one set of samples. Values with the half of their 95 % interval.

    Attributes:
        good: of the Gaussians, within 4 standard deviations of a centre; of digits, those of whose
            digit a classifier is sure to 90 %.
        modes: centres, or digits, with a quarter of their share of good samples at least.
        distance: Frechet's, of raw numbers on Gaussians and of a classifier's features on digits,
            to as many data that were learned from.
    """

    good: tuple[float, float]
    modes: int
    distance: tuple[float, float]


def judge(data: Data, x: np.ndarray, real: np.ndarray) -> Quality:
    """How good samples are."""
    if data == "gaussians":
        found = count_modes(x, CENTRES, sd=SPREAD, within=4.0)
        distance = frechet_distance(real[: len(x)], x).fd
    else:
        images = (np.clip(x, -1.0, 1.0) + 1.0).reshape(-1, 8, 8, 1) / 2.0
        found = count_classes(images, digit_classifier("digits"))
        shown = ((real[: len(x)] + 1.0) / 2.0).reshape(-1, 8, 8, 1)
        distance = frechet_distance(shown, images, features="digit-net", allow_unequal=True).fd
    least = 0.25 * len(x) / len(found.counts)
    half = (found.good.high - found.good.low) / 2.0
    return Quality(
        (found.good.value, half), int((found.counts >= least).sum()),
        (distance.value, (distance.high - distance.low) / 2.0),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One seed.

    Attributes:
        fitted: with averaged weights.
        quality: by sampler, of averaged weights; "raw weights", of the chain.
        bound, flow: nats of held-out data, (mean, standard error over data); of the Gaussians less
            the truth's log density, so that minus that is a KL divergence, or at most one.
        flow_error: largest error of one datum's flow, of solver and probes.
        network_calls: of a datum's flow, mean.
        seconds: by sampler, of 1,000 samples by a call that finds all compiled, CPU.
    """

    fitted: pg.Fitted
    quality: dict[str, Quality]
    bound: tuple[float, float]
    flow: tuple[float, float]
    flow_error: float
    network_calls: float
    seconds: dict[str, float]


def draw(fitted: pg.Fitted, method: Any, count: int, seed: int, backend: str) -> np.ndarray:
    """[count, dim]."""
    return pg.generate(
        fitted, count, method=method, seed=seed, chunk_size=count, backend=load(backend, "cpu")
    )["x"]


def run(settings: Settings, data: Data, seed: int, backend: str) -> Run:
    """Two fits from one seed, and everything that is asked of them."""
    train, test = sets(data, seed, settings.num_held_out)
    fitted = learn(settings, data, seed, backend)
    quality, seconds, n = {}, {}, settings.num_samples
    ways = samplers(settings)
    for name, method in ways.items():
        quality[name] = judge(data, draw(fitted, method, n, seed, backend), train)
        begun = time.process_time()
        draw(fitted, method, n, seed + 1, backend)
        seconds[name] = (time.process_time() - begun) * 1000 / n
    quality["raw weights"] = judge(
        data, draw(fitted.raw, Ancestral(settings.num_timesteps), n, seed, backend), train
    )
    held = test[: settings.num_held_out]
    flow = (
        ProbabilityFlow(tolerance=0.01) if data == "gaussians" else
        ProbabilityFlow(50, divergence="hutchinson", num_probes=settings.num_probes)
    )  # fmt: skip
    measures = [DenoisingELBO(num_draws=2, num_steps=min(100, settings.num_timesteps)), flow]
    table = pg.evaluate(
        fitted, held, measures, seed=seed, chunk_size=len(held), backend=backend, device="cpu",
        progress_bar=False,
    )  # fmt: skip
    less = TRUTH.log_prob(held) if data == "gaussians" else np.zeros(len(held))

    def mean(measure: Any) -> tuple[float, float]:
        off = np.asarray(table[measure.name]["estimate"], np.float64) - less
        return float(off.mean()), float(off.std(ddof=1) / math.sqrt(len(off)))

    told = table[flow.name]
    return Run(
        fitted, quality, mean(measures[0]), mean(flow),
        float(np.asarray(told["standard_error"]).max()),
        float(np.asarray(told["network_calls"]).mean()), seconds,
    )  # fmt: skip


def table(found: list[Run]) -> str:
    """A line a sampler: means over seeds; behind them the mean half of the intervals over n."""
    lines = [f"{'':<20}{'good':>18}{'modes':>8}{'distance':>20}{'s / 1,000':>12}"]
    for name in found[0].quality:
        each = [r.quality[name] for r in found]
        good, distance = (np.mean([getattr(q, k) for q in each], axis=0) for k in
                          ("good", "distance"))  # fmt: skip
        spent = np.mean([r.seconds.get(name, math.nan) for r in found])
        modes = np.mean([q.modes for q in each])
        lines.append(
            f"{name:<20}{good[0]:>10.4f} ± {good[1]:.4f}{modes:>8.1f}"
            f"{distance[0]:>11.4f} ± {distance[1]:.4f}{spent:>12.3f}"
        )
    for name in ("bound", "flow"):
        values = np.array([getattr(r, name) for r in found])
        lines.append(
            f"{name:<20} " + ", ".join(f"{v:.3f} ± {1.96 * e:.3f}" for v, e in values) + " nats"
        )
    lines.append(f"largest error of a datum's flow: {max(r.flow_error for r in found):.3g} nats; "
                 f"network calls {np.mean([r.network_calls for r in found]):.0f}")  # fmt: skip
    return "\n".join(lines)
