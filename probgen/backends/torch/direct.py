"""A graph's operations by torch's own functions, which cost half a call of the dispatcher's.

`torch.ops.aten.mul.Tensor(a, b)` finds its kernel through boxed arguments, in some 3 us;
`torch.mul(a, b)` calls the same one in 1. A function takes an operator's place where it is heard to
ask for that very operator at arguments of these kinds: asked once a process, and nothing computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.utils._python_dispatch import TorchDispatchMode

from probgen.backends.torch.aliases import op_of

aten = torch.ops.aten

# An operator of a number wraps it and calls that of a tensor, which the function asks for at once.
SAME_AS = {
    aten.add.Scalar: aten.add.Tensor,
    aten.sub.Scalar: aten.sub.Tensor,
    aten.mul.Scalar: aten.mul.Tensor,
    aten.div.Scalar: aten.div.Tensor,
}


class _Heard(Exception):
    """Ends a call at the operator that it asks for."""


class _Listener(TorchDispatchMode):
    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise _Heard(op)


def directly(graph: Graph) -> None:
    """Puts torch's functions in the place of the graph's operators, where they are the same."""
    for node in graph.nodes:
        op = op_of(node)
        if op is None or op.namespace != "aten":
            continue
        found = _function(op, _kind(node.args), _kind(node.kwargs))
        if isinstance(found, str):
            node.op, node.target = "call_method", found
        elif found is not None:
            node.target = found


@functools.lru_cache(maxsize=4096)
def _function(op: Any, args: Any, kwargs: Any) -> Callable | str | None:
    """The function, or the name of the method, that asks for an operator at such arguments."""
    name = op._schema.name.partition("::")[2]
    given, named = _example(args), _example(kwargs)
    for found in _candidates(name):
        call = getattr(torch.Tensor, found) if isinstance(found, str) else found
        try:
            with torch.no_grad(), _Listener():
                call(*given, **named)
        except _Heard as heard:
            if heard.args[0] in (op, SAME_AS.get(op)):
                return found
        except (TypeError, RuntimeError, ValueError, IndexError):  # it takes other arguments
            continue
    return None


def _candidates(name: str) -> Iterator[Callable | str]:
    for room in (torch, torch._C._nn):
        if hasattr(room, name):
            yield getattr(room, name)
    if hasattr(torch.Tensor, name):
        yield name


def _kind(value: Any) -> Any:
    """What a choice among operators may hang on, hashable: the type of a number, not which."""
    if isinstance(value, Node):
        return Node
    if isinstance(value, dict):
        return (dict, *((k, _kind(v)) for k, v in sorted(value.items())))
    if isinstance(value, list | tuple):
        return (list, *map(_kind, value))
    return (type(value), None if type(value) in (int, float) else value)


def _example(kind: Any) -> Any:
    """Arguments of a kind; tensors of no axis, since nothing is computed with them."""
    if kind is Node:
        return torch.zeros(())
    if kind[0] is dict:
        return {k: _example(v) for k, v in kind[1:]}
    if kind[0] is list:
        return [_example(v) for v in kind[1:]]
    return kind[0](1) if kind[0] in (int, float) else kind[1]
