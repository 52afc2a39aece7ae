"""A flat graph compiled by inductor, and what its code launches at a call."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from probgen.progress import log

KERNEL = "cpp_fused"
HEADER = 64  # bytes of a library's
_CUT = re.compile(r"(/.*\.so): (?:file too short|invalid ELF header)")  # the loader's words
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
        run = past_cut_libraries(lambda: compile_fx(module, example, inner_compile=inner))
    return run, made[-1] if made else None


def past_cut_libraries(make: Callable[[], Any]) -> Any:
    """What `make` gives, which has inductor compile and load libraries.

    A linker writes a library at its place in inductor's cache, the header last: one that was killed
    leaves there what no process can load, and what none makes anew, since there is something. Such
    a library is removed and made once more.
    """
    seen = set()
    while True:
        try:
            return make()
        except Exception as error:  # inductor wraps the loader's in several kinds of its own
            found = _CUT.search(str(error))
            if found is None or found[1] in seen:
                raise
            log.info("torch: %s was left unfinished and is compiled anew", found[1])
            seen.add(found[1])
            _remove_cut(Path(found[1]))


def _remove_cut(library: Path) -> None:
    """Under the lock of who compiles it, so that what another process has made since stays."""
    from torch._inductor.codecache import LOCK_TIMEOUT, get_lock_dir
    from torch.utils._filelock import FileLock

    lock = Path(get_lock_dir()) / f"{library.name.partition('.')[0]}.lock"
    if not library.is_relative_to(lock.parent.parent):
        return
    with FileLock(lock, timeout=LOCK_TIMEOUT):
        head = library.read_bytes()[:HEADER] if library.exists() else None
        if head is not None and (len(head) < HEADER or not head.startswith(b"\x7fELF")):
            library.unlink()


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
