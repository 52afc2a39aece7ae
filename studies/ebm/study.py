"""An energy on the plane, learned by maximum likelihood: what do the chains make of it?

    p(x) = N(x; 0, s^2 I) exp(-E(x)) / Z,     chains x' = x + h grad log p + sqrt(2 h T) xi, tested

Eight Gaussians on a circle, whose density is known. Chains are kept in a replay buffer, or start
anew at each update; their temperature is 1, at which their law is the density, or another, at
which what is learned is T times the log density. Held-out log-likelihoods have log Z by quadrature
and stand beside the truth's. Digits are in `digits`, pictures in `figures`.

Sources: Tieleman 2008; Du & Mordatch 2019, arXiv:1903.08689; Nijkamp et al. 2019, arXiv:1903.12370.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

import probgen as pg
from probgen import dist, nets
from probgen.evaluation.samples import count_modes
from probgen.inference import (
    EnergyLogLikelihood,
    EnergyMagnitude,
    Langevin,
    LogPartition,
    MaximumLikelihood,
    Quadrature,
    ReplayBuffer,
    UnnormalizedLogDensity,
    log_partition,
)
from probgen.language.declared import declaration
from probgen.language.kinds import Count, Many, NonNegative, OpenShare, Positive, Share, Width
from probgen.models import EBM

ANGLES = np.arange(8) * np.pi / 4
CENTRES = 2.0 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
SD = 0.2
TRUTH = pg.data.gaussian_mixture()  # eight Gaussians of that deviation on that circle


@declaration
class Settings:
    """How a run goes. `quick()` is for tests of the functions, not for numbers.

    Args:
        chains: "kept", in a buffer of 10,000 ends of which a share `refresh` starts anew; "fresh",
            all from the base at each update.
        temperature: T, of the chains in training.
        penalty: a of a (mean E(x)^2 + mean E(x')^2).
        hidden: of the energy, an MLP with silu. spread: the base's standard deviation.
        step_size, num_steps: h and K of a chain in training.
        num_updates, batch_size, learning_rate, ema_decay: of the fit, Adam with half a cosine.
        num_data, num_held_out, num_samples, long: how many; `long` steps of chains that are judged.
        grid: points a side of the quadrature of log Z.
    """

    chains: Literal["kept", "fresh"] = "kept"
    temperature: Positive = 1.0
    penalty: NonNegative = 0.0
    refresh: Share = 0.1
    hidden: tuple[Width, ...] = (64, 64)
    spread: Positive = 2.0
    step_size: Positive = 0.02
    num_steps: Many = 20
    num_updates: Count = 3000
    batch_size: Many = 256
    learning_rate: Positive = 1e-3
    ema_decay: OpenShare = 0.995
    num_data: Many = 20_000
    num_held_out: Many = 5000
    num_samples: Many = 5000
    long: Many = 1000
    grid: Many = 401

    @classmethod
    def quick(cls, **changes: Any) -> Settings:
        """Seconds of work."""
        few: dict[str, Any] = {
            "hidden": (8,), "num_steps": 3, "num_updates": 4, "batch_size": 32, "num_data": 64,
            "num_held_out": 16, "num_samples": 64, "long": 5, "grid": 41,
        }  # fmt: skip
        return cls(**{**few, **changes})

    @property
    def model(self) -> EBM:
        """The declaration."""
        return EBM(nets.MLPEnergy(self.hidden), normal(self.spread))

    def sampler(self, num_steps: int) -> Langevin:
        """So many steps at the run's temperature."""
        noise = math.sqrt(2.0 * self.step_size * self.temperature)
        return Langevin(self.step_size, num_steps, noise, metropolis=True)

    @property
    def title(self) -> str:
        """What is special about the run."""
        hot = "" if self.temperature == 1.0 else f", T = {self.temperature:g}"
        tame = f", penalty {self.penalty:g}" if self.penalty else ""
        kept = f"kept, {self.refresh:.0%} anew" if self.chains == "kept" else "fresh"
        return f"{kept}, {self.num_steps} steps{hot}{tame}"


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One energy, learned and judged; log-likelihoods are nats per datum of held-out data.

    Attributes:
        log_p: under the learned density; `log_p_read`, under its power 1 / T.
        log_true: under the truth. log_z: of the learned density, with the grid's error.
        slope: of the learned log p on the true one, over held-out data, by least squares.
        good, covered, kl: of the ends of `long` steps from the base at the run's temperature: the
            share within 3 sd of a centre, modes with a quarter of their due, KL of their histogram
            to uniform. good_short: of K steps, as in training.
        gap: mean E of data less that of samples, over the last tenth of training.
        events: what the fit's guard had to say.
    """

    settings: Settings
    seed: int
    fitted: pg.Fitted
    log_p: float
    log_p_read: float
    log_true: float
    log_z: LogPartition
    slope: float
    good: float
    good_short: float
    covered: float
    kl: float
    gap: float
    events: tuple[str, ...]


def normal(spread: float) -> Any:
    """The base."""
    return dist.Normal(0.0, spread).expand([2]).to_event(1)


def learn(settings: Any, model: EBM, x: np.ndarray, seed: int, backend: str) -> pg.Fitted:
    """The energy after all updates, its moving average; settings of this study, or of digits."""
    kept = ReplayBuffer(10_000, refresh=settings.refresh)
    learner = MaximumLikelihood(
        settings.sampler(settings.num_steps),
        optimizer=pg.Adam(pg.CosineDecay(settings.learning_rate, settings.num_updates)),
        init=kept if settings.chains == "kept" else "base",
        regularizers=(EnergyMagnitude(settings.penalty),) if settings.penalty else (),
    )
    return pg.fit(
        model, x, learner, num_steps=settings.num_updates, batch_size=settings.batch_size,
        ema_decay=settings.ema_decay, seed=seed, backend=backend, device="cpu", progress_bar=False,
    )  # fmt: skip


def draw(fitted: pg.Fitted, settings: Any, steps: int, seed: int, backend: str) -> np.ndarray:
    """Ends of chains of that many steps from the base, [num_samples, *event]."""
    n = settings.num_samples
    return pg.generate(
        fitted, n, method=settings.sampler(steps), chunk_size=n, seed=seed, backend=backend,
        device="cpu",
    )["x"]  # fmt: skip


def gap(fitted: pg.Fitted, num_updates: int) -> float:
    """Mean E of data less that of samples, over the last tenth of training."""
    late = slice(-max(1, num_updates // 10), None)
    apart = fitted.history["energy_data"][late] - fitted.history["energy_samples"][late]
    return float(apart.mean())


def read_at(fitted: pg.Fitted, settings: Settings) -> pg.Fitted:
    """The density's power 1 / T, which is what chains at temperature T have as their law."""
    t = settings.temperature
    energy = nets.ScaledEnergy(nets.MLPEnergy(settings.hidden), 1.0 / t)
    model = EBM(energy, normal(settings.spread * math.sqrt(t)))
    return pg.Fitted(model, fitted.params, shapes=fitted.shapes)


def log_likelihood(
    fitted: pg.Fitted, x: np.ndarray, grid: int, backend: str
) -> tuple[float, LogPartition]:
    """(mean log p of data, log Z)."""
    z = log_partition(fitted, Quadrature(grid, extent=4.0), seed=0, backend=backend, device="cpu")
    measure = EnergyLogLikelihood(z)
    table = pg.evaluate(fitted, x, [measure], seed=0, backend=backend, device="cpu")
    return float(table[measure.name]["estimate"].mean()), z


def run(settings: Settings, seed: int = 0, backend: str = "jax") -> Run:
    """One energy, learned and held against the truth."""
    x = TRUTH.sample(settings.num_data, seed=1000 + seed)
    fitted = learn(settings, settings.model, x, seed, backend)
    held_out = TRUTH.sample(settings.num_held_out, seed=5000 + seed)
    log_true = TRUTH.log_prob(held_out)
    log_p, z = log_likelihood(fitted, held_out, settings.grid, backend)
    tempered = read_at(fitted, settings)
    raw = UnnormalizedLogDensity()
    table = pg.evaluate(fitted, held_out, [raw], seed=0, backend=backend, device="cpu")
    learned = table[raw.name]["estimate"].values
    long, short = (
        count_modes(draw(fitted, settings, steps, seed, backend), CENTRES, sd=SD)
        for steps in (settings.long, settings.num_steps)
    )
    return Run(
        settings, seed, fitted, log_p,
        log_likelihood(tempered, held_out, settings.grid, backend)[0],
        float(log_true.mean()), z, float(np.polyfit(log_true, learned, 1)[0]),
        long.good.value, short.good.value,
        float((long.counts >= 0.25 * settings.num_samples / 8).sum()),
        long.kl.value if long.kl else math.inf,
        gap(fitted, settings.num_updates), tuple(fitted.history.events),
    )  # fmt: skip


COLUMNS = ("log_p", "log_p_read", "log_true", "slope", "good", "good_short", "covered", "kl", "gap")


def table(groups: list[list[Run]]) -> str:
    """A line a setting: means over its seeds, and their spread."""
    lines = [f"{'':<38}" + "".join(f"{name:>18}" for name in COLUMNS)]
    for runs in groups:
        cells = []
        for name in COLUMNS:
            values = np.array([getattr(r, name) for r in runs])
            spread = values.std(ddof=1) if len(values) > 1 else math.nan
            cells.append(f"{values.mean():9.3f} +- {spread:5.3f}")
        lines.append(f"{runs[0].settings.title:<38}" + "".join(f"{c:>18}" for c in cells))
        lines += [f"    seed {r.seed}: {event}" for r in runs for event in r.events]
    error = max(r.log_z.standard_error for runs in groups for r in runs)
    return "\n".join([*lines, f"errors of log Z by quadrature: at most {error:.1g} nats"])
