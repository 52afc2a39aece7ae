"""A pure function on torch written down as a flat graph of ATen calls, while it runs once.

    recorder = Recorder()
    x = recorder.input(example)
    with recorder:
        y = fn(x)
    graph = recorder.finish([y])           # inputs of the graph -> outputs

A dispatch mode sees every operator below autograd, functorch and Pyro, the backward pass of a tape
included. It notes the call and lets it happen, so shapes are those of the example. torch's own
`make_fx` writes the same graph down, with stand-ins of every tensor and stacks of Python for uses
that are not ours, at about ten times the cost.

A tensor that the function closes over is a constant of the graph (`get_attr`). A number asked of a
tensor (`.item()`, `if`) is an error, `NotTraced`, unless it hangs on numbers in the function's
own text alone.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from probgen.backends.torch.routes import NotTraced

aten = torch.ops.aten
_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


class Form(NamedTuple):
    """What a recorded tensor looked like: `node.meta["form"]`."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def form(node: Any) -> Form | None:
    """That of a node; None of what is no tensor."""
    return node.meta.get("form") if isinstance(node, Node) else None


class Recorder(TorchDispatchMode):
    """See the head of this file.

    Attributes:
        graph: what was written so far.
        root: the module whose attributes are the graph's constants.
    """

    def __init__(self) -> None:
        super().__init__()
        self.graph, self.root = Graph(), torch.nn.Module()
        self._nodes = WeakTensorKeyDictionary()
        self._inputs: list[Node] = []
        self._constants = 0
        self._texts: set[Node] = set()  # nodes that hang on the function's text alone

    def input(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, an input of the graph from here on, after those that there are."""
        before = self._inputs[-1] if self._inputs else None
        with self.graph.inserting_after(before) if before else self.graph.inserting_before():
            node = self.graph.placeholder(f"input_{len(self._inputs)}")
        self._inputs.append(node)
        self._name(tensor, node)
        return tensor

    def finish(self, outputs: list[torch.Tensor]) -> torch.fx.Graph:
        """The graph, which gives those tensors."""
        self.graph.output([self._node(t) for t in outputs])
        return self.graph

    def outside(self) -> Any:
        """A context in which nothing is written down."""
        return _disable_current_modes()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not all(kind in _PLAIN for kind in types):
            return NotImplemented
        given: list[Node] = []
        noted = self._written(args, given), self._written(kwargs, given)
        is_text = all(node in self._texts for node in given)
        if torch.Tag.data_dependent_output in func.tags:
            if is_text:
                return func(*args, **kwargs)
            raise NotTraced(f"{func} asks for the value of a tensor, which is another each call")
        if func is aten.lift_fresh.default:  # of a number in the text: a new tensor each time
            func, is_text = aten.lift_fresh_copy.default, True
        node = self.graph.call_function(func, *noted)
        out = func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags:
            is_text = False
        if func._schema.is_mutable and not is_text:
            self._texts.clear()  # what was written into may be seen through any of them
        self._name_all(out, node, is_text)
        return out

    def _name_all(self, out: Any, node: Node, is_text: bool) -> None:
        if isinstance(out, torch.Tensor):
            self._name(out, node)
            if is_text:
                self._texts.add(node)
        elif isinstance(out, tuple | list):
            for i, each in enumerate(out):
                part = self.graph.call_function(operator.getitem, (node, i))
                self._name_all(each, part, is_text)

    def _name(self, tensor: torch.Tensor, node: Node) -> None:
        if tensor.layout is torch.strided:
            node.meta["form"] = Form(
                tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device
            )
        self._nodes[tensor] = node

    def _node(self, tensor: torch.Tensor) -> Node:
        node = self._nodes.get(tensor)
        if node is None:
            name = f"_tensor_constant{self._constants}"
            self._constants += 1
            setattr(self.root, name, tensor)
            node = self.graph.get_attr(name)
            self._name(tensor, node)
        return node

    def _written(self, value: Any, given: list[Node]) -> Any:
        """`value` with nodes for tensors, which are added to `given`."""
        if isinstance(value, torch.Tensor):
            given.append(self._node(value))
            return given[-1]
        if isinstance(value, tuple | list):
            return type(value)([self._written(v, given) for v in value])
        if isinstance(value, dict):
            return {k: self._written(v, given) for k, v in value.items()}
        if isinstance(value, torch.Generator):
            raise NotTraced("a draw from a generator of its own; draw from a key")
        return value
