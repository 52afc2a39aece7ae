"""log p(x) of a diffusion model, by its probability-flow ODE.

A denoiser gives the score s(x, t) of the noised data at every noise level. The variance-preserving
forward process dx = -(beta/2) x dt + sqrt(beta) dW then has the same marginals as the ODE

    dx/dt = F(x, t) = -(beta/2) (x + s(x, t)),    log p(x_0) = log N(x_T; 0, I) + int div F dt.

`flow_field` has it in the time u = log(sigma / a). Fixed steps are uniform in u: measured on two
moons, 100 of them are within 3e-5 nats on data and .03 far from them (uniform in sqrt(t): 4e-5 and
.07). Adaptive ones are judged by what their errors cost log p (`adaptive_ode`).

Which density this is. The flow's own: of the state at the data's end when the state at the last
level is N(0, I). It is normalised exactly, whatever the network, and no bound. A DDPM chain of the
same network has another density; `DenoisingELBO` bounds that one.

Source: Song et al. 2021, arXiv:2011.13456, appendix D; probes: Hutchinson 1990, Grathwohl et al.
2019, arXiv:1810.01367.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.measure import EvaluationContext, Function
from probgen.errors import AlgorithmError
from probgen.inference.likelihood.adaptive_ode import (
    STAGES,
    Moving,
    adaptive_step,
    solve_adaptively,
)
from probgen.inference.likelihood.flow_field import Way, basis, flow_cost, flow_derivative, signs
from probgen.inference.likelihood.ode import rows_of, runge_kutta_step, solve
from probgen.language.capabilities import Denoises, embedded
from probgen.language.declared import declaration, require
from probgen.language.kinds import CountOrZero, Many, Positive, TwoOrMore
from probgen.language.model import capability

Array = Any
MAX_STEPS = 1000  # of the default, which a measure's name leaves out
SHARES = (0.25, 0.025, 0.0025)  # of the tolerance, that the solves may see as their errors


@declaration
class ProbabilityFlow:
    """log p(x) of a `Diffusion` by its probability-flow ODE: the model's own density, no bound.

    Args:
        num_steps: fixed steps of the Runge-Kutta solver, even; a second solve with half as many
            tells its error. None: 100, or as many as `tolerance` asks for.
        divergence: "exact", the trace by one backward pass a dimension; "hutchinson", the mean of
            v^T (dF/dx) v over probes v of +-1, each kept for the whole solve; "auto", exact up to
            `exact_up_to` dimensions.
        num_probes: of "hutchinson", at least 2, for the standard error.
        exact_up_to: dimensions of a datum for which the exact trace may be taken.
        tolerance: nats; adaptive steps in place of fixed ones, each datum's own. The errors that
            they see add up to a quarter of it; a second solve takes a tenth of that, a third, for
            data whose first two differ by more than the tolerance, a hundredth. Below about 1e-4
            nats a dimension single precision has the say.
        max_steps: adaptive steps in all; no step is shorter than two of so many parts of the way.
        guidance_scale: of classifier-free guidance: the density of the guided flow, which is not
            normalised over the condition; 1, the flow of log p(x | inputs).
        down_to: "data", or "lowest_noise" for the density at the schedule's first level, where
            nothing is extrapolated: that of the data blurred by its noise.

    Inputs of the program, such as a class, come with the data, and the estimate is log p(x given
    them).

    Gives per datum, nats: `estimate`; `standard_error`, sqrt(probe_error^2 + solver_error^2);
    `probe_error`, of the mean over probes, 0 for the exact trace; `solver_error`: of fixed steps
    |value at num_steps - value at num_steps / 2|, about 15 times the error of the former once the
    steps are short enough, so that the exact trace's interval is wide rather than none; of adaptive
    ones the difference of the last two solves, of which the finer is given, or, if larger, the
    errors that this one saw: at most the tolerance, unless the third was not enough or `max_steps`
    too few; `network_calls`, each of which costs a backward pass for each
    probe or dimension; `log_prior`, of the state at the flow's end, and `log_volume`, the integral
    of the divergence. Steps that run out leave NaN, which `evaluate` refuses. What lies between a
    schedule's levels is interpolated, which no error here tells: of 20 levels 5e-3 nats. For data
    quantised to levels this is a density still: log P(level) >= log p(level + uniform noise) -
    D log(levels in a unit of x).

    Raises (when bound): AlgorithmError: the model is no diffusion with a denoiser and a schedule of
    two levels at least; "exact" in more than `exact_up_to` dimensions.

    Source: Song et al. 2021, arXiv:2011.13456.
    """

    num_steps: TwoOrMore | None = None
    divergence: Literal["auto", "exact", "hutchinson"] = "auto"
    num_probes: TwoOrMore = 5
    exact_up_to: CountOrZero = 64
    down_to: Literal["data", "lowest_noise"] = "data"
    tolerance: Positive | None = None
    max_steps: Many = MAX_STEPS
    guidance_scale: float = 1.0

    unit = "nats"
    larger_is_stranger = False

    def __post_init__(self) -> None:
        chosen = self.num_steps is None or self.tolerance is None
        require(chosen, self, "one of the two: fixed steps or adaptive ones", "num_steps",
                "tolerance")  # fmt: skip
        more = self.steps + 1
        even = f"an even number, so that half of it tells the solver's error; {more}, say"
        require(self.steps % 2 == 0, self, even, "num_steps")

    @property
    def steps(self) -> int:
        """Fixed steps, where they are not adaptive."""
        return 100 if self.num_steps is None else self.num_steps

    @property
    def name(self) -> str:
        how = f"hutchinson({self.num_probes})" if self.divergence == "hutchinson" else "exact"
        if self.divergence == "auto":
            how = f"exact<={self.exact_up_to}, else hutchinson({self.num_probes})"
        to = str(self.steps)
        if self.tolerance is not None:
            to = f"to {self.tolerance} nats"
            to += "" if self.max_steps == MAX_STEPS else f" in {self.max_steps}"
        end = "" if self.down_to == "data" else f", {self.down_to}"
        if self.guidance_scale != 1.0:
            end += f", guidance {self.guidance_scale:g}"
        return f"ProbabilityFlow({to}, {how}{end})"

    def is_exact(self, dim: int) -> bool:
        """Whether data of `dim` numbers get the exact trace.

        Raises:
            AlgorithmError: "exact" is asked for in more than `exact_up_to` dimensions.
        """
        if self.divergence == "exact" and dim > self.exact_up_to:
            raise AlgorithmError(
                f"ProbabilityFlow: got divergence='exact' for data of {dim} dimensions, expected "
                f"at most {self.exact_up_to}, since each stage would take {dim} backward passes; "
                f"use divergence='hutchinson', or allow it with exact_up_to={dim}."
            )
        return self.divergence != "hutchinson" and dim <= self.exact_up_to

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> estimates, by a loop whose steps are compiled."""
        run = context.backend.compile(self.device_function(context.bound), over="steps")
        return context.device(run, self.name, is_compiled=True)

    def device_function(self, bound: Bound) -> Callable:
        """The measure for one model: (params, batch, key) -> estimates."""
        b, ops = bound.backend, bound.backend.ops
        model = require_diffusion(bound, "ProbabilityFlow")
        if model.schedule.num_train_timesteps < 2:
            raise AlgorithmError(
                f"ProbabilityFlow: the schedule of {model.name!r} has "
                f"{model.schedule.num_train_timesteps} noise level, expected two or more for a "
                "flow to lead from one to the other; train with a longer schedule."
            )
        dim = math.prod(model.shape)
        exact = self.is_exact(dim)
        count = 1 if exact else self.num_probes
        make = self._fixed if self.tolerance is None else self._adaptive
        log_p = _log_p(b.ops, dim)
        solved = make(bound, Way(model, self.down_to), exact, log_p)

        def measure(params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
            x = batch["x"]
            inputs = embedded(model, params, bound.program_inputs(batch), x)
            probes = basis(b, model.shape) if exact else signs(b, key, x, self.num_probes)
            zero = ops.zeros_like(ops.reshape(x, (x.shape[0], dim))[:, :1])
            start = {"x": x, "log_volume": ops.concatenate([zero] * count, axis=1)}
            end, told, calls = solved(start, params, probes, inputs)
            log_prior, volume = log_p(end)
            spread = zero[:, 0] if exact else ops.std(end["log_volume"], axis=1, ddof=1)
            by_probes = spread / math.sqrt(count)
            return {
                "estimate": log_prior + volume,
                "standard_error": ops.sqrt(by_probes * by_probes + told * told),
                "probe_error": by_probes,
                "solver_error": told,
                "network_calls": zero[:, 0] + calls,
                "log_prior": log_prior,
                "log_volume": volume,
            }

        return measure

    def _fixed(self, bound: Bound, way: Way, exact: bool, log_p: Callable) -> Callable:
        """(start, *args) -> (end, what half as many steps differ by, calls of the network)."""
        b = bound.backend
        tables = [rows_of(way.edges(n), way.coefficients) for n in (self.steps, self.steps // 2)]
        calls = sum(len(rows) for rows in tables)
        derivative = flow_derivative(bound, exact, self.guidance_scale)
        step = b.compile(runge_kutta_step(b, derivative), num_calls=calls * (bound.num_steps or 1))

        def solved(start: dict, *args: Any) -> tuple[dict, Array, int]:
            fine, coarse = (solve(b, step, start, rows, *args) for rows in tables)
            return fine, b.ops.abs(sum(log_p(fine)) - sum(log_p(coarse))), 4 * calls

        return solved

    def _adaptive(self, bound: Bound, way: Way, exact: bool, log_p: Callable) -> Callable:
        """(start, *args) -> (end, difference of the last two solves, calls of the network)."""
        b, ops, length = bound.backend, bound.backend.ops, way.length
        read, of_error, tolerance = way.read(b), flow_cost(bound), self.tolerance or math.inf
        slope = flow_derivative(bound, exact, self.guidance_scale)

        def derivative(y: dict, at: Array, *args: Any) -> dict:
            return slope(y, read(at), *args)

        def cost(error: dict, y: dict, dy: dict, at: Array, *args: Any) -> Array:
            return of_error(error, y, dy, read(at))

        step = adaptive_step(b, derivative, cost, length=length, max_steps=self.max_steps)
        step = b.compile(step, num_calls=64 * (bound.num_steps or 1))
        first = b.compile(derivative, num_calls=bound.num_steps or 1)

        def solved(start: dict, *args: Any) -> tuple[dict, Array, Array]:
            zero = 0.0 * start["log_volume"][:, 0]
            slopes = first(start, zero, *args)

            def once(carry: tuple, share: Array) -> tuple[tuple, None]:
                best, error, tries = carry
                is_open = error > tolerance
                at = ops.where(is_open, zero, zero + length)
                begun = Moving(
                    at, zero + length / 50, start, slopes, zero + share * tolerance, zero, tries
                )
                end = solve_adaptively(b, step, begun, length, self.max_steps, *args)
                is_there = (end.at >= length)[:, None]
                volume = ops.where(is_there, end.y["log_volume"], math.nan)
                y = {**end.y, "log_volume": volume}
                off = ops.abs(sum(log_p(y)) - sum(log_p(best)))
                off = ops.where(zero + share == SHARES[0], math.inf, ops.maximum(off, end.cost))

                def chosen(new: Array, old: Array) -> Array:
                    return ops.where(ops.reshape(is_open, (-1, *[1] * (new.ndim - 1))), new, old)

                kept = {k: chosen(v, best[k]) for k, v in y.items()}
                return (kept, chosen(off, error), end.tries), None

            shares = b.asarray(np.array(SHARES))
            (end, error, tries), _ = b.scan(once, (start, zero + math.inf, zero), shares)
            return end, error, 1.0 + STAGES * tries

        return solved


def _log_p(ops: Any, dim: int) -> Callable:
    """End of a solve -> (log N of the state there, log volume: the mean of the probes), [n]."""

    def log_p(end: dict) -> tuple[Array, Array]:
        last = ops.reshape(end["x"], (-1, dim))
        log_prior = -0.5 * ops.sum(last * last, axis=1) - 0.5 * dim * math.log(2 * math.pi)
        return log_prior, ops.mean(end["log_volume"], axis=1)

    return log_p


def require_diffusion(bound: Bound, who: str, is_continuous: bool = True) -> Any:
    """The bound model, if it has a denoiser, a noise schedule and data for "x".

    Args:
        is_continuous: whether it is asked between steps too.

    Raises:
        AlgorithmError: it is of another family, or has a context at some steps alone.
    """
    model = capability(bound.model, Denoises)
    if model is None or "x" not in bound.observed:
        raise AlgorithmError(
            f"{who}: the model {bound.model.name!r} (data: {list(bound.observed)}) has no denoiser "
            "and noise schedule, expected a Diffusion with data for 'x'; for a model with a guide "
            "use IWAE."
        )
    if hasattr(model, "check_times"):
        total = len(model.table()["signal"])
        model.check_times(np.linspace(0, total - 1, 2 * total - 1 if is_continuous else total))
    return model
