"""A flat graph compiled by inductor, and what its code launches at a call."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

KERNEL = "cpp_fused"
_one_at_a_time = threading.Lock()  # kernels are exchanged for the whole process


class NotReplayed(RuntimeError):
    """Compiled code of another form than this file knows."""


def compiled(module: torch.fx.GraphModule, example: list[torch.Tensor]) -> tuple[Callable, Any]:
    """(the graph as compiled code, what inductor made of it: inputs -> outputs)."""
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    made = []

    def inner(*args: Any, **kwargs: Any) -> Any:
        made.append(compile_fx_inner(*args, **kwargs))
        return made[-1]

    # The sizes that it would assert at every call are the signature that a graph is found by.
    with warnings.catch_warnings(), config.patch(fallback_random=True, size_asserts=False):
        warnings.simplefilter("ignore")  # inductor's own deprecations, not ours to act on
        run = compile_fx(module, example, inner_compile=inner)
    return run, made[-1] if made else None


def launches_of(code: Any, call: Callable, inputs: list[torch.Tensor]) -> tuple[list, Any]:
    """(what one call of compiled code launches: functions with their arguments, its result).

    Kernels are seen by their names in inductor's module, all else by a dispatch mode: what works
    in place is launched again as it is, and the result of anything else is copied to where it was.
    A kernel stands as inductor has it, all else as a `Called`.

    Raises:
        NotReplayed: the code is no module of kernels.
    """
    runs = getattr(code, "current_callable", None)
    module: dict = getattr(getattr(runs, "__func__", runs), "__globals__", {})
    real = {n: module[n] for n in module if n.startswith(KERNEL)}
    if not real:
        raise NotReplayed("inductor's code has no kernels by name")
    launches: list[tuple[Callable, tuple]] = []

    def noting(kernel: Callable) -> Callable:
        def launch(*args: Any) -> None:
            launches.append((kernel, args))
            kernel(*args)

        return launch

    with _one_at_a_time:
        try:
            module.update({n: noting(f) for n, f in real.items()})
            with torch.no_grad(), _Calls(launches):
                out = call(*inputs)
        finally:
            module.update(real)
    return launches, out


class Called:
    """An operator that is called beside the kernels; `outs` is where its result was."""

    def __init__(self, op: Any, kwargs: dict, outs: list | None):
        self.op, self.kwargs, self.outs = op, kwargs, outs

    def __call__(self, *args: Any) -> None:
        new = self.op(*args, **self.kwargs)
        if self.outs is not None:
            for old, value in zip(self.outs, [new] if len(self.outs) == 1 else new, strict=True):
                old.copy_(value)


class _Calls(TorchDispatchMode):
    """Notes operators that are called beside the kernels."""

    def __init__(self, launches: list):
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = op(*args, **kwargs)
        if op._schema.is_mutable:
            self.launches.append((Called(op, kwargs, None), args))
            return out
        outs = [out] if isinstance(out, torch.Tensor) else list(out)
        if not all(isinstance(o, torch.Tensor) for o in outs):
            raise NotReplayed(f"{op} gives something else than tensors")
        if not any(o.alias_info for o in op._schema.returns):
            self.launches.append((Called(op, kwargs, outs), args))
        return out
