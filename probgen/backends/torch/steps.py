"""A chunk of a fit's steps on torch: a loop of Python's over rows of resident or stacked data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from probgen.backends import keys
from probgen.backends.torch.split import Split, World, in_pieces, sharing, spread
from probgen.backends.torch.split_sums import rooms, wholes
from probgen.trees import tree_map


def steps(update: Callable, world: World, device: str, is_cut: bool = False) -> Callable:
    """See `Backend.run_steps`; with several processes each reads its rows of a batch,
    and where `is_cut` keeps a piece of each large array of the state."""
    shared = world if world.size > 1 else None
    buffers: dict = {}

    def step(state: Any, batches: Any, rows: Any, i: int, key: keys.Key) -> Any:
        if rows is None:
            batch = spread(take(batches, i))
        else:
            own = rows[i] if shared is None else world.part(rows[i], 0)
            batch = {k: v.index_select(0, own) for k, v in batches.items()}
            if shared is not None:
                batch = {k: Split(v, 0, world) for k, v in batch.items()}
        new, metrics = update(state, batch, key)
        if shared is None:
            return new, metrics
        new = wholes(new)
        return in_pieces(new, shared) if is_cut else new, wholes(metrics)

    def run(state: Any, batches: Any, indices: Any, key: keys.Key, start: int) -> Any:
        metrics = []
        rows = None if indices is None else torch.as_tensor(indices, device=device)
        count = count_of(batches) if rows is None else len(rows)
        if shared is not None and is_cut:
            state = in_pieces(state, shared)
        token, kept = sharing.set(shared), rooms.set(None if shared is None else buffers)
        try:
            for i in range(count):
                state, m = step(state, batches, rows, i, keys.fold_in(key, start + i))
                metrics.append(m)
        finally:
            sharing.reset(token)
            rooms.reset(kept)
        return state, tree_map(_numpy, stack(metrics))

    return run


def _numpy(x: Any) -> Any:
    return x.detach().cpu().numpy()


def _is_keys(tree: Any) -> bool:
    """A list of keys is one batch of them, as `split` gives it, not a container."""
    return isinstance(tree, list) and bool(tree) and isinstance(tree[0], keys.Key)


def count_of(tree: Any) -> int:
    """How many rows the arrays of a tree have, or keys a batch of them."""
    while isinstance(tree, dict | tuple) or (isinstance(tree, list) and not _is_keys(tree)):
        tree = next(iter(tree.values() if isinstance(tree, dict) else tree))
    return len(tree)


def take(tree: Any, i: int) -> Any:
    """Row i of every array of a tree, and the i-th of a batch of keys."""
    if _is_keys(tree) or isinstance(tree, torch.Tensor):
        return tree[i]
    if isinstance(tree, dict):
        return {k: take(v, i) for k, v in tree.items()}
    items = [take(v, i) for v in tree]
    return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)


def stack(items: list) -> Any:
    """Trees of one form as one, their arrays stacked."""
    if not items or items[0] is None:
        return None
    return tree_map(lambda *a: torch.stack([torch.as_tensor(x) for x in a]), *items)
