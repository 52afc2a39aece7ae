"""How safely the steps of a generator that follows its own energy can be taken back.

    sharpness   max_k |eta lambda(x_k)| along a datum's path, lambda an eigenvalue of the Hessian
    residual    max_k |Phi(x_k) - x_{k+1}| / (1 + |x_{k+1}|)

Below 1 the map of a step is one to one, its inverse is a contraction and the series of its log
determinant converges; beyond it a log density may not exist, and is NaN where that is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.engine.measure import EvaluationContext, Function
from probgen.errors import AlgorithmError
from probgen.language.capabilities import TakesBack
from probgen.language.declared import declaration
from probgen.language.kinds import Positive
from probgen.language.model import capability

Array = Any
CURE = (
    "lower step_size and raise num_steps, or keep the energy flat (a penalty, spectral norms), and "
    "fit again"
)


@declaration
class Invertibility:
    """max |eta lambda| along the path that leads to each datum, and how exactly it was found.

    Args:
        limit: from which sharpness a warning is given; 1 is where theory ends.

    Gives per datum: `estimate`, the sharpness, from below, by power iteration (infinite where
    numbers were left); `residual`, the largest of all steps; `by_newton`, of how many steps the
    fixed point alone did not find the inverse.

    Raises (when bound): AlgorithmError: the model does not step down an energy.
    """

    limit: Positive = 1.0

    unit = "max |eta lambda|"
    larger_is_stranger = True
    name = "sharpness of the map"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> sharpness, residual and the count of Newton's steps."""
        bound, b = context.bound, context.backend
        model = capability(bound.model, TakesBack)
        if model is None:
            raise AlgorithmError(
                f"Invertibility: got the model {bound.model.name!r}, expected one that steps down "
                "an energy, such as models.GradientFlowGenerator(energy, start)."
            )

        def measure(params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
            found = model.undone(params, batch["x"])
            lost = {"estimate": found.sharpness, "residual": found.residual}
            told = {n: b.ops.where(b.ops.isnan(v), float("inf"), v) for n, v in lost.items()}
            return {**told, "by_newton": found.by_newton}

        return context.device(measure, self.name)

    def warnings(self, values: dict[str, np.ndarray]) -> list[str]:
        """What is wrong with the map at these data, in words."""
        sharp, residual = values["estimate"], values["residual"]
        found, num = [], len(sharp)
        if (high := int((sharp >= self.limit).sum())) > 0:
            found.append(
                f"|eta lambda| reaches {sharp.max():.3g} and is {self.limit:g} or more along the "
                f"paths of {high} of {num} data, expected less: the map of a step may fold there, "
                f"and series of its log determinant diverge; {CURE}."
            )
        if (lost := int((residual > 1e-3).sum())) > 0:
            found.append(
                f"of {lost} of {num} data a step could not be taken back (residual up to "
                f"{residual.max():.2g}), so that their log q is NaN or wrong; raise num_iterations "
                f"and num_newton, or {CURE}."
            )
        if num and not sharp.any():
            found.append(
                "the energy has no curvature at any of the data: of an energy made of rectifiers, "
                "whose second derivatives read 0, no density here is right."
            )
        return found
