"""Every score of `probgen.inference.ood` on one pair of data: the suite beside the regret.

A `Suite` fits what the scores need beyond the VAE (an ensemble, a background model, a hierarchy, a
VAE that restores images) and gives the numbers to `detection.compare`. Larger is stranger. Scores
that take held-out data get the pair's `reference`, the others its `train`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from probgen import dist, nets
from probgen.evaluation.detection import DetectionTable, compare
from probgen.inference import IWAE, LikelihoodRegret
from probgen.inference.ood import (
    WAIC,
    BiasCorrected,
    CombinedTest,
    DoSE,
    ErrorReduction,
    GradientNorm,
    HierarchyRatio,
    InputComplexity,
    KLTerm,
    LikelihoodRatio,
    LPath,
    Mahalanobis,
    NegativeLogLikelihood,
    ReconstructionError,
    Reference,
    Restorer,
    Resultant,
    Typicality,
    batch_typicality,
    downsampled,
)
from probgen.models import VAE, likelihoods
from probgen.records.evaluation import Evaluation
from studies.likelihood_regret.data_sets import Pair
from studies.likelihood_regret.study import (
    Run,
    Scored,
    Settings,
    declare,
    evaluate_all,
    learn,
    strangeness,
)

NLL = "NLL"


@dataclasses.dataclass(frozen=True, eq=False)
class Suite:
    """Scores by label, their table, the share of batches of ten that the typicality test rejects
    at level 0.05, and the seconds of each measure."""

    scored: Scored
    table: DetectionTable
    rejected: dict[str, float]
    seconds: dict[str, float]


def measures_of(
    run: Run, ensemble: Sequence[Any], pair: Pair, settings: Settings
) -> dict[str, Any]:
    """The scores of the study's own VAE, by label."""
    k, steps = settings.num_particles, settings.posterior_steps
    train, held_out = Reference(pair.train), Reference(pair.reference)
    nll = NegativeLogLikelihood(k)
    typical, fisher = Typicality(held_out, k), GradientNorm(held_out)
    posterior = LikelihoodRegret(search="posterior", num_steps=steps, num_draws=k)
    return {
        NLL: nll,
        "reconstruction": ReconstructionError(),
        "KL term": KLTerm(),
        "typicality": typical,
        "DoSE": DoSE(held_out, (nll, ReconstructionError(), KLTerm())),
        "gradient norm, guide": GradientNorm(method="norm", nets="guide", num_particles=8),
        "gradient, Fisher": fisher,
        "gradient, density": GradientNorm(held_out, method="density"),
        "combined test": CombinedTest(held_out, (typical, fisher)),
        "bias corrected": BiasCorrected(train, k),
        "Mahalanobis": Mahalanobis(train),
        "LPath, COPOD": LPath(train),
        "LPath, Mahalanobis": LPath(train, "mahalanobis"),
        "likelihood ratio": LikelihoodRatio(run.background, k),
        "WAIC": WAIC(ensemble, k),
        "complexity, PNG": InputComplexity(IWAE(k), codecs=("png",)),
        "complexity, as published": InputComplexity(IWAE(k), ("png",), as_published_code=True),
        "Resultant": Resultant(train),
        "Resultant, PHP alone": Resultant(train, complexity=False),
        "LR_Z, K=1": posterior,
        "LR_Z, K=10": dataclasses.replace(
            posterior, num_particles=10, num_draws=10 * (-(-k // 10))
        ),
        f"LR_Z, K={k}": dataclasses.replace(posterior, num_particles=k),
        "LR_Z, K=1, from prior": dataclasses.replace(posterior, start_from="prior"),
        "LR_E rank 1, K=1": LikelihoodRegret(
            num_steps=settings.guide_steps, rank_1=True, num_draws=k
        ),
    }


def learn_hierarchy(pair: Pair, settings: Settings, *, seed: int, backend: Any = "auto") -> Any:
    """top ~ N(0, I), z | top Gaussian, x | z as in the study: a fitted VAE over a VAE."""
    d = settings.latent_dim
    top_dim = max(1, d // 2)
    top = VAE(
        latent=dist.Normal(0, 1).expand([top_dim]).to_event(1),
        decoder=nets.MLP(hidden=settings.hidden[:1], out=d),
        likelihood=likelihoods.Normal("predicted", min_scale=0.05),
        encoder=nets.MLP(hidden=settings.hidden[:1], out=top_dim, heads=("loc", "log_scale")),
    )
    model = dataclasses.replace(declare(pair, settings), latent=top)
    return learn(model, pair.train, settings, seed=seed, backend=backend)


def learn_restorer(pair: Pair, settings: Settings, *, seed: int, backend: Any = "auto") -> Any:
    """The study's VAE, whose guide sees the image at a quarter of its size."""
    x = {"x": pair.train, "lossy": downsampled(pair.train)}
    return learn(Restorer(declare(pair, settings)), x, settings, seed=seed, backend=backend)


def run_suite(
    run: Run, ensemble: Sequence[Any], pair: Pair, settings: Settings, *, seed: int,
    backend: Any = "auto",
) -> Suite:  # fmt: skip
    """Scores all sets by everything there is.

    Args:
        run: the study's, of the same pair.
        ensemble: fitted VAEs, for WAIC.

    Raises: as the scores.
    """
    options: dict[str, Any] = {"seed": seed, "backend": backend}
    data, both = pair.stacked, {"x": pair.stacked, "lossy": downsampled(pair.stacked)}
    chosen = measures_of(run, ensemble, pair, settings)
    hierarchy = learn_hierarchy(pair, settings, **options)
    restorer = learn_restorer(pair, settings, **options)
    tables: dict[str, Evaluation] = {}
    seconds: dict[str, float] = {}
    for fitted, rows, measures in (
        (run.fitted, data, chosen),
        (hierarchy, data, {"hierarchy ratio": HierarchyRatio(1, 1)}),
        (restorer, both, {"error reduction": ErrorReduction()}),
    ):
        found, took = evaluate_all(fitted, rows, measures, **options)
        tables, seconds = tables | found, seconds | took
    scored = {label: pair.split(strangeness(table)) for label, table in tables.items()}
    compared = compare(scored, num_distinct=pair.num_distinct, seed=0, show_progress=False)
    held_out, _ = evaluate_all(run.fitted, pair.reference, {NLL: chosen[NLL]}, **options)
    rejected = rejections(scored[NLL], strangeness(held_out[NLL]))
    return Suite(scored, compared, rejected, seconds)


def rejections(
    nll: tuple[np.ndarray, dict[str, np.ndarray]], reference_nll: np.ndarray, batch_size: int = 10
) -> dict[str, float]:
    """{set: share of its batches that `batch_typicality` rejects at level 0.05}."""
    inside, outside = nll
    return {
        name: float(
            batch_typicality(each, reference_nll, batch_size=batch_size, seed=0).is_rejected.mean()
        )
        for name, each in {"in distribution": inside, **outside}.items()
    }
