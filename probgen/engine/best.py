"""The best state of a fit by its learner's own criterion, and the way back to it.

A learner with a `Judge` is asked after each evaluation on held-out data. The best state so far is
kept, stands in checkpoints, and is what the fit returns. Where the judge says that a state is bad,
or the learner's `watch` does, the fit goes on from the best one, at half the step and, where the
learner can `renew` its state, with chains that start anew.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.guard import lower_step
from probgen.engine.learner import Learner
from probgen.records.history import History

Tree = Any


class Best:
    """See the head of this file.

    Args:
        max_returns: how often in a row a fit may come back to it.
        has_data: whether there are held-out data, without which nothing is judged.

    Attributes:
        state: of the fit, None as long as none was judged; step: how many steps it had.
        value: of the criterion, larger is better, rounded as a checkpoint keeps it.
        returns: how often in a row the fit came back to it.
    """

    def __init__(self, backend: Backend, learner: Learner, max_returns: int, has_data: bool):
        self.backend, self.learner, self.max_returns = backend, learner, max_returns
        self.judge = learner.judge if has_data else None
        self.state: Tree = None
        self.step, self.value, self.returns = 0, 0.0, 0

    def look(self, state: Tree, step: int, found: dict[str, float], history: History) -> Tree:
        """The state to go on from after a held-out evaluation of `state`.

        Raises:
            DivergedError: the fit came back as often as is allowed.
        """
        judge = self.judge
        if judge is None:
            return state
        value = judge.value(found)
        if value is not None and (self.state is None or np.float32(value) > self.value):
            self.state, self.step, self.returns = self.backend.copy(state), step, 0
            self.value = float(np.float32(value))
            return state
        said = None if self.state is None else judge.watch(found, self.value)
        return state if said is None else self.back(said, step, history)

    def back(self, problem: str, step: int, history: History) -> Tree:
        """The best state again, as a copy, at half the step and with new chains."""
        where = f"the best state ({self.words})"
        lowered = lower_step(
            self.renewed(self.state), self.returns, f"step {step}: {problem}", self.max_returns,
            history, is_watched=True, where=where + self.renewal,
        )  # fmt: skip
        self.state, self.returns = lowered, self.returns + 1
        return self.backend.copy(lowered)

    @property
    def words(self) -> str:
        """Which state is the best one."""
        name = "" if self.judge is None else self.judge.criterion
        return f"of step {self.step}, {name} {self.value:.3g}"

    @property
    def renewal(self) -> str:
        """What else is new after going back, in words."""
        return "" if self.learner.renew is None else " with new chains"

    def renewed(self, state: Tree) -> Tree:
        """The state of a fit with what the learner starts anew when it goes back."""
        if self.learner.renew is None:
            return state
        return {**state, "learner": self.learner.renew(state["learner"])}

    def result(self, state: Tree) -> Tree:
        """What a fit that ends at `state` returns."""
        return state if self.state is None else self.state

    def to_keep(self, state: Tree) -> Tree:
        """What a checkpoint keeps: the state, and the best one beside it where there is a judge."""
        if self.judge is None:
            return state
        numbers = {"step": np.int32(self.step), "returns": np.int32(self.returns),
                   "is_known": np.int32(self.state is not None)}  # fmt: skip
        told = {n: self.backend.asarray(np.asarray(v)) for n, v in numbers.items()}
        value = self.backend.asarray(np.asarray(self.value, np.float32))
        return {"now": state, "best": {"state": self.result(state), "value": value, **told}}

    def taken(self, kept: Tree) -> Tree:
        """The state of what a checkpoint kept, in the form of `to_keep`; the best one is known."""
        if self.judge is None:
            return kept
        read = self.backend.to_numpy
        best = kept["best"]
        self.step, self.returns = int(read(best["step"])), int(read(best["returns"]))
        self.value = float(read(best["value"]))
        self.state = self.backend.copy(best["state"]) if int(read(best["is_known"])) else None
        return kept["now"]
