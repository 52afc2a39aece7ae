"""The path from a model without its factors to the model, as a space of chains.

    log f_b(eps) = log N(eps; 0, I) + b sum of factors at x(eps),    b from 0 to 1

At b = 0 it is the base, at 1 the tilted model; between them lie the densities that AIS walks
through. Of a tilt by an energy, f_b is the tilt by b E. What a chain does there shows where a walk
gets stuck, and draws for small b are what an energy too steep for chains still allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probgen.engine.bound import Bound
from probgen.engine.spaces import model_target
from probgen.engine.target import Target
from probgen.language.declared import declaration
from probgen.language.kinds import Share

Array = Any


@declaration
class AnnealingPath:
    """A point of the path from the base to the model, in the space of its standard normal noise.

        log f_b(eps) = log N(eps; 0, I) + b sum of factors at x(eps)

    A space for `generate` and `MaximumLikelihood`; `target(bound)` is its `Target`, in nats.

    Args:
        fraction: b; 0 is the base, the model without its factors, 1 is `space="noise"`.

    Raises (when bound): AlgorithmError: as for `space="noise"`.

    Source: the path of Neal 2001, Statistics and Computing 11.
    """

    fraction: Share

    name = "noise"

    def note(self) -> str:
        """What the chains climb."""
        law = {0.0: "the base's law", 1.0: "the model's"}.get(self.fraction, "neither's law")
        return f"in noise space, log N(eps; 0, I) and {self.fraction:g} of the factors: {law}"

    def target(self, bound: Bound) -> Target:
        """What chains climb."""
        whole = model_target(bound, "noise")

        def terms(eps: Mapping, params: Mapping, batch: Mapping) -> tuple[Array, Array]:
            normal, factors = whole.terms(eps, params, batch)
            return normal, self.fraction * factors

        def log_density(eps: Mapping, params: Mapping, batch: Mapping) -> Array:
            return sum(terms(eps, params, batch))

        is_normalized = whole.is_normalized or self.fraction == 0.0
        return whole._replace(log_density=log_density, terms=terms, is_normalized=is_normalized)
