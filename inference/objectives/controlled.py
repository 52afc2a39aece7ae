"""Variational losses that hold the KL at a value: by a controller, and by a penalty.

    ControlledELBO    R + beta_t K      beta_t from `control`, a constant for differentiation
    CapacityELBO      R + gamma |K - C_t|

R = -log p(x | z) and K are nats per datum. The reported `elbo` is -(R + K), whatever the weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from probgen import ops
from probgen.engine.bound import Bound
from probgen.errors import AlgorithmError
from probgen.inference.objectives.control import PI, IncrementalPI, SetPoint
from probgen.inference.objectives.elbo import ELBO, draw_terms, weighted_loss
from probgen.inference.objectives.terms import per_datum
from probgen.language.declared import declaration, require
from probgen.language.kinds import Count, Positive
from probgen.trees import tree_map

Array = Any


@declaration
class ControlledELBO(ELBO):
    """R_t + beta_t K_t, with beta_t moved by a controller so that the KL settles at `set_point`.

    Args:
        num_particles, analytic_kl: as in `ELBO`.
        set_point: C, nats per datum: a number, a schedule (`StepSetPoint`, `RampSetPoint`), or a
            function of the number of finished updates, written with `probgen.ops`.
        controller: `PI(...)` or `IncrementalPI(...)`.

    K_t is the batch's KL, summed over latents and averaged over data, and beta_t is computed from
    it before the loss is formed. With gradient accumulation the parts of a batch cannot see each
    other's KL: the controller then moves once per update, on the mean over the parts, and the new
    weight holds from the next update on.

    History: `kl`, `set_point`, `kl_weight`, `log_prob`, and `elbo`, the bound with beta = 1.

    Source: Shao et al. 2020, arXiv:2004.05988.
    """

    set_point: Positive | SetPoint | Callable = dataclasses.field(default=10.0, kw_only=True)
    controller: PI | IncrementalPI = dataclasses.field(default_factory=PI, kw_only=True)

    def __post_init__(self) -> None:
        _check_plain(self)

    def init(self, bound: Bound) -> dict:
        """The controller's state, and what it has still to be told of the update before."""
        if not bound.latents:
            raise AlgorithmError(
                f"ControlledELBO: the model {bound.model.name!r} has no latent sites and so no KL, "
                "expected at least one; fit it by SVI(ELBO()), or leave its data out."
            )
        state = {"controller": self.controller.init()}
        return state if bound.accumulate == 1 else state | {"kl": 0.0, "set_point": 0.0}

    def final_weight(self, num_steps: int) -> tuple[None, None]:
        return None, None

    def set_point_at(self, count: Array) -> Array:
        """C at the update after `count` finished ones, nats."""
        target = self.set_point
        if isinstance(target, SetPoint):
            return target.at(count)
        return target(count) if callable(target) else count * 0.0 + target

    def loss(
        self, bound: Bound, params: Mapping, state: dict, count: Array, batch: Mapping, key: Any
    ) -> tuple[Array, tuple[dict, dict]]:
        terms = draw_terms(self, bound, params, batch, key)
        kl = ops.stop_gradient(per_datum(bound, terms, terms.kl))
        wanted = self.set_point_at(count)
        if bound.accumulate == 1:
            controller, beta = self.controller.update(state["controller"], kl, wanted)
            new = {"controller": controller}
        else:
            controller, beta = self._after_the_last(state, count)
            new = {"controller": controller, "kl": kl, "set_point": wanted}
        loss, metrics = weighted_loss(bound, terms, beta)
        return loss, (new, metrics | {"kl_weight": beta, "set_point": wanted})

    def _after_the_last(self, state: dict, count: Array) -> tuple[dict, Array]:
        """The controller told of the update before, whose parts have been averaged since."""
        old = state["controller"]
        new, beta = self.controller.update(old, state["kl"], state["set_point"])
        is_first = count < 0.5
        start = self.controller.init()["unclipped"]
        kept = tree_map(lambda a, b: ops.where(is_first, a, b), old, new)
        return kept, ops.where(is_first, beta * 0.0 + start, beta)


@declaration
class CapacityELBO(ELBO):
    """R + gamma |K - C_t|, C_t from 0 to `capacity` nats over `num_steps` updates: a baseline.

    With gradient accumulation each part of a batch has its own |K - C|.

    Source: Burgess et al. 2018, arXiv:1804.03599.
    """

    gamma: Positive = dataclasses.field(default=100.0, kw_only=True)
    capacity: Positive = dataclasses.field(default=15.0, kw_only=True)
    num_steps: Count = dataclasses.field(default=100_000, kw_only=True)

    def __post_init__(self) -> None:
        _check_plain(self)

    def final_weight(self, num_steps: int) -> tuple[None, None]:
        return None, None

    def loss(
        self, bound: Bound, params: Mapping, state: dict, count: Array, batch: Mapping, key: Any
    ) -> tuple[Array, tuple[dict, dict]]:
        terms = draw_terms(self, bound, params, batch, key)
        wanted = self.capacity * ops.clip(count / self.num_steps, 0.0, 1.0)
        kl = ops.stop_gradient(per_datum(bound, terms, terms.kl))
        # gamma |K - C| = w (K - C) with w = gamma sign(K - C), also in its derivative.
        weight = self.gamma * ops.sign(kl - wanted)
        loss, metrics = weighted_loss(bound, terms, weight)
        loss = loss - weight * wanted
        return loss, (state, metrics | {"loss": loss, "kl_weight": weight, "set_point": wanted})


def _check_plain(loss: ELBO) -> None:
    plain = loss.kl_weight == 1.0 and not loss.free_bits
    expected = "neither: the weight of the KL is what this loss sets; leave both out"
    require(plain, loss, expected, "kl_weight", "free_bits")
