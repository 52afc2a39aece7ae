"""A weak generator of 25 Gaussians, frozen, and the energy that mends it: two published systems.

    p(x, z) = base(x, z) exp(-E(x)) / Z           z, x a function of noise; chains live there

The base is a VAE (VAEBM, arXiv:2010.00654) or a flow (exponential tilting, arXiv:2006.08100); the
energy is learned with weighted draws of the base in place of chains, or by MALA. A study says what
the tilt gains in held-out log-likelihood, and what samples are like: of the base, of the tilt by
importance resampling (no chain to trust), and by chains that start at the base. Beside it stands
the cheap rival, a flow's own draws from noise of a smaller scale. Digits are in `digits`.
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
    IWAE,
    SVI,
    EnergyGuard,
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
        is_guarded: the state of the best gain is gone back to and kept; else the last one is.
        through: "sample" tilts draws of the base, "mean" the VAE's decoder means (V1).
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
    is_guarded: bool = True
    through: Literal["sample", "mean"] = "sample"
    num_samples: Many = 10_000


TEMPERATURES = (0.7, 0.8, 0.9, 1.0)  # scales of the noise, of the rival
STABLE = {"by": "chains", "learning_rate": 3e-4, "penalty": 0.02, "input_scale": 4.0}
HOT = {"by": "chains", "penalty": 5e-4, "input_scale": 4.0, "num_steps": 20}  # it blows up


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
        guard=EnergyGuard() if settings.is_guarded else None,
    )  # fmt: skip
    judged_by = mixture().sample(2000, seed=seed + 300).astype("float32")
    return pg.fit(
        Tilted(base, energy, through=settings.through), x, learn, num_steps=settings.tilt_steps,
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


def log_likelihood(base: pg.Fitted, x: np.ndarray, seed: int, backend: str) -> float:
    """Mean of data under the base, nats: of a flow exact, of a VAE IWAE's bound of 200 draws."""
    measure: Any = IWAE(200) if base.model.guide else ELBO()
    table = pg.evaluate(base, x, [measure], seed=seed, backend=backend)
    return float(table[measure.name]["estimate"].mean())


def colder(base: pg.Fitted, scale: float) -> pg.Fitted:
    """The same flow of noise N(0, scale^2 I): better samples, fewer kinds of them."""
    noise = dist.Normal(0.0, scale).expand([2]).to_event(1)
    model = dataclasses.replace(base.model, base=noise)
    return pg.Fitted(model, base.params, shapes=base.shapes)


def untilted(fitted: pg.Fitted) -> pg.Fitted:
    """The tilted model with E = 0, of the same parameters."""
    flat = nets.ScaledEnergy(fitted.model.energy, 0.0)
    model = dataclasses.replace(fitted.model, energy=flat)
    return pg.Fitted(model, fitted.params, shapes=fitted.shapes)


def run(settings: Settings, seed: int = 0, backend: str = "jax") -> dict[str, Any]:
    """One study: "gain", "share", "log p" of the base and the tilt, and the quality of draws of the
    "base", "resampled", of "chains" of 30 steps from the base, of "long chains" of 300, and of a
    flow at each of `TEMPERATURES`.

    `gain` is nats of held-out log-likelihood over the base, -mean E - log Z, log Z and the share of
    effective draws from 200,000 draws of the base. Tilted means have no density: NaN, and their
    base is the means.
    """
    x, held_out = (mixture().sample(20_000, seed=seed + s).astype("float32") for s in (100, 200))
    base = fit_base(settings, x, seed, backend)
    fitted = fit_tilt(settings, base, x, seed, backend)
    options = {"seed": seed, "backend": backend, "chunk_size": 20_000}
    drawn = 10 * settings.num_samples
    if settings.through == "mean":
        draws = pg.generate(untilted(fitted), drawn, method=mala(settings, 1), **options)["x"]
        gain = share = log_p = float("nan")
    else:
        draws = pg.generate(base, drawn, **options)["x"]
        log_z = log_partition(fitted, ImportanceSampling(200_000), seed=seed, backend=backend)
        gain = float(-energies(fitted, held_out, backend).mean() - log_z.estimate)
        share, log_p = log_z.effective_share, log_likelihood(base, held_out[:5000], seed, backend)
    log_w = -energies(fitted, draws, backend)
    w = np.exp(log_w - log_w.max())
    chosen = np.random.default_rng(seed).choice(drawn, settings.num_samples, p=w / w.sum())
    n = settings.num_samples
    short, long = (
        pg.generate(fitted, n, method=mala(settings, k), **options)["x"] for k in (30, 300)
    )
    scales = TEMPERATURES if settings.base == "flow" else ()
    return {
        "gain": gain, "share": share, "log p": {"base": log_p, "tilted": log_p + gain},
        "base": quality(draws[:n]), "resampled": quality(draws[chosen]),
        "chains": quality(short), "long chains": quality(long),
        "temperatures": {t: quality(pg.generate(colder(base, t), n, **options)["x"])
                         for t in scales},
        "fitted": fitted, "draws": draws, "ends": short,
    }  # fmt: skip


def table(rows: list[dict[str, Any]], pilot: dict[str, dict[str, float]]) -> str:
    """Means over seeds and their spread, the pilot's single run beside them."""
    names = ["log p: base", "log p: tilted", "gain", "share", *(
        f"{k}: {q}" for k in ("base", "resampled", "chains", "long chains")
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
    for t in rows[0]["temperatures"]:
        found = {
            q: [r["temperatures"][t][q] for r in rows] for q in ("high quality", "modes", "KL")
        }
        said = ", ".join(f"{q} {np.mean(v):.3f}" for q, v in found.items())
        lines.append(f"flow of noise of scale {t:g}: {said}")
    return "\n".join(lines)
