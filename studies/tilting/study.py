"""A weak generator of 25 Gaussians, frozen, and the energy that mends it: two published systems.

    p(x, z) = base(x, z) exp(-E(x)) / Z           z, x a function of noise; chains live there

The base is a VAE (VAEBM, arXiv:2010.00654) or a flow (exponential tilting, arXiv:2006.08100); the
energy is learned with weighted draws of the base in place of chains, or by MALA. A study says what
the tilt gains in held-out log-likelihood, and what samples are like: of the base, of the tilt by
importance resampling (no chain to trust), and by chains that start at the base.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Literal

import numpy as np

import probgen as pg
from probgen import dist, nets
from probgen.evaluation.samples import count_modes
from probgen.inference import (
    ELBO,
    SVI,
    EnergyMagnitude,
    ImportanceSampling,
    Langevin,
    MaximumLikelihood,
    log_partition,
)
from probgen.language.declared import declaration
from probgen.language.kinds import Count, Many, NonNegative, Positive
from probgen.models import VAE, Coupling, Flow, Tilted, likelihoods

UNIT = 2.828
SD = 0.1 / UNIT
CENTRES = np.array(list(itertools.product(range(-4, 5, 2), repeat=2))) / UNIT


@declaration
class Settings:
    """How a study runs.

    Attributes:
        base: "vae" of two latents, one learned scale and hidden layers of 64, or "flow" of six
            affine couplings of width 64.
        base_steps: updates of the base, at batch size 256.
        by: "weights", draws of the base weighted by exp(-E), or "chains", MALA from fresh noise.
        tilt_steps, learning_rate, batch_size: of the energy, 2-128-128-1.
        num_draws: of the base at each update, by weights.
        input_scale: x is multiplied by it before the energy.
        penalty: of the energies' squares.
        num_steps: of the chains in training; those that are judged take 30, and 300.
        step_size: h of MALA; eta of the papers is 2 h.
        num_samples: that are judged.
    """

    base: Literal["vae", "flow"] = "vae"
    base_steps: Count = 4000
    by: Literal["weights", "chains"] = "weights"
    tilt_steps: Count = 4000
    learning_rate: Positive = 1e-3
    batch_size: Many = 256
    num_draws: Many = 2048
    input_scale: Positive = 1.0
    penalty: NonNegative = 0.0
    num_steps: Many = 40
    step_size: Positive = 0.025
    num_samples: Many = 10_000


STABLE = {"by": "chains", "learning_rate": 3e-4, "penalty": 0.02, "input_scale": 4.0}


@dataclasses.dataclass(frozen=True)
class Zoomed:
    """A net that sees its input multiplied by a constant."""

    net: Any
    scale: float

    def init(self, key: Any, *shapes: Any) -> Any:
        return self.net.init(key, *shapes)

    def apply(self, params: Any, x: Any) -> Any:
        return self.net.apply(params, self.scale * x)

    def out_shape(self, *shapes: Any) -> Any:
        return ()


def mixture() -> Any:
    """25 Gaussians of standard deviation 0.1 on a grid of spacing 2, all divided by 2.828."""
    return pg.data.gaussian_mixture(CENTRES.tolist(), covariances=SD**2)


def fit_base(settings: Settings, x: np.ndarray, seed: int, backend: str) -> pg.Fitted:
    """The generator that is then frozen."""
    if settings.base == "flow":
        model: Any = Flow(2, Coupling(nets.MLP((64, 64))), num_layers=6)
    else:
        model = VAE(
            dist.Normal(0, 1).expand([2]).to_event(1), nets.MLP((64, 64), out=(2,)),
            likelihoods.Normal(scale="learned"),
            nets.MLP((64, 64), out=2, heads=("loc", "log_scale")),
        )  # fmt: skip
    return pg.fit(
        model, x, SVI(ELBO(), pg.Adam(1e-3)), num_steps=settings.base_steps, batch_size=256,
        seed=seed, backend=backend, progress_bar=False,
    )  # fmt: skip


def fit_tilt(
    settings: Settings, base: pg.Fitted, x: np.ndarray, seed: int, backend: str
) -> pg.Fitted:
    """The energy over the frozen base, at its best by the gain on data held out for that."""
    energy = Zoomed(nets.MLPEnergy((128, 128)), settings.input_scale)
    if settings.by == "weights":
        sampler: Any = ImportanceSampling(settings.num_draws)
    else:
        sampler = mala(settings, settings.num_steps)
    learn = MaximumLikelihood(
        sampler, space="noise", optimizer=pg.Adam(settings.learning_rate),
        regularizers=(EnergyMagnitude(settings.penalty),) if settings.penalty else (),
    )  # fmt: skip
    judged_by = mixture().sample(2000, seed=seed + 300).astype("float32")
    return pg.fit(
        Tilted(base, energy), x, learn, num_steps=settings.tilt_steps,
        batch_size=settings.batch_size, validation=judged_by, eval_every=100, seed=seed,
        backend=backend, progress_bar=False,
    )  # fmt: skip


def mala(settings: Settings, num_steps: int) -> Langevin:
    """Chains in noise space."""
    return Langevin(settings.step_size, num_steps, metropolis=True)


def quality(samples: np.ndarray) -> dict[str, float]:
    """Share within four standard deviations of a centre, modes with a quarter of their share of
    such samples, and the KL of their histogram to uniform, nats."""
    found = count_modes(
        samples, CENTRES, sd=SD, within=4.0, strict=max(1, round(len(samples) / 100))
    )
    kl = float("nan") if found.kl is None else float(found.kl.value)
    good, covered = float(found.good.value), float(found.hit_strictly.value)
    return {"high quality": good, "modes": covered, "KL": kl}


def energies(fitted: pg.Fitted, x: np.ndarray, backend: str) -> np.ndarray:
    """[n] E of data."""
    b = pg.backends.load(backend)
    params = b.tree_map(b.asarray, fitted.params["energy"])
    return b.to_numpy(fitted.model.energy.apply(params, b.asarray(x))).astype(np.float64)


def run(settings: Settings, seed: int = 0, backend: str = "jax") -> dict[str, Any]:
    """One study: "gain", "share", and the quality of draws of the "base", "resampled", of "chains"
    of 30 steps from the base and of "long chains" of 300.

    `gain` is nats of held-out log-likelihood over the base, -mean E - log Z, log Z and the share of
    effective draws from 200,000 draws of the base.
    """
    x, held_out = (mixture().sample(20_000, seed=seed + s).astype("float32") for s in (100, 200))
    base = fit_base(settings, x, seed, backend)
    fitted = fit_tilt(settings, base, x, seed, backend)
    log_z = log_partition(fitted, ImportanceSampling(200_000), seed=seed, backend=backend)
    options = {"seed": seed, "backend": backend, "chunk_size": 20_000}
    draws = pg.generate(base, 10 * settings.num_samples, **options)["x"]
    log_w = -energies(fitted, draws, backend)
    w = np.exp(log_w - log_w.max())
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(draws), settings.num_samples, p=w / w.sum())
    short, long = (
        pg.generate(fitted, settings.num_samples, method=mala(settings, n), **options)["x"]
        for n in (30, 300)
    )
    return {
        "gain": float(-energies(fitted, held_out, backend).mean() - log_z.estimate),
        "share": log_z.effective_share,
        "base": quality(draws[: settings.num_samples]),
        "resampled": quality(draws[chosen]),
        "chains": quality(short),
        "long chains": quality(long),
        "fitted": fitted, "draws": draws, "ends": short,
    }  # fmt: skip


def table(rows: list[dict[str, Any]], pilot: dict[str, dict[str, float]]) -> str:
    """Means over seeds and their spread, the pilot's single run beside them."""
    names = ["gain", "share", *(f"{k}: {q}" for k in ("base", "resampled", "chains", "long chains")
                                for q in ("high quality", "modes", "KL"))]  # fmt: skip
    lines = [f"{'':<26}{'ours':>9}{'sd':>8}{'pilot':>9}"]
    for name in names:
        group, _, what = name.partition(": ")
        values = [float(r[group][what] if what else r[group]) for r in rows]
        spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
        known = pilot.get(group, {})
        said = known.get(what or group) if isinstance(known, dict) else known
        beside = "" if said is None else f"{said:9.3f}"
        lines.append(f"{name:<26}{np.mean(values):9.3f}{spread:8.3f}{beside:>9}")
    return "\n".join(lines)
