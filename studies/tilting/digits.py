"""A VAE of scikit-learn's 8x8 digits, frozen, and the energy that mends it.

Pixels are v + 0.1 xi, v in [0, 1], xi ~ N(0, 1): grey levels and constant corners have no density,
data with noise have one. The energy sees data and draws with their noise. Judged by how far samples
are from held-out digits in the features of a classifier (Frechet), what the classifier makes of
them, seconds, and whether E beside the VAE's bound tells strange pictures better than the bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import probgen as pg
from probgen import dist, nets
from probgen.evaluation.detection import auroc
from probgen.evaluation.samples import count_classes, digit_classifier, frechet_distance
from probgen.inference import (
    AIS,
    ELBO,
    SVI,
    EnergyGuard,
    ImportanceSampling,
    Langevin,
    MaximumLikelihood,
    UnnormalizedBound,
    log_partition,
)
from probgen.language.declared import declaration
from probgen.language.kinds import Count, Many, Positive, Width
from probgen.models import VAE, Tilted, likelihoods

NOISE = 0.1
SIZES = (1000, 200, 597)  # to learn from, to choose the best state by, to judge by
SHAPE = (8, 8, 1)


@declaration
class Settings:
    """How a study runs.

    Attributes:
        latent, hidden: of the VAE, one hidden layer each way and one learned scale.
        base_steps, tilt_steps: updates, at batch sizes 128 and 256; energy: its hidden layers.
        num_draws: of the VAE at each update of the energy, weighted by exp(-E).
        copies: of each digit, each with noise of its own.
        step_size, num_steps: h of MALA in the noise, and steps of the chains that are judged.
        levels: temperatures of AIS.
    """

    latent: Width = 8
    hidden: Width = 128
    base_steps: Count = 20_000
    energy: tuple[Width, ...] = (128, 128)
    tilt_steps: Count = 600
    learning_rate: Positive = 1e-3
    num_draws: Many = 1024
    copies: Many = 10
    step_size: Positive = 0.1
    num_steps: Many = 100
    levels: Many = 500


def noisy(images: np.ndarray, seed: int, copies: int = 1) -> np.ndarray:
    """[copies n, 8, 8, 1] pixels as the models see them."""
    x = np.tile(np.asarray(images, np.float64), (copies, 1, 1, 1))
    return (x + NOISE * np.random.default_rng(seed).normal(size=x.shape)).astype(np.float32)


def sets(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """(digits to learn from, to choose the best state by, to judge by, {set: strange pictures});
    a split of its own for each seed."""
    parts = pg.data.split(pg.data.digits(), SIZES, seed=seed, stratify=True)
    train, choose, test = (part.images for part in parts)
    rng = np.random.default_rng(seed)
    n, size = len(test), int(np.prod(SHAPE))
    strange = {
        "permuted": rng.permuted(test.reshape(n, size), axis=1).reshape(test.shape),
        "uniform": rng.uniform(size=test.shape),
        "blends": (test + test[rng.permutation(n)]) / 2.0,
        "letters": pg.data.letters(8, seed=seed, per_letter=-(-n // 52)).images[:n],
    }
    return train, choose, test, {k: noisy(x, 77 + i) for i, (k, x) in enumerate(strange.items())}


def fit_base(settings: Settings, x: np.ndarray, seed: int, backend: str) -> pg.Fitted:
    """The VAE that is then frozen."""
    d, h = settings.latent, (settings.hidden,)
    vae = VAE(
        dist.Normal(0, 1).expand([d]).to_event(1), nets.MLP(h, out=SHAPE),
        likelihoods.Normal(scale="learned"), nets.MLP(h, out=d, heads=("loc", "log_scale")),
    )  # fmt: skip
    return pg.fit(
        vae, x, SVI(ELBO(), pg.Adam(1e-3)), num_steps=settings.base_steps,
        batch_size=128, seed=seed, backend=backend, progress_bar=False,
    )  # fmt: skip


def fit_tilt(
    settings: Settings, base: pg.Fitted, x: np.ndarray, held_out: np.ndarray, seed: int,
    backend: str,
) -> pg.Fitted:  # fmt: skip
    """The energy, by weighted draws of the VAE; the best state by the gain on held-out data."""
    learn = MaximumLikelihood(
        ImportanceSampling(settings.num_draws), space="noise",
        optimizer=pg.Adam(settings.learning_rate), guard=EnergyGuard(gain_draws=10_000),
    )  # fmt: skip
    return pg.fit(
        Tilted(base, nets.MLPEnergy(settings.energy)), x, learn, num_steps=settings.tilt_steps,
        batch_size=256, validation=held_out, eval_every=50, seed=seed, backend=backend,
        progress_bar=False,
    )  # fmt: skip


def run(settings: Settings, seed: int = 0, backend: str = "jax") -> dict[str, Any]:
    """One study: "gain" and "share" as of the plane, "AUROC" by set of the bound and of the tilt,
    "held out", "base" and "tilted" as `judge` has them, "seconds", and what the figure shows.

    The gain has log Z by annealing in the noise, the share is of 20,000 draws of the VAE.
    """
    images, choose, test, strange = sets(seed)
    x, held_out = noisy(images, seed, settings.copies), noisy(test, 999 + seed)
    base, base_seconds = timed(lambda: fit_base(settings, x, seed, backend))
    chosen_by = noisy(choose, 99 + seed)
    fitted, tilt_seconds = timed(lambda: fit_tilt(settings, base, x, chosen_by, seed, backend))
    draws, plain = timed(lambda: pg.generate(base, 1000, seed=seed, backend=backend)["x"])
    ends, chained = timed(lambda: draw(fitted, settings, settings.num_steps, 1000, seed, backend))
    options: Any = {"seed": seed, "backend": backend}
    log_z = log_partition(fitted, AIS(settings.levels, num_leapfrog=5), **options)
    weighted = log_partition(fitted, ImportanceSampling(20_000), **options)
    bound, tilted = ELBO(20), UnnormalizedBound(ELBO(20))
    measured = {"held out": held_out, **strange}
    elbo = {n: score_of(base, v, bound, backend) for n, v in measured.items()}
    own = {n: score_of(fitted, v, tilted, backend) for n, v in measured.items()}
    n = len(held_out)
    return {
        "gain": float((own["held out"] - elbo["held out"]).mean() - log_z.estimate),
        "share": weighted.effective_share,
        "AUROC": {k: {"ELBO": auroc(-elbo["held out"], -elbo[k]),
                      "tilt": auroc(-own["held out"], -own[k])} for k in strange},
        "learned from": judge(noisy(images, 5 + seed)[:n], held_out),
        "base": judge(draws[:n], held_out), "tilted": judge(ends[:n], held_out),
        "seconds": {"base fit": base_seconds, "tilt fit": tilt_seconds,
                    "1,000 draws of base": plain, "1,000 draws of tilt": chained},
        "fitted": fitted, "held out": held_out, "draws": draws, "ends": ends,
    }  # fmt: skip


def draw(
    fitted: pg.Fitted, settings: Settings, steps: int, num: int, seed: int, backend: str
) -> np.ndarray:
    """Ends of MALA chains of that many steps, from fresh noise."""
    method = Langevin(settings.step_size, steps, metropolis=True)
    return pg.generate(fitted, num, method=method, seed=seed, backend=backend)["x"]


def score_of(fitted: pg.Fitted, x: np.ndarray, measure: Any, backend: str) -> np.ndarray:
    """[n] what a measure says of each datum, from the same draws of the guide for all models."""
    table = pg.evaluate(fitted, x, [measure], seed=0, backend=backend, chunk_size=len(x))
    return table[measure.name]["estimate"].values


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    """(what it gives, wall-clock seconds, compilation among them)."""
    start = time.perf_counter()
    found = make()
    return found, time.perf_counter() - start


def judge(samples: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """Frechet distance to held-out digits, the share that a classifier is sure of, of how many
    classes there are such samples, and a quarter of their due; pixels are clipped to [0, 1]."""
    net = digit_classifier("digits")
    x, y = (np.clip(v, 0.0, 1.0) for v in (samples, held_out))
    seen = count_classes(x, net)
    return {
        "Frechet": float(frechet_distance(y, x, features=net).fd.value),
        "good": seen.good.value,
        "classes": seen.hit.value,
        "classes, a quarter": float((seen.counts >= 0.25 * len(x) / 10).sum()),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A line a number: the mean over seeds and each seed's own."""
    of = {"gain": lambda r: r["gain"], "share": lambda r: r["share"]}
    groups = ("learned from", "base", "tilted", "seconds")
    of |= {f"{g}: {q}": lambda r, g=g, q=q: r[g][q] for g in groups for q in rows[0][g]}
    of |= {f"AUROC {k}: {q}": lambda r, k=k, q=q: r["AUROC"][k][q]
           for k, found in rows[0]["AUROC"].items() for q in found}  # fmt: skip
    lines = [f"{'':<30}{'mean':>10}" + "".join(f"{f'seed {i}':>10}" for i in range(len(rows)))]
    for name, number in of.items():
        values = [float(number(r)) for r in rows]
        cells = "".join(f"{v:10.3f}" for v in values)
        lines.append(f"{name:<30}{np.mean(values):10.3f}{cells}")
    return "\n".join(lines)
