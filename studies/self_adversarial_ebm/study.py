"""The self-adversarial study: what does an energy that is trained by short chains learn?

    q      the law of K steps down the energy from z ~ N(0, 4 I): what one sees as samples
    p      exp(-E) / Z, the nominal law that the training is said to fit

Eight Gaussians on a circle. An energy is trained with steps of a given noise; then the samples of
its chain, the mean log q and log p of held-out data, and what other chains make of the same energy
are set side by side. Sheet: Xiao, Yan & Amit 2021, arXiv:2102.11757; its numbers are not known to
us, and the pilot's are those of another implementation, made beforehand.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

import probgen as pg
from probgen.backends import load
from probgen.backends.protocol import Backend
from probgen.engine.fitted import Fitted
from probgen.engine.spaces import model_target
from probgen.engine.target import Sampler, run_chain, transitions
from probgen.errors import NonFiniteError
from probgen.evaluation.samples import count_modes
from probgen.inference import (
    ELBO,
    EnergyLogLikelihood,
    Gaussian,
    Invertibility,
    Quadrature,
    log_partition,
)
from probgen.language.declared import declaration
from probgen.language.kinds import Many
from studies.self_adversarial_ebm.training import Training, energies, learn, learn_by_likelihood

ANGLES = np.arange(8) * np.pi / 4
CENTRES = 2.0 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
TRUTH = pg.data.gaussian_mixture()  # eight Gaussians on that circle, sd 0.2


@declaration
class Settings(Training):
    """Sizes of the study. `quick()` is for tests of the functions, not for numbers.

    Args:
        num_data, num_samples, num_held_out, long: how many; `long` further steps.
        grid: points a side of the quadrature of Z, over [-8, 8]^2.
    """

    num_data: Many = 20_000
    num_samples: Many = 5000
    num_held_out: Many = 2000
    long: Many = 1000
    grid: Many = 201

    @classmethod
    def quick(cls) -> Settings:
        """Seconds of work."""
        return cls((8,), num_steps=3, num_updates=4, batch_size=32, num_data=64, num_samples=64,
                   num_held_out=16, long=5, grid=21)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Samples:
    """Draws against the eight modes: the share within 3 sd of one, modes with at least a quarter of
    their due, and the KL of their histogram to uniform, nats."""

    good: float
    covered: int
    kl: float

    @classmethod
    def of(cls, x: np.ndarray) -> Samples:
        """Of draws [n, 2]."""
        found = count_modes(x, CENTRES, sd=0.2)
        covered = int((found.counts >= 0.25 * len(x) / 8).sum())
        return cls(found.good.value, covered, found.kl.value if found.kl else math.inf)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One energy, trained at one noise and seed.

    Attributes:
        name: how it was trained.
        trained: the nominal law's fit, `generator` the map's.
        samples: of the chain that it was trained with; `quiet` without noise; `others` by name.
        log_q, log_gibbs, log_true: mean log densities of held-out data, nats; log_q is NaN where
            the map has no density at some of them.
        sharpness: max |eta lambda| along the paths of held-out data.
        energy_gap: mean E of data minus mean E of samples.
    """

    name: str
    seed: int
    trained: Fitted
    generator: Fitted
    samples: Samples
    quiet: Samples
    others: dict[str, Samples]
    log_q: float
    log_gibbs: float
    log_true: float
    sharpness: float
    energy_gap: float


def onward(fitted: Fitted, x: np.ndarray, sampler: Sampler, seed: int, b: Backend) -> np.ndarray:
    """Where chains of the nominal law that start at x end."""
    bound, params = fitted.bind(b)
    target = model_target(bound, "data")
    n = transitions(sampler)
    kernel = sampler.kernel(b, target, num_calls=n)

    def run(params: Any, x: Any, key: Any) -> Any:
        return run_chain(b, kernel, {"x": x}, key, n, params, {})[0].x["x"]

    return b.to_numpy(b.compile(run, over="steps")(params, b.asarray(x), b.key(seed)))


def judge(
    settings: Settings, trained: Fitted, noise: float, seed: int, b: Backend, *,
    name: str, others: bool,
) -> Run:  # fmt: skip
    """The laws of a trained energy, held against the data's; `others` also tries other chains."""
    generator = Fitted(settings.generator, trained.params, shapes=trained.shapes)
    held_out = TRUTH.sample(settings.num_held_out, seed=5000 + seed)
    n, full = settings.num_samples, settings.full_noise

    def draw(level: float, num_steps: int | None = None) -> np.ndarray:
        sampler = settings.sampler(level, num_steps)
        return pg.generate(trained, n, method=sampler, chunk_size=n, seed=seed, backend=b)["x"]

    own, quiet = draw(noise), draw(0.0)
    found: dict[str, np.ndarray] = {}
    if others:
        found = {
            f"{settings.num_steps // 2} steps": draw(0.0, settings.num_steps // 2),
            f"{settings.num_steps * 2} steps": draw(0.0, settings.num_steps * 2),
            "full noise": draw(full),
            "and long Langevin": onward(trained, quiet, settings.sampler(full, settings.long),
                                        seed, b),
            "and long descent": onward(trained, quiet, settings.sampler(0.0, settings.long),
                                       seed, b),
        }  # fmt: skip
    table = pg.evaluate(generator, held_out, [Invertibility()], seed=0, backend=b,
                        chunk_size=settings.num_held_out)  # fmt: skip
    log_z = log_partition(
        trained, Quadrature(settings.grid, extent=4.0), base=Gaussian(0.0, 2.0), seed=0, backend=b
    )
    gibbs = pg.evaluate(trained, held_out, [EnergyLogLikelihood(log_z)], seed=0, backend=b)
    energy = {name: energies(trained, x, b) for name, x in (("data", held_out), ("own", own))}
    return Run(
        name, seed, trained, generator, Samples.of(own), Samples.of(quiet),
        {name: Samples.of(x) for name, x in found.items()},
        _mean_log_q(generator, held_out, b),
        float(gibbs[EnergyLogLikelihood(log_z).name]["estimate"].mean()),
        float(TRUTH.log_prob(held_out).mean()),
        float(table[Invertibility.name]["estimate"].max()),
        float(energy["data"].mean() - energy["own"].mean()),
    )  # fmt: skip


def _mean_log_q(generator: Fitted, x: np.ndarray, b: Backend) -> float:
    """NaN where some of the data have no density, since the map folds."""
    try:
        found = pg.evaluate(generator, x, [ELBO()], seed=0, backend=b, chunk_size=len(x))
    except NonFiniteError:
        return math.nan
    return float(found[ELBO().name]["estimate"].mean())


def run(
    settings: Settings, noise: float = 0.0, seed: int = 0, backend: str = "jax", *,
    others: bool = False,
) -> Run:  # fmt: skip
    """One energy, trained by chains and judged.

    Raises:
        NonFiniteError: the fit left the numbers, as with full noise it may.
    """
    b = load(backend, "cpu")
    trained = learn(settings, _data(settings, seed), noise, seed, b)
    name = f"sigma {noise:.3g}"
    return judge(settings, trained, noise, seed, b, name=name, others=others)


def run_by_likelihood(settings: Settings, seed: int = 0, backend: str = "jax") -> Run:
    """The ablation: the same map, fitted by its own mean log q as any flow is, and judged."""
    b = load(backend, "cpu")
    trained = learn_by_likelihood(settings, _data(settings, seed), seed, b)
    return judge(settings, trained, 0.0, seed, b, name="by log q", others=False)


def _data(settings: Settings, seed: int) -> np.ndarray:
    return TRUTH.sample(settings.num_data, seed=1000 + seed)


def density(generator: Fitted, side: np.ndarray, backend: str = "jax") -> np.ndarray:
    """q of the map [n, n] where both coordinates run along `side` [n]."""
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2).astype(np.float32)
    b = load(backend, "cpu")
    found = pg.evaluate(generator, grid, [ELBO()], seed=0, backend=b, chunk_size=len(grid))
    return np.exp(found[ELBO().name]["estimate"].values).reshape(len(side), -1)


def table(runs: list[Run]) -> str:
    """A line a run."""
    lines = [
        "| run | HQ own / no noise | covered | KL | log q | log p | true | max eta lambda | gap |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in runs:
        s, q = r.samples, r.quiet
        lines.append(
            f"| {r.name}, seed {r.seed} | {s.good:.2f} / {q.good:.2f} | {s.covered} | "
            f"{s.kl:.3f} | {r.log_q:.2f} | {r.log_gibbs:.2f} | {r.log_true:.2f} | "
            f"{r.sharpness:.2f} | {r.energy_gap:+.3f} |"
        )
        lines += [
            f"| ... {name} | {o.good:.2f} | {o.covered} | {o.kl:.3f} | | | | | |"
            for name, o in r.others.items()
        ]
    return "\n".join(lines)
