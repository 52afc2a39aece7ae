"""Which route a function is being traced for, and what a route leaves to the next one.

A loop over time is Python's on torch, so a graph of it grows with its length, and inductor's work
more than that. Past these lengths the next route takes it: `info["routes"]` and `info["fallbacks"]`
say so.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import torch

# "inductor" or "graph" while a function is traced for it, else "".
tracing: contextvars.ContextVar[str] = contextvars.ContextVar("tracing", default="")

MOST_STEPS = {"inductor": 16, "graph": 128}


# How often the function that is traced for "graph" will be called, where its loops may be compiled.
calls: contextvars.ContextVar[int] = contextvars.ContextVar("calls", default=0)
WORTH = 4000  # runs of a step, below which its compilation is not earned back


def is_operator(length: int, device: torch.device) -> bool:
    """Whether a loop is one operator of the graph, compiled by itself (`scans.py`): too long to be
    written out, and run often enough."""
    if tracing.get() not in MOST_STEPS or device.type != "cpu":
        return False
    is_worth = tracing.get() == "inductor" or calls.get() * length >= WORTH
    return is_worth and length * _around.get() > MOST_STEPS["inductor"]


class NotCompiled(RuntimeError):
    """A loop over time that could not be compiled by itself."""


class NotTraced(RuntimeError):
    """A function that the route at hand leaves to the next one."""


# How often the loops around the one at hand run its step.
_around: contextvars.ContextVar[int] = contextvars.ContextVar("around", default=1)


@contextlib.contextmanager
def looping(length: int) -> Iterator[None]:
    """A loop of so many steps, left to the next route where it is too long for this one, by the
    product of the loops that stand in each other.

    Raises:
        NotTraced: it is.
    """
    length = length * _around.get()
    most = MOST_STEPS.get(tracing.get())
    if most is not None and length > most:
        raise NotTraced(
            f"a loop of {length} steps (scan) would be a graph that grows with its length, "
            f"expected at most {most}; the next route runs it step by step"
        )
    token = _around.set(length)
    try:
        yield
    finally:
        _around.reset(token)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """A step that is compiled by itself: loops in it are judged as if none stood around them."""
    token = _around.set(1)
    try:
        yield
    finally:
        _around.reset(token)


def refuse_adaptive(what: str) -> None:
    """Leaves what asks numbers how to go on to the live route, and to one item at a time.

    Raises:
        NotTraced: a function is being traced, or mapped over.
    """
    if tracing.get() or torch._C._functorch.peek_interpreter_stack() is not None:
        raise NotTraced(
            f"{what} chooses its steps by the numbers it meets, which a graph or a vmap cannot "
            "show; it runs live, and fixed steps (num_steps=) can be traced"
        )
