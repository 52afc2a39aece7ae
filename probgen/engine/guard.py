"""The guard: finds the first NaN or infinity of a chunk, rolls back, lowers the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.backends.protocol import Backend
from probgen.errors import DivergedError, NonFiniteError
from probgen.progress import log
from probgen.records.history import History
from probgen.trees import tree_items, tree_like


class Problem(NamedTuple):
    """What was not finite, in words, and at which of a chunk's updates."""

    text: str
    at: int


class Guard:
    """Looks at what a chunk of steps gave.

    Args:
        backend: whose arrays the state holds.
        cures: the learner's words for some metrics (`Learner.cures`), said where they fail.
    """

    def __init__(self, backend: Backend, cures: Mapping[str, str] | None = None):
        self.backend, self.cures = backend, cures or {}
        # One number comes from another device, not the state.
        self._total = backend.compile(self._zero_if_finite, num_calls=1)

    def _zero_if_finite(self, leaves: list) -> Any:
        # x * 0 is 0, or NaN where x is not finite: no overflow of a sum of large numbers.
        return sum((self.backend.ops.sum(leaf * 0.0) for leaf in leaves), start=0.0)

    def _are_finite(self, leaves: list) -> bool:
        b = self.backend
        if b.device == "cpu":  # numpy reads them where they lie, and no program is compiled
            return all(np.isfinite(b.to_numpy(leaf)).all() for leaf in leaves)
        return bool(np.isfinite(b.to_numpy(self._total(leaves))))

    def find_problem(
        self, state: Any, metrics: dict[str, np.ndarray], start: int
    ) -> Problem | None:
        """Which term was not finite first, and at which step; None when all is well.

        Terms of single sites ("log_prob/x", "kl/z") are named before the sums that hold them. A
        state that is not finite though its metrics were (the last update of the chunk, an
        optimiser's moment) is named by its path.

        Args:
            state: after the chunk.
            metrics: each [steps, ...], numpy.
            start: step of the chunk's first update, for the message.
        """
        first: dict[str, int] = {}
        for name, values in metrics.items():
            values = np.asarray(values)
            if values.dtype.kind != "f":
                continue
            bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
            if bad.any():
                first[name] = int(np.argmax(bad))
        if first:
            step = min(first.values())
            names = sorted(n for n, s in first.items() if s == step)
            terms = [n for n in names if "/" in n] or names
            said = [f"{n} ({self.cures[n]})" if n in self.cures else n for n in terms]
            return Problem(f"{', '.join(said)} at step {start + step}", step)
        leaves = [v for _, v in tree_items(state) if "float" in str(getattr(v, "dtype", ""))]
        if self._are_finite(leaves):
            return None
        count = len(next(iter(metrics.values()), [0]))
        for path, leaf in tree_items(state):
            if not np.isfinite(self.backend.to_numpy(leaf)).all():
                return Problem(f"{'/'.join(path)} after step {start + count - 1}", count - 1)
        raise AssertionError("one of the leaves is not finite")


def lower_step(
    state: Any, attempt: int, problem: str, max_retries: int, history: History, why: str = "",
    *, is_watched: bool = False, where: str = "the last good state",
) -> Any:  # fmt: skip
    """The state with every optimiser's `step_scale` halved.

    Args:
        state: the last good one.
        attempt: how many retries were made already.
        problem: what `find_problem` said, or the sentence of a learner's `watch`.
        max_retries: how many are allowed; none where a smaller step cannot help.
        history: gets an event.
        why: which arguments of distributions left their domains (`probgen.engine.explain`), or "".
        is_watched: the problem is a learner's sentence, not a NaN.
        where: what it goes back to, in words.

    Raises:
        NonFiniteError, or DivergedError where `is_watched`: all retries are used up.
    """
    problem = problem.rstrip(". ") if is_watched else f"{problem} is NaN or infinite"
    if attempt >= max_retries:
        tried = f", also after going back to {where} and lowering the step size {attempt} times"
        cure = why or (
            "; look at the scale of the data and of that term, clip the gradient "
            "(pg.Adam(..., clip_norm=1.0)), or lower the learning rate"
        )
        if is_watched:
            raise DivergedError(f"fit: {problem}{tried if attempt else ''}.")
        raise NonFiniteError(f"fit: {problem}{tried if attempt else ''}{cure}.")
    message = (
        f"{problem}{why}: back to {where}, step size halved "
        f"(attempt {attempt + 1} of {max_retries})"
    )
    history.events.append(message)
    log.warning("fit: %s", message)
    items = list(tree_items(state))
    return tree_like(state, [v * 0.5 if p[-1] == "step_scale" else v for p, v in items])
