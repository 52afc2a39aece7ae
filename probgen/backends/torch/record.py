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

A tensor that the function closes over is a constant of the graph (`get_attr`). What a graph cannot
show is an error, `NotTraced`, also where the function catches it: a number asked of a tensor
(`.item()`, `if`, numpy, a list), or a shape that hangs on numbers, unless those stand in the
function's own text alone; and a write into what the function closes over, which would happen twice.
"""

from __future__ import annotations

import operator
import weakref
from typing import Any, NamedTuple, NoReturn

import torch
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from probgen.backends.torch.aliases import base, written_by
from probgen.backends.torch.routes import NotTraced

aten = torch.ops.aten
_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
# Past all operators: a tensor's numbers, and tensors made of a list in which tensors may stand.
_READS = (torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__)
_MAKES = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)


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
        self._refusal = ""
        self._reads = _Reads(self)

    def __enter__(self) -> Recorder:
        self._reads.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._reads.__exit__(*error)

    def input(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, an input of the graph from here on, after those that there are."""
        before = self._inputs[-1] if self._inputs else None
        with self.graph.inserting_after(before) if before else self.graph.inserting_before():
            node = self.graph.placeholder(f"input_{len(self._inputs)}")
        self._inputs.append(node)
        self._name(tensor, node)
        return tensor

    def finish(self, outputs: list[torch.Tensor]) -> torch.fx.Graph:
        """The graph, which gives those tensors.

        Raises:
            NotTraced: the function met what a graph cannot show, and caught the error.
        """
        if self._refusal:
            raise NotTraced(self._refusal)
        self.graph.output([self._node(t) for t in outputs])
        return self.graph

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether it has a node of the graph already."""
        return tensor in self._nodes

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
            self.of_text(f"{func}", *args)
            return func(*args, **kwargs)
        if torch.Tag.dynamic_output_shape in func.tags:
            self.of_text(f"the shape of {func}", *_deciding(func, args))
        if func is aten.lift_fresh.default:  # of a number in the text: a new tensor each time
            func, is_text = aten.lift_fresh_copy.default, True
        node = self.graph.call_function(func, *noted)
        try:
            self._check_writes(node)
            out = func(*args, **kwargs)
        except BaseException:
            self.graph.erase_node(node)
            raise
        if torch.Tag.nondeterministic_seeded in func.tags:
            is_text = False
        if func._schema.is_mutable and not is_text:
            self._texts.clear()  # what was written into may be seen through any of them
        self._name_all(out, node, is_text)
        return out

    def of_text(self, what: str, *of: Any) -> None:
        """Refuses numbers of tensors that do not hang on the function's text alone."""
        if not all(self._is_text(value) for value in of):
            self.refuse(f"{what} asks for the value of a tensor, which is another each call")

    def refuse(self, why: str) -> NoReturn:
        """NotTraced, now and, should the function catch it, from `finish`."""
        self._refusal = self._refusal or why
        raise NotTraced(why)

    def _is_text(self, value: Any) -> bool:
        if isinstance(value, list | tuple):
            return all(map(self._is_text, value))
        return not isinstance(value, torch.Tensor) or self._nodes.get(value) in self._texts

    def _check_writes(self, node: Node) -> None:
        if any(base(n).op == "get_attr" for n in written_by(node)):
            self.refuse(f"{node.target} writes into a tensor that the function closes over")

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
            self.refuse("a draw from a generator of its own; draw from a key")
        return value


class _Reads(TorchFunctionMode):
    """Sees what no dispatch mode does: numbers that leave torch, or come back in a list."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = weakref.proxy(recorder)  # no cycle: what is closed over goes at once

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _READS:
            self._recorder.of_text(func.__name__, *args[:1])
        elif func in _MAKES:
            lists = [v for v in (*args, *kwargs.values()) if isinstance(v, list | tuple)]
            self._recorder.of_text(f"{func.__name__} of a list", *lists)
        elif func is torch.Tensor.data.__set__:
            self._recorder.refuse("x.data = y changes what a tensor is, past every operator")
        return func(*args, **kwargs)


def _deciding(func: Any, args: tuple) -> Any:
    """What the shape hangs on, of an operator whose shape hangs on numbers."""
    if func is aten.index.Tensor:
        masks = (torch.bool, torch.uint8)
        return [i for i in args[1] if isinstance(i, torch.Tensor) and i.dtype in masks]
    return args[1:] if func is aten.masked_select.default else args
