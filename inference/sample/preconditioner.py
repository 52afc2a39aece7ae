"""A diagonal M that scales the moves of a chain's coordinates, the same for all chains.

    x' = x + h M grad + s sqrt(M) xi  (Langevin),     x = sqrt(M) u, leapfrog in u  (HMC)

With M the variances all coordinates move alike; the law of a chain is what it is without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.target import Target, step_sizes
from probgen.errors import ShapeError

Array = Any
Tree = Any


def diagonal(b: Backend, given: Any, target: Target, who: str) -> dict[str, Any]:
    """M by name, a number or an array on the backend; None is 1.

    Raises:
        AlgorithmError: a mapping that is not of the sites that move.
    """
    scales = step_sizes(1.0 if given is None else given, target, who, "preconditioners")
    return {n: v if isinstance(v, float) else b.asarray(np.asarray(v)) for n, v in scales.items()}


def check_diagonal(m: Mapping[str, Any], x: Tree, who: str) -> None:
    """Refuses an array that would stretch a position, or mix its chains.

    Raises:
        ShapeError: names the site.
    """
    for name, position in x.items():
        shape, event = tuple(np.shape(m[name])), tuple(position.shape)[1:]
        if len(shape) > len(event) or any(
            a not in (1, c) for a, c in zip(shape[::-1], event[::-1], strict=False)
        ):
            raise ShapeError(
                f"{who}: got a preconditioner of shape {shape} for site {name!r}, expected one "
                f"that broadcasts to its event, {event}; give a number, or one entry a coordinate."
            )
