"""The constant of a density that is known up to one: log Z of energies, by annealing.

    p(x) = p~(x) / Z,    f_b = p_0(x)^(1-b) p~(x)^b,    log Z_hat = log (1/C) sum_c w_c

E[Z_hat] = Z, so E[log Z_hat] <= log Z and log p~(x) - log Z_hat overstates the log-likelihood: it
is an upper estimate. A reverse run from samples of a long chain gives an estimate from the other
side, approximate only, since exact samples do not exist.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.batches import merge_inputs
from probgen.engine.bound import Bound
from probgen.engine.fitted import AnyFitted
from probgen.engine.measure import EvaluationContext, Function, short_mark
from probgen.engine.spaces import model_target, total
from probgen.engine.target import Target
from probgen.errors import AlgorithmError, DataError, NonFiniteError, ShapeError
from probgen.inference.likelihood.ais import AIS, in_double, summary
from probgen.inference.likelihood.annealing import Annealer
from probgen.inference.likelihood.interval import lower_limit
from probgen.language.declared import checked, declaration
from probgen.language.kinds import Inputs, Positive, Rule
from probgen.language.seeds import check_seed

Array = Any


@declaration(eq=False)
class Gaussian:
    """A start for annealing: independent normals of these locations and scales, by site.

    It must cover the support: where p~ has mass and the start has none, no chain will look.
    `Gaussian.covering(x)` takes them from data, the scale made wider.
    """

    loc: float | np.ndarray
    scale: Positive | Annotated[np.ndarray, Rule("above 0", lambda v: (v > 0).all())]

    @classmethod
    def covering(cls, data: Any, *, widen: float = 1.5) -> Gaussian:
        """Mean and `widen` times the standard deviation of data [n, *event], value by value.

        Values that never vary get the largest deviation of all.
        """
        x = np.asarray(data, np.float64)
        if x.ndim < 1 or len(x) < 2 or not np.isfinite(x).all():
            raise DataError(
                f"Gaussian.covering: got data of shape {x.shape}, expected [n, *event] of at least "
                "two finite data."
            )
        scale = x.std(axis=0)
        if not scale.max() > 0:
            raise DataError(
                "Gaussian.covering: got data that are all equal, expected some spread; give loc "
                "and scale."
            )
        return cls(x.mean(axis=0), widen * np.where(scale > 0, scale, scale.max()))


@dataclasses.dataclass(frozen=True)
class LogPartition:
    """An estimate of log Z, nats.

    Attributes:
        estimate: a lower bound in expectation.
        standard_error: over chains, how far another run would land; estimate +- 1.96 of it is no
            interval for log Z, which chains that all miss a region do not see.
        effective_chains: of the forward weights, of `num_chains`.
        acceptance_rate: mean over the run.
        reverse, reverse_error: from the other side, approximate; None without samples.
        start: the density that the path leaves from.
    """

    estimate: float
    standard_error: float
    effective_chains: float
    acceptance_rate: float
    num_chains: int
    start: str
    method: AIS
    reverse: float | None = None
    reverse_error: float | None = None
    info: dict[str, Any] = dataclasses.field(default_factory=dict)

    unit = "nats"
    direction = "lower, stochastic"

    @property
    def lower_bound(self) -> float:
        """What log Z is above in 95 % of cases (`interval.lower_limit`)."""
        return self.estimate + float(lower_limit(self.standard_error, self.num_chains))

    def to_dict(self) -> dict[str, Any]:
        """Numbers and text only, for JSON."""
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        told = {"lower_bound": self.lower_bound, "unit": self.unit, "direction": self.direction}
        return {**kept, "method": self.method.name, **told}

    def __repr__(self) -> str:
        text = (
            f"log Z >= {self.lower_bound:.4f} nats in 95 % of cases; estimate {self.estimate:.4f}, "
            f"a lower bound in expectation, runs differ by {self.standard_error:.4f} "
            f"({self.method.name} from {self.start}; {self.effective_chains:.1f} of "
            f"{self.num_chains} chains carry the weight)"
        )
        if self.reverse is None:
            return text
        return (
            text
            + f"\nreverse {self.reverse:.4f}, runs differ by {self.reverse_error:.4f} (approximate)"
        )


@checked
def log_partition(
    fitted: AnyFitted,
    method: AIS | None = None,
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
        fitted: the model; all its sites local and continuous.
        method: how to anneal; `start` does not matter here.
        base: where the path starts, in data space, for a model with one site; None starts at the
            model's own distributions without the factors, in noise space, which needs them to be
            normal. Two starts that differ should agree within their errors: neither proves that it
            covers the support.
        inputs: what the program conditions on, one value for all chains, in place of the fit's
            constants: the log Z is that of this value.
        samples: [>= num_chains, *event] samples of a long chain on the density, for the reverse
            estimate; with `base` only.
        seed: an integer.

    Raises:
        MissingSeed; DataError: inputs that the program does not take; AlgorithmError: a normalised
        model, a discrete or global site, a start that does not fit; ShapeError: samples of another
        shape; NonFiniteError: log Z is not finite.

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
    path = _noise_path(bound) if base is None else _data_path(bound, base)
    annealer = Annealer(b, path, method.settings)
    chains = _reverse_start(bound, base, samples, method.num_chains)

    def run(params: Any, key: Any, chains: Any) -> tuple:
        k_pilot, k_forward, k_reverse = b.split(key, 3)
        table = annealer.step_sizes(params, {}, k_pilot)
        forward = annealer.forward(params, {}, k_forward, table)._asdict()
        if chains is None:
            return forward, None
        return forward, annealer.reverse(params, {}, k_reverse, table, chains)._asdict()

    forward, back = b.tree_map(b.to_numpy, b.loop(run)(params, b.key(seed), chains))
    out = summary(in_double(forward["log_w"], forward["log_w_rest"]))
    estimate = {k: float(v[0]) for k, v in out.items()}
    if not math.isfinite(estimate["estimate"]):
        raise NonFiniteError(
            f"log_partition: got log Z = {estimate['estimate']} for {fitted.model.name!r}, "
            "expected a number; look at its parameters for NaN, and whether the start covers the "
            "support."
        )
    reverse: dict[str, float] = {}
    if back is not None:
        high = summary(in_double(back["log_w"], back["log_w_rest"]))
        reverse = {
            "reverse": -float(high["estimate"][0]),
            "reverse_error": float(high["standard_error"][0]),
        }
    return LogPartition(
        **estimate, acceptance_rate=float(forward["acceptance_rate"][0]),
        num_chains=method.num_chains, method=method, **reverse,
        start="the model without its factors" if base is None else "a Gaussian",
        info={"backend": b.name, "seed": seed, **b.info()},
    )  # fmt: skip


def _noise_path(bound: Bound) -> Target:
    """From N(eps; 0, I) to N(eps; 0, I) exp(factors at x(eps)); Z_0 = 1."""
    space = model_target(bound, "noise")
    return _of_one_datum(space, space.init, space.terms)


def _of_one_datum(space: Target, init: Callable, terms: Callable) -> Target:
    """A path of a target whose chains belong to no datum: positions [chains, 1, *event]."""

    def out(x: Mapping) -> dict:
        return {n: v[:, 0] for n, v in x.items()}

    def begin(params: Mapping, batch: Mapping, key: Any, num_chains: int) -> dict:
        return {n: v[:, None] for n, v in init(params, batch, key, num_chains).items()}

    def both(u: Mapping, params: Mapping, batch: Mapping) -> tuple[Array, Array]:
        start, delta = terms(out(u), params, batch)
        return start[:, None], delta[:, None]

    return Target(
        space.names, begin, lambda *at: sum(both(*at)), None,
        lambda u, params, batch: space.values(out(u), params, batch), False, terms=both,
    )  # fmt: skip


def _data_path(bound: Bound, base: Gaussian) -> Target:
    """From a Gaussian p_0(x) to the density itself, in data space."""
    b, ops = bound.backend, bound.backend.ops
    space = model_target(bound, "data")
    if len(space.names) != 1:
        raise AlgorithmError(
            f"log_partition: {bound.model.name!r} has the sites {list(space.names)}, expected one "
            "where a base is given; leave the base out, to start at the model without its factors."
        )
    (name,) = space.names
    site = bound.structure.sites[name]
    if "Real" not in site.support:
        raise AlgorithmError(
            f"log_partition: site {name!r} has the support {site.mass}, expected the real line, "
            "where a Gaussian lives; leave the base out, or declare the energy over a Normal."
        )
    try:
        loc = np.broadcast_to(np.asarray(base.loc, np.float64), site.event_shape)
        scale = np.broadcast_to(np.asarray(base.scale, np.float64), site.event_shape)
    except ValueError as error:
        raise ShapeError(
            f"log_partition: got a base of loc {np.shape(base.loc)} and scale "
            f"{np.shape(base.scale)}, expected numbers or shapes that broadcast to a datum's, "
            f"{site.event_shape}."
        ) from error
    constant = -float(np.log(scale).sum()) - 0.5 * loc.size * math.log(2.0 * math.pi)
    where, width = b.asarray(loc.copy()), b.asarray(scale.copy())

    def init(params: Mapping, batch: Mapping, key: Any, num_chains: int) -> dict:
        return {name: where + width * b.normal(key, (num_chains, *site.event_shape))}

    def terms(x: Mapping, params: Mapping, batch: Mapping) -> tuple[Array, Array]:
        eps = (x[name] - where) / width
        start = constant - 0.5 * ops.sum(ops.reshape(eps * eps, (eps.shape[0], -1)), axis=-1)
        return start, space.log_density(x, params, batch) - start  # type: ignore[misc]

    return _of_one_datum(space, init, terms)


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
    """log p~(x) - log Z_hat, an upper estimate: E[log Z_hat] <= log Z.

    Args:
        log_z: what `log_partition` gave for the same model and parameters.

    `standard_error` is that of log Z over runs, one and the same for all data: it does not average
    out, and the table's mean and its Monte Carlo error know that (`shared_error`). log p(x) is
    below `upper_bound` in 95 % of cases.

    Raises (when bound): as for `UnnormalizedLogDensity`.
    """

    log_z: LogPartition

    unit = "nats"
    larger_is_stranger = False
    direction = "upper, stochastic"
    shared_error = True

    @property
    def name(self) -> str:
        # Two estimates of one method differ, and their text has log Z rounded.
        mark = short_mark(
            *(float(v).hex() for v in (self.log_z.estimate, self.log_z.standard_error))
        )
        return f"log p~ - log Z by {self.log_z.method.name} {mark}"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> estimates."""
        bound = context.bound
        log_density = _density(bound, self.name)
        log_z, error = self.log_z.estimate, self.log_z.standard_error
        least = self.log_z.lower_bound

        def measure(params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
            value = log_density(params, batch)
            spread = bound.backend.ops.full_like(value, error)
            return {
                "estimate": value - log_z, "standard_error": spread, "upper_bound": value - least
            }  # fmt: skip

        return context.device(measure, self.name)


def _density(bound: Bound, who: str) -> Callable:
    """(params, batch) -> log p~ of each datum, [batch]."""
    if bound.latents:
        raise AlgorithmError(
            f"{who}: {bound.model.name!r} has the latents {list(bound.latents)}, expected none: "
            "the density of a datum is an integral over them; give their values as data."
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
