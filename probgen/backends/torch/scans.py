"""Loops over time on torch as one operator of a graph, and its derivative.

The step is written down once (`scan_step.py`), as a flat graph of its carry, its row of `xs` and
all that it closes over, so that it may be run again anywhere: mapped over by `vmap`, in reverse by
its pull-back

    (dL/dcarry_{t+1}, dL/dy_t)  ->  dL/dcarry_t, dL/dx_t, and dL/dconstants, summed over t

which is a loop of the same kind, from the last moment to the first over the carries that the first
kept. Both are compiled once, whatever T (`scan_machine.py`). A derivative of that derivative is
left to the next route.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from probgen.backends.torch.routes import NotTraced, is_operator, looping
from probgen.backends.torch.scan_layout import Form, Tensors
from probgen.backends.torch.scan_machine import Program
from probgen.backends.torch.scan_step import Step
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
    written = Step(step, carry, xs)
    fn, num_carry, num_xs = written.fn, len(tree_leaves(carry)), len(tree_leaves(xs))
    program = Program(fn, Form(num_carry, num_xs, length))
    out = _Loop.apply(program, *tree_leaves(carry), *tree_leaves(xs), *written.constants)
    last, ys = out[:num_carry], out[num_carry : num_carry + written.num_ys]
    return tree_like(carry, list(last)), tree_like(written.y, list(ys))


class _Loop(torch.autograd.Function):
    """(program, carry, xs, constants) -> (last carry, ys, all carries)."""

    @staticmethod
    def forward(program: Program, *tensors: torch.Tensor) -> Any:
        return tuple(program.run(tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        program, *tensors = inputs
        ctx.program, ctx.num = program, len(tensors)
        num_carry, keeps = program.form.num_carry, program.form.keeps
        stacks = output[-num_carry:] if keeps and num_carry else ()
        ctx.save_for_backward(*tensors, *stacks)
        out = output[: len(output) - len(stacks)]
        rest = [t for t in out if not t.is_floating_point()]
        told = out[num_carry:]
        ctx.ys = [i for i, t in enumerate(told) if t.is_floating_point()]
        ctx.mark_non_differentiable(*rest, *stacks)

    @staticmethod
    def backward(ctx: Any, *above: Any) -> Any:
        program: Program = ctx.program
        form = program.form
        if not form.keeps:
            raise NotTraced("a second derivative of a loop over time")
        tensors, stacks = ctx.saved_tensors[: ctx.num], ctx.saved_tensors[ctx.num :]
        carry, xs, constants = form.parts(tensors)
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
        num_above, num_rows = len(of_carry) + len(of_constants), n + m + len(ys)
        back = Form(num_above, num_rows, form.length, keeps=False, backwards=True)
        zeros = [torch.zeros_like(constants[i]) for i in of_constants]
        rows = [*(s[:-1] for s in stacks), *xs, *ct_ys]
        out = _Loop.apply(Program(pull, back), *ct_carry, *zeros, *rows, *constants)
        grads: list[Any] = [None] * len(tensors)
        for g, i in zip(out, of_carry, strict=False):
            grads[i] = g
        for g, i in zip(out[len(of_carry) :], of_constants, strict=False):
            grads[n + m + i] = g
        for g, i in zip(out[num_above:], of_xs, strict=False):
            grads[n + i] = g
        return None, *grads

    @staticmethod
    def vmap(info: Any, in_dims: Any, program: Program, *tensors: torch.Tensor) -> Any:
        carry, xs, constants = program.form.parts(tensors)
        of_carry, of_xs, of_constants = program.form.parts(in_dims[1:])
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
    n, m, p = program.form.num_carry, program.form.num_xs, len(of_carry)

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
