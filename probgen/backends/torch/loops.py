"""Loops of small steps on torch: `scan` of a step that is one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from probgen.trees import tree_leaves, tree_map

EARNED = 3  # steps of a loop, large graphs, pay for their compilation as a third of them would


def loop(compiled: Callable, step: Callable, num_calls: int | None) -> Callable:
    """(carry, xs, *args) -> (carry, ys); `compiled(fn, num_calls)` is the backend's `compile`."""
    one = compiled(step, None if num_calls is None else num_calls // EARNED)

    def run(carry: Any, xs: Any, *args: Any) -> tuple[Any, Any]:
        told = []
        for i in range(tree_leaves(xs)[0].shape[0]):
            carry, y = one(carry, tree_map(lambda v, i=i: v[i], xs), *args)
            told.append(y)
        return carry, tree_map(lambda *ys: torch.stack(ys), *told)

    return run
