"""A function on torch written down as a flat graph of tensors, for one set of shapes.

Tensors, keys and noise are the graph's inputs; everything else is a constant of it. The function is
written down as it runs once on copies of its arguments (`record.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from probgen.backends.keys import Key, mix
from probgen.backends.torch import random
from probgen.backends.torch.aliases import op_of
from probgen.backends.torch.direct import directly
from probgen.backends.torch.inductor import compiled
from probgen.backends.torch.record import Recorder
from probgen.backends.torch.routes import calls, tracing
from probgen.backends.torch.scan_machine import kept
from probgen.backends.torch.simplify import fold, lift, simplify, small_products
from probgen.backends.torch.split import Piece, Split, sharing
from probgen.backends.torch.split_sums import Place, placed
from probgen.trees import tree_leaves, tree_map


def flatten(value: Any, tensors: list, keys: list, spec: list) -> None:
    """Appends tensors and keys found in `value`; `spec` gets everything that a graph depends on."""
    kind = type(value)
    if kind is Split:
        tensors.append(value.local)
        spec.append((value.axis, value.world.outer, value.shape, value.dtype))
    elif kind is torch.Tensor or isinstance(value, torch.Tensor):
        tensors.append(value.whole() if kind is Piece else value)
        spec.append((value.shape, value.dtype))
    elif kind is dict:
        spec.append(tuple(value))
        for k in value:
            flatten(value[k], tensors, keys, spec)
    elif kind is Key:
        keys.append(value)
        spec.append(("rows", len(value.seed)) if isinstance(value.seed, tuple) else "key")
    elif isinstance(value, tuple | list):
        spec.append((kind, len(value)))
        for v in value:
            flatten(v, tensors, keys, spec)
    else:  # 1, 1.0 and True are equal, and so are 0.0 and -0.0
        spec.append((kind, repr(value) if kind is float else value))


def _rebuild(value: Any, tensors: Any, keys: Any) -> Any:
    if type(value) is Split:
        return Split(next(tensors), value.axis, value.world)
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if isinstance(value, Key):
        return next(keys)
    if isinstance(value, dict):
        return {k: _rebuild(v, tensors, keys) for k, v in value.items()}
    if isinstance(value, tuple | list):
        items = [_rebuild(v, tensors, keys) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _builder(tree: Any) -> Callable:
    """`tree_like` for the containers of `tree`, walked once: iterator of leaves -> tree."""
    if tree is None:
        return lambda _: None
    if isinstance(tree, dict):
        parts = [(k, _builder(tree[k])) for k in sorted(tree)]
        return lambda feed: {k: part(feed) for k, part in parts}
    if isinstance(tree, tuple | list):
        inner, kind = [_builder(v) for v in tree], type(tree)
        if hasattr(tree, "_fields"):
            return lambda feed: kind(*[part(feed) for part in inner])
        return lambda feed: kind([part(feed) for part in inner])
    return next


def cond(pred: Any, if_true: Callable, if_false: Callable, *args: Any) -> Any:
    """One of two functions, by a scalar; both, where a graph or a vmap cannot ask it."""
    if tracing.get() or torch._C._functorch.peek_interpreter_stack() is not None:
        chosen = torch.as_tensor(pred)
        return tree_map(lambda a, c: torch.where(chosen, a, c), if_true(*args), if_false(*args))
    return if_true(*args) if bool(pred) else if_false(*args)


class Graph:
    """One function at one set of shapes: `call(tensors, seeds, constants) -> output`.

    Attributes:
        constants: the tensors that the function closes over, which are inputs of the graph too;
            whoever makes a graph takes them out of it (`take_constants`).
        loops: over time, which the graph has as one operator each, kept alive.
        code: by inductor, what it made: inputs -> outputs, for `replay.py`.
    """

    code: Any = None

    def __init__(
        self, fn: Callable, args: tuple, route: str, device: str, num_calls: int = 0,
        is_looped: bool = False,
    ):  # fmt: skip
        # Draws while planning and tracing are thrown away; the caller's random state stays.
        self.loops: list = []
        token, other = kept.set(self.loops), calls.set(num_calls)
        try:
            with random.seeded(0, device):
                self._build(fn, args, route, is_looped)
        finally:
            kept.reset(token)
            calls.reset(other)

    def _build(self, fn: Callable, args: tuple, route: str, is_looped: bool) -> None:
        tensors: list = []
        keys: list = []
        flatten(args, tensors, keys, [])
        self.route, recorder = route, Recorder()
        plan = random.Planner(recorder)
        marked = [Key(k.seed, (i,)) for i, k in enumerate(keys)]
        # On copies, each an input of its own: a function that writes into its arguments must do so
        # once a call, and one tensor may be given twice.
        example = [t.detach().clone(memory_format=torch.contiguous_format) for t in tensors]
        copies = [recorder.input(t) for t in example]
        with torch.no_grad(), recorder:
            output = self._run(fn, _rebuild(args, iter(copies), iter(marked)), plan)
            leaves = [torch.as_tensor(leaf) for leaf in tree_leaves(output)]
        self.places, self.world = [Place.of(leaf) for leaf in leaves], sharing.get()
        leaves = [leaf.local if isinstance(leaf, Split) else leaf for leaf in leaves]
        self.build_output = _builder(output)
        self.slots = plan.slots
        plan.check()
        graph, root = recorder.finish(leaves), recorder.root
        self.constants = lift(root, graph)
        simplify(root, graph)
        self.draws_inside = any(
            torch.Tag.nondeterministic_seeded in op.tags for op in map(op_of, graph.nodes) if op
        )
        if route == "inductor":
            example += random.redraw(plan.slots, [k.seed for k in keys])
            if is_looped:
                small_products(graph)
            module = torch.fx.GraphModule(root, graph)
            self.run, self.code = compiled(module, [*example, *self.constants])
        else:
            fold(root, graph)
            directly(graph)
            self.run = torch.fx.GraphModule(root, graph).forward

    def _run(self, fn: Callable, args: tuple, plan: random.Planner) -> Any:
        plan_token, token = random.planner.set(plan), tracing.set(self.route)
        try:
            return fn(*args)
        finally:
            tracing.reset(token)
            random.planner.reset(plan_token)

    def take_constants(self) -> list[torch.Tensor]:
        """The constants, which the graph no longer holds."""
        constants, self.constants = self.constants, []
        return constants

    def __call__(self, tensors: list, keys: list, device: str, constants: list) -> Any:
        # Compiled code reads memory by the strides that it was made for, the contiguous ones.
        inputs = [t if t.is_contiguous() else t.contiguous() for t in tensors]
        seeds = [k.seed for k in keys]
        if self.slots:
            inputs += random.redraw(self.slots, seeds)
        if constants:
            inputs += [t if t.is_contiguous() else t.contiguous() for t in constants]
        had_grad = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # torch.no_grad() without its cost per call
        try:
            if self.draws_inside and seeds:
                # Never row keys: what draws inside refuses them.
                with random.seeded(mix(seeds[0], 0x5EED), device):
                    out = self.run(*inputs)
            else:
                out = self.run(*inputs)
        finally:
            torch._C._set_grad_enabled(had_grad)
        if self.world is not None:
            out = placed(out, self.places, self.world)
        return self.build_output(iter(out))
