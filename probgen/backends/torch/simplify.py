"""Cleans a traced graph: what is written down as a function runs and nobody needs.

A trace holds every `detach`, every view to the shape that is there already, `x + 0`, `x ** 1`, and
the making of each constant. `simplify` takes them out, and writes a column times a row as an
elementwise product; `fold` computes, once and for all, what depends on constants only. Both keep
results to the bit, the sign of a zero aside. A graph may still write in place (Pyro's
`masked_fill_`); what such a node touches is left as it is.

Inductor does the like on its own; a graph that is replayed as Python pays for every node.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Graph, Node

from probgen.backends.torch.aliases import base, op_of, written_by
from probgen.backends.torch.record import form

aten = torch.ops.aten

_SAME = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}
_SHAPES = {
    aten.expand.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
}
_NEUTRAL: dict[Any, float] = {
    aten.add.Tensor: 0,
    aten.add.Scalar: 0,
    aten.sub.Tensor: 0,
    aten.mul.Tensor: 1,
    aten.mul.Scalar: 1,
    aten.div.Tensor: 1,
    aten.pow.Tensor_Scalar: 1,
}
# Inductor does these in place, on one memory for all where what they add to was stretched.
_SCATTERS = {
    aten.index_add.default, aten.index_copy.default, aten.index_put.default,
    aten.scatter.src, aten.scatter.value, aten.scatter_add.default,
}  # fmt: skip
_FOLD_UP_TO = 2**16  # elements of a folded constant


def _written(graph: Graph) -> set[Node]:
    return {base(target) for node in graph.nodes for target in written_by(node)}


def _is_same(node: Node, source: Node) -> bool:
    """Whether two nodes hold tensors of one shape, strides and type."""
    one, other = form(node), form(source)
    return one is not None and other is not None and one[:3] == other[:3]


def _is_stretched(node: Node) -> bool:
    """Whether several places of a tensor lie in one place of memory."""
    found = form(node)
    return found is not None and any(
        n > 1 and not s for n, s in zip(found.shape, found.strides, strict=True)
    )


def _is_outer(node: Node) -> bool:
    """Whether a matrix product is that of a column and a row: of one datum's gradient, say."""
    left = form(node.args[0])
    return left is not None and len(left.shape) == 2 and left.shape[1] == 1


def lift(root: torch.nn.Module, graph: Graph) -> list[torch.Tensor]:
    """Makes the tensors that the traced function closes over inputs, after the others; gives them.

    What it makes of numbers in its own text (`lift_fresh_copy`) stays a constant of the graph.
    """
    found: dict[Any, tuple[Node, torch.Tensor]] = {}
    last = [n for n in graph.nodes if n.op == "placeholder"]
    for node in list(graph.nodes):
        value = getattr(root, str(node.target), None) if node.op == "get_attr" else None
        own = all(op_of(user) is aten.lift_fresh_copy.default for user in node.users)
        if own or not isinstance(value, torch.Tensor):
            continue
        if node.target not in found:
            with graph.inserting_after(last[-1]) if last else graph.inserting_before():
                last.append(graph.placeholder(f"closed_{len(found)}"))
            last[-1].meta.update(node.meta)
            found[node.target] = last[-1], value
        node.replace_all_uses_with(found[node.target][0])
        graph.erase_node(node)
    for name in found:
        delattr(root, name)
    return [value for _, value in found.values()]


def simplify(root: torch.nn.Module, graph: Graph) -> None:
    """Takes out nodes that change nothing; makes scalar constants part of the graph's text."""
    written = _written(graph)
    outputs = set(graph.output_node().all_input_nodes)
    for node in list(graph.nodes):
        op = op_of(node)
        if op is None or not node.args or not isinstance(node.args[0], Node):
            continue
        source = node.args[0]
        if op in _SAME or (op in _SHAPES and _is_same(node, source)):
            node.replace_all_uses_with(source)
        elif op is aten.lift_fresh_copy.default and source.op == "get_attr":
            _inline_scalar(root, node, source, written)
        elif op in _SCATTERS and _is_stretched(source):
            with graph.inserting_before(node):
                own = graph.call_function(
                    aten.clone.default, (source,), {"memory_format": torch.contiguous_format}
                )
            own.meta.update(node.meta)
            node.replace_input_with(source, own)
        elif op is aten.mm.default and _is_outer(node):
            # A library call that inductor cannot fuse with what is done to the product.
            node.target = aten.mul.Tensor
        elif op in _NEUTRAL and len(node.args) == 2 and not node.kwargs:
            # These make a new tensor: not where somebody writes, nor in place of an output.
            neutral = not isinstance(node.args[1], Node) and node.args[1] == _NEUTRAL[op]
            apart = node not in outputs and not {base(node), base(source)} & written
            if neutral and apart and _is_same(node, source):
                node.replace_all_uses_with(source)
    graph.eliminate_dead_code()


def _inline_scalar(root: torch.nn.Module, node: Node, source: Node, written: set[Node]) -> None:
    constant = getattr(root, str(source.target))
    if constant.ndim or base(node) in written or constant.dtype is torch.bool:
        return
    with node.graph.inserting_before(node):
        full = node.graph.call_function(
            aten.full.default,
            ([], constant.item()),
            {"dtype": constant.dtype, "device": constant.device},
        )
    full.meta.update(node.meta)
    node.replace_all_uses_with(full)


def fold(root: torch.nn.Module, graph: Graph) -> None:
    """Computes once what depends on constants only, as far as it is small.

    A tensor that the traced function merely closes over is no constant: its owner may change it.
    """
    # Outputs belong to the caller, who may overwrite them.
    taken = _written(graph) | {base(node) for node in graph.output_node().all_input_nodes}
    known: dict[Node, torch.Tensor] = {}
    for node in list(graph.nodes):
        op = op_of(node)
        if op is None or op._schema.is_mutable or base(node) in taken:
            continue
        if torch.Tag.nondeterministic_seeded in op.tags or len(op._schema.returns) != 1:
            continue
        of_its_own = op is aten.lift_fresh_copy.default and node.args[0].op == "get_attr"
        if of_its_own:
            known[node] = getattr(root, str(node.args[0].target)).clone()
        elif op is aten.ones_like.default or op is aten.zeros_like.default:
            like = form(node)
            if like is not None and math.prod(like.shape) <= _FOLD_UP_TO:
                number = 1 if op is aten.ones_like.default else 0
                known[node] = torch.full(like.shape, number, dtype=like.dtype, device=like.device)
        elif op is aten.new_full.default and (like := form(node)) is not None:
            known[node] = op(
                torch.empty(0, dtype=like.dtype, device=like.device), *node.args[1:], **node.kwargs
            )
        elif all(n in known for n in node.all_input_nodes):
            values = torch.fx.map_arg((node.args, node.kwargs), lambda n: known[n])
            result = op(*values[0], **values[1])
            if isinstance(result, torch.Tensor) and result.numel() <= _FOLD_UP_TO:
                known[node] = result
    for i, (node, value) in enumerate(known.items()):
        if all(user in known for user in node.users):
            continue
        name = f"_folded_{i}"
        root.register_buffer(name, value)
        with graph.inserting_before(node):
            constant = graph.get_attr(name)
        node.replace_all_uses_with(constant)
    graph.eliminate_dead_code()


SMALL_PRODUCT = 2**17  # multiplications of a matrix product that is written as a sum


def small_products(graph: Graph) -> None:
    """Writes small matrix products as sums, which inductor compiles with what stands around them;
    else it calls a library for each, between whose calls no loop is played at once."""
    for node in list(graph.nodes):
        op = op_of(node)
        if op not in (aten.mm.default, aten.bmm.default):
            continue
        left, right = (form(a) for a in node.args)
        if left is None or right is None or math.prod(left.shape) * right.shape[-1] > SMALL_PRODUCT:
            continue
        with graph.inserting_before(node):
            a = graph.call_function(aten.unsqueeze.default, (node.args[0], -1))
            b = graph.call_function(aten.unsqueeze.default, (node.args[1], -3))
            product = graph.call_function(aten.mul.Tensor, (a, b))
            total = graph.call_function(aten.sum.dim_IntList, (product, [-2]))
        total.meta.update(node.meta)
        node.replace_all_uses_with(total)
        graph.erase_node(node)
