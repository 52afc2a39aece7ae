"""Log-likelihoods of unnormalised models: log p~(x), and log p~(x) - log Z with log Z's error.

Without latents log p~ is a sum of the program's terms, and exact. With latents it is an integral
over them, of which `UnnormalizedBound` knows a bound; the base of `EnergyLogLikelihood` says which.
Where the data have no density at all (a tilt of decoder means) both refuse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.measure import EvaluationContext, Function, Values, short_mark
from probgen.engine.spaces import total
from probgen.errors import AlgorithmError
from probgen.inference.likelihood.importance import IWAE
from probgen.inference.likelihood.partition import LogPartition
from probgen.inference.likelihood.unnormalized import UnnormalizedBound
from probgen.inference.objectives.elbo import ELBO
from probgen.language.declared import declaration

Array = Any


@declaration
class UnnormalizedLogDensity:
    """log p~(x), known up to a constant: -E(x) and what else the density has. No likelihood.

    Raises (when bound): AlgorithmError: latents that the data do not give, or a global site.
    """

    unit = "nats + constant"
    larger_is_stranger = False
    direction = "exact up to a constant"
    name = "log p~ (unnormalised)"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> estimates."""
        bound = context.bound
        log_density = _density(bound, self.name)

        def measure(params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
            value = log_density(params, batch)
            return {"estimate": value, "standard_error": bound.backend.ops.zeros_like(value)}

        return context.device(measure, self.name)


@declaration
class EnergyLogLikelihood:
    """log p~(x) - log Z_hat, nats: the log-likelihood of a model known up to its constant.

    Args:
        log_z: what `log_partition` gave for the same model and parameters.
        base: `IWAE(K)` or `ELBO(K)`, by which latents are integrated out; None for a model without.

    Without latents log p~ is exact: the estimate is an upper one where log Z is estimated from
    below (AIS, importance sampling), log p(x) is below `upper_bound` in 95 % of cases, and above
    `lower_bound` where log Z is bounded from above. With latents log p~ is bounded from below, so
    that the estimate is a lower one only where log Z is no estimate from below (quadrature), and
    else on neither side: a warning says so. `lower_bound` holds where log Z is bounded from above.

    `standard_error` has that of log Z over runs in it, one and the same for all data: it does not
    average out, and the table's mean and its Monte Carlo error know that (`shared_error`).

    Raises (when bound): AlgorithmError: latents and no base, data without a density (a tilt of
    decoder means), and as for `UnnormalizedLogDensity` and `UnnormalizedBound`.
    """

    log_z: LogPartition
    base: IWAE | ELBO | None = None

    unit = "nats"
    larger_is_stranger = False
    shared_error = True

    @property
    def direction(self) -> str:
        """On which side of log p(x) the estimate is, in expectation."""
        if self.base is not None:
            return "neither" if "lower" in self.log_z.direction else "lower"
        return "upper, stochastic" if "lower" in self.log_z.direction else self.log_z.direction

    @property
    def name(self) -> str:
        # Two estimates of one method differ, and their text has log Z rounded.
        mark = short_mark(
            *(float(v).hex() for v in (self.log_z.estimate, self.log_z.standard_error))
        )
        of = "log p~" if self.base is None else f"{self.base.name} + factors"
        return f"{of} - log Z by {self.log_z.method.name} {mark}"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> estimates."""
        bound = context.bound
        bound.require_density_of_data(self.name)
        if self.base is not None:
            inner = context.function(UnnormalizedBound(self.base))
            return lambda rows, ids: self._less_log_z(inner(rows, ids))
        if bound.latents:
            raise AlgorithmError(
                f"{self.name}: {bound.model.name!r} has the latents {list(bound.latents)}, over "
                "which the density of a datum is an integral, expected a base that bounds it: "
                "EnergyLogLikelihood(log_z, IWAE(1000)); or give their values as data."
            )
        log_density = _density(bound, self.name)

        def measure(params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
            return {"estimate": log_density(params, batch)}

        own = context.device(measure, self.name)
        return lambda rows, ids: self._less_log_z(_exact(own(rows, ids)))

    def _less_log_z(self, values: Values) -> Values:
        """log p~ and what is known of it, with log Z and what is known of that."""
        z = self.log_z
        out = {**values, "estimate": np.asarray(values["estimate"], np.float64) - z.estimate}
        if "standard_error" in values:
            out["standard_error"] = np.hypot(values["standard_error"], z.standard_error)
        limits = {"lower_bound": z.upper_bound, "upper_bound": z.lower_bound}
        for name, limit in limits.items():
            if name in values and math.isfinite(limit):
                out[name] = np.asarray(values[name], np.float64) - limit
            else:
                out.pop(name, None)
        return out

    def settle(self, values: Values) -> Values:
        """As the base does, of all data together."""
        found = getattr(self.base, "settle", None)
        return values if found is None else found(values)

    def warnings(self, values: Values) -> list[str]:
        """Those of log Z and of the base, and where the estimate is a bound on neither side."""
        said = [f"log Z: {text}" for text in self.log_z.warnings]
        if self.base is not None and self.direction == "neither":
            said.append(
                "a bound on neither side: the guide's bound is below log p~, and so is the "
                f"estimate of log Z by {self.log_z.method.name} in expectation, which is "
                "subtracted; Quadrature() bounds log Z on both sides where there are one or two "
                "numbers."
            )
        found = getattr(self.base, "warnings", None)
        return said if found is None or "lower_bound" not in values else said + found(values)


def _exact(values: Values) -> Values:
    """log p~ that is known without error: its own bound on both sides."""
    x = np.asarray(values["estimate"], np.float64)
    return {
        "estimate": x, "standard_error": np.zeros_like(x), "lower_bound": x, "upper_bound": x
    }  # fmt: skip


def _density(bound: Bound, who: str) -> Callable:
    """(params, batch) -> log p~ of each datum, [batch]."""
    bound.require_density_of_data(who)
    if bound.latents:
        raise AlgorithmError(
            f"{who}: {bound.model.name!r} has the latents {list(bound.latents)}, expected none: "
            "the density of a datum is an integral over them; UnnormalizedBound(IWAE(1000)) bounds "
            "it, or give their values as data."
        )
    shared = [
        n for n, s in bound.structure.sites.items() if s.kind != "deterministic" and not s.is_local
    ]
    if shared:
        raise AlgorithmError(
            f"{who}: the sites {shared} of {bound.model.name!r} lie outside the data plate, "
            "expected local ones, since the density is one datum's."
        )
    return lambda params, batch: total(bound.trace(params, batch))
