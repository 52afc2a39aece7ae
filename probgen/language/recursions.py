"""Recursions over time in `ops`: one step, traced once on JAX and run T times."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from probgen.errors import ShapeError
from probgen.language.ops_modules import ops_for
from probgen.trees import tree_leaves, tree_map

looping: ContextVar[bool] = ContextVar("looping", default=False)
"""Whether a step of `scan` is being read, in which a program may declare no site."""


def scan(
    step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any = None,
    length: int | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """A recursion: (carry, x_t) -> (carry, y_t) for t = 0 ... T - 1; returns (carry, stacked y).

    For models of time: an AR, GARCH or HMM's forward pass, a Kalman filter, a state space model of
    noise that was drawn as one vector. On JAX the step is traced once and the loop compiled whole,
    so that compile time does not grow with T; on torch it is a Python loop.

    Args:
        step: pure, of `ops`; it declares no sites: draw noise before as one vector [T, ...], give
            it as `xs`, and observe what comes out stacked.
        carry: array, number, or a dict or tuple of them; each keeps shape and type.
        xs: arrays [T, ...], or a dict or tuple of them; None for a step that reads none.
        length: T, needed without xs.

    Raises:
        ShapeError: neither xs nor length, or arrays of different lengths.
        DeclarationError: a site inside of the step.
    """
    leaves = tree_leaves(xs) if xs is not None else []
    sizes = {len(x) for x in leaves} | ({length} if length is not None else set())
    if len(sizes) != 1:
        raise ShapeError(
            f"scan: got xs of lengths {sorted({len(x) for x in leaves})} and length={length}, "
            "expected one length T; give xs [T, ...], or length where there are none."
        )
    module = ops_for(*leaves, *tree_leaves(carry))

    def looked_at(carry: Any, x: Any) -> tuple[Any, Any]:
        token = looping.set(True)
        try:
            return step(carry, x)
        finally:
            looping.reset(token)

    start = tree_map(module.asarray, carry)
    given = None if xs is None else tree_map(module.asarray, xs)
    return module.scan(looked_at, start, given, next(iter(sizes)))
