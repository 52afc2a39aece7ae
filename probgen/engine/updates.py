"""What changes parameters: the part of `Bound` that learners use.

    optimizer = bound.optimizer(pg.Adam(1e-3))             in `bind`
    state = bound.start(optimizer, params)                 in `init`: {"params", "frozen", "opt"}
    state = bound.step(optimizer, grads, state)            in `update`, and nowhere else

A step applies the groups of optimisers, leaves buffers alone and ends with each net's own
`after_update`, so that no learner has to think of it. Several players (a generator and its critic)
are several such states in one. Loss and gradient are the learner's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from probgen.backends.protocol import Backend, Optimizer
from probgen.engine.given import like
from probgen.engine.groups import grouped
from probgen.errors import AlgorithmError
from probgen.language.model import Model
from probgen.language.optim import AnyOptimizer, Groups, stands_for
from probgen.language.seeds import named
from probgen.nets.base import wants_data
from probgen.nets.buffers import after_update, has_upkeep, keeping_up, settle
from probgen.trees import tree_map

Array = Any
Tree = Any


class ParameterUpdates:
    """See the head of this file; the attributes are those of `Bound`."""

    model: Model
    backend: Backend
    num_steps: int | None
    accumulate: int
    freeze: tuple[str, ...]
    seed: int
    names: tuple[str, ...]
    upkeep: dict[str, Any]
    own: dict[str, Any]

    @property
    def nets(self) -> dict[str, Any]:
        raise NotImplementedError  # `Bound` has it

    def frozen(self) -> frozenset[str]:
        """Names of nets that no algorithm may change: the model's own, and those that `fit` was
        told to leave alone (`freeze=`)."""
        asked = {n for n in self.names if stands_for(self.freeze, n) is not None}
        return self.model.frozen() | asked

    def split_params(self, params: Mapping) -> tuple[dict, dict]:
        """(trainable, frozen) parts of a parameter dict; see `frozen`."""
        frozen = self.frozen()
        return (
            {k: v for k, v in params.items() if k not in frozen},
            {k: v for k, v in params.items() if k in frozen},
        )

    def optimizer(self, declaration: AnyOptimizer) -> Optimizer:
        """An optimiser of nets' parameters: in groups where they are declared, buffers left alone,
        each step with the nets' own upkeep, such as the power iteration of a spectral norm."""
        b = self.backend
        if isinstance(declaration, Groups):
            parts = {n: b.optimizer(o) for n, o in declaration.optimizers().items()}
            plain = grouped(b, parts, lambda: {*self.names, *self.own})
        else:
            plain = b.optimizer(declaration)
        return keeping_up(plain, self.upkeep, partial(b.compile, num_calls=self.num_steps))

    def new_net(
        self, name: str, declaration: Any, *shapes: tuple[int, ...],
        kept: Mapping | None = None, data: tuple | None = None, start: Tree = None,
    ) -> Tree:  # fmt: skip
        """Parameters of a net of the algorithm's own, drawn from (the fit's seed, its name), and
        its declaration remembered for `step`.

        Args:
            shapes: event shapes of its inputs, such as bound.structure.sites["x"].event_shape.
            data: a first batch of its inputs, for a net that starts from one.
            kept: `extras` that may have parameters of this name, which are then taken.
            start: parameters to begin with in place of drawn ones, such as another net's.

        Raises:
            AlgorithmError: a net of the model has the name.
            ShapeError: kept parameters of another form.
        """
        if name in self.names or (name in self.own and self.own[name] != declaration):
            known = self.nets.get(name)
            raise AlgorithmError(
                f"new_net: got the name {name!r}, which stands for {known!r} already, expected "
                f"another than {sorted({*self.names, *self.own})}."
            )
        more = {"data": data} if data is not None and wants_data(declaration) else {}
        fresh = start
        if fresh is None:
            fresh = declaration.init(named(self.seed, name), *shapes, **more)
        self.own[name] = declaration
        if has_upkeep(declaration, fresh):
            self.upkeep[name] = declaration
        return self.kept(name, fresh, kept)

    def kept(self, name: str, fresh: Tree, extras: Mapping | None) -> Tree:
        """extras[name] where a fit goes on and it is there, else `fresh`, what it would begin with.

        Raises:
            ShapeError: it has another form: it was made from other data or declarations.
        """
        if extras is not None and name in extras:
            where = (
                f"extras[{name!r}] of the Fitted that the fit goes on from (give what they were "
                "made with: declarations, data, batch_size; or begin anew from "
                "dataclasses.replace(fitted, extras={}))"
            )
            fresh = like(self.backend, where, extras[name], fresh)
        return tree_map(self.backend.asarray, fresh)

    def start(self, optimizer: Optimizer, params: Mapping) -> dict:
        """What `step` works on: {"params": trainable, "frozen": the others, "opt": its state}.

        Args:
            params: by the net's name: the model's, or an algorithm's own that `new_net` made.

        Raises:
            AlgorithmError: a name of neither.
        """
        for name in params:
            if name not in self.names and name not in self.own:
                raise AlgorithmError(
                    f"start: got parameters of {name!r}, which is no net of {self.model.name!r}, "
                    f"expected one of {sorted({*self.names, *self.own})}; make an algorithm's own "
                    "net by bound.new_net(name, declaration, *shapes), which remembers what keeps "
                    "its buffers up to date."
                )
        trainable, frozen = self.split_params(params)
        return {"params": trainable, "frozen": frozen, "opt": optimizer.init(trainable)}

    def step(self, optimizer: Optimizer, grads: Tree, state: Mapping) -> dict:
        """The state after one step of its optimiser; other entries stay as they are.

        Args:
            optimizer: of `optimizer`.
            grads: with the form of state["params"].
            state: of `start`.
        """
        params, opt = optimizer.update(grads, state["opt"], state["params"])
        return {**state, "params": params, "opt": opt}

    def penalty(self, params: Mapping) -> Array | None:
        """Sum of what nets ask to be added to a loss (`penalty(params)`); None where none asks."""
        nets = self.nets
        found = [
            nets[name].penalty(tree)
            for name, tree in params.items()
            if hasattr(nets.get(name), "penalty")
        ]
        total = found[0] if found else None
        for each in found[1:]:
            total = total + each
        return total

    def average(self, old: Mapping, new: Mapping, weight: float) -> dict:
        """old + weight (new - old) of parameters; buffers follow the averaged weights."""
        mean = self.backend.lerp(old, new, weight)
        moved = {n: after_update(net, mean[n]) for n, net in self.upkeep.items() if n in mean}
        return {**mean, **moved}

    def settled(self, params: Mapping) -> dict:
        """Parameters at the end of a fit: what was learned with its spectral norms converged."""
        known, frozen = self.upkeep, self.frozen()
        return {
            n: settle(known[n], v) if n in known and n not in frozen else v
            for n, v in params.items()
        }

    def value_and_grad(self, loss: Callable) -> Callable:
        """Compiles `loss(trainable, frozen, extra, batch, key) -> (loss, aux)` with its gradient.

        With `accumulate` > 1 the batch is worked through in that many equal parts, one after
        another; loss, gradient and aux are their means, which for a mean over data is exact.
        """
        b = self.backend
        once = b.value_and_grad(loss, has_aux=True)
        if self.accumulate == 1:
            return b.compile(once, num_calls=self.num_steps)
        k = self.accumulate

        def in_parts(trainable: Any, frozen: Any, extra: Any, batch: Any, key: Any) -> Any:
            parts = tree_map(lambda x: b.ops.reshape(x, (k, x.shape[0] // k, *x.shape[1:])), batch)
            keys = b.split(key, k)

            def step(carry: Any, i: int) -> Any:
                part = b.spread(tree_map(lambda x: x[i], parts))
                out = once(trainable, frozen, extra, part, keys[i])
                return out if carry is None else tree_map(lambda a, c: a + c, carry, out)

            total = None
            for i in range(k):
                total = step(total, i)
            return tree_map(lambda x: x / k, total)

        return b.compile(in_parts, num_calls=self.num_steps)
