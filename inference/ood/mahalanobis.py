"""How far a datum's code lies from those of reference data, in their own standard deviations.

    d^2(x) = min_c (mu(x) - m_c)' S^-1 (mu(x) - m_c)

mu is the guide's mean, m_c the mean of the reference codes of class c (of all, without labels), S
their covariance within classes. Squared standard deviations, larger is stranger; chi-square with d
degrees of freedom where the codes are Gaussian.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from probgen.engine.measure import EvaluationContext, Function, Values, changed_settings
from probgen.errors import DataError, NonFiniteError
from probgen.inference.ood.moments import GuideMoments, check_guide
from probgen.inference.ood.reference import Reference, ReferenceData, over, set_reference
from probgen.language.declared import declaration
from probgen.language.kinds import Share

SINGULAR = 1e-10  # smallest eigenvalue of a correlation matrix that counts as one


class Gaussian(NamedTuple):
    """A Gaussian of each class with one covariance.

    means: [classes, d]; factor: what `cho_solve` takes, of the covariance.
    """

    means: np.ndarray
    factor: tuple[np.ndarray, bool]

    def distances(self, x: np.ndarray) -> np.ndarray:
        """[n, classes] squared Mahalanobis distances of the rows of x [n, d]."""
        off = np.asarray(x, np.float64)[:, None] - self.means
        flat = off.reshape(-1, off.shape[-1])
        solved = cho_solve(self.factor, flat.T).T
        return (flat * solved).sum(1).reshape(off.shape[:2])


def fit_gaussian(
    x: np.ndarray, who: str, labels: np.ndarray | None = None, shrinkage: float = 0.0
) -> Gaussian:
    """Means by class and the covariance within classes (divisor n - classes) of rows x [n, d].

    Args:
        labels: [n] class of each row; None: one class.
        shrinkage: a in (1 - a) S + a diag(S), for few data.

    Raises:
        DataError: no more rows than dimensions and classes, or a covariance that is singular.
        NonFiniteError: x is not finite.
    """
    x = np.asarray(x, np.float64)
    if not np.isfinite(x).all():
        raise NonFiniteError(
            f"{who}: {int((~np.isfinite(x)).any(1).sum())} of {len(x)} reference data have codes "
            "that are not finite, expected finite ones; look at the model's parameters for NaN, "
            "and use a guide whose mean exists."
        )
    classes, place = np.unique(
        np.zeros(len(x), int) if labels is None else labels, return_inverse=True
    )
    means = np.stack([x[place == c].mean(0) for c in range(len(classes))])
    left = len(x) - len(classes)
    if left < 1 or (shrinkage == 0.0 and left < x.shape[1]):
        raise DataError(
            f"{who}: got {len(x)} reference data in {len(classes)} classes for a covariance in "
            f"{x.shape[1]} dimensions, expected more than {x.shape[1] + len(classes) - 1}; give "
            "more, or shrinkage=0.1."
        )
    off = x - means[place]
    cov = off.T @ off / left
    cov = (1.0 - shrinkage) * cov + shrinkage * np.diag(np.diag(cov))
    _check_regular(cov, x, who)
    return Gaussian(means, cho_factor(cov))


def _check_regular(cov: np.ndarray, x: np.ndarray, who: str) -> None:
    """Refuses a covariance that is singular in the units of its own variables."""
    sd = np.sqrt(np.diag(cov))
    # Codes are float32, so that a constant one may still vary by rounding.
    still = np.flatnonzero(sd <= 1e-6 * np.abs(x).max(0))
    if len(still):
        raise DataError(
            f"{who}: the covariance of the reference data is singular: of {len(sd)} variables "
            f"{still.tolist()[:8]} are constant over them, expected variables that vary; such a "
            "latent has collapsed (the prior is all that it says), use a model without it."
        )
    lowest = float(np.linalg.eigvalsh(cov / np.outer(sd, sd))[0])
    if lowest < SINGULAR:
        raise DataError(
            f"{who}: the covariance of the reference data is singular (a correlation matrix with "
            f"the eigenvalue {lowest:.1e}), expected variables that are not functions of each "
            "other; give more reference data without repeats, or shrinkage=0.1."
        )


@declaration
class Mahalanobis:
    """Squared Mahalanobis distance of the guide's mean from those of reference data.

    In squared standard deviations, larger is stranger. Assumes that codes of training data are
    Gaussian (in each class) and that foreign data are encoded elsewhere. Fails for a VAE whose
    encoder maps simple foreign images to the middle of the codes: AUROC 0.13 on drawn letters and
    black images under a model of digits in a pilot run; the decoder is not asked at all.
    arXiv:2409.03801 asks of every such fix that it be never worse than the likelihood. "distances"
    has one column a class where labels are given.

    Args:
        reference: training data, as in `pg.evaluate`; or a `Reference`.
        labels: [n] classes of the reference data: the distance to the nearest class.
        shrinkage: a in (1 - a) S + a diag(S); above 0 for few reference data.

    Raises (when bound): AlgorithmError: no guide. DataError, ShapeError, SupportError: reference
    data that do not fit, are too few, or whose codes have a singular covariance.

    Source: Lee et al. 2018, arXiv:1807.03888 (there on features of a classifier).
    """

    reference: ReferenceData
    labels: ReferenceData | None = None
    shrinkage: Share = 0.0

    unit = "squared standard deviations"
    larger_is_stranger = True

    def __post_init__(self) -> None:
        set_reference(self)
        if self.labels is not None and not isinstance(self.labels, Reference):
            object.__setattr__(self, "labels", {"labels": self.labels})
            set_reference(self, "labels")
        if self.labels is not None:
            shape = self.labels.arrays["labels"].shape
            if shape != (self.reference.size,):
                raise DataError(
                    f"Mahalanobis: got labels of shape {shape} for {self.reference.size} reference "
                    "data, expected one class a datum; give them as an array [n] of integers."
                )

    @property
    def name(self) -> str:
        said = changed_settings(self, shown=("labels",))
        if self.labels is not None:
            said = [f"{len(np.unique(self._classes()))} classes", *said]
        return f"Mahalanobis({', '.join(said)})" if said else "Mahalanobis"

    def _classes(self) -> Any:
        return None if self.labels is None else self.labels.arrays["labels"]

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> estimate, and "distances" by class."""
        check_guide(context.bound, self.name)
        codes = GuideMoments()
        known = over(context, codes, self.reference, self.name)["mean"]
        gaussian = fit_gaussian(known, self.name, self._classes(), self.shrinkage)
        function = context.function(codes)

        def run(rows: Any, ids: np.ndarray) -> Values:
            distances = gaussian.distances(function(rows, ids)["mean"])
            values = {"estimate": distances.min(1)}
            return values if self.labels is None else {**values, "distances": distances}

        return run
