"""Fixed-step Runge-Kutta of order four, as one scan over a table of steps.

    y' = y + h/6 (k1 + 2 k2 + 2 k3 + k4)

The right-hand side takes, in place of a time, one row of numbers for each of the four stages of a
step: they are computed beforehand in float64 (`rows_of`), so that nothing but the state and
the network is left to float32. The error of n steps is told by a second solve with n/2 of them:
where the steps are short enough the value at n is nearer by a factor of 2^4.

Source: Hairer, Norsett & Wanner 1993, "Solving Ordinary Differential Equations I", II.1 and II.4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend

Array = Any
Tree = Any


def rows_of(edges: np.ndarray, coefficients: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The table of a solve along `edges`, [n, 4, c] float64: a row for each stage of each step.

    Args:
        edges: [n + 1] ends of the steps, increasing or decreasing.
        coefficients: times [k] -> [k, c - 2], what the right-hand side needs to know of a time.

    Returns:
        Stages at a step's start, middle, middle and end; the last two columns are how far from y a
        stage stands along the slope before it, and the share that its own slope has in the step.
    """
    start, length = edges[:-1, None], np.diff(edges)[:, None]
    reach = length * np.array([0.0, 0.5, 0.5, 1.0])  # [n, 4]
    share = length * np.array([1.0, 2.0, 2.0, 1.0]) / 6.0
    known = coefficients((start + reach).reshape(-1)).reshape(*reach.shape, -1)
    return np.concatenate([known, reach[..., None], share[..., None]], axis=-1)


def runge_kutta_step(backend: Backend, derivative: Callable) -> Callable:
    """(y, rows [4, c], *args) -> y after one step, for derivative(y, row [c], *args) -> dy.

    The stages are a scan too, so that the network is compiled once, not four times.
    """
    b = backend

    def move(y: Tree, k: Tree, h: Array) -> Tree:
        return b.tree_map(lambda a, d: a + h * d, y, k)

    def step(y: Tree, rows: Array, *args: Any) -> Tree:
        def stage(carry: tuple[Tree, Tree], row: Array) -> tuple[tuple[Tree, Tree], None]:
            slope, end = carry
            slope = derivative(move(y, slope, row[-2]), row, *args)
            return (slope, move(end, slope, row[-1])), None

        return b.scan(stage, (b.tree_map(b.ops.zeros_like, y), y), rows)[0][1]

    return step


def solve(backend: Backend, step: Callable, y: Tree, rows: np.ndarray, *args: Any) -> Tree:
    """The state after all steps of a table; `step` is one of `runge_kutta_step`, or compiled."""
    table = backend.asarray(np.asarray(rows, np.float32))
    return backend.scan(lambda y, row: (step(y, row, *args), None), y, table)[0]
