"""Denoising: learns a diffusion model by predicting the noise that was added to data.

    L = E_{t, eps} | target - f_theta(sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) eps, t) |^2

with t uniform on 0 ... T-1, a reweighted bound on -log p(x). Reported is the mean over values, so
that predicting the mean of noise gives 1.

Source: Ho, Jain & Abbeel 2020, arXiv:2006.11239, equation 14.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from probgen.engine.bound import Bound
from probgen.engine.gradient import GradientLearner
from probgen.engine.learner import Learner
from probgen.errors import AlgorithmError
from probgen.language.capabilities import Denoises
from probgen.language.declared import declaration
from probgen.language.kinds import Share
from probgen.language.optim import Adam, AnyOptimizer

Array = Any
DROPOUT = 2  # of a step's key, beside those of time and noise
log = logging.getLogger("probgen")
MUCH_LEFT = 0.05  # of a datum's variance at the last step; common schedules leave 4e-5 to 5e-3


@declaration
class Denoising:
    """Learns the denoiser of a `Diffusion` from data observed at "x".

    Args:
        optimizer: such as `pg.Adam(1e-3)`.
        condition_dropout: share of data whose condition is left out in a step, so that the same net
            learns the unconditional prediction that guidance needs. None is 0.1 of a model with a
            condition that has a null, else 0.

    Metrics: `loss`, the mean squared error of the prediction per value.

    Raises (when bound):
        AlgorithmError: the model has no denoiser and noise schedule; a `condition_dropout` of one
            without an unconditional branch.
    """

    optimizer: AnyOptimizer = dataclasses.field(default_factory=Adam)
    condition_dropout: Share | None = dataclasses.field(default=None, kw_only=True)

    def bind(self, bound: Bound) -> Learner:
        """A learner of the denoising loss for `probgen.fit`."""
        b, ops = bound.backend, bound.backend.ops
        model: Any = bound.model
        if not isinstance(model, Denoises) or "x" not in bound.observed:
            raise AlgorithmError(
                f"Denoising: the model {model.name!r} (data: {list(bound.observed)}) has no "
                "denoiser and noise schedule, expected a Diffusion with data for 'x'."
            )
        left = float(model.schedule.alphas_bar()[-1])
        if left > MUCH_LEFT:
            log.warning(
                "Denoising: after the last step a share of %.2g of a datum's variance is left "
                "(alpha_bar), but generation starts from pure noise, so samples will not be like "
                "the data; take more steps, or NoiseSchedule.rescaled(%d).",
                left, model.schedule.num_train_timesteps,
            )  # fmt: skip
        table = {k: b.asarray(v) for k, v in model.table().items()}
        total = model.schedule.num_train_timesteps

        dropout = self._dropout(model)

        def loss(
            bound: Bound, params: Mapping, batch: Mapping, key: Any, dropout: float = dropout
        ) -> Array:
            x = batch["x"]
            k_time, k_noise = b.split(key, 2)
            t = b.randint(k_time, (x.shape[0],), 0, total)
            eps = b.normal(k_noise, tuple(x.shape))
            lead = (x.shape[0], *([1] * (x.ndim - 1)))
            row = {k: ops.reshape(ops.take(v, t), lead) for k, v in table.items()}
            x_t = row["signal"] * x + row["noise"] * eps
            inputs = bound.program_inputs(batch)
            more = {}
            if dropout:
                more["dropped"] = b.uniform(b.fold_in(key, DROPOUT), (x.shape[0],)) < dropout
            predicted = model.predict(params, x_t, ops.cast(t, "float32"), inputs, **more)
            error = predicted - model.target(x, eps, row)
            return ops.mean(error * error)

        def evaluate(bound: Bound, params: Any, batch: Any, key: Any) -> dict:
            return {"loss": loss(bound, params, batch, key, 0.0)}

        return GradientLearner(loss, self.optimizer, evaluate=evaluate).bind(bound)

    def _dropout(self, model: Any) -> float:
        has_null = hasattr(getattr(model, "condition", None), "null")
        if self.condition_dropout and not has_null:
            raise AlgorithmError(
                f"Denoising: got condition_dropout={self.condition_dropout:g} for {model.name!r}, "
                "which has no context of no condition to put in its place, expected 0, or a "
                "condition such as nets.ClassEmbedding(...)."
            )
        return 0.1 * has_null if self.condition_dropout is None else self.condition_dropout
