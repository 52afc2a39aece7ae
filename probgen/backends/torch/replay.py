"""What inductor's compiled code launches, written down once and launched again.

Inductor's code for a graph is Python that makes each buffer, then calls a few C++ kernels on them;
of a small graph the buffers cost ten times the kernels. Where a graph writes its results into its
own inputs, the same launches on the same buffers are its next call: they are kept as a list.

Kernels are seen by their names in inductor's module, all else by a dispatch mode: what works
in place is launched again as it is, and the result of anything else is copied to where it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

KERNEL = "cpp_fused"
_one_at_a_time = threading.Lock()  # kernels are exchanged for the whole process


class NotReplayed(RuntimeError):
    """Compiled code of another form than this file knows."""


class Replay:
    """The launches of one compiled graph on one set of inputs, which are alive as long as this.

    Args:
        code: what inductor made of the graph (`CompiledFxGraph`), in which the kernels are found.
        call: the graph, with what is put around that code.
        inputs: tensors; the graph runs on them.
        written: those of them that it writes into.

    Raises:
        NotReplayed: the code is no module of kernels, or its launches are not all that it does.
    """

    def __init__(
        self, code: Any, call: Callable, inputs: list[torch.Tensor], written: list[torch.Tensor]
    ):
        runs = getattr(code, "current_callable", None)
        module: dict = getattr(getattr(runs, "__func__", runs), "__globals__", {})
        kernels = [n for n in module if n.startswith(KERNEL)]
        if not kernels:
            raise NotReplayed("inductor's code has no kernels by name")
        self.launches: list[tuple[Callable, tuple]] = []
        real, before = {n: module[n] for n in kernels}, [v.clone() for v in written]
        with _one_at_a_time:
            try:
                module.update({n: self._noting(f) for n, f in real.items()})
                with torch.no_grad(), _Calls(self.launches):
                    call(*inputs)
            finally:
                module.update(real)
        after = [v.clone() for v in written]
        for v, old in zip(written, before, strict=True):
            v.copy_(old)
        self.run(1)
        if not all(map(_same, written, after)):
            raise NotReplayed("its kernels are not all that inductor's code does")

    def _noting(self, kernel: Callable) -> Callable:
        def launch(*args: Any) -> None:
            self.launches.append((kernel, args))
            kernel(*args)

        return launch

    def run(self, times: int) -> None:
        """The graph, so many times, in place."""
        launches = self.launches
        if len(launches) == 1:
            ((kernel, args),) = launches
            for _ in range(times):
                kernel(*args)
            return
        for _ in range(times):
            for kernel, args in launches:
                kernel(*args)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """To the bit, NaN where NaN is."""
    return bool(((a == b) | ((a != a) & (b != b))).all())


class _Calls(TorchDispatchMode):
    """Notes operators that are called beside the kernels."""

    def __init__(self, launches: list):
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = op(*args, **kwargs)
        if op._schema.is_mutable:
            self.launches.append((lambda *a: op(*a, **kwargs), args))
            return out
        outs = [out] if isinstance(out, torch.Tensor) else list(out)
        if not all(isinstance(o, torch.Tensor) for o in outs):
            raise NotReplayed(f"{op} gives something else than tensors")
        if not any(o.alias_info for o in op._schema.returns):

            def again(*a: Any) -> None:
                new = op(*a, **kwargs)
                for old, value in zip(outs, [new] if len(outs) == 1 else new, strict=True):
                    old.copy_(value)

            self.launches.append((again, args))
        return out
