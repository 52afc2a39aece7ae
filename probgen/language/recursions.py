"""Recursions over time in `ops`: one step, traced once and run T times."""

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

    For recursions without sites: a GARCH's variances, an HMM's forward pass, a Kalman filter. A
    step that declares sites is for `pg.scan`. The step is traced and compiled once, so that compile
    time does not grow with T; on torch so where it pays, else it is a Python loop.

    Args:
        step: pure, of `ops`; it declares no sites.
        carry: array, number, or a dict or tuple of them; each keeps shape and type.
        xs: arrays [T, ...], or a dict or tuple of them; None for a step that reads none.
        length: T, needed without xs.

    Raises:
        ShapeError: neither xs nor length, or arrays of different lengths.
        DeclarationError: a site inside of the step.
    """
    size = length_of("scan", xs, length)
    module = ops_for(*tree_leaves(xs), *tree_leaves(carry))

    def looked_at(carry: Any, x: Any) -> tuple[Any, Any]:
        token = looping.set(True)
        try:
            return step(carry, x)
        finally:
            looping.reset(token)

    start = tree_map(module.asarray, carry)
    given = None if xs is None else tree_map(module.asarray, xs)
    return module.scan(looked_at, start, given, size)


def length_of(who: str, xs: Any, length: int | None) -> int:
    """T, by the arrays or by the number.

    Raises:
        ShapeError: neither, or they differ.
    """
    sizes = {len(x) for x in tree_leaves(xs)}
    if len(sizes | ({length} if length is not None else set())) != 1:
        raise ShapeError(
            f"{who}: got xs of lengths {sorted(sizes)} and length={length}, expected one length T "
            "of at least 1; give xs [T, ...], or length where there are none."
        )
    found = length if length is not None else sizes.pop()
    if found < 1:
        raise ShapeError(f"{who}: got the length {found}, expected at least 1.")
    return int(found)
