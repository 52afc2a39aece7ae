"""Likelihood ratio with a background model, and the corrupted data that it is trained on.

    log p_background(x) - log p(x), nats, larger is stranger

What both models find easy (a plain background, smooth patches) cancels; what only the model of the
clean data knows remains.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import numpy as np

from probgen.data.images import Images
from probgen.engine.fitted import Fitted
from probgen.engine.measure import EvaluationContext, Function, Rows, Values
from probgen.errors import DataError, DeclarationError
from probgen.inference.likelihood.interval import Weighted
from probgen.inference.ood.other_models import bind_other, shown, weighted, with_error
from probgen.language.declared import declaration
from probgen.language.kinds import Many
from probgen.language.model import Model
from probgen.verbs.fit import fit

Data = TypeVar("Data", Images, np.ndarray)
KINDS = ("replace", "add")


@declaration
class LikelihoodRatio(Weighted):
    """log p_bg(x) - log p(x), both by importance weighting with the same noise.

    In nats, larger is stranger. Assumes that the background model has learned what the data share
    with anything else and no more; its corruption rate (and weight decay) decide that, and the
    literature chooses them on a proxy set that is itself out of distribution: never on the set that
    is reported.

    Fails: scores that work on autoregressive models and flows, this one among them, often fail on
    VAEs (arXiv:2003.02977); with a VAE of MNIST it left black images more ordinary than the
    digits. Too good a background cancels the signal, too poor a one gives back the likelihood's own
    failure.

    Args:
        background: a model of the same data, fitted to `perturbed` ones; see `fit_background`.
        num_particles: K of both terms.
        label: told apart by, where several backgrounds are compared.
        particles_at_once: for memory.

    Gives per datum: `estimate`, nats; `standard_error` (the noise is shared, so equal models have
    none); `log_prob` and `log_prob_background`, both terms; `khat`, the larger of the two.

    Raises (when bound): AlgorithmError: a model without a guide, or one observes other sites.
        ShapeError, SupportError: the data do not fit the background model.

    Source: Ren et al. 2019, arXiv:1906.02845.
    """

    background: Fitted
    num_particles: Many = 1000
    label: str = ""
    particles_at_once: Many = 25

    unit = "nats"
    larger_is_stranger = True
    of_bound = ""

    def __repr__(self) -> str:
        return (
            f"LikelihoodRatio(background={shown(self.background)}, "
            f"num_particles={self.num_particles}, label={self.label!r}, "
            f"particles_at_once={self.particles_at_once})"
        )

    @property
    def name(self) -> str:
        label = f"{self.label}, " if self.label else ""
        return f"LikelihoodRatio({label}{self.num_particles})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """Both models' estimates, chunk by chunk."""
        check = bind_other(context, self.name, "the background model", self.background)
        k, at_once = self.num_particles, self.particles_at_once
        clean, rough = (weighted(c, k, at_once) for c in (context, context.at(self.background)))

        def measure(rows: Rows, ids: np.ndarray) -> Values:
            check(rows)
            ours, theirs = clean(rows, ids), rough(rows, ids)
            values = {
                "estimate": theirs["estimate"] - ours["estimate"],
                "log_prob": ours["estimate"],
                "log_prob_background": theirs["estimate"],
                "khat": np.fmax(ours["khat"], theirs["khat"]),
            }
            return with_error(values, (-1.0, 1.0), (ours["log_w"], theirs["log_w"]))

        return measure


def perturbed(
    images: Data, *, rate: float = 0.2, num_levels: int = 256, seed: int, kind: str = "replace"
) -> Data:
    """Images in which each value is corrupted with probability `rate`, for a background model.

    With m ~ Bernoulli(rate) and u uniform on the L levels, per value:

        replace   k -> u where m          add   k -> (k + m u) mod L

    One in L of the corrupted values keeps its level in either. Both leave k uniform where m = 1,
    hence the same law; they differ draw by draw.

    Args:
        images: levels as integers 0 ... L - 1, or as k / (L - 1) in [0, 1]; {0, 1} for L = 2. The
            same kind comes back, nothing is changed in place.
        rate: 0.2 in the likelihood regret paper's comparison; 0.1 to 0.3 in the original.
        num_levels: L.
        seed: the same seed gives the same corruption.
        kind: "replace" or "add".

    Raises:
        DataError: values that are not levels, a rate outside [0, 1], an unknown kind.

    Sources: Ren et al. 2019, arXiv:1906.02845 ("add"); Xiao, Yan & Amit 2020, arXiv:2003.02977
    ("replace").
    """
    if kind not in KINDS or not 0.0 <= rate <= 1.0:
        raise DataError(
            f"perturbed: got kind={kind!r} and rate={rate!r}, expected one of {KINDS} and a rate "
            "in [0, 1]."
        )
    if isinstance(images, Images):
        pixels = perturbed(images.images, rate=rate, num_levels=num_levels, seed=seed, kind=kind)
        return dataclasses.replace(images, images=pixels)
    x = np.asarray(images)
    k = level_indices(x, num_levels, "perturbed")
    if num_levels > 2 and x.size and x.max() == 1 and np.isin(x, (0, 1)).all():
        raise DataError(
            f"perturbed: got an array of zeros and ones alone, expected {num_levels} levels as "
            "num_levels says; binary images are perturbed with num_levels=2."
        )
    rng = np.random.default_rng(seed)
    hit, u = rng.random(x.shape) < rate, rng.integers(0, num_levels, x.shape)
    moved = (k + u) % num_levels if kind == "add" else u
    changed = moved if x.dtype.kind in "iub" else moved / (num_levels - 1)
    return np.where(hit, changed, x).astype(x.dtype)


def fit_background(
    model: Model, data: Any, algorithm: Any, *, rate: float = 0.2, num_levels: int = 256,
    kind: str = "replace", seed: int, **options: Any,
) -> Fitted:  # fmt: skip
    """The background model of a `LikelihoodRatio`: `pg.fit` on `perturbed` data.

    Args:
        model, algorithm, options: as in `pg.fit`.
        data: `Images` or one array.
        rate, num_levels, kind: as in `perturbed`.
        seed: of the corruption and of the fit.

    Raises:
        DataError: data that are neither `Images` nor one array; see `perturbed`.
    """
    if not isinstance(data, Images) and not hasattr(data, "dtype"):
        raise DataError(
            f"fit_background: got {type(data).__name__}, expected Images or one array of images; "
            "for other data perturb them yourself and call pg.fit."
        )
    images: Any = data if isinstance(data, Images) else np.asarray(data)
    rough: Any = perturbed(images, rate=rate, num_levels=num_levels, seed=seed, kind=kind)
    return fit(model, rough, algorithm, seed=seed, **options)


def level_indices(x: np.ndarray, num_levels: int, who: str) -> np.ndarray:
    """Integers 0 ... L - 1 for levels given as such, or as k / (L - 1) in floating point.

    Raises:
        DeclarationError: fewer than two levels. DataError: values that are not levels.
    """
    if not isinstance(num_levels, int) or num_levels < 2:
        raise DeclarationError(f"{who}: got num_levels={num_levels!r}, expected 2 levels or more.")
    x = np.asarray(x)
    position = np.asarray(x, np.float64) * (1 if x.dtype.kind in "iub" else num_levels - 1)
    k = np.rint(position)
    # Written so that NaN fails it too; a thousandth of a step is float32's rounding and no more.
    if x.size and not ((np.abs(position - k) < 1e-3) & (k >= 0) & (k < num_levels)).all():
        raise DataError(
            f"{who}: got {x.dtype} values from {x.min():g} to {x.max():g} that are not all levels, "
            f"expected integers 0 ... {num_levels - 1}, or k / {num_levels - 1} in floating point; "
            "correct num_levels, or put the images on levels with probgen.data.to_levels, "
            "from_levels or binarize."
        )
    return k.astype(np.int64)
