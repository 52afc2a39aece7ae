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

from probgen.backends.protocol import Loop
from probgen.backends.torch.compile import Compiled
from probgen.backends.torch.inductor import NotReplayed
from probgen.backends.torch.replay import Replay
from probgen.progress import log
from probgen.trees import tree_leaves, tree_map

EARNED = 3  # steps of a loop, large graphs, pay for their compilation as a third of them would
AT_ONCE = {"inductor": 64, "graph": 8}  # steps; those past the last one wanted are thrown away
SMALL = 2**16  # numbers of an argument that are copied to where the kernels look for them


def loop(compiled: Callable[..., Compiled], step: Callable, num_calls: int | None) -> Loop:
    """See `Backend.loop`; `compiled(fn, num_calls)` is the backend's `compile`."""
    calls = None if num_calls is None else num_calls // EARNED
    one, inplace = compiled(step, calls), compiled(_inplace(step), calls)
    inplace.is_looped = True
    buffers = _Buffers(inplace, step) if inplace.wants_inductor() else None

    def run(carry: Any, xs: Any, *args: Any) -> tuple[Any, Any]:
        if buffers is not None and not buffers.failed:
            done = buffers.run(carry, xs, args)
            if done is not None:
                return done
        told = []
        for i in range(_length(xs)):
            carry, y = one(carry, tree_map(lambda v, i=i: v[i], xs), *args)
            told.append(y)
        return carry, tree_map(lambda *ys: torch.stack(ys), *told)

    return Loop(run, AT_ONCE["graph" if buffers is None else "inductor"], elastic=True)


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
    """What one loop works in: its carry, rows, arguments, count and told rows, and the launches on
    them. Large arguments are used where they are."""

    def __init__(self, inplace: Compiled, step: Callable):
        self.inplace, self.step = inplace, step
        self.failed = False
        self.replay: Replay | None = None
        self.shapes: list = []
        self.given: list[torch.Tensor] = []  # of `args`, as they came last

    def run(self, carry: Any, xs: Any, args: tuple) -> tuple[Any, Any] | None:
        """The scan, or None where it cannot be replayed."""
        rows, given = tree_leaves(xs), tree_leaves(args)
        with torch.no_grad():
            if not self._is_bound(rows, given) and not self._bind(carry, xs, args):
                return None
            assert self.replay is not None
            if carry is not self.carry:
                for kept, v in zip(self.state, tree_leaves(carry), strict=True):
                    kept.copy_(v)
            count = len(rows[0])
            for kept, v in zip(self.rows, rows, strict=True):
                kept[:count].copy_(v)
            for kept, v, last in zip(self.args, given, self.given, strict=True):
                if v is not last:
                    kept.copy_(v)
            self.given = given
            self.at.zero_()
            self.replay.run(count)
            return self.carry, tree_map(lambda v: v[:count].clone(), self.ys)

    def _is_bound(self, rows: list, given: list) -> bool:
        return (
            [v.shape[1:] for v in rows] == self.shapes
            and len(rows[0]) <= len(self.rows[0])
            and len(given) == len(self.given)
            and all(
                a is b or (a.numel() <= SMALL and a.shape == b.shape and a.dtype == b.dtype)
                for a, b in zip(given, self.given, strict=True)
            )
        )

    def _bind(self, carry: Any, xs: Any, args: tuple) -> bool:
        """Makes the buffers, and writes down the launches on them."""
        copy = lambda v: v.detach().clone(memory_format=torch.contiguous_format)  # noqa: E731
        self.carry, fresh = tree_map(copy, (carry, xs))
        self.given = tree_leaves(args)
        args = tree_map(lambda v: copy(v) if v.numel() <= SMALL else v.contiguous(), args)
        _, y = self.step(self.carry, tree_map(lambda v: v[0], fresh), *args)
        self.ys = tree_map(lambda v: v.new_zeros((_length(xs), *v.shape)), y)
        self.at = torch.zeros(1, dtype=torch.int64, device=tree_leaves(xs)[0].device)
        self.state, self.rows, self.args = map(tree_leaves, (self.carry, fresh, args))
        self.shapes = [v.shape[1:] for v in self.rows]
        built, tensors, _ = self.inplace.built(self.carry, fresh, self.at, self.ys, args)
        graph = built.graph
        try:
            if graph is None or graph.code is None or graph.slots:
                raise NotReplayed(f"the route is {built.route}")
            written = [*self.state, self.at, *tree_leaves(self.ys)]
            self.replay = Replay(graph.code, graph.run, [*tensors, *built.constants], written)
        except NotReplayed as error:
            log.info("torch: a loop calls its steps (%s)", error)
            self.failed = True
        return not self.failed
