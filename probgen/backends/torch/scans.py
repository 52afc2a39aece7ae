"""Loops over time on torch as one operator of a graph, and its derivative.

The step is written down once, as a flat graph of its carry, its row of `xs` and all that it closes
over, so that it may be run again anywhere: mapped over by `vmap`, in reverse by its pull-back

    (dL/dcarry_{t+1}, dL/dy_t)  ->  dL/dcarry_t, dL/dx_t, and dL/dconstants, summed over t

which is a loop of the same kind, from the last moment to the first over the carries that the first
kept. Both are compiled once, whatever T (`scan_machine.py`). A derivative of that derivative is
left to the next route.
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
from probgen.backends.torch.routes import NotTraced, alone, is_operator, looping
from probgen.backends.torch.scan_machine import Program, Tensors
from probgen.backends.torch.simplify import lift
from probgen.trees import tree_leaves, tree_like, tree_map


def scan(step: Callable, carry: Any, xs: Any, length: int) -> tuple[Any, Any]:
    """See `ops.scan`: one operator, or step by step."""
    given = tree_leaves((carry, xs))
    if given and is_operator(length, given[0].device):
        return _operator(step, carry, xs, length)
    ys = []
    with looping(length):
        for i in range(length):
            carry, y = step(carry, None if xs is None else tree_map(lambda x, i=i: x[i], xs))
            ys.append(y)
    return carry, None if ys[0] is None else tree_map(lambda *a: torch.stack(a), *ys)


def _operator(step: Callable, carry: Any, xs: Any, length: int) -> tuple[Any, Any]:
    """The loop as one node of the graph that is being traced.

    Raises:
        NotTraced: a step that is no flat graph, or whose carry changes its shape or type.
    """
    written = _Step(step, carry, xs)
    fn, num_carry, num_xs = written.fn, len(tree_leaves(carry)), len(tree_leaves(xs))
    program = Program(fn, num_carry, num_xs, length)
    out = _Loop.apply(program, *tree_leaves(carry), *tree_leaves(xs), *written.constants)
    last, ys = out[:num_carry], out[num_carry : num_carry + written.num_ys]
    return tree_like(carry, list(last)), tree_like(written.y, list(ys))


class _Step:
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


class _Loop(torch.autograd.Function):
    """(program, carry, xs, constants) -> (last carry, ys, all carries)."""

    @staticmethod
    def forward(program: Program, *tensors: torch.Tensor) -> Any:
        return tuple(program.run(tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        program, *tensors = inputs
        ctx.program, ctx.num = program, len(tensors)
        stacks = output[-program.num_carry :] if program.keeps and program.num_carry else ()
        ctx.save_for_backward(*tensors, *stacks)
        out = output[: len(output) - len(stacks)]
        rest = [t for t in out if not t.is_floating_point()]
        told = out[program.num_carry :]
        ctx.ys = [i for i, t in enumerate(told) if t.is_floating_point()]
        ctx.mark_non_differentiable(*rest, *stacks)

    @staticmethod
    def backward(ctx: Any, *above: Any) -> Any:
        program: Program = ctx.program
        if not program.keeps:
            raise NotTraced("a second derivative of a loop over time")
        tensors, stacks = ctx.saved_tensors[: ctx.num], ctx.saved_tensors[ctx.num :]
        carry, xs, constants = program.parts(tensors)
        n, m = len(carry), len(xs)
        of_carry = [i for i, t in enumerate(carry) if t.is_floating_point()]
        asked = ctx.needs_input_grad[1:]
        of_xs = [i for i, t in enumerate(xs) if t.is_floating_point() and asked[n + i]]
        of_constants = [
            i for i, t in enumerate(constants) if t.is_floating_point() and asked[n + m + i]
        ]
        ys = ctx.ys
        ct_carry = [above[i] for i in of_carry]
        ct_ys = [above[n + i] for i in ys]
        pull = _pull_back(program, of_carry, of_xs, of_constants, ys)
        back = Program(
            pull, len(of_carry) + len(of_constants), n + m + len(ys), program.length,
            keeps=False, backwards=True,
        )  # fmt: skip
        zeros = [torch.zeros_like(constants[i]) for i in of_constants]
        rows = [*(s[:-1] for s in stacks), *xs, *ct_ys]
        out = _Loop.apply(back, *ct_carry, *zeros, *rows, *constants)
        grads: list[Any] = [None] * len(tensors)
        for g, i in zip(out, of_carry, strict=False):
            grads[i] = g
        for g, i in zip(out[len(of_carry) :], of_constants, strict=False):
            grads[n + m + i] = g
        for g, i in zip(out[back.num_carry :], of_xs, strict=False):
            grads[n + i] = g
        return None, *grads

    @staticmethod
    def vmap(info: Any, in_dims: Any, program: Program, *tensors: torch.Tensor) -> Any:
        carry, xs, constants = program.parts(tensors)
        of_carry, of_xs, of_constants = program.parts(in_dims[1:])
        size = info.batch_size
        carry = [
            t.expand(size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip(carry, of_carry, strict=True)
        ]
        xs = [t if d is None else t.movedim(d, 1) for t, d in zip(xs, of_xs, strict=True)]
        constants = [
            t if d is None else t.movedim(d, 0)
            for t, d in zip(constants, of_constants, strict=True)
        ]
        dims = ([0] * len(carry), [_front(d) for d in of_xs], [_front(d) for d in of_constants])

        def fn(c: Tensors, x: Tensors, k: Tensors) -> Any:
            return torch.func.vmap(program.fn, in_dims=dims)(c, x, k)

        out = _Loop.apply(program._replace(fn=fn), *carry, *xs, *constants)
        return out, tuple([0] * len(carry) + [1] * (len(out) - len(carry)))


def _front(d: int | None) -> int | None:
    return None if d is None else 0


def _pull_back(
    program: Program, of_carry: list[int], of_xs: list[int], of_constants: list[int], ys: list[int]
) -> Callable:
    """The step of the loop that runs back; the numbers say what has a derivative."""
    n, m, p = program.num_carry, program.num_xs, len(of_carry)

    def fn(above: Tensors, row: Tensors, constants: Tensors) -> tuple[Tensors, Tensors]:
        carry, x, ct_ys = row[:n], row[n : n + m], row[n + m :]
        ct_carry, sums = above[:p], above[p:]

        def forward(a: Tensors, b: Tensors, c: Tensors) -> tuple[Tensors, Tensors]:
            new, out = program.fn(
                _put(carry, of_carry, a), _put(x, of_xs, b), _put(constants, of_constants, c)
            )
            return [new[i] for i in of_carry], [out[i] for i in ys]

        picked = [[s[i] for i in at] for s, at in (
            (carry, of_carry), (x, of_xs), (constants, of_constants)
        )]  # fmt: skip
        _, pull = torch.func.vjp(forward, *picked)
        a, b, c = pull((ct_carry, ct_ys))
        return [*a, *(s + g for s, g in zip(sums, c, strict=True))], list(b)

    return fn


def _put(old: Tensors, at: list[int], new: Tensors) -> Tensors:
    out = list(old)
    for i, v in zip(at, new, strict=True):
        out[i] = v
    return out
