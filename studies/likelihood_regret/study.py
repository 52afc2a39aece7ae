"""The likelihood regret study: which scores tell the data that a VAE knows from other data?

    LR(x) = L_K(x; theta, tau_hat(x)) - L_K(x; theta, tau(x)),   nats, larger is stranger

For a `Pair` of data: fits a VAE with a categorical likelihood on grey levels and the background VAE
of the likelihood ratio, for each of several seeds; evaluates scores on all sets; gives the numbers
to `detection.compare`. AUROC has the strange data as positives. The sets are in `regret_sets`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import probgen as pg
from probgen import dist, nets
from probgen.engine.fitted import Fitted
from probgen.evaluation.detection import (
    BetweenRuns,
    DetectionTable,
    auroc_figure,
    between_runs,
    compare,
    histogram_figure,
)
from probgen.inference import ELBO, SVI, LikelihoodRegret
from probgen.inference.ood import LikelihoodRatio, Mahalanobis, fit_background
from probgen.inference.ood.codecs import code_bits
from probgen.language.declared import declaration
from probgen.language.kinds import Count, Many, Positive, Share, Width
from probgen.models import VAE, likelihoods
from probgen.records.evaluation import Evaluation
from studies.likelihood_regret.data_sets import Pair

Scored = dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]  # what `compare` takes
STRONG = ("png", "webp", "jpeg2000", "lzma", "zlib")


@declaration
class Settings:
    """Sizes of the study. `quick()` is for tests of the functions, not for numbers.

    Args:
        hidden, latent_dim: of the MLPs of encoder and decoder.
        num_epochs, batch_size, learning_rate: of the fits, Adam with half a cosine's decay.
        num_particles: K, of the likelihood and of the regret that has more than one.
        guide_steps, posterior_steps: of the two searches, LR_E and LR_Z.
        background_rate: share of pixels that the background VAE sees replaced.
    """

    hidden: tuple[Width, ...] = (200, 200)
    latent_dim: Width = 16
    num_epochs: Count = 15
    batch_size: Count = 128
    learning_rate: Positive = 1e-3
    num_particles: Many = 200
    guide_steps: Count = 100
    posterior_steps: Count = 300
    background_rate: Share = 0.2

    @classmethod
    def quick(cls) -> Settings:
        """Seconds of work."""
        return cls((16,), 3, 2, 50, 1e-3, 4, 3, 3)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One seed: the models, scores by label for `compare`, and the seconds that each took."""

    fitted: Fitted
    background: Fitted
    scored: Scored
    table: DetectionTable
    seconds: dict[str, float]


def declare(pair: Pair, settings: Settings) -> VAE:
    """z ~ N(0, I), pixels independent given z, Categorical on L levels; MLPs."""
    shape = pair.train.shape[1:]
    d = settings.latent_dim
    return VAE(
        latent=dist.Normal(0, 1).expand([d]).to_event(1),
        decoder=nets.MLP(hidden=settings.hidden[::-1], out=shape),
        likelihood=likelihoods.Categorical(pair.num_levels),
        encoder=nets.MLP(hidden=settings.hidden, out=d, heads=("loc", "log_scale")),
    )


def algorithm(num_data: int, settings: Settings) -> tuple[SVI, dict[str, Any]]:
    """The ELBO with Adam, and the sizes that `pg.fit` is told."""
    batch = min(settings.batch_size, num_data)
    steps = settings.num_epochs * (num_data // batch)
    rate = pg.CosineDecay(settings.learning_rate, steps)
    return SVI(ELBO(), pg.Adam(rate)), {"num_steps": steps, "batch_size": batch}


def learn(model: Any, x: Any, settings: Settings, *, seed: int, backend: Any = "auto") -> Fitted:
    """Fits a model to data that `pg.fit` takes: an array, or {name: array}."""
    count = len(next(iter(x.values()))) if isinstance(x, Mapping) else len(x)
    how, sizes = algorithm(count, settings)
    return pg.fit(model, x, how, seed=seed, backend=backend, progress_bar=False, **sizes)


def learn_background(pair: Pair, settings: Settings, *, seed: int, backend: Any = "auto") -> Fitted:
    """The same VAE fitted to data with a share of their pixels replaced by noise."""
    how, sizes = algorithm(len(pair.train), settings)
    return fit_background(
        declare(pair, settings), pair.train, how, rate=settings.background_rate,
        num_levels=pair.num_levels, seed=seed, backend=backend, progress_bar=False, **sizes,
    )  # fmt: skip


def main_measures(background: Fitted, pair: Pair, settings: Settings) -> dict[str, Any]:
    """The measures behind the main table; `main_scores` reads them."""
    k = settings.num_particles
    guide = LikelihoodRegret(num_steps=settings.guide_steps, num_particles=k, num_draws=k)
    posterior = LikelihoodRegret(search="posterior", num_steps=settings.posterior_steps)
    return {
        "ratio": LikelihoodRatio(background, k),
        "LR_E": guide,
        "LR_Z": posterior,
        "Mahalanobis": Mahalanobis(pair.train),
    }


def evaluate_all(
    fitted: Fitted, data: Any, measures: Mapping[str, Any], *, seed: int, backend: Any = "auto"
) -> tuple[dict[str, Evaluation], dict[str, float]]:
    """Measure by measure: ({label: table of that measure}, {label: seconds})."""
    options: dict[str, Any] = {"backend": backend, "chunk_size": 200, "progress_bar": False}
    seconds, tables = {}, {}
    for label, each in measures.items():
        start = time.perf_counter()
        tables[label] = pg.evaluate(fitted, data, [each], seed=seed, **options)
        seconds[label] = time.perf_counter() - start
    return tables, seconds


def strangeness(table: Evaluation) -> np.ndarray:
    """[n] the estimates of a table's one measure, larger = stranger."""
    return table.strangeness(table.names[0])


def main_scores(tables: Mapping[str, Evaluation], pair: Pair, settings: Settings) -> Scored:
    """The main table's scores, by their labels, from an evaluation of `main_measures`.

    The ratio's log p(x) is the importance-weighted one, so it serves likelihood and complexity too
    (S = -log2 p - bits, as `InputComplexity` has it; the suite runs that measure itself).
    """
    ratio, guide = (tables[m][tables[m].names[0]] for m in ("ratio", "LR_E"))
    k, images = settings.num_particles, pair.stacked
    nll = -ratio["log_prob"].values
    bits = {c: code_bits(images, c, pair.num_levels) for c in STRONG}
    shortest = np.min(list(bits.values()), axis=0)
    named = {
        f"NLL, K={k}": nll,
        f"LR_E, K={k}": guide["estimate"].values,
        # The same search, with the bound at K = 1 by the same draws.
        "LR_E, K=1": guide["regret_elbo"].values,
        "LR_Z, K=1": strangeness(tables["LR_Z"]),
        "likelihood ratio": strangeness(tables["ratio"]),
        "complexity (PNG)": nll / math.log(2.0) - bits["png"],
        f"complexity ({len(STRONG)} codecs)": nll / math.log(2.0) - shortest,
        "-bits of PNG alone": -np.asarray(bits["png"], np.float64),
        "Mahalanobis": strangeness(tables["Mahalanobis"]),
    }
    return {label: pair.split(scores) for label, scores in named.items()}


def run(pair: Pair, settings: Settings, *, seed: int, backend: Any = "auto") -> Run:
    """Fits the two VAEs and scores all sets: the main table of one seed."""
    start = time.perf_counter()
    fitted = learn(declare(pair, settings), pair.train, settings, seed=seed, backend=backend)
    background = learn_background(pair, settings, seed=seed, backend=backend)
    fits = {"both fits": time.perf_counter() - start}
    measures = main_measures(background, pair, settings)
    tables, seconds = evaluate_all(fitted, pair.stacked, measures, seed=seed, backend=backend)
    scored = main_scores(tables, pair, settings)
    compared = compare(scored, num_distinct=pair.num_distinct, seed=0, show_progress=False)
    return Run(fitted, background, scored, compared, fits | seconds)


def spread(runs: Sequence[Run]) -> BetweenRuns:
    """Mean and sd of AUROC between the seeds, apart from the interval within a run."""
    return between_runs([each.table for each in runs])


def figures(scored: Scored, sets: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Histograms of the scores `labels` on `sets`, in nats, one figure a score."""
    out = {}
    for label in labels:
        inside, outside = scored[label]
        chosen = {s: outside[s] for s in sets}
        out[label] = histogram_figure(inside, chosen, name=label, unit="nats", num_bins=30)
    return out


def dots(scored: Scored, pair: Pair, sets: Sequence[str]) -> Any:
    """AUROCs with intervals of all scores on some sets."""
    chosen = {m: (inside, {s: out[s] for s in sets}) for m, (inside, out) in scored.items()}
    inside, outside = pair.num_distinct
    distinct = inside, {s: outside[s] for s in sets}
    return auroc_figure(compare(chosen, num_distinct=distinct, seed=0, show_progress=False))
