"""Stochastic variational inference: a bound, an optimiser, and the report at the end of a fit."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Protocol

from probgen.engine.bound import Bound
from probgen.engine.gradient import GradientLearner
from probgen.engine.learned_constants import require_fixed_constant
from probgen.engine.learner import Learner
from probgen.errors import AlgorithmError
from probgen.inference.objectives.collapse import collapse_report, unit_note
from probgen.inference.objectives.elbo import ELBO
from probgen.language.capabilities import Denoises
from probgen.language.declared import declaration
from probgen.language.kinds import Rule
from probgen.language.model import capability
from probgen.language.optim import Adam, AnyOptimizer


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

    A model without latents needs no guide: its bound is log p(x), and this is maximum likelihood.

    Args:
        loss: `ELBO(...)`, `ImportanceWeightedELBO(...)`, `ControlledELBO(...)`.
        optimizer: such as `pg.Adam(1e-3)`.

    Raises (when bound):
        AlgorithmError: the model has latents and no guide, or the guide leaves one out, or a chain
            of more than 200 steps would run whole at every update (a diffusion's, by importance
            weights; an `ELBO` draws one step in place of all), or the weight of a KL or free bits
            are asked for of such a chain by itself, or (before the first step) log Z of
            a model with factors depends on what would be learned; see
            `probgen.engine.dependence.require_fixed_constant`. Where it does not, what is called
            `elbo` is the bound plus log Z, in nats + constant; history and report say so.

    Source: Hoffman et al. 2013, arXiv:1206.7055; Kingma & Welling 2014, arXiv:1312.6114.
    """

    loss: Annotated[Loss, Rule("a variational loss such as ELBO()", alone=True)]
    optimizer: AnyOptimizer = dataclasses.field(default_factory=Adam)

    def bind(self, bound: Bound) -> Learner:
        """A learner of this loss for `probgen.fit`."""
        bound.require_guide("SVI")
        bound.require_density_of_data("SVI")
        bound.require_latents_drawn("SVI")
        loss, whole = self.loss, bound
        bound = bound.by_steps("SVI", isinstance(loss, ELBO))
        if bound is not whole and capability(whole.model, Denoises) is not None:
            _require_plain(loss)
        latents = tuple(n for n in whole.latents if n in bound.latents)

        def objective(bound: Bound, params: Any, batch: Any, key: Any, given: Any) -> Any:
            state, count = given
            value, (state, metrics) = loss.loss(bound, params, state, count, batch, key)
            return value, metrics, state

        def evaluate(bound: Bound, params: Any, batch: Any, key: Any) -> dict:
            return loss.evaluate(bound, params, batch, key)

        def report(bound: Bound, params: Any, batch: Any, key: Any, history: Any) -> Any:
            return collapse_report(bound, loss, params, batch, key, history, latents)

        shown = report if latents else None  # a report on the latent code
        return GradientLearner(
            objective, self.optimizer, own=lambda bound, *_: loss.init(bound),
            before=_state_and_count, evaluate=evaluate, report=shown, check=_check,
            note=unit_note(bound),
        ).bind(bound)  # fmt: skip


def _require_plain(loss: Any) -> None:
    if loss.kl_weight != 1.0 or loss.free_bits:
        raise AlgorithmError(
            f"SVI: got kl_weight={loss.kl_weight} and free_bits={loss.free_bits:g} of a diffusion "
            "that is learned by one random step in place of all, expected 1 and 0: that step "
            "stands for the whole bound, in which no KL is apart; Denoising(weighting=...) weighs "
            "the steps, and a chain of up to 200 steps takes the weight of its KLs."
        )


def _state_and_count(bound: Bound, state: dict, batch: Any, key: Any) -> tuple:
    return (state["own"], state["opt"]["count"]), state["own"], {}


def _check(bound: Bound, params: Any, batch: Any) -> None:
    require_fixed_constant(bound, params, batch, "SVI")
