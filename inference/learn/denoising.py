"""Denoising: learns a diffusion model by predicting the noise that was added to data.

    L = E_{t, eps} w_t | target - f_theta(sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) eps, t) |^2

with t uniform on 0 ... T-1, a reweighted bound on -log p(x), or the bound itself. Reported is the
mean over values, so that at w = 1 predicting the mean of noise gives 1.

Source: Ho, Jain & Abbeel 2020, arXiv:2006.11239, equation 14; weights: `denoising_terms`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.gradient import GradientLearner
from probgen.engine.learner import Learner
from probgen.errors import AlgorithmError
from probgen.inference.learn.denoising_terms import continuous_times, steps, weight
from probgen.inference.learn.diffused import diffused
from probgen.inference.likelihood.denoising_elbo import ends
from probgen.language.capabilities import MUCH_LEFT
from probgen.language.declared import declaration, require
from probgen.language.kinds import Positive, Share
from probgen.language.optim import Adam, AnyOptimizer

Array = Any
DROPOUT, LATENT = 2, 3  # of a step's key, beside those of time and noise
log = logging.getLogger("probgen")


@declaration
class Denoising:
    """Learns the denoiser of a `Diffusion` from data observed at "x".

    Of a `VAE` whose latent has a diffusion as its prior it learns that prior, from fresh draws of
    the encoder at every step: `fit(vae, x, Denoising(), init=first.params, freeze=("encoder",
    "decoder"))`. `SVI(ELBO())` learns all three.

    Args:
        optimizer: such as `pg.Adam(1e-3)`.
        weighting: "uniform", of all steps alike; "min_snr", which counts steps of little noise for
            less; "edm"; "flow_matching", the loss of a velocity along straight lines, with times
            uniform along them for the schedule "rectified_flow"; or "elbo", the variational bound,
            whose loss is minus the bound in nats a datum, an unbiased estimate of `DenoisingELBO`.
        time: "discrete", one of the T steps; "continuous", anywhere from the first to the last, the
            noise level interpolated between them, for samplers and likelihoods that ask there too.
        min_snr_gamma: the largest weight of "min_snr".
        sigma_data: the data's standard deviation, of "edm".
        condition_dropout: share of data whose condition is left out in a step, so that the same net
            learns the unconditional prediction that guidance needs. None is 0.1 of a model with a
            condition that has a null, else 0, and 0 of "elbo", which would be no bound with it.

    Metrics: `loss`, the weighted mean squared error of the prediction per value; of "elbo" nats per
    datum.

    Raises (when bound):
        AlgorithmError: neither the model nor its latent's prior has a denoiser and noise schedule;
            nets of a VAE beside the prior that are not frozen, or a prior that is; continuous time
            of one step; a `condition_dropout` of one without an unconditional branch.
    """

    optimizer: AnyOptimizer = dataclasses.field(default_factory=Adam)
    weighting: Literal["uniform", "min_snr", "edm", "flow_matching", "elbo"] = "uniform"
    time: Literal["discrete", "continuous"] = "discrete"
    min_snr_gamma: Positive = dataclasses.field(default=5.0, kw_only=True)
    sigma_data: Positive = dataclasses.field(default=0.5, kw_only=True)
    condition_dropout: Share | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        fits = self.weighting != "elbo" or self.time == "discrete"
        require(fits, self, "the bound of a chain of steps at its steps", "weighting", "time")

    def bind(self, bound: Bound) -> Learner:
        """A learner of the denoising loss for `probgen.fit`."""
        b, ops = bound.backend, bound.backend.ops
        part = diffused(bound, "Denoising")
        model: Any = part.model
        total, table = model.schedule.num_train_timesteps, model.table()
        if hasattr(model, "check_times"):
            model.check_times(np.linspace(0, total - 1, total + (self.time == "continuous")))
        if self.time == "continuous" and total < 2:
            raise AlgorithmError(
                f"Denoising: got time='continuous' for {bound.model.name!r}, whose schedule has "
                "one step, expected two or more, to be between; leave time at 'discrete'."
            )
        left = float(model.schedule.alphas_bar()[-1])
        if left > MUCH_LEFT:
            log.warning(
                "Denoising: after the last step a share of %.2g of a datum's variance is left "
                "(alpha_bar), but generation starts from pure noise, so samples will not be like "
                "the data; take more steps, or NoiseSchedule.rescaled(%d).",
                left, total,
            )  # fmt: skip
        dropout = self._dropout(model)
        draw = (steps if self.time == "discrete" else continuous_times)(b, model)

        def loss(
            bound: Bound, params: Mapping, batch: Mapping, key: Any, dropout: float = dropout
        ) -> Array:
            x = part.draw(params, batch, b.fold_in(key, LATENT))
            n, lead = x.shape[0], (x.shape[0], *([1] * (x.ndim - 1)))
            k_time, k_noise = b.split(key, 2)
            t, row = draw(k_time, n)
            eps = b.normal(k_noise, tuple(x.shape))
            row = {k: ops.reshape(v, lead) for k, v in row.items()}
            x_t = row["signal"] * x + row["noise"] * eps
            inputs, params = bound.program_inputs(batch), part.params(params)
            more = {}
            if dropout:
                more["dropped"] = b.uniform(b.fold_in(key, DROPOUT), (n,)) < dropout
            predicted = model.predict(params, x_t, t, inputs, **more)
            error = predicted - model.target(x, eps, row)
            weighted = error * error
            if self.weighting == "uniform":
                return ops.mean(weighted)
            weighted = weighted * weight(
                self.weighting, model.prediction_type, row, gamma=self.min_snr_gamma,
                sigma_data=self.sigma_data, ops=ops,
            )  # fmt: skip
            if self.weighting != "elbo":
                return ops.mean(weighted)
            constant, prior_kl = ends(ops, table, x)
            return total * ops.sum(weighted) / n + ops.mean(prior_kl) - constant

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
        if self.condition_dropout is not None:
            return self.condition_dropout
        return 0.1 if has_null and self.weighting != "elbo" else 0.0
