"""Loops of small steps on torch: `scan` of a step that is one graph.

Compiled by inductor, a step writes its carry over the one before, takes its row of `xs` and leaves
its row of `ys` by a count that it keeps itself; then a loop is that step's kernels launched again
and again (`replay.py`), which costs a step of NUTS on eight schools a tenth of calls of its graph.
On other routes a step is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from probgen.backends.torch.compile import Compiled
from probgen.backends.torch.replay import NotReplayed, Replay
from probgen.progress import log
from probgen.trees import tree_leaves, tree_map

EARNED = 3  # steps of a loop, large graphs, pay for their compilation as a third of them would


def loop(compiled: Callable[..., Compiled], step: Callable, num_calls: int | None) -> Callable:
    """(carry, xs, *args) -> (carry, ys); `compiled(fn, num_calls)` is the backend's `compile`."""
    calls = None if num_calls is None else num_calls // EARNED
    one, inplace = compiled(step, calls), compiled(_inplace(step), calls)
    kept: list[_Buffers] = []

    def run(carry: Any, xs: Any, *args: Any) -> tuple[Any, Any]:
        if inplace.wants_inductor() and not (kept and kept[0].failed):
            if not kept:
                kept.append(_Buffers(inplace, step))
            done = kept[0].run(carry, xs, args)
            if done is not None:
                return done
        told = []
        for i in range(_length(xs)):
            carry, y = one(carry, tree_map(lambda v, i=i: v[i], xs), *args)
            told.append(y)
        return carry, tree_map(lambda *ys: torch.stack(ys), *told)

    return run


def _length(xs: Any) -> int:
    return tree_leaves(xs)[0].shape[0]


def _inplace(step: Callable) -> Callable:
    def run(carry: Any, xs: Any, at: torch.Tensor, ys: Any, args: tuple) -> torch.Tensor:
        x = tree_map(lambda v: v.index_select(0, at)[0], xs)
        new, y = step(carry, x, *args)
        # Copies first: what is carried on may be a part of what is written over.
        new = [v.clone() for v in tree_leaves(new)]
        for kept, v in zip(tree_leaves(ys), tree_leaves(y), strict=True):
            kept.index_copy_(0, at, v[None])
        for old, v in zip(tree_leaves(carry), new, strict=True):
            old.copy_(v)
        at.add_(1)
        return at

    return run


class _Buffers:
    """What one loop works in: its carry, rows, count and told rows, and the launches on them."""

    def __init__(self, inplace: Compiled, step: Callable):
        self.inplace, self.step = inplace, step
        self.failed = False
        self.replay: Replay | None = None
        self.shapes: list = []
        self.args: list = []

    def run(self, carry: Any, xs: Any, args: tuple) -> tuple[Any, Any] | None:
        """The scan, or None where it cannot be replayed."""
        with torch.no_grad():
            if not self._is_bound(xs, args) and not self._bind(carry, xs, args):
                return None
            assert self.replay is not None
            for kept, v in zip(tree_leaves((self.carry, self.xs)), tree_leaves((carry, xs)),
                               strict=True):  # fmt: skip
                if kept is not v:
                    kept.copy_(v)
            self.at.zero_()
            self.replay.run(_length(xs))
            return self.carry, tree_map(torch.clone, self.ys)

    def _is_bound(self, xs: Any, args: tuple) -> bool:
        shapes, now = [tuple(v.shape) for v in tree_leaves(xs)], tree_leaves(args)
        return (
            shapes == self.shapes
            and len(now) == len(self.args)
            and all(a is b for a, b in zip(now, self.args, strict=True))
        )

    def _bind(self, carry: Any, xs: Any, args: tuple) -> bool:
        """Writes down the launches on buffers of our own and on `args` as they are."""
        given, args = args, tree_map(lambda v: v.contiguous(), args)
        fresh = tree_map(lambda v: v.detach().clone().contiguous(), (carry, xs))
        _, y = self.step(fresh[0], tree_map(lambda v: v[0], fresh[1]), *args)
        num = _length(xs)
        ys = tree_map(lambda v: v.new_zeros((num, *v.shape)), y)
        at = torch.zeros(1, dtype=torch.int64, device=tree_leaves(xs)[0].device)
        built, tensors, _ = self.inplace.built(*fresh, at, ys, args)
        graph = built.graph
        try:
            if graph is None or graph.code is None or graph.slots:
                raise NotReplayed(f"the route is {built.route}")
            inputs = [*tensors, *built.constants]
            written = tree_leaves((fresh[0], at, ys))
            self.replay = Replay(graph.code, graph.run, inputs, written)
        except NotReplayed as error:
            log.info("torch: a loop calls its steps (%s)", error)
            self.failed = True
            return False
        (self.carry, self.xs), self.ys, self.at = fresh, ys, at
        self.shapes, self.args = [tuple(v.shape) for v in tree_leaves(xs)], tree_leaves(given)
        return True
