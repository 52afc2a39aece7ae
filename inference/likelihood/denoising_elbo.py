"""The bound on log p(x) of a diffusion model's chain, term by term.

    ELBO = E_q log p(x | x_1) - sum_{t=1}^{T-1} KL(q(x_t | x_{t+1}, x) || p(x_t | x_{t+1}))
           - KL(q(x_T | x) || N(0, I))

No network has a part in the variances of the chain's steps, so each KL and log p(x | x_1), but for
their constants, are a weighted square of the error of the network's estimate of the datum:

    w_t E |x - x0_theta(x_t, t)|^2,     w_t = c_t^2 / (2 std_t^2),  c_t of the posterior's mean.

Source: Ho, Jain & Abbeel 2020, arXiv:2006.11239, equations 5 to 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.measure import EvaluationContext, Function
from probgen.inference.likelihood.probability_flow import require_diffusion
from probgen.language.capabilities import embedded
from probgen.language.declared import declaration
from probgen.language.kinds import Many, TwoOrMore

Array = Any


@declaration
class DenoisingELBO:
    """A lower bound on log p(x) of a `Diffusion`: of its chain of T steps, as `generate` draws.

    Args:
        num_draws: noise draws per step, at least 2, for the standard error.
        num_steps: None for every step of the chain; or how many equal strata the steps are cut
            into, one random step of each standing for its stratum in each draw: unbiased, cheaper,
            noisier.

    Gives per datum, nats: `estimate`, unbiased for the bound; `standard_error`, from the spread of
    the draws at each step; `prior_kl`, KL(q(x_T | x) || N(0, I)), which no network can lower. The
    bound is on the chain's density; `ProbabilityFlow` gives the density of the same network's ODE,
    which may lie on either side.

    Raises (when bound): AlgorithmError: the model is no diffusion.

    Source: Ho, Jain & Abbeel 2020, arXiv:2006.11239.
    """

    num_draws: TwoOrMore = 2
    num_steps: Many | None = None

    unit = "nats"
    larger_is_stranger = False

    @property
    def name(self) -> str:
        steps = "all steps" if self.num_steps is None else f"{self.num_steps} steps"
        return f"DenoisingELBO({self.num_draws}, {steps})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> estimates, by a loop whose steps are compiled."""
        run = context.backend.compile(self.device_function(context.bound), over="steps")
        return context.device(run, self.name, is_compiled=True)

    def device_function(self, bound: Bound) -> Callable:
        """The measure for one model: (params, batch, key) -> estimates."""
        b, ops = bound.backend, bound.backend.ops
        model = require_diffusion(bound, "DenoisingELBO", is_continuous=False)
        total, dim = model.schedule.num_train_timesteps, math.prod(model.shape)
        strata = _strata(total, self.num_steps)
        scale = total / len(strata)
        table = model.table()
        columns = {**table, "weight": step_weights(table)}
        columns = {k: b.asarray(v) for k, v in columns.items()}

        def term(params: Mapping, inputs: Mapping, x: Array, stratum: Array, key: Any) -> Array:
            """[batch] w_t |x - x0|^2 times the share of steps that it stands for, one draw."""
            k_time, k_noise = b.split(key, 2)
            size = x.shape[0]
            t = stratum[0] + ops.zeros_like(ops.reshape(x, (size, dim))[:, 0])
            if len(strata) < total:
                u = b.uniform(k_time, (size,))
                place = ops.floor(stratum[2] + u * stratum[3])
                t = ops.clip(place, stratum[0], stratum[1])
            eps = b.normal(k_noise, tuple(x.shape))
            steps = ops.cast(t, "int32")
            lead = (size, *([1] * (x.ndim - 1)))
            row = {k: ops.reshape(ops.take(v, steps), lead) for k, v in columns.items()}
            x_t = row["signal"] * x + row["noise"] * eps
            clean = model.clean(x_t, model.predict(params, x_t, t, inputs), row)
            squares = ops.sum(ops.reshape((x - clean) ** 2, (size, dim)), axis=1)
            return scale * ops.reshape(row["weight"], (size,)) * squares

        calls = self.num_draws * len(strata) * (bound.num_steps or 1)
        one = b.compile(term, num_calls=calls)

        def measure(params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
            x = batch["x"]
            inputs = embedded(model, params, bound.program_inputs(batch), x)
            constant, prior_kl = ends(ops, table, x)
            zero = ops.zeros_like(prior_kl)

            def step(carry: tuple[Array, Array], item: Any) -> tuple[tuple[Array, Array], None]:
                stratum, k = item
                draws = ops.stack(
                    [
                        one(params, inputs, x, stratum, b.fold_in(k, i))
                        for i in range(self.num_draws)
                    ]
                )
                cost, variance = carry
                cost = cost + ops.mean(draws, axis=0)
                return (cost, variance + ops.var(draws, axis=0, ddof=1) / self.num_draws), None

            items = (b.asarray(strata.astype(np.float32)), b.split(key, len(strata)))
            (cost, variance), _ = b.scan(step, (zero, zero), items)
            return {
                "estimate": constant - prior_kl - cost,
                "standard_error": ops.sqrt(variance),
                "prior_kl": prior_kl,
            }

        return measure


def step_weights(table: Mapping[str, np.ndarray]) -> np.ndarray:
    """[T] w_t, nats for a squared error of x_0."""
    return 0.5 * (table["of_x0"] / table["std"]) ** 2


def ends(ops: Any, table: Mapping[str, np.ndarray], x: Array) -> tuple[float, Array]:
    """What of the bound no network changes: the constants of log p(x | x_1) and the KLs, and
    KL(q(x_T | x) || N(0, I)), [batch], which is taken from it."""
    flat = ops.reshape(x, (x.shape[0], -1))
    dim, bar = flat.shape[1], float(table["signal"][-1] ** 2)
    last = math.log(table["std"][0]) + 0.5 * math.log(2.0 * math.pi)
    constant = -dim * (last + float(table["std_kl"].sum()))
    return constant, 0.5 * (bar * ops.sum(flat * flat, axis=1) - dim * (bar + math.log1p(-bar)))


def _strata(total: int, count: int | None) -> np.ndarray:
    """[count, 4] first and last step, start and length of equal parts of [0, total).

    A uniform place in a part, rounded down, is a step; over the parts every step is as likely.
    """
    number = total if count is None else min(count, total)
    edges = np.arange(number + 1) * (total / number)
    if number == total:
        edges = np.arange(total + 1.0)
    first, last = np.floor(edges[:-1]), np.ceil(edges[1:]) - 1
    return np.stack([first, last, edges[:-1], np.diff(edges)], axis=1)
