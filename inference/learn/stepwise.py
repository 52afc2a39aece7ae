"""A latent for each of a sampler's steps, learned one after another from the noisiest down.

    c^T starts at the latent of a first fit;  c^t at c^{t+1}, then I steps of an optimiser on

        mean_k | M (eps_k - eps_theta(x_t, t, [c, c^t])) |^2 + w | c^t - a |^2

at this t alone, with fresh draws in each step. What holds neighbours together is that they start
from each other and stop early; there is no term for it.

Source: Wang et al. 2023, arXiv:2312.00079, algorithm 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from probgen.engine.bound import Bound
from probgen.engine.fitted import Fitted
from probgen.engine.learner import Learner
from probgen.errors import AlgorithmError
from probgen.language.capabilities import Stepwise
from probgen.language.declared import declaration
from probgen.language.kinds import Many
from probgen.language.model import capability
from probgen.language.optim import Adam, AnyOptimizer
from probgen.nets.layers import Parameter

Array = Any
NET, ROW = "subject", "subject_row"


@declaration
class StepwiseMAP:
    """Learns the rows of each step of a `Subject(..., times=DDIM(50).times(base.model))`.

        stepwise = dataclasses.replace(subject, times=DDIM(50).times(base.model))
        pg.fit(stepwise, data, StepwiseMAP(learned), inputs=inputs, num_steps=500, seed=0)

    Args:
        start: the fit of the same subject with one set of rows for all steps.
        optimizer: starts afresh at each step of the sampler.
        steps: I, of the optimiser at each step of the sampler; the fit has `steps` times as many
            as there are times.

    Metrics: `loss`; `denoising`, its first term; `distance`, |c^t - a|; `place`, the step's number,
    0 the noisiest.

    Raises (when bound):
        AlgorithmError: a model without `times`; a start of another base, number of rows or anchor;
            another number of the fit's steps; `ema_decay`, since the rows of a step would be
            averaged with what stood there before them.
    """

    start: Fitted
    optimizer: AnyOptimizer = dataclasses.field(default_factory=lambda: Adam(5e-3))
    steps: Many = 10

    def bind(self, bound: Bound) -> Learner:
        """A learner for `probgen.fit`."""
        model = self._checked(bound)
        b, optimizer = bound.backend, bound.optimizer(self.optimizer)
        ops, loss = b.ops, model.step_loss(bound)
        first = b.asarray(model.latent_of(self.start))

        def objective(trainable: Any, frozen: Any, place: Any, batch: Any, key: Any) -> Any:
            value, metrics = loss(frozen, trainable[ROW]["value"], place, batch, key)
            return value, b.copy(metrics)

        gradient = bound.value_and_grad(objective)

        def init(params: Mapping, key: Any, batch: Any, extras: Any = None) -> dict:
            latent = Parameter(tuple(first.shape))
            row = {ROW: bound.new_net(ROW, latent, start={"value": first})}
            state = bound.start(optimizer, params)
            return {
                "params": state["params"], "frozen": state["frozen"],
                "row": b.copy(bound.start(optimizer, row)), "count": ops.asarray_like(0.0, first),
            }  # fmt: skip

        def update(state: dict, batch: Any, key: Any) -> tuple[dict, dict]:
            row, count = state["row"], state["count"]
            place = ops.cast(ops.floor(count / self.steps), "int32")
            is_new = count - self.steps * ops.floor(count / self.steps) < 0.5
            fresh = optimizer.init(row["params"])
            opt = b.tree_map(lambda new, old: ops.where(is_new, new, old), fresh, row["opt"])
            (_, metrics), grads = gradient(row["params"], state["frozen"], place, batch, key)
            row = bound.step(optimizer, grads, {**row, "opt": opt})
            table = state["params"][NET]["value"]
            table = ops.put(table, place[None], row["params"][ROW]["value"][None])
            params = {**state["params"], NET: {"value": table}}
            return {**state, "params": params, "row": row, "count": count + 1.0}, metrics

        return Learner(init, update, can_average=False)

    def _checked(self, bound: Bound) -> Any:
        """The model, if it has a latent for each step, and the fit as many steps as they need."""
        model: Any = capability(bound.model, Stepwise)
        if model is None or model.times is None:
            raise AlgorithmError(
                f"StepwiseMAP: got {bound.model.name!r} with one latent for all steps, expected "
                "one for each: dataclasses.replace(subject, times=DDIM(50).times(base.model))."
            )
        wanted = self.steps * len(model.times)
        if bound.num_steps not in (None, wanted):
            raise AlgorithmError(
                f"StepwiseMAP: got num_steps={bound.num_steps} for {len(model.times)} steps of a "
                f"sampler with {self.steps} each, expected num_steps={wanted}."
            )
        return model
