r"""XLA compiles the tests' programs in a hurry: most run once or twice, and none for long.

By XLA's own preset for that, without LLVM's optimisations, with fusions by its elder emitter, which
needs no MLIR, in one piece, not in one for each of 32 threads, and without XLA's look at its own
work, a program is compiled in a seventh of the time. Compilation was most of what the tests cost.

To compile as users' programs are compiled, since XLA heeds the last word of a flag:

    XLA_FLAGS="--xla_cpu_opt_preset=CPU_OPT_PRESET_DEFAULT --xla_backend_optimization_level=3 \
        --xla_cpu_use_fusion_emitters=true" make test

So are compiled what `make reproduce` runs, tests for a GPU, and the child processes that a test
starts without XLA_FLAGS, such as those on JAX's sums and on one result under load.
"""

import os
import sys
import threading
from collections.abc import MutableMapping

from probgen.backends import xla_flags

HASTE = {
    "--xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_COMPILE",
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
    "--xla_cpu_use_fusion_emitters": "false",
    "--xla_disable_hlo_passes": "hlo-verifier",
    "--xla_cpu_parallel_codegen_split_count": "1",
}
# No keys of a cache on disk that is not there, and no stack of Python beside every operation.
JAX = {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0"}

PROGRAMS = 256  # of one context


def hasten(environment: MutableMapping[str, str] = os.environ) -> None:
    """Puts the flags that this jaxlib knows before the user's; before JAX's client starts."""
    for name, value in JAX.items():
        environment.setdefault(name, value)
    said = environment.get("XLA_FLAGS", "")
    if said.strip() and not said.lstrip().startswith("-"):
        return  # the user's own file of flags
    new = [f"{flag}={value}" for flag, value in HASTE.items() if xla_flags.is_known(flag)]
    environment["XLA_FLAGS"] = " ".join([*(each for each in new if each not in said), said]).strip()


class _Own(threading.local):
    """A thread's context, and how many programs may still be written down in it."""

    context, left = None, 0


def forget_stacks() -> None:
    """Lets JAX, once imported, trace without a copy of Python's stack, deep in a test, for each
    operation: a twentieth of the time of a trace."""
    extension = sys.modules.get("jaxlib._jax")
    if hasattr(extension, "set_tracebacks_enabled"):
        extension.set_tracebacks_enabled(False)


def keep_contexts() -> None:
    """Lets JAX, once imported, write many programs down in one MLIR context.

    It makes one for each, which takes 5 ms of the 8 that a small program's lowering does. What was
    written in one is freed with it alone, so each serves for a while, and one thread.
    """
    mlir = sys.modules.get("jax._src.interpreters.mlir")
    make = getattr(mlir, "make_ir_context", None)
    if make is not None and not hasattr(make, "own"):
        mlir.make_ir_context = kept(make)


def kept(make):
    """`make`, each of whose results serves again."""

    def again():
        if not own.left:
            own.context, own.left = make(), PROGRAMS
        own.left -= 1
        return own.context

    own = again.own = _Own()
    return again
