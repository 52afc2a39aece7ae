"""A bound on log p~(x) of models with factors and latents, such as a tilted VAE: nats + constant.

For p(x, z) = p_0(x, z) f(x, z) / Z with f the factors and a guide q,

    log p(x) + log Z = log int p_0(x, z) f(x, z) dz >= E_q[log (p_0 f / q)]      (and IWAE alike)

so that the base's own bound with the factors among its weights bounds log p(x) up to log Z, which
is one number for all data: differences between data, and AUROCs, need no more. It is no
log-likelihood; with `log_partition`'s log Z it would become a bound on one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from probgen.engine.bound import Bound
from probgen.errors import AlgorithmError
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
    direction = "lower, up to a constant"

    @property
    def name(self) -> str:
        return f"{self.base.name} + factors (unnormalised)"

    @property
    def noise_name(self) -> str:
        """Its draws are the base's."""
        return self.base.name

    def bind_measure(self, bound: Bound) -> Callable:
        """The base's measure with every factor in its weights."""
        nowhere = [n for n in bound.observed if n in bound.structure.improper]
        if nowhere:
            raise AlgorithmError(
                f"{self.name}: the data {nowhere} have no density under {bound.model.name!r}, not "
                "even up to a constant, expected a likelihood of them; tilt the model's samples "
                'and not its means, Tilted(base, energy, through="sample").'
            )
        return self.base.bind_measure(dataclasses.replace(bound, is_up_to_constant=True))

    def finish(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As the base ends its own."""
        return self._of_base("finish", values, values)

    def settle(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As the base does, of all data together."""
        return self._of_base("settle", values, values)

    def warnings(self, values: dict[str, np.ndarray]) -> list[str]:
        """The base's."""
        return self._of_base("warnings", values, [])

    def _of_base(self, hook: str, values: Any, otherwise: Any) -> Any:
        found = getattr(self.base, hook, None)
        return otherwise if found is None else found(values)
