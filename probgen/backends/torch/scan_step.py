"""The step of a loop over time written down once, as a flat graph.

It is run on plain tensors, past whatever maps over it or differentiates it, and what it closes over
becomes inputs beside its carry and its row of `xs`: so it may be run again anywhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from probgen.backends.torch import calculus
from probgen.backends.torch.aliases import base, written_by
from probgen.backends.torch.record import Recorder
from probgen.backends.torch.routes import NotTraced, alone
from probgen.backends.torch.scan_layout import Tensors
from probgen.backends.torch.simplify import lift
from probgen.trees import tree_leaves, tree_like


class Step:
    """A step as a flat graph.

    Attributes:
        fn: (carry, row of xs, constants) -> (carry, row of ys), lists of tensors.
        constants: what it closes over.
        y: its output, for its containers.
    """

    def __init__(self, step: Callable, carry: Any, xs: Any):
        starts = tree_leaves(carry)
        rows = [x[0] for x in tree_leaves(xs)]
        with contextlib.ExitStack() as stack:
            recorder = Recorder()
            stack.enter_context(temporarily_clear_interpreter_stack())
            stack.enter_context(recorder.outside())
            stack.enter_context(torch.enable_grad())
            stack.enter_context(calculus.inside())
            stack.enter_context(alone())
            stands = [recorder.input(_example(t)) for t in (*starts, *rows)]
            closures = _Closures(recorder)
            stack.enter_context(recorder)
            stack.enter_context(closures)
            c, x = stands[: len(starts)], stands[len(starts) :]
            new, self.y = step(tree_like(carry, c), None if xs is None else tree_like(xs, x))
            outs = [torch.as_tensor(v) for v in (*tree_leaves(new), *tree_leaves(self.y))]
        _check(starts, outs)
        graph, root = recorder.finish(outs), recorder.root
        graph.eliminate_dead_code()
        for node in graph.nodes:
            if any(base(n).op == "placeholder" for n in written_by(node)):
                raise NotTraced(f"a loop whose step writes into what it is given ({node.target})")
        more = lift(root, graph)
        self.constants = [*closures.found, *more]
        self.num_ys = len(outs) - len(starts)
        module, n = torch.fx.GraphModule(root, graph), len(starts)

        def fn(carry: Tensors, x: Tensors, constants: Tensors) -> tuple[Tensors, Tensors]:
            out = module(*carry, *x, *constants)
            return list(out[:n]), list(out[n:])

        self.fn = fn


def _check(starts: Tensors, outs: Tensors) -> None:
    for old, new in zip(starts, outs, strict=False):
        if old.shape != new.shape or old.dtype != new.dtype:
            raise NotTraced(
                f"a loop whose carry becomes {tuple(new.shape)} {new.dtype} from "
                f"{tuple(old.shape)} {old.dtype}"
            )
    seen: set[Any] = set()
    around = [t.grad_fn for t in outs if t.grad_fn is not None]
    while around:
        node = around.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            raise NotTraced(f"a loop whose step has a derivative by hand ({type(node).__name__})")
        around += [n for n, _ in node.next_functions if n is not None]


def _example(t: torch.Tensor) -> torch.Tensor:
    """A plain tensor as one item of all that are mapped over sees it."""
    f = torch._C._functorch
    while f.is_functorch_wrapped_tensor(t):
        inner = f.get_unwrapped(t)
        t = inner.select(f.maybe_get_bdim(t), 0) if f.is_batchedtensor(t) else inner
    t = t.detach().clone(memory_format=torch.contiguous_format)
    return t.requires_grad_(t.is_floating_point())


class _Closures(TorchFunctionMode):
    """Puts plain tensors, inputs of the recorder, in the place of what a step closes over."""

    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder
        self.inside, self.stands = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        self.found: Tensors = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        new_args, new_kwargs = self._put(args), self._put(kwargs or {})
        if func is torch.Tensor.__getitem__ and _is_index(new_args[1]):
            # torch asks such an index for its number; here it is another at each moment.
            out = new_args[0].index_select(0, new_args[1].reshape(1).long())[0]
        else:
            out = func(*new_args, **new_kwargs)
        if not torch.is_grad_enabled() and func not in _QUIET:
            out = _over(torch.Tensor.detach, out)  # a node, which says so when it is run again
        _over(self._note, out)
        return out

    def _note(self, t: torch.Tensor) -> torch.Tensor:
        self.inside[t] = True
        return t

    def _put(self, value: Any) -> Any:
        return _over(self._stand, value)

    def _stand(self, t: torch.Tensor) -> torch.Tensor:
        if t in self.inside or self.recorder.knows(t):
            return t
        if t not in self.stands:
            with self.recorder.outside(), torch._C.DisableTorchFunction():
                stand = _example(t)
            self.stands[t] = self.recorder.input(stand)
            self.found.append(t)
        return self.stands[t]


def _is_index(value: Any) -> bool:
    """Whether it is one whole number, as a tensor."""
    whole = isinstance(value, torch.Tensor) and not value.dtype.is_floating_point
    return whole and not value.ndim and value.dtype is not torch.bool


_QUIET = (torch.Tensor.requires_grad_, torch.Tensor.detach_)


def _over(fn: Callable, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return fn(value)
    if type(value) in (list, tuple):
        return type(value)(_over(fn, v) for v in value)
    if type(value) is dict:
        return {k: _over(fn, v) for k, v in value.items()}
    return value
