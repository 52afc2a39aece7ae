"""A computation of a test as one program.

On JAX each operation outside of a compiled function is a program of its own, and compiling a
hundred of these takes longer than the one that holds them all.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from probgen.backends.protocol import Backend
from probgen.trees import tree_map


def at_once(b: Backend, fn: Callable, *args: Any) -> Any:
    """The tree `fn(*args)`, in numpy; args and what `fn` closes over are arrays of the backend."""
    return tree_map(b.to_numpy, b.compile(fn, num_calls=1)(*args))


def terms_of(b: Backend, trace: Callable, *args: Any, **options: Any) -> dict[str, tuple]:
    """name -> (value, log_prob) of the sites of `trace(*args, **options)`, in numpy."""

    def run() -> dict:
        return {n: (s.value, s.log_prob) for n, s in trace(*args, **options).items()}

    return at_once(b, run)


@dataclasses.dataclass(frozen=True)
class Twice:
    """A net at two batches, in one program."""

    net: Any

    def apply(self, params: Any, *xs: Any) -> tuple:
        half = len(xs) // 2
        return self.net.apply(params, *xs[:half]), self.net.apply(params, *xs[half:])
