"""log p(x) of a diffusion model, by its probability-flow ODE.

A denoiser gives the score s(x, t) of the noised data at every noise level. The variance-preserving
forward process dx = -(beta/2) x dt + sqrt(beta) dW then has the same marginals as the ODE

    dx/dt = F(x, t) = -(beta/2) (x + s(x, t)),    log p(x_0) = log N(x_T; 0, I) + int div F dt.

With signal a = sqrt(alpha_bar), noise sigma = sqrt(1 - alpha_bar), s = -eps / sigma, and the time
u = log(sigma / a), minus half the log signal-to-noise ratio, the schedule drops out:

    dx/du = sigma eps - sigma^2 x = a^2 x - a x0 = a sigma v

for a network that predicts eps, x0 or v. Steps are uniform in u: measured on two moons, 100 of them
are within 3e-5 nats on data and .03 far from them (uniform in sqrt(t): 4e-5 and .07).

Which density this is. The flow's own: of the state at the data's end when the state at the last
level is N(0, I). It is normalised exactly, whatever the network, and no bound. The levels between
those of the schedule are interpolated, log(index + 1) against u, and the network is asked at the
fractional index. Below the lowest level, which no network was trained at, the score is held at that
level's, with time w = -log a: dx/dw = -x - s(x, lowest). A DDPM chain of the same network has
another density; `DenoisingELBO` bounds that one.

Source: Song et al. 2021, arXiv:2011.13456, appendix D; probes: Hutchinson 1990, Grathwohl et al.
2019, arXiv:1810.01367.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from scipy.interpolate import PchipInterpolator

from probgen.backends.protocol import Backend
from probgen.engine.bound import Bound
from probgen.engine.measure import EvaluationContext, Function
from probgen.errors import AlgorithmError
from probgen.inference.likelihood.ode import rows_of, runge_kutta_step, solve
from probgen.language.capabilities import Denoises
from probgen.language.declared import declaration, require
from probgen.language.kinds import CountOrZero, TwoOrMore

Array = Any


@declaration
class ProbabilityFlow:
    """log p(x) of a `Diffusion` by its probability-flow ODE: the model's own density, no bound.

    Args:
        num_steps: of the Runge-Kutta solver, even; a second solve with half as many tells its
            error.
        divergence: "exact", the trace by one backward pass a dimension; "hutchinson", the mean of
            v^T (dF/dx) v over probes v of +-1, each kept for the whole solve; "auto", exact up to
            `exact_up_to` dimensions.
        num_probes: of "hutchinson", at least 2, for the standard error.
        exact_up_to: dimensions of a datum for which the exact trace may be taken.
        down_to: "data", or "lowest_noise" for the density at the schedule's first level, where
            nothing is extrapolated: that of the data blurred by its noise.

    Gives per datum, nats: `estimate`; `standard_error`, sqrt(probe_error^2 + solver_error^2);
    `probe_error`, of the mean over probes, 0 for the exact trace; `solver_error`, |value at
    num_steps - value at num_steps / 2|, about 15 times the error of the former once the steps are
    short enough, so that the exact trace's interval is wide rather than none; `log_prior`, of the
    state at the flow's end, and `log_volume`, the integral of the divergence. What lies between a
    schedule's levels is interpolated, which no error here tells: of 20 levels 5e-3 nats. For data
    quantised to levels this is a density
    still: log P(level) >= log p(level + uniform noise) - D log(levels in a unit of x).

    Raises (when bound): AlgorithmError: the model is no diffusion with a denoiser and a schedule of
    two levels at least; "exact" in more than `exact_up_to` dimensions.

    Source: Song et al. 2021, arXiv:2011.13456.
    """

    num_steps: TwoOrMore = 100
    divergence: Literal["auto", "exact", "hutchinson"] = "auto"
    num_probes: TwoOrMore = 5
    exact_up_to: CountOrZero = 64
    down_to: Literal["data", "lowest_noise"] = "data"

    unit = "nats"
    larger_is_stranger = False

    def __post_init__(self) -> None:
        more = self.num_steps + 1
        even = f"an even number, so that half of it tells the solver's error; {more}, say"
        require(self.num_steps % 2 == 0, self, even, "num_steps")

    @property
    def name(self) -> str:
        how = f"hutchinson({self.num_probes})" if self.divergence == "hutchinson" else ""
        if self.divergence == "auto":
            how = f"exact<={self.exact_up_to}, else hutchinson({self.num_probes})"
        end = "" if self.down_to == "data" else f", {self.down_to}"
        return f"ProbabilityFlow({self.num_steps}, {how or 'exact'}{end})"

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
        run = context.backend.loop(self.device_function(context.bound))
        return context.device(run, self.name, is_compiled=True)

    def device_function(self, bound: Bound) -> Callable:
        """The measure for one model: (params, batch, key) -> estimates."""
        b, ops = bound.backend, bound.backend.ops
        model = require_diffusion(bound, "ProbabilityFlow")
        if not model.schedule.alphas_bar()[-1] > 0:
            raise AlgorithmError(
                f"ProbabilityFlow: the last step of {model.name!r} has no signal "
                "(rescale_betas_zero_snr), so that log(sigma / a), the flow's time, does not end, "
                "expected a schedule that leaves some; DenoisingELBO bounds this one's chain."
            )
        if model.schedule.num_train_timesteps < 2:
            raise AlgorithmError(
                f"ProbabilityFlow: the schedule of {model.name!r} has "
                f"{model.schedule.num_train_timesteps} noise level, expected two or more for a "
                "flow to lead from one to the other; train with a longer schedule."
            )
        dim = math.prod(model.shape)
        exact = self.is_exact(dim)
        calls = (self.num_steps + self.num_steps // 2) * (bound.num_steps or 1)
        step = b.compile(runge_kutta_step(b, _derivative(bound, exact)), num_calls=calls)
        tables = [flow_rows(model, n, self.down_to) for n in (self.num_steps, self.num_steps // 2)]

        def measure(params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
            x = batch["x"]
            inputs = dict(bound.program_inputs(batch))
            probes = _basis(b, model.shape) if exact else _signs(b, key, x, self.num_probes)
            count = 1 if exact else self.num_probes
            zero = ops.zeros_like(ops.reshape(x, (x.shape[0], dim))[:, 0])
            start = {"x": x, "log_volume": ops.stack([zero] * count)}
            values = []
            for rows in tables:
                end = solve(b, step, start, rows, params, probes, inputs)
                last = ops.reshape(end["x"], (x.shape[0], dim))
                log_prior = -0.5 * ops.sum(last * last, axis=1) - 0.5 * dim * math.log(2 * math.pi)
                values.append((log_prior, end["log_volume"]))  # [batch], [probes, batch]
            (log_prior, log_volume), (coarse_prior, coarse_volume) = values
            volume = ops.mean(log_volume, axis=0)
            estimate = log_prior + volume
            coarse = coarse_prior + ops.mean(coarse_volume, axis=0)
            spread = zero if exact else ops.std(log_volume, axis=0, ddof=1)
            by_probes, by_steps = spread / math.sqrt(count), ops.abs(estimate - coarse)
            return {
                "estimate": estimate,
                "standard_error": ops.sqrt(by_probes * by_probes + by_steps * by_steps),
                "probe_error": by_probes,
                "solver_error": by_steps,
                "log_prior": log_prior,
                "log_volume": volume,
            }

        return measure


def require_diffusion(bound: Bound, who: str) -> Any:
    """The bound model, if it has a denoiser, a noise schedule and data for "x".

    Raises:
        AlgorithmError: it is of another family.
    """
    model: Any = bound.model
    if not isinstance(model, Denoises) or "x" not in bound.observed:
        raise AlgorithmError(
            f"{who}: the model {model.name!r} (data: {list(bound.observed)}) has no denoiser and "
            "noise schedule, expected a Diffusion with data for 'x'; for a model with a guide use "
            "IWAE."
        )
    return model


def flow_rows(model: Any, num_steps: int, down_to: str) -> np.ndarray:
    """The table of a solve from the data to the last noise level, [steps, 4, 5] float64.

    Columns: c_x, c_n and the network's time, for dx = c_x x + c_n net(x, time); and the solver's.
    """
    bar = model.schedule.alphas_bar()
    u = 0.5 * np.log((1.0 - bar) / bar)
    index = PchipInterpolator(u, np.log1p(np.arange(len(u))))

    def between_levels(u: np.ndarray) -> np.ndarray:
        a, sigma = 1.0 / np.sqrt(1.0 + np.exp(2 * u)), 1.0 / np.sqrt(1.0 + np.exp(-2 * u))
        of_x, of_net = {
            "epsilon": (-(sigma**2), sigma),
            "sample": (a**2, -a),
            "v_prediction": (0.0 * a, a * sigma),
        }[model.prediction_type]
        return np.stack([of_x, of_net, np.expm1(index(u))], axis=-1)

    rows = rows_of(np.linspace(u[0], u[-1], num_steps + 1), between_levels)
    if down_to == "lowest_noise":
        return rows
    a, sigma = math.sqrt(bar[0]), math.sqrt(1.0 - bar[0])
    of_x, of_net = {  # -x - s = -x + eps / sigma
        "epsilon": (-1.0, 1.0 / sigma),
        "sample": (-1.0 + 1.0 / sigma**2, -a / sigma**2),
        "v_prediction": (0.0, a / sigma),
    }[model.prediction_type]

    def below(w: np.ndarray) -> np.ndarray:
        return np.stack([of_x + 0 * w, of_net + 0 * w, 0 * w], axis=-1)

    edges = np.linspace(0.0, -math.log(a), max(2, num_steps // 16) + 1)
    return np.concatenate([rows_of(edges, below), rows])


def _derivative(bound: Bound, exact: bool) -> Callable:
    """({x, log_volume}, row, params, probes, inputs) -> the derivatives; the divergence is x's."""
    b, ops = bound.backend, bound.backend.ops
    model: Any = bound.model
    dim = math.prod(model.shape)

    def derivative(y: dict, row: Array, params: Mapping, probes: Array, inputs: Mapping) -> dict:
        x = y["x"]
        size = x.shape[0]
        times = ops.zeros_like(ops.reshape(x, (size, dim))[:, 0]) + row[2]

        def along(x: Array, v: Array) -> tuple[Array, Array]:
            predicted = model.predict(params, x, times, inputs)
            return ops.sum(v * predicted), predicted

        def probe(v: Array) -> tuple[Array, Array]:
            (_, predicted), pulled = b.value_and_grad(along, has_aux=True)(x, v)
            return ops.sum(ops.reshape(v * pulled, (size, dim)), axis=1), predicted

        traces, predicted = b.vmap(probe)(probes)  # [probes, batch], [probes, batch, *event]
        if exact:
            traces = ops.sum(traces, axis=0, keepdims=True)
        return {
            "x": row[0] * x + row[1] * predicted[0],
            "log_volume": row[0] * dim + row[1] * traces,
        }

    return derivative


def _basis(backend: Backend, shape: tuple[int, ...]) -> Array:
    """[dim, 1, *shape] unit vectors: their quadratic forms sum to the trace."""
    dim = math.prod(shape)
    return backend.asarray(np.eye(dim, dtype=np.float32).reshape(dim, 1, *shape))


def _signs(backend: Backend, key: Any, x: Array, count: int) -> Array:
    """[count, batch, *event] of +-1, each datum's from its own key."""
    ops, shape = backend.ops, tuple(x.shape)
    noise = [backend.normal(backend.fold_in(key, i), shape) for i in range(count)]
    return ops.stack([ops.where(n >= 0.0, ops.ones_like(n), -ops.ones_like(n)) for n in noise])
