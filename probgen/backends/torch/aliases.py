"""Which nodes of a flat graph show one memory, and which a node writes into: by ATen's schemas."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node


def op_of(node: Any) -> Any:
    """The ATen operator that a node calls, or None."""
    is_call = isinstance(node, Node) and node.op == "call_function"
    return node.target if is_call and isinstance(node.target, torch._ops.OpOverload) else None


def written_by(node: Node) -> list[Node]:
    """Arguments that a node writes into."""
    op = op_of(node)
    if op is None or not op._schema.is_mutable:
        return []
    return [n for a, v in _given(node, op) if a.alias_info.is_write for n in _nodes(v)]


def base(node: Node) -> Node:
    """The node whose memory a view shows; itself for a fresh tensor."""
    while True:
        source = _source(node)
        if source is None:
            return node
        node = source


def _source(node: Node) -> Node | None:
    """The argument whose memory a node shows, a step back."""
    part, maker = 0, node
    if node.op == "call_function" and node.target is operator.getitem:
        maker, part = node.args
    op = op_of(maker)
    returns = () if op is None else op._schema.returns
    if not returns:
        return None
    shown = returns[part if len(returns) > 1 else 0].alias_info  # one return: a tensor, or a list
    if shown is None:
        return None
    given = _given(maker, op)
    named = [v for a, v in given if shown.before_set & a.alias_info.before_set]
    found = _nodes(named or [v for _, v in given])  # pieces of a tensor have no name of its memory
    return found[0] if found else None


def _given(node: Node, op: Any) -> list[tuple[Any, Any]]:
    """(argument of the schema, what is given for it) of those whose memory is shown or written."""
    pairs = [*zip(op._schema.arguments, node.args, strict=False)]
    pairs += [(a, node.kwargs[a.name]) for a in op._schema.arguments if a.name in node.kwargs]
    return [(a, v) for a, v in pairs if a.alias_info is not None]


def _nodes(value: Any) -> list[Node]:
    if isinstance(value, list | tuple):
        return [n for v in value for n in _nodes(v)]
    return [value] if isinstance(value, Node) else []
