"""Twenty-five Gaussians by four steps: which chain of so few finds and keeps them all?

    latent      x_0 = G(x_t, z, t) at each of T = 4 steps, learned against a discriminator
    no latent   the same without z: every step is Gaussian
    regressed   a Gaussian diffusion of the same four steps, x_0 by least squares
    one step    T = 1: a generator from noise alone, with the same discriminator and R1

The paper's toy (its Fig. 6) is a picture; sizes here are those of a small run by another
implementation, "the pilot", whose numbers the page sets beside ours. Digits are in `digits`.

Source: Xiao, Kreis & Vahdat 2022, arXiv:2112.07804.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import numpy as np

import probgen as pg
from probgen import nets
from probgen.backends import load
from probgen.backends.protocol import Backend
from probgen.engine.fitted import Fitted
from probgen.inference import Adversarial, Denoising
from probgen.language.declared import declaration
from probgen.language.kinds import Count, CountOrZero, Many, NonNegative, OpenShare, Positive, Width
from probgen.models import Diffusion, ImplicitDiffusion, NoiseSchedule

SCALE = 1 / 2.828
SIDE = SCALE * np.array([-4.0, -2.0, 0.0, 2.0, 4.0])
CENTRES = np.stack(np.meshgrid(SIDE, SIDE), -1).reshape(-1, 2)
SD = 0.05 * SCALE


@declaration
class Settings:
    """Sizes of a run: the pilot's. `quick()` is for tests of the functions, not for numbers.

    Args:
        num_train_timesteps: T.
        latent_dim: of z; 0 is none.
        hidden: of both networks.
        consistency: None, or the weight of the strain, by marginals.
        r1: gamma, at every step.
        num_updates, batch_size, learning_rate, ema_decay: of the fit, Adam with half a cosine.
        num_data, num_samples, num_probes: how many.
    """

    num_train_timesteps: Count = 4
    latent_dim: CountOrZero = 2
    hidden: tuple[Width, ...] = (128, 128, 128)
    consistency: Positive | None = None
    r1: NonNegative = 0.05
    num_updates: Count = 15_000
    batch_size: Many = 256
    learning_rate: Positive = 1e-3
    ema_decay: OpenShare = 0.999
    num_data: Many = 50_000
    num_samples: Many = 10_000
    num_probes: Many = 1000

    @classmethod
    def quick(cls) -> Settings:
        """Seconds of work."""
        return cls(
            hidden=(8,), num_updates=4, batch_size=16, num_data=64, num_samples=50, num_probes=10
        )

    @property
    def schedule(self) -> NoiseSchedule:
        return NoiseSchedule(self.num_train_timesteps, "vp_sde")

    @property
    def model(self) -> ImplicitDiffusion:
        """The chain with a generator; with silu in it HQ was .49 (seed 0)."""
        generator = nets.LatentDenoiser(2, self.hidden, activation="leaky_relu")
        return ImplicitDiffusion(generator, (2,), self.latent_dim, self.schedule)

    @property
    def optimizer(self) -> pg.Adam:
        return pg.Adam(pg.CosineDecay(self.learning_rate, self.num_updates), b1=0.5, b2=0.9)

    @property
    def learner(self) -> Adversarial:
        """Both players by the same optimiser."""
        return Adversarial(
            nets.TimedDiscriminator(self.hidden), self.optimizer, self.optimizer, r1=self.r1,
            consistency=self.consistency,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One chain, learned and judged.

    Attributes:
        good: share of samples within 4 sd of a centre (HQ), of averaged weights; `raw` of the last.
        hit: centres with a good sample; `covered`: with at least a quarter of their due.
        kl: of the histogram of nearest centres to uniform, nats.
        probed: centres within 4 sd of which a fiftieth of the guesses of x_0 lie, of many z at one
            x_1 half way between two centres; `cells`: centres nearest to a fiftieth of the guesses
            at one x_2, whose noise is wider than the grid. NaN of a chain without a latent.
        seconds: of the fit.
        fitted, samples: as they are, [num_samples, 2].
    """

    name: str
    seed: int
    good: float
    raw: float
    hit: int
    covered: int
    kl: float
    probed: float
    cells: float
    seconds: float
    fitted: Fitted
    samples: np.ndarray


def data(num: int, seed: int) -> np.ndarray:
    """[num, 2] of the mixture."""
    rng = np.random.default_rng(seed)
    x = CENTRES[rng.integers(len(CENTRES), size=num)] + SD * rng.normal(size=(num, 2))
    return x.astype(np.float32)


def run(
    settings: Settings, seed: int = 0, backend: str | Backend = "torch", *, name: str = "latent"
) -> Run:
    """An adversarial chain, learned and judged."""
    return _judged(settings, settings.model, settings.learner, seed, on(backend), name)


def run_regressed(settings: Settings, seed: int = 0, backend: str | Backend = "torch") -> Run:
    """The Gaussian chain of the same steps: x_0 by least squares, the same posterior."""
    model = Diffusion(
        nets.MLPDenoiser(2, settings.hidden, 16), (2,), settings.schedule, prediction_type="sample"
    )
    learner = Denoising(settings.optimizer)
    return _judged(settings, model, learner, seed, on(backend), "regressed")


def on(backend: str | Backend) -> Backend:
    """A backend by its name on the CPU, or itself."""
    return load(backend, "cpu") if isinstance(backend, str) else backend


def _judged(settings: Settings, model: Any, learner: Any, seed: int, b: Backend, name: str) -> Run:
    begun = time.perf_counter()
    fitted = pg.fit(
        model, data(settings.num_data, 1000 + seed), learner, num_steps=settings.num_updates,
        batch_size=settings.batch_size, ema_decay=settings.ema_decay, seed=seed, backend=b,
        progress_bar=False,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    n = settings.num_samples
    x, raw = (
        pg.generate(f, n, seed=seed, chunk_size=n, backend=b)["x"] for f in (fitted, fitted.raw)
    )
    good, nearest = near(x)
    counts = np.bincount(nearest[good], minlength=len(CENTRES))
    shares = np.bincount(nearest, minlength=len(CENTRES)) / n
    kl = float(np.sum(shares * np.log(np.maximum(shares, 1e-300) * len(CENTRES))))
    covered = int((counts >= 0.25 * n / len(CENTRES)).sum())
    probed = cells = math.nan
    if (
        isinstance(model, ImplicitDiffusion)
        and model.latent_dim
        and len(model.schedule.betas()) > 1
    ):
        probed = modes_of_a_step(fitted, 0, settings.num_probes, b)
        cells = modes_of_a_step(fitted, 1, settings.num_probes, b, within=math.inf)
    return Run(
        name, seed, float(good.mean()), float(near(raw)[0].mean()),
        int((counts > 0).sum()), covered, kl, probed, cells, seconds, fitted, x,
    )  # fmt: skip


def near(x: np.ndarray, within: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """(whether a point lies within so many sd of a centre, which is nearest), [n] each."""
    distance = np.linalg.norm(x[:, None] - CENTRES, axis=-1)
    return distance.min(1) < within * SD, distance.argmin(1)


def guesses(fitted: Fitted, step: int, num: int, b: Backend) -> np.ndarray:
    """[num, 2] guesses of x_0 of as many z, at one x_{step + 1} half way between two centres."""
    model: Any = fitted.model
    k = model.coefficients()
    here = k["keep"][step] * k["signal"][step] * CENTRES[[12, 13]].mean(0)
    x = np.repeat(here[None].astype(np.float32), num, axis=0)
    z = np.random.default_rng(0).normal(size=(num, model.latent_dim)).astype(np.float32)
    params = b.tree_map(b.asarray, dict(fitted.params))
    times = b.asarray(np.full(num, step, np.float32))
    return b.to_numpy(model.guess(params, b.asarray(x), b.asarray(z), times))


def modes_of_a_step(fitted: Fitted, step: int, num: int, b: Backend, *, within: float = 4.0) -> int:
    """Centres that the guesses of one step come near, each for a fiftieth of the latents."""
    close, nearest = near(guesses(fitted, step, num, b), within)
    return int((np.bincount(nearest[close], minlength=len(CENTRES)) >= 0.02 * num).sum())


def mean(runs: list[Run], name: str) -> float:
    """Of a number over seeds."""
    return float(np.mean([getattr(r, name) for r in runs]))


def table(runs: list[Run]) -> str:
    """A line a run."""
    lines = [
        "| run | HQ | raw weights | centres hit | covered | KL | modes of a step | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in runs:
        lines.append(
            f"| {r.name}, seed {r.seed} | {r.good:.3f} | {r.raw:.3f} | {r.hit} | {r.covered} "
            f"| {r.kl:.4f} | {r.probed:.0f}, {r.cells:.0f} | {r.seconds:.0f} |"
        )
    return "\n".join(lines)
