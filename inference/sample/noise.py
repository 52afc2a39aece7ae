"""Noise space as a declaration, and the variant of it that VAEBM's released sampler climbs.

With eps ~ N(0, I), z = T(eps), x = T(eps) and a tilt E, the density of the noise is

    log h(eps) = log N(eps; 0, I) - E(x(eps)) + constant = -U(eps)

since the determinant of T, prod s_i prod sigma, cancels the base's own density. The released code
climbs log p(z) + log p(x | z) - E(x) at z(eps), x(eps) in its place: see `Noise`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from probgen.engine.bound import Bound
from probgen.engine.spaces import model_target, total
from probgen.engine.target import Target
from probgen.errors import AlgorithmError
from probgen.language.declared import declaration
from probgen.language.kinds import Text

Array = Any
FLOOR = math.exp(-2.0) + 0.01  # sigma = exp(.) + 0.01 with its logarithm floored at -2
LIMIT = 1.0  # data are clamped to [-LIMIT, LIMIT]


@declaration
class Noise:
    """The space of standard normal noise, as `space="noise"`, or as VAEBM's released code has it.

    Args:
        as_released: climb what the released sampler climbs, to compare with its numbers. It leaves
            out the Jacobian of the noise, so that its potential is U plus the sum of all log scales
            of latents and data; in log p(x | z) alone the scale of the data is floored at
            exp(-2) + 0.01; and x is clamped to [-1, 1] before the energy and that density. With
            E = 0 it does not keep N(0, I), which U does; at the published settings (16 steps of
            4e-5) the difference is not seen.
        data: the site of x, a Normal, whose scale is floored and whose value is clamped.

    Raises (when bound): AlgorithmError: as for `space="noise"`; no such site, or no Normal.

    Source: Xiao et al. 2021, arXiv:2010.00654, appendix, and its published code for the variant.
    """

    as_released: bool = False
    data: Text = dataclasses.field(default="x", kw_only=True)

    name = "noise"

    def note(self) -> str:
        """What the chains climb."""
        if not self.as_released:
            return "in noise space, log N(eps; 0, I) and the factors"
        return (
            "in noise space as VAEBM's released sampler: without the Jacobian of the noise, the "
            f"scale of {self.data!r} in its log density not below {FLOOR:.3f}, {self.data!r} "
            "clamped to [-1, 1]; not the model's density"
        )

    def target(self, bound: Bound) -> Target:
        """What chains climb."""
        exact = model_target(bound, "noise")
        if not self.as_released:
            return exact
        site = bound.structure.sites.get(self.data)
        if site is None or site.family != "Normal":
            got = "no such site" if site is None else site.distribution
            raise AlgorithmError(
                f"Noise(as_released=True): got {got} for the data {self.data!r} of "
                f"{bound.model.name!r}, expected a Normal, whose scale the released sampler "
                "floors; name the site by data=, or leave as_released out."
            )
        log_density = self._released(bound, exact.names)
        return exact._replace(log_density=log_density, is_normalized=False, terms=_no_terms)

    def _released(self, bound: Bound, names: tuple[str, ...]) -> Any:
        b, ops = bound.backend, bound.backend.ops

        def log_density(eps: Mapping, params: Mapping, batch: Mapping) -> Array:
            size = next(iter(eps.values())).shape[0]
            drawn = bound.trace(params, batch, noise=eps, batch_size=size, condition=False)
            values = {n: drawn[n].value for n in names}
            values[self.data] = ops.clip(values[self.data], -LIMIT, LIMIT)
            sites = bound.trace(params, batch, values, batch_size=size, condition=False)
            mean, sigma = b.gaussian(sites[self.data].fn)  # type: ignore[misc]
            sigma = ops.maximum(sigma, ops.full_like(sigma, FLOOR))
            at = (values[self.data] - mean) / sigma
            normal = -0.5 * at * at - ops.log(sigma) - 0.5 * math.log(2.0 * math.pi)
            of_data = ops.sum(ops.reshape(normal, (size, -1)), axis=-1)
            return of_data + total(sites, leave=[self.data])

        return log_density


def _no_terms(x: Any, params: Any, batch: Any) -> Any:
    raise AlgorithmError(
        "Noise(as_released=True): got it to anneal, expected a target that starts at a density "
        "which can be drawn from; leave as_released out."
    )
