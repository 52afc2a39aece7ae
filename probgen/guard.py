"""The non-finite guard: finds the first NaN or infinity of a chunk, rolls back, lowers the step."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.errors import NonFiniteError
from probgen.history import History
from probgen.trees import tree_items, tree_like

log = logging.getLogger("probgen")


def find_problem(
    backend: Backend, state: Any, metrics: dict[str, np.ndarray], start: int
) -> str | None:
    """Which term was not finite first, and at which step; None when all is well.

    Terms of single sites ("log_prob/x", "kl/z") are named before the sums that hold them.
    """
    first: dict[str, int] = {}
    for name, values in metrics.items():
        flat = np.asarray(values).reshape(len(values), -1)
        bad = ~np.isfinite(flat).all(1)
        if bad.any():
            first[name] = int(np.argmax(bad))
    if first:
        step = min(first.values())
        names = sorted((n for n, s in first.items() if s == step), key=lambda n: ("/" not in n, n))
        terms = [n for n in names if "/" in n] or names
        return f"{', '.join(terms)} at step {start + step}"
    for path, leaf in tree_items(state):
        values = backend.to_numpy(leaf)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            return (
                f"{'/'.join(path)} after step {start + len(next(iter(metrics.values()), [0])) - 1}"
            )
    return None


def lower_step(state: Any, attempt: int, problem: str, max_retries: int, history: History) -> Any:
    """The state with every optimiser's `step_scale` halved.

    Raises:
        NonFiniteError: all retries are used up.
    """
    if attempt >= max_retries:
        raise NonFiniteError(
            f"fit: {problem} is NaN or infinite, also after going back to the last good state and "
            f"lowering the step size {attempt} times; look at the scale of the data and of that "
            "term, clip the gradient (pg.Adam(..., clip_norm=1.0)), or lower the learning rate."
        )
    message = (
        f"{problem} is NaN or infinite: back to the last good state, step size halved "
        f"(attempt {attempt + 1} of {max_retries})"
    )
    history.events.append(message)
    log.warning("fit: %s", message)
    items = list(tree_items(state))
    return tree_like(state, [v * 0.5 if p[-1] == "step_scale" else v for p, v in items])
