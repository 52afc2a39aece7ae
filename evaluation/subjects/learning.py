"""Learning a subject from pictures with masks and captions, and what was gained by it.

    gain = E |M (eps - eps_theta(x_t, t, [c, a]))|^2 - E |M (eps - eps_theta(x_t, t, [c, c_s]))|^2

at the same draws of picture, step and noise, so that the difference is the subject's alone; a are
the rows without it. On the pictures that it was learned from: it says that something was learned,
not how the subject looks in other scenes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import probgen as pg
from probgen.backends.protocol import Backend
from probgen.engine.fitted import Fitted
from probgen.evaluation.subjects.bases import TextBase
from probgen.inference import DDIM, ELBO, SVI, StepwiseMAP
from probgen.models import Subject
from probgen.models.personalised import rows_of
from probgen.trees import tree_map

INNER = 10  # steps of the optimiser at each step of the sampler
BLOCKS = 16  # of draws, over which the gain's standard error is taken


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How a subject is learned and drawn; see `tune`."""

    word: str | None
    num_tokens: int
    weight: float
    num_steps: int
    learning_rate: float
    draws: int
    stepwise: bool
    masked: bool
    num_images: int
    sampler_steps: int | None
    guidance: float
    seed: int


class Given(NamedTuple):
    """Pictures as they were, and as the diffusion sees them.

    pictures [n, h, w, 3] in [0, 1]; masks [n, h, w, 1] or None; captions: n texts.
    x [n, *shape]; cover [n, *places, 1] or None; ids [n, L].
    """

    pictures: np.ndarray
    masks: np.ndarray | None
    captions: tuple[str, ...]
    x: np.ndarray
    cover: np.ndarray | None
    ids: np.ndarray

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        found = {"condition": self.ids}
        return found if self.cover is None else {**found, "mask": self.cover}


class Gain(NamedTuple):
    """Denoising errors, summed over elements: without the subject, with it; their difference and
    its standard error over blocks of draws."""

    without: float
    with_it: float
    gain: float
    error: float


def subject_of(base: TextBase, tuning: Tuning) -> Subject:
    """The declaration."""
    return Subject(
        base.prior, tuning.num_tokens, tuning.weight, draws=tuning.draws, word=tuning.word
    )


def learn(
    subject: Subject, given: Given, tuning: Tuning, method: DDIM, *, backend: Backend,
    say: Callable[[str], None], progress_bar: bool = True,
) -> list[Fitted]:  # fmt: skip
    """MAP of one set of rows; with `stepwise`, of a set for each of the sampler's steps after it.

    Returns:
        The fits, the last one to be used.
    """
    options: dict[str, Any] = {
        "inputs": given.inputs, "seed": tuning.seed, "backend": backend,
        "progress_bar": progress_bar,
    }  # fmt: skip
    optimizer = pg.Adam(tuning.learning_rate)
    say(f"learn    {tuning.num_tokens} rows of context, {tuning.num_steps} steps")
    fits = [
        pg.fit(subject, {"x": given.x}, SVI(ELBO(), optimizer), num_steps=tuning.num_steps,
               **options)
    ]  # fmt: skip
    if tuning.stepwise:
        times = method.times(subject.diffusion)
        say(f"learn    rows of each of {len(times)} steps, {INNER} each")
        fits.append(
            pg.fit(
                dataclasses.replace(subject, times=times), {"x": given.x},
                StepwiseMAP(fits[0], optimizer, INNER), num_steps=INNER * len(times), **options,
            )
        )  # fmt: skip
    return fits


def gain_of(learned: Fitted, given: Given, *, seed: int, backend: Backend) -> Gain:
    """What the rows are worth on the pictures they were learned from; see the head of this file."""
    subject: Any = learned.model
    b, params = backend, tree_map(backend.asarray, subject.base.params)
    x, ids = b.asarray(given.x), b.asarray(given.ids)
    cover = None if given.cover is None else b.asarray(given.cover)
    model = subject.diffusion

    def error(rows: Any, which: Any, time: Any, noise: Any) -> Any:
        context = model.condition.apply(params["condition"], ids)
        ask = lambda *asked: model.denoiser.apply(params["denoiser"], *asked)  # noqa: E731
        return subject.loss(ask, rows, context, x, cover, which, time, noise)

    run = b.compile(error, num_calls=2 * BLOCKS)
    rows = [b.asarray(r.astype(np.float32)) for r in (subject.anchors, rows_of(learned))]
    rng = np.random.default_rng(seed)
    found = np.empty((BLOCKS, 2))
    for block in found:
        shapes = ((subject.draws,), (subject.draws,), (subject.draws, *model.shape))
        drawn = (rng.random(shapes[0]), rng.random(shapes[1]), rng.standard_normal(shapes[2]))
        drawn = tuple(b.asarray(d.astype(np.float32)) for d in drawn)
        block[:] = [float(b.to_numpy(run(r, *drawn))) for r in rows]
    gap = found[:, 0] - found[:, 1]
    without, with_it = (float(m) for m in found.mean(axis=0))
    return Gain(without, with_it, float(gap.mean()), float(gap.std(ddof=1) / np.sqrt(BLOCKS)))
