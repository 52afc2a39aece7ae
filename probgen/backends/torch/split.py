"""A batch over the processes of a `torch.distributed` group: a tensor of which each has its part.

    Split(local, axis)     rows: this process has its part of that axis
    Split(local, None)     a sum: this process has one of its terms

To whoever computes with it a `Split` has the shape of the whole, so that algorithms are written for
one device and mean the whole batch. Every operator either has a rule (`split_rules.py`) by which
the parts give the parts of its result, or is done on the whole, put together on each process: what
a rule lacks costs time and changes nothing. A plain tensor is the same in every process.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from probgen.progress import log
from probgen.trees import tree_map

Rule = Callable[[Any, tuple, dict], Any]
_calls: Any = torch.ops._c10d_functional
_rules: dict[Any, Rule] = {}
SMALL = 2**14  # numbers of an array of a state that each process keeps in full
POINTWISE = "pointwise"  # the rule of what torch says is elementwise


class World(NamedTuple):
    """The processes that share a batch.

    Attributes:
        rank, size: which of them this is, of how many.
        group: the name of their group.
        num_rows: of a batch.
        outer: how often the batch stands along an axis, one after another (particles of all data,
            flattened for a product): each process has its part of each of them.
    """

    rank: int
    size: int
    group: str
    num_rows: int
    outer: int = 1

    def part(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        """This process's part of a plain tensor."""
        if self.outer > 1:
            one = self._replace(outer=1)
            return one.part(x.unflatten(axis, (self.outer, -1)), axis + 1).flatten(axis, axis + 1)
        width = x.shape[axis] // self.size
        return x.narrow(axis, self.rank * width, width)

    def summed(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the processes."""
        return _calls.wait_tensor(_calls.all_reduce(x.contiguous(), "sum", self.group))

    def joined(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        """All parts, one after another along an axis."""
        is_bool = x.dtype is torch.bool
        given = (x.to(torch.uint8) if is_bool else x).contiguous()
        out = _calls.all_gather_into_tensor(given, self.size, self.group)
        out = _calls.wait_tensor(out).view(self.size, *x.shape)
        out = out.movedim(0, axis).unflatten(axis + 1, (self.outer, -1))
        out = out.transpose(axis, axis + 1).flatten(axis, axis + 2)
        return out.to(torch.bool) if is_bool else out


# The processes that share the batch of the step that runs; None elsewhere.
sharing: contextvars.ContextVar[World | None] = contextvars.ContextVar("sharing", default=None)


class Split(torch.Tensor):
    """See the head of this file.

    Attributes:
        local: this process's part.
        axis: along which the parts lie side by side, or None: they add up.
        world: whose parts they are.
    """

    local: torch.Tensor
    axis: int | None
    world: World

    @staticmethod
    def __new__(cls, local: torch.Tensor, axis: int | None, world: World) -> Split:
        shape, strides = [*local.shape], [*local.stride()]
        if axis is not None:
            shape[axis] *= world.size
            inner = strides[axis]
            strides = [s * world.size if s > inner else s for s in strides]
        out = torch.Tensor._make_wrapper_subclass(
            cls, shape, strides=strides, dtype=local.dtype, device=local.device
        )
        if axis is None and world.outer > 1:
            world = world._replace(outer=1)
        out.local, out.axis, out.world = local, axis, world
        return out

    def __repr__(self) -> str:
        return f"Split({list(self.shape)}, axis={self.axis}, of {self.world.size})"

    def whole(self) -> torch.Tensor:
        """The same in every process."""
        if self.axis is None:
            return self.world.summed(self.local)
        return self.world.joined(self.local, self.axis)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule, given = rule_of(func), splits_in((args, kwargs))
        if len({s.world.outer for s in given if s.axis is not None}) > 1:
            rule = None
        out = NotImplemented if rule is None else rule(func, args, kwargs)
        if out is not NotImplemented:
            return out
        if rule is not None and len({s.axis is None for s in given}) == 2:
            args, kwargs = _whole((args, kwargs), terms_alone=True)
            return func(*args, **kwargs)
        log.debug("torch: %s on the whole of what is split", func)
        return _on_whole(func, args, kwargs)

    def put(self, whole: torch.Tensor) -> None:
        """Writes what is the same in every process into the parts."""
        if self.axis is not None:
            self.local.copy_(self.world.part(whole, self.axis))
        else:
            self.local.copy_(whole * float(self.world.rank == 0))


class Piece(Split):
    """This process's piece of a parameter, of an optimiser's moment, or of another large array of a
    state, between its uses: whatever computes with it puts it together, and optimisers alone, which
    go number by number, move the piece (`optimizers.py`)."""

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ALIKE and isinstance(args[0], Piece):
            x = args[0]
            return Piece(func(x.local, *args[1:], **kwargs), x.axis, x.world)
        return _on_whole(func, args, kwargs)


_ALIKE = {torch.ops.aten.detach.default, torch.ops.aten.clone.default,
          torch.ops.aten.zeros_like.default}  # fmt: skip


def in_pieces(tree: Any, world: World) -> Any:
    """A state with its large arrays in pieces, along the first axis that can be cut."""

    def one(x: Any) -> Any:
        if isinstance(x, Piece) or not isinstance(x, torch.Tensor) or x.numel() < SMALL:
            return x
        axis = next((i for i, n in enumerate(x.shape) if n % world.size == 0), None)
        return x if axis is None else Piece(world.part(x, axis).contiguous(), axis, world)

    return tree_map(one, tree)


def _on_whole(func: Any, args: tuple, kwargs: dict) -> Any:
    """An operator on the whole of its arguments; what it writes into is written into the parts."""
    done = _whole(args)
    out = func(*done, **_whole(kwargs))
    if not func._schema.is_mutable:
        return out
    pairs = zip(func._schema.arguments, args, done, strict=False)
    written = [(a, w) for d, a, w in pairs if d.alias_info and d.alias_info.is_write]
    for split, whole in written:
        for one, other in zip(splits_in(split), _wholes_of(split, whole), strict=True):
            one.put(other)
    return args[0] if isinstance(args[0], Split) and out is done[0] else out


def splits_in(tree: Any) -> list[Split]:
    """All that is split in a tree of arguments."""
    if isinstance(tree, Split):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, list | tuple):
        return []
    return [s for v in tree for s in splits_in(v)]


def _wholes_of(split: Any, whole: Any) -> list[torch.Tensor]:
    """Of a tree of wholes those that stand for what is split."""
    if isinstance(split, Split):
        return [whole]
    if not isinstance(split, list | tuple):
        return []
    return [w for a, c in zip(split, whole, strict=True) for w in _wholes_of(a, c)]


def _whole(value: Any, terms_alone: bool = False) -> Any:
    if isinstance(value, Split):
        return value if terms_alone and value.axis is not None else value.whole()
    if isinstance(value, list | tuple):
        return type(value)([_whole(v, terms_alone) for v in value])
    if isinstance(value, dict):
        return {k: _whole(v, terms_alone) for k, v in value.items()}
    return value


def spread(tree: Any, axis: int = 0, num_rows: int | None = None) -> Any:
    """Within a step, tensors with a row of each datum of the batch along that axis, this process's
    rows of them; other tensors as they are."""
    world = sharing.get()
    if world is None or world.size == 1:
        return tree
    rows = num_rows or world.num_rows

    def one(x: Any) -> Any:
        fits = isinstance(x, torch.Tensor) and not isinstance(x, Split) and x.ndim > axis
        if not fits or x.shape[axis] != rows or rows % world.size:
            return x
        return Split(world.part(x, axis), axis, world)

    return tree_map(one, tree)


def together(tree: Any) -> Any:
    """A tree of arguments with its pieces of parameters put together."""
    return tree_map(lambda x: x.whole() if isinstance(x, Piece) else x, tree)


def rule_of(func: Any) -> Rule | None:
    """An operator's rule; None where it is done on the whole."""
    found = _rules.get(func)
    if found is None and torch.Tag.pointwise in func.tags:
        return None if torch.Tag.nondeterministic_seeded in func.tags else _rules.get(POINTWISE)
    return found


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Puts a rule under ATen's operators, "packet" for all overloads or "packet.overload"."""

    def put(own: Rule) -> Rule:
        for name in names:
            packet, _, overload = name.partition(".")
            if name == POINTWISE:
                _rules[name] = own
                continue
            ops = getattr(torch.ops.aten, packet)
            for each in [overload] if overload else ops.overloads():
                if not each.endswith("out"):
                    _rules[getattr(ops, each)] = own
        return own

    return put


def rows_of(*tensors: torch.Tensor) -> int | None:
    """The one axis along which tensors of equal axes are split; None where there is none."""
    axes = {t.axis for t in tensors if isinstance(t, Split)}
    return axes.pop() if len(axes) == 1 else None


def parts_of(tensors: Any, axis: int, world: World) -> list:
    """This process's parts along that axis."""
    return [t.local if isinstance(t, Split) else world.part(t, axis) for t in tensors]


def argument(func: Any, args: tuple, kwargs: dict, name: str, default: Any = None) -> Any:
    """An argument of a call by its name in the operator's declaration."""
    if name in kwargs:
        return kwargs[name]
    for i, declared in enumerate(func._schema.arguments):
        if declared.name == name:
            return args[i] if i < len(args) else declared.default_value
    return default


def out_of(local: Any, axis: int | None, world: World) -> Any:
    """A result, or several, made of parts."""
    if isinstance(local, torch.Tensor):
        return Split(local, axis, world)
    return type(local)([out_of(x, axis, world) for x in local])
