"""Fidelity to the subject and to prompts while a subject is learned, in the history of its fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import probgen as pg
from probgen.engine.fitted import Fitted
from probgen.errors import NonFiniteError
from probgen.language.declared import argument
from probgen.language.kinds import Count
from probgen.language.seeds import check_seed
from probgen.models import Subject, personalised


class SubjectMonitor(pg.Callback):
    """Draws pictures of prompts now and then, and keeps what scores say of them.

        monitor = SubjectMonitor(
            subject, {"condition": prompts}, {"subject": near, "prompt": obeys}, DDIM(50), every=200
        )
        learned = pg.fit(subject, data, SVI(ELBO()), inputs=inputs, callbacks=[monitor], ...)
        learned.history.validation["subject"], learned.history.validation["prompt"]

    Both together tell when to stop: a subject that grows more like its pictures while prompts are
    obeyed less is learned too long, or held too loosely (`Subject.weight`).

    Args:
        subject: what is fitted.
        inputs: of `pg.generate`, one prompt for each picture.
        scores: by name, pictures [n, *shape] -> a number each, such as a `subject_fidelity` of
            features or a share.
        method: by which pictures are drawn.
        every: steps between; also after the last one.
        seed: of the pictures, the same each time, so that their noise is no part of a curve.

    Raises (during the fit): NonFiniteError: a score that is NaN or infinite.
    """

    def __init__(
        self, subject: Subject, inputs: Mapping[str, Any], scores: Mapping[str, Callable],
        method: Any = None, *, every: int = 200, seed: int = 0,
    ):  # fmt: skip
        self.subject = argument("SubjectMonitor", Subject, subject=subject)
        self.inputs, self.scores, self.method = dict(inputs), dict(scores), method
        self.every = argument("SubjectMonitor", Count, every=every)
        self.seed = check_seed(seed, "SubjectMonitor")
        self._done = 0

    def on_start(self, progress: Any) -> None:
        self._done = progress.step

    def on_chunk(self, progress: Any, metrics: dict[str, np.ndarray]) -> None:
        is_due = progress.step // self.every > self._done // self.every
        if is_due or progress.step == progress.num_steps:
            self._done = progress.step
            progress.history.add_validation(progress.step, self.measured(progress.params()))

    def measured(self, params: Mapping) -> dict[str, float]:
        """Mean of each score over the pictures, of the guide's parameters."""
        model = personalised(Fitted(self.subject, params))
        number = len(next(iter(self.inputs.values())))
        drawn = pg.generate(
            model, number, method=self.method, inputs=self.inputs, seed=self.seed
        )["x"]  # fmt: skip
        found = {name: float(np.mean(score(drawn))) for name, score in self.scores.items()}
        if bad := [name for name, value in found.items() if not np.isfinite(value)]:
            raise NonFiniteError(
                f"SubjectMonitor: got NaN or infinity for {bad}, expected a number for each "
                "picture; look at the score, and at the pictures of this step."
            )
        return found
