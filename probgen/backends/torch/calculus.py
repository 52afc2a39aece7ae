"""Gradients on torch: by the tape, and by functorch inside a `vmap`."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import torch

from probgen.trees import tree_leaves, tree_like, tree_map

_nested: contextvars.ContextVar[bool] = contextvars.ContextVar("nested_grad", default=False)


@contextlib.contextmanager
def inside() -> Iterator[None]:
    """As inside of an outer derivative: what is computed here is differentiated again."""
    token = _nested.set(True)
    try:
        yield
    finally:
        _nested.reset(token)


def value_and_grad(fn: Callable, has_aux: bool = False) -> Callable:
    """(params, *args) -> (value, grads), or ((value, aux), grads); by the tape, so that every
    `rsample` of Pyro has its gradient; by functorch inside a `vmap`."""

    def by_tape(params: Any, *args: Any) -> Any:
        nested = _nested.get()
        token = _nested.set(True)
        try:
            with torch.enable_grad():
                leaves = [_leaf(p, nested) for p in tree_leaves(params)]
                out = fn(tree_like(params, leaves), *args)
                value = out[0] if has_aux else out
                if not value.requires_grad:
                    grads: Any = [None] * len(leaves)
                else:
                    grads = torch.autograd.grad(
                        value, leaves, allow_unused=True, create_graph=nested
                    )
        finally:
            _nested.reset(token)
        filled = [
            torch.zeros_like(p) if g is None else g for g, p in zip(grads, leaves, strict=True)
        ]
        if not nested:
            out = tree_map(lambda o: o.detach() if isinstance(o, torch.Tensor) else o, out)
        return out, tree_like(params, filled)

    def either(params: Any, *args: Any) -> Any:
        if torch._C._functorch.peek_interpreter_stack() is None:
            return by_tape(params, *args)
        grads, out = torch.func.grad_and_value(fn, has_aux=has_aux)(params, *args)
        return out, grads

    return either


def _leaf(p: torch.Tensor, nested: bool) -> torch.Tensor:
    """What the inner derivative is taken by. A view of its own, so that what was made of `p`
    outside stays a constant to it, while outer derivatives go on through it."""
    return p.view_as(p) if nested and p.requires_grad else p.detach().requires_grad_(True)
