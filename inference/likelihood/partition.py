"""The constant of a density that is known up to one: log Z of energies, each with its error.

    p(x) = p~(x) / Z,    f_b = p_0(x)^(1-b) p~(x)^b,    log Z_hat = log (1/C) sum_c w_c

By annealing (`AIS`), by importance sampling from the base, or by quadrature in one and two
dimensions. Of the first two E[Z_hat] = Z, so E[log Z_hat] <= log Z and log p~(x) - log Z_hat
overstates the log-likelihood: it is an upper estimate. A reverse run of AIS from samples of a long
chain gives an estimate from the other side, approximate only, since exact samples do not exist.
"""

from __future__ import annotations

import dataclasses
import math
import warnings as python_warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.batches import merge_inputs
from probgen.engine.bound import Bound
from probgen.engine.fitted import AnyFitted
from probgen.engine.spaces import model_target
from probgen.errors import AlgorithmError, DataError, NonFiniteError, ShapeError
from probgen.inference.learn.negative import ImportanceSampling
from probgen.inference.likelihood.ais import AIS, in_double, summary
from probgen.inference.likelihood.annealing import Annealer
from probgen.inference.likelihood.interval import lower_limit
from probgen.inference.likelihood.partition_methods import Quadrature, by_importance
from probgen.inference.likelihood.partition_paths import Gaussian, path_of
from probgen.language.declared import checked
from probgen.language.kinds import Inputs
from probgen.language.seeds import check_seed

AnyPartitionMethod = AIS | ImportanceSampling | Quadrature


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogPartition:
    """An estimate of log Z, nats.

    Attributes:
        estimate: of AIS and importance sampling a lower bound in expectation; of quadrature log Z
            but for the grid's error.
        standard_error: how far another run would land, or the grid's error; estimate +- 1.96 of it
            is no interval for log Z where chains or draws all miss a region: they do not see it.
        method: what ran. start: the density that the path, or the weights, leave from.
        num_weights: chains, draws or points of the grid.
        lower_bound, upper_bound: what log Z is above, and below, in 95 % of cases; no upper one
            (inf) where the tail of the weights does not allow any.
        effective_share: (sum w)^2 / (n sum w^2), the share of chains or draws that carry the
            weight; khat: the Pareto shape of the largest weights of importance sampling.
        acceptance_rate: of AIS, mean over the run.
        reverse, reverse_error: of AIS from the other side, approximate; None without samples.
        warnings: what speaks against the estimate.
    """

    estimate: float
    standard_error: float
    method: AnyPartitionMethod
    start: str
    num_weights: int
    lower_bound: float
    upper_bound: float = math.inf
    effective_share: float | None = None
    khat: float | None = None
    acceptance_rate: float | None = None
    reverse: float | None = None
    reverse_error: float | None = None
    warnings: tuple[str, ...] = ()
    info: dict[str, Any] = dataclasses.field(default_factory=dict)

    unit = "nats"

    @property
    def direction(self) -> str:
        """Which side of log Z the estimate is on."""
        return self.method.direction

    def to_dict(self) -> dict[str, Any]:
        """Numbers and text only, for JSON; None where there is no upper bound."""
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        high = self.upper_bound if math.isfinite(self.upper_bound) else None
        told = {"upper_bound": high, "unit": self.unit, "direction": self.direction}
        return {**kept, "warnings": list(self.warnings), "method": self.method.name, **told}

    def __repr__(self) -> str:
        return "\n".join(
            [self._said(), *self._reverse(), *(f"warning: {w}" for w in self.warnings)]
        )

    def _said(self) -> str:
        if self.effective_share is None:
            return (
                f"log Z = {self.estimate:.4f} +- {self.standard_error:.1g} nats ({self.method.name}"
                f" from {self.start})"
            )
        many = self.effective_share * self.num_weights
        tail = "" if self.khat is None else f", k-hat {self.khat:.2f}"
        return (
            f"log Z >= {self.lower_bound:.4f} nats in 95 % of cases; estimate {self.estimate:.4f}, "
            f"a lower bound in expectation, runs differ by {self.standard_error:.4f} "
            f"({self.method.name} from {self.start}; {many:.1f} of {self.num_weights:,} carry the "
            f"weight{tail})"
        )

    def _reverse(self) -> list[str]:
        if self.reverse is None:
            return []
        said = f"reverse {self.reverse:.4f}, runs differ by {self.reverse_error:.4f} (approximate)"
        return [said]


def annealed(found: Mapping[str, float], num_chains: int) -> dict[str, Any]:
    """`summary` of the weights of AIS under the names of `LogPartition`."""
    error = found["standard_error"]
    return {
        "estimate": found["estimate"], "standard_error": error, "num_weights": num_chains,
        "effective_share": found["effective_chains"] / num_chains,
        "lower_bound": found["estimate"] + float(lower_limit(error, num_chains)),
    }  # fmt: skip


@checked
def log_partition(
    fitted: AnyFitted,
    method: AnyPartitionMethod | None = None,
    *,
    base: Gaussian | None = None,
    inputs: Inputs = None,
    seed: int | None = None,
    samples: Any = None,
    backend: str | Backend = "auto",
    device: str = "auto",
) -> LogPartition:
    """Estimates log Z of a density that is known up to a constant, such as EBM or Tilted.

    Z is that of exp(sum of all sites and factors), latents included: of a tilted generator it is
    the mean of exp(-E(x)) under the generator.

    Args:
        fitted: the model; all its sites local, and continuous but for `ImportanceSampling`.
        method: `AIS()`, how to anneal (`start` does not matter here), the default, for any
            dimension; `ImportanceSampling(100_000)` from the base, while its effective share is not
            small; `Quadrature()`, over one or two numbers.
        base: where the path starts, in data space, for a model with one site; None starts at the
            model's own distributions without the factors (in noise space, which needs them to be
            functions of normal noise, but for `ImportanceSampling`). Two starts that differ should
            agree within their errors: neither proves that it covers the support.
        inputs: what the program conditions on, one value for all chains, in place of the fit's
            constants: the log Z is that of this value.
        samples: [>= num_chains, *event] samples of a long chain on the density, for the reverse
            estimate of AIS; with `base` only.
        seed: an integer.

    Warns: the weights have collapsed, or mass lies beyond the grid (`LogPartition.warnings`).

    Raises:
        MissingSeed; DataError: inputs that the program does not take; AlgorithmError: a normalised
        model, a discrete or global site, a start that does not fit, more than two numbers by
        quadrature; ShapeError: samples of another shape; NonFiniteError: log Z is not finite.

    Sources: Neal 2001; for the reverse, Burda, Grosse & Salakhutdinov 2015, arXiv:1412.8566.
    """
    method = AIS() if method is None else method
    seed = check_seed(seed, "log_partition")
    b = fitted.resolve(backend, device)
    constants, _ = merge_inputs(fitted.model, {}, inputs, size=-1)
    bound, params = fitted.bind(b, constants=constants)
    if bound.is_normalized:
        raise AlgorithmError(
            f"log_partition: {fitted.model.name!r} is normalised, expected a density known up to a "
            "constant; its log Z is 0."
        )
    given = (bound, params, base, b.key(seed), samples)
    if isinstance(method, AIS):
        found = _anneal(method, *given)
    elif isinstance(method, Quadrature):
        found = method.estimate(*given)
    else:
        found = by_importance(method, *given)
    if not math.isfinite(found["estimate"]):
        raise NonFiniteError(
            f"log_partition: got log Z = {found['estimate']} for {fitted.model.name!r}, "
            "expected a number; look at its parameters for NaN, and whether the start covers the "
            "support."
        )
    for text in found.get("warnings", ()):
        python_warnings.warn(f"log_partition: {text}", stacklevel=3)
    return LogPartition(
        **found, method=method,
        start="the model without its factors" if base is None else "a Gaussian",
        info={"backend": b.name, "seed": seed, **b.info()},
    )  # fmt: skip


def _anneal(
    method: AIS, bound: Bound, params: Mapping, base: Gaussian | None, key: Any, samples: Any
) -> dict[str, Any]:
    b = bound.backend
    annealer = Annealer(b, path_of(bound, base), method.settings)
    chains = _reverse_start(bound, base, samples, method.num_chains)

    def run(params: Any, key: Any, chains: Any) -> tuple:
        k_pilot, k_forward, k_reverse = b.split(key, 3)
        table = annealer.step_sizes(params, {}, k_pilot)
        forward = annealer.forward(params, {}, k_forward, table)._asdict()
        if chains is None:
            return forward, None
        return forward, annealer.reverse(params, {}, k_reverse, table, chains)._asdict()

    forward, back = b.tree_map(b.to_numpy, b.compile(run, over="steps")(params, key, chains))
    out = annealed(_of_all(forward), method.num_chains)
    out["acceptance_rate"] = float(forward["acceptance_rate"][0])
    if back is not None:
        high = _of_all(back)
        out |= {"reverse": -high["estimate"], "reverse_error": high["standard_error"]}
    return out


def _of_all(weights: Mapping) -> dict[str, float]:
    found = summary(in_double(weights["log_w"], weights["log_w_rest"]))
    return {k: float(v[0]) for k, v in found.items()}


def _reverse_start(bound: Bound, base: Gaussian | None, samples: Any, num_chains: int) -> Any:
    if samples is None:
        return None
    if base is None:
        raise AlgorithmError(
            "log_partition: got samples without a base, expected base=Gaussian(...): noise cannot "
            "be read off samples of the data."
        )
    (name,) = model_target(bound, "data").names
    x = np.asarray(samples, np.float32)
    event = bound.structure.sites[name].event_shape
    if x.shape[1:] != event or len(x) < num_chains:
        raise ShapeError(
            f"log_partition: got samples of shape {x.shape}, expected at least {num_chains} (the "
            f"chains) of shape {event}."
        )
    if not np.isfinite(x).all():
        raise DataError("log_partition: got samples that are not finite, expected numbers.")
    return {name: bound.backend.asarray(x[:num_chains][:, None])}
