"""LPath: a datum's path through a VAE as three numbers, and how rare they are.

    t(x) = (|x - x_hat|, |mu(x)|, |sigma(x)|)

mu, sigma the guide's mean and standard deviation, x_hat = E[x | z = mu(x)]; Euclidean norms. One
pass, nothing is fitted but the three numbers' law over reference data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from probgen.engine.measure import EvaluationContext, Function, Values
from probgen.errors import NonFiniteError
from probgen.inference.ood.mahalanobis import fit_gaussian
from probgen.inference.ood.moments import check_guide, flat, moments, reconstruction
from probgen.inference.ood.ranks import copod
from probgen.inference.ood.reference import ReferenceData, over, set_reference
from probgen.language.declared import declaration

Array = Any
FEWEST = 10  # reference data that tail probabilities are made of


@declaration
class PathNorms:
    """As a measure: "norms" [n, 3]; no estimate."""

    unit = "norms"
    larger_is_stranger = True
    name = "PathNorms"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> {"norms": [n, 3]}."""
        bound = context.bound
        check_guide(bound, self.name)
        ops = bound.backend.ops

        def norm(values: Mapping[str, Array]) -> Array:
            x = flat(bound, values)
            return ops.sqrt(ops.sum(x * x, axis=1))

        def measure(params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
            means, spreads = moments(bound, params, batch, key)
            rebuilt = reconstruction(bound, params, batch, means)
            off = {n: ops.cast(batch[n], "float32") - v for n, v in rebuilt.items()}
            return {"norms": ops.stack([norm(off), norm(means), norm(spreads)], axis=1)}

        return context.device(measure, self.name)


@declaration
class LPath:
    """How rare (|x - x_hat|, |mu|, |sigma|) is among those of reference data: larger is stranger.

    "copod": minus log of the empirical copula's tail probability, nats; its largest value is
    3 log(n + 1), so that data beyond all n of the reference tie. "mahalanobis": squared standard
    deviations, which do not tie and take the three as Gaussian. The three numbers are diagnostics,
    "norms".

    Assumes that the three are nearly sufficient for "foreign", which the paper argues where a VAE
    is trained well but not perfectly. Fails where codes of foreign data have usual norms (the
    direction is lost, which `Mahalanobis` has) and where the posterior has collapsed. AUROC as
    published: 0.99 on CIFAR-10 against SVHN and in reverse.

    Args:
        reference: training data, as in `pg.evaluate`; or a `Reference`.
        method: "copod" or "mahalanobis".

    Raises (when bound): AlgorithmError: no guide, no mean in closed form. DataError, ShapeError,
    SupportError: reference data that do not fit, are too few, or have equal norms.

    Sources: arXiv:2401.04933 (LPath); Li et al. 2020, arXiv:2009.09463 (COPOD).
    """

    reference: ReferenceData
    method: Literal["copod", "mahalanobis"] = "copod"

    larger_is_stranger = True

    def __post_init__(self) -> None:
        set_reference(self)

    @property
    def name(self) -> str:
        return f"LPath({self.method})"

    @property
    def unit(self) -> str:
        return "nats" if self.method == "copod" else "squared standard deviations"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> estimate, norms [n, 3]."""
        check_guide(context.bound, self.name)
        norms = PathNorms()
        known = over(context, norms, self.reference, self.name, FEWEST)["norms"]
        if not np.isfinite(known).all():
            raise NonFiniteError(
                f"{self.name}: the norms of the reference data are not finite, expected a guide "
                "and a decoder with finite means; look at the model's parameters for NaN."
            )
        function = context.function(norms)
        gaussian = None if self.method == "copod" else fit_gaussian(known, self.name)

        def run(rows: Any, ids: np.ndarray) -> Values:
            found = function(rows, ids)["norms"]
            score = copod(known, found) if gaussian is None else gaussian.distances(found)[:, 0]
            return {"estimate": score, "norms": found}

        return run
