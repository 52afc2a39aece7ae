"""Functions of a plain number and of a backend's array alike.

Schedules and controllers run inside a compiled step, on arrays, and outside of it, on numbers: to
be looked at, simulated and tested. What they need beyond operators is here, one name for both; a
Python or numpy number is computed in float64 by numpy, an array by its backend in its own type.
"""

from __future__ import annotations

from numbers import Number
from typing import Any

import numpy as np
from scipy.special import expit

from probgen import ops

Scalar = Any


def _plain(*values: Any) -> bool:
    return all(isinstance(v, Number | np.ndarray | np.generic) for v in values)


def sigmoid(x: Scalar) -> Scalar:
    """1 / (1 + e^-x), which does not overflow."""
    return expit(x) if _plain(x) else ops.sigmoid(x)


def floor(x: Scalar) -> Scalar:
    """Largest integer <= x, of the kind of `x`."""
    return np.floor(x) if _plain(x) else ops.floor(x)


def minimum(x: Scalar, y: Scalar) -> Scalar:
    """The smaller of two."""
    return np.minimum(x, y) if _plain(x, y) else ops.minimum(x, y)


def clip(x: Scalar, low: float | None, high: float | None) -> Scalar:
    """min(max(x, low), high); None is no bound."""
    if low is None and high is None:
        return x
    return np.clip(x, low, high) if _plain(x) else ops.clip(x, low, high)


def where(condition: Scalar, x: Scalar, y: Scalar) -> Scalar:
    """x where the condition holds, else y."""
    if not _plain(condition, x, y):
        return ops.where(condition, x, y)
    chosen: Any = np.where(condition, x, y)
    return chosen[()]
