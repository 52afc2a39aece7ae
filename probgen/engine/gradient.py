"""Learning by the gradient of a loss: the learner that most algorithms are, written once.

    pg.fit(model, data, pg.GradientLearner(loss, pg.Adam(1e-3)), ...)

    loss(bound, params, batch, key) -> value        or (value, metrics), or (value, metrics, own)

An update is: what comes before the gradient (chains, an E-step), value and gradient at what that
gave, one step of the optimiser. The state is {"params", "frozen", "opt", "own"}.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from probgen.engine.bound import Bound
from probgen.engine.learner import Learner
from probgen.language.declared import declaration
from probgen.language.kinds import Many
from probgen.language.optim import Adam, AnyOptimizer

Array = Any
Tree = Any


@declaration
class GradientLearner:
    """Minimises a loss over the parameters that are not frozen, plus its nets' `penalty`.

    Everything but the loss is optional. Functions get the bound model first; `params` are all
    parameters by net, and the same `key` goes to `before` and to `loss` (split it where both draw).

    Args:
        loss: (bound, params, batch, key) -> a scalar, smaller is better; or that and its metrics;
            or both and the algorithm's own state from here on. Metrics are scalars or vectors by
            name, the loss itself where none are given. Where there is a `before`, what that gave
            comes as a fifth argument.
        optimizer: such as `pg.Adam(1e-3)` or `pg.Groups({...})`.
        own: (bound, params, batch, key, extras) -> the algorithm's own state at the start, a tree;
            `extras` are those of the `Fitted` that the fit goes on from, or None.
        before: (bound, state, batch, key) -> (given, own, metrics): what the loss is taken at, with
            no gradient; the state has "params", "frozen", "opt" and "own".
        repeats: steps of the optimiser at what one `before` gave; metrics are those of the first.
        evaluate, report, watch, extras, cures, note, needs_rows, needs_data: as in `Learner`, the
            functions with the bound model as a further first argument.
        check: (bound, params, batch) -> None, before the first step: refuses what does not fit.
    """

    loss: Callable
    optimizer: AnyOptimizer = dataclasses.field(default_factory=Adam)
    own: Callable | None = dataclasses.field(default=None, kw_only=True)
    before: Callable | None = dataclasses.field(default=None, kw_only=True)
    repeats: Many = dataclasses.field(default=1, kw_only=True)
    evaluate: Callable | None = dataclasses.field(default=None, kw_only=True)
    report: Callable | None = dataclasses.field(default=None, kw_only=True)
    watch: Callable | None = dataclasses.field(default=None, kw_only=True)
    extras: Callable | None = dataclasses.field(default=None, kw_only=True)
    check: Callable | None = dataclasses.field(default=None, kw_only=True)
    cures: Mapping[str, str] | None = dataclasses.field(default=None, kw_only=True)
    note: str | None = dataclasses.field(default=None, kw_only=True)
    needs_rows: bool = dataclasses.field(default=False, kw_only=True)
    needs_data: bool = dataclasses.field(default=True, kw_only=True)

    def bind(self, bound: Bound) -> Learner:
        """A learner of this loss for `probgen.fit`."""
        b, optimizer = bound.backend, bound.optimizer(self.optimizer)
        gradient = bound.value_and_grad(self._objective(bound))

        def init(params: Tree, key: Any, batch: Tree, extras: Tree = None) -> dict:
            if self.check is not None:
                self.check(bound, params, batch)
            own = None if self.own is None else self.own(bound, params, batch, key, extras)
            # A copy, since an update may work in place and others may hold the same arrays.
            return {**bound.start(optimizer, params), "own": b.copy(b.tree_map(b.asarray, own))}

        def update(state: dict, batch: Tree, key: Any) -> tuple[dict, dict]:
            given, own, found = None, state["own"], {}
            if self.before is not None:
                given, own, found = self.before(bound, state, batch, key)
            state = {**state, "own": own}

            def step(state: dict, key: Any) -> tuple[dict, dict]:
                (_, (metrics, after)), grads = gradient(
                    state["params"], state["frozen"], given, batch, key
                )
                own = state["own"] if after is None else after
                return bound.step(optimizer, grads, {**state, "own": own}), metrics

            if self.repeats == 1:
                state, metrics = step(state, key)
            else:
                state, all_metrics = b.scan(step, state, b.split(key, self.repeats))
                metrics = b.tree_map(lambda v: b.copy(v[0]), all_metrics)
            return state, {**metrics, **found}

        evaluate = None
        if self.evaluate is not None:
            evaluate = b.compile(self._with(self.evaluate, bound), num_calls=8)
        report, watch, extras = (
            self._with(fn, bound) for fn in (self.report, self.watch, self.extras)
        )
        return Learner(
            init, update, evaluate, report, self.cures, self.note, watch, extras,
            self.needs_rows, self.needs_data,
        )  # fmt: skip

    def _objective(self, bound: Bound) -> Callable:
        """(trainable, frozen, given, batch, key) -> (value, (metrics, own or None))."""

        def objective(trainable: Any, frozen: Any, given: Any, batch: Any, key: Any) -> Any:
            more = () if self.before is None else (given,)
            found = self.loss(bound, {**trainable, **frozen}, batch, key, *more)
            parts = found if isinstance(found, tuple) else (found, {"loss": found})
            value, metrics, own = (*parts, None)[:3]
            penalty = bound.penalty(trainable)
            if penalty is not None:
                value, metrics = value + penalty, {**metrics, "penalty": penalty}
            # Copies: a metric may be a view of a parameter, which the step then moves in place.
            return value, (bound.backend.copy(metrics), own)

        return objective

    @staticmethod
    def _with(fn: Callable | None, bound: Bound) -> Any:
        return None if fn is None else lambda *args: fn(bound, *args)
