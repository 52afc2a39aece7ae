"""Stochastic variational inference: a bound, an optimiser, and the report at the end of a fit."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Protocol

from probgen.engine.bound import Bound
from probgen.engine.dependence import require_fixed_constant
from probgen.engine.learner import Learner
from probgen.inference.objectives.collapse import collapse_report, unit_note
from probgen.language.declared import declaration
from probgen.language.kinds import Rule
from probgen.language.optim import Adam, OptimizerDeclaration


class Loss(Protocol):
    """A variational loss: state, value with metrics, held-out metrics, the weight at the end."""

    def init(self, bound: Bound) -> dict: ...

    def loss(
        self, bound: Bound, params: Any, state: dict, count: Any, batch: Any, key: Any
    ) -> Any: ...

    def evaluate(self, bound: Bound, params: Any, batch: Any, key: Any) -> dict: ...

    def final_weight(self, num_steps: int) -> tuple[float | None, float | None]: ...


@declaration
class SVI:
    """Minimises a variational loss over the parameters of model and guide.

    Args:
        loss: `ELBO(...)`, `ImportanceWeightedELBO(...)`, `ControlledELBO(...)`.
        optimizer: such as `pg.Adam(1e-3)`.

    Raises (when bound):
        AlgorithmError: the model has no guide, or the guide leaves a latent out, or (before the
            first step) log Z of a model with factors depends on what would be learned; see
            `probgen.engine.dependence.require_fixed_constant`. Where it does not, what is called
            `elbo` is the bound plus log Z, in nats + constant; history and report say so.

    Source: Hoffman et al. 2013, arXiv:1206.7055; Kingma & Welling 2014, arXiv:1312.6114.
    """

    loss: Annotated[Loss, Rule("a variational loss such as ELBO()", alone=True)]
    optimizer: OptimizerDeclaration = dataclasses.field(default_factory=Adam)

    def bind(self, bound: Bound) -> Learner:
        """A learner of this loss for `probgen.fit`."""
        bound.require_guide("SVI")
        b, loss = bound.backend, self.loss
        optimizer = bound.optimizer(self.optimizer)
        started = loss.init(bound)

        def objective(trainable: Any, frozen: Any, extra: Any, batch: Any, key: Any) -> Any:
            state, count = extra
            return loss.loss(bound, {**trainable, **frozen}, state, count, batch, key)

        gradient = bound.value_and_grad(objective)

        def init(params: Any, key: Any, batch: Any) -> dict:
            require_fixed_constant(bound, params, batch, "SVI")
            trainable, frozen = bound.split_params(params)
            state = b.tree_map(b.asarray, started)
            opt = optimizer.init(trainable)
            return {"params": trainable, "frozen": frozen, "opt": opt, "loss": state}

        def update(state: dict, batch: Any, key: Any) -> tuple[dict, dict]:
            extra = (state["loss"], state["opt"]["count"])
            (_, (loss_state, metrics)), grads = gradient(
                state["params"], state["frozen"], extra, batch, key
            )
            params, opt = optimizer.update(grads, state["opt"], state["params"])
            new = {"params": params, "frozen": state["frozen"], "opt": opt, "loss": loss_state}
            return new, metrics

        evaluate = b.compile(
            lambda params, batch, key: loss.evaluate(bound, params, batch, key), num_calls=8
        )

        def report(params: Any, batch: Any, key: Any, history: Any) -> Any:
            return collapse_report(bound, loss, params, batch, key, history)

        return Learner(init, update, evaluate, report, note=unit_note(bound))
