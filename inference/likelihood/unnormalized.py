"""A bound on log p~(x) of models with factors and latents, such as a tilted VAE: nats + constant.

For p(x, z) = p_0(x, z) f(x, z) / Z with f the factors and a guide q,

    log p(x) + log Z = log int p_0(x, z) f(x, z) dz >= E_q[log (p_0 f / q)]      (and IWAE alike)

so that the base's own bound with the factors among its weights bounds log p(x) up to log Z, which
is one number for all data: differences between data, and AUROCs, need no more. It is no
log-likelihood; `EnergyLogLikelihood(log_z, IWAE(K))` takes `log_partition`'s log Z off it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from probgen.engine.measure import EvaluationContext, Function
from probgen.inference.likelihood.guide_terms import AT_ONCE, guide_terms, weights_of
from probgen.inference.likelihood.importance import IWAE
from probgen.inference.objectives.elbo import ELBO
from probgen.language.declared import declaration


@declaration
class UnnormalizedBound:
    """The base's bound with the model's factors, log p(x) + log Z from below.

    Its draws are those of the base of the same name, so that where a factor reads x alone the
    estimate is the base's own for the untilted model, less the energy, to rounding.

    Args:
        base: `IWAE(K)` or `ELBO(K)`, by which the latents are integrated out.

    Raises (when bound): AlgorithmError: no guide, latents outside the data plate, or data without
        a density (a tilt of decoder means).

    Source: Xiao et al. 2021, arXiv:2010.00654, section 3 (the tilted VAE).
    """

    base: IWAE | ELBO

    unit = "nats + constant"
    larger_is_stranger = False
    takes_one_value = True
    direction = "lower, up to a constant"

    @property
    def name(self) -> str:
        return f"{self.base.name} + factors (unnormalised)"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """The base's measure with every factor in its weights."""
        bound = context.bound
        bound.require_density_of_data(self.name)
        base: Any = self.base
        at_once = getattr(base, "particles_at_once", AT_ONCE)
        terms = guide_terms(context, base.name, base.num_particles, at_once, up_to_constant=True)
        return lambda rows, ids: base.of_weights(weights_of(terms(rows, ids)))

    def settle(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As the base does, of all data together."""
        return self._of_base("settle", values, values)

    def warnings(self, values: dict[str, np.ndarray]) -> list[str]:
        """The base's."""
        return self._of_base("warnings", values, [])

    def _of_base(self, hook: str, values: Any, otherwise: Any) -> Any:
        found = getattr(self.base, hook, None)
        return otherwise if found is None else found(values)
