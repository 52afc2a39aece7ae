"""What a step of several processes gives back: its sums done, its rows where they are.

Sums wait until a step, or a graph of it, is through, and are then added up together: one call of
the group for all of one type, in memory that is used again. See `split.py`.
"""

from __future__ import annotations

import contextvars
from typing import Any, NamedTuple

import torch

from probgen.backends.torch.split import SMALL, Split, World
from probgen.trees import tree_leaves, tree_like, tree_map

_calls: Any = torch.ops._c10d_functional


def summed(tree: Any) -> Any:
    """A tree whose sums are done, all of one type in one go; rows stay where they are."""
    leaves = tree_leaves(tree)
    terms = [i for i, x in enumerate(leaves) if isinstance(x, Split) and x.axis is None]
    if not terms:
        return tree
    leaves = [*leaves]
    for i, total in zip(terms, add_up([leaves[i].local for i in terms], leaves[terms[0]].world),
                        strict=True):  # fmt: skip
        leaves[i] = total
    return tree_like(tree, leaves)


def add_up(terms: list[torch.Tensor], world: World) -> list[torch.Tensor]:
    """Each tensor's sum over the processes: one call for all of a type."""
    out = [*terms]
    for kind in dict.fromkeys(x.dtype for x in terms):
        places = [i for i, x in enumerate(terms) if x.dtype is kind]
        flat = _one_after_another([terms[i].reshape(-1) for i in places])
        flat = _calls.wait_tensor(_calls.all_reduce_(flat, "sum", world.group))  # ours alone
        parts = flat.split([terms[i].numel() for i in places])
        for i, part in zip(places, parts, strict=True):
            # A number of a history must not keep all gradients of its step in memory.
            part = part.clone() if terms[i].numel() < SMALL else part
            out[i] = part.view(terms[i].shape)
    return out


# Buffers of the steps that run, by type and length; None elsewhere.
rooms: contextvars.ContextVar[dict | None] = contextvars.ContextVar("rooms", default=None)


def _one_after_another(parts: list[torch.Tensor]) -> torch.Tensor:
    """The concatenation, on a CPU in a buffer of the step before that nobody looks at any more:
    memory that is new each time costs four times the copy."""
    kept, first = rooms.get(), parts[0]
    if kept is None or first.device.type != "cpu":
        return torch.cat(parts)
    size = first.dtype, sum(p.numel() for p in parts)
    room, idle = kept.get(size, (None, 0))
    if room is None or _users(room) > idle:
        room = first.new_empty(size[1])
        kept[size] = room, _users(room)
    return torch.cat(parts, out=room)


def _users(x: torch.Tensor) -> int:
    """How many tensors look at the memory of this one, up to a constant."""
    return torch._C._storage_Use_Count(x.untyped_storage()._cdata)


def wholes(tree: Any) -> Any:
    """A tree of plain tensors, but for pieces of parameters."""
    return tree_map(lambda x: x.whole() if type(x) is Split else x, summed(tree))


class Place(NamedTuple):
    """How an output of a graph lies: axis and outer as of a `Split`, or plain."""

    is_split: bool
    axis: int | None = None
    outer: int = 1

    @staticmethod
    def of(x: Any) -> Place:
        return Place(True, x.axis, x.world.outer) if isinstance(x, Split) else Place(False)


def placed(outputs: list[torch.Tensor], places: list[Place], world: World) -> list:
    """Outputs of a graph as what they stand for, the sums among them done."""
    terms = [i for i, p in enumerate(places) if p.is_split and p.axis is None]
    out = [
        x if p.axis is None else Split(x, p.axis, world._replace(outer=p.outer))
        for x, p in zip(outputs, places, strict=True)
    ]
    if terms:
        for i, x in zip(terms, add_up([outputs[i] for i in terms], world), strict=True):
            out[i] = x
    return out
