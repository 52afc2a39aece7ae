"""A subject learned from five pictures of it, part by part: what each part of the method gains.

    TI          textual inversion: rows at the null text, all of the picture counts, no prior
    + mask      the residual counts where the subject is
    + prior     w |c_s - a|^2 besides
    + steps     rows for each of the sampler's steps
    DreamBooth  all weights in place of rows

Everything is learned from five pictures in one scene whose captions do not name it, and judged on
prompts that name four scenes not seen, and on one that names none.

Source: Wang et al. 2023, arXiv:2312.00079, sections 3 and 4; sizes and scores are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

import probgen as pg
from probgen.backends.protocol import Backend
from probgen.data import SPRITE_SCENES, Sprites, sprites
from probgen.engine.fitted import Fitted
from probgen.inference import DDIM, ELBO, SVI, Denoising, StepwiseMAP
from probgen.language.declared import declaration
from probgen.language.kinds import Many, NonNegative, Positive, Text, Width
from probgen.models import Subject, personalised
from studies.hifi_tuner.base import SUBJECT
from studies.hifi_tuner.scores import nearest_scene, subject_error

SCENE = "night"  # of all five pictures; the base draws it of no prompt that does not name it
UNSEEN = tuple(s for s in SPRITE_SCENES if s != SCENE)


@declaration
class Tuning:
    """Settings of learning and drawing. `quick()` is for tests of the functions, not for numbers.

    Args:
        word: the subject's noun. num_tokens: n. weight: w of the prior where there is one.
        num_steps, learning_rate, draws: of one set of rows, Adam.
        inner_steps: of the rows of each step. dreambooth_steps, dreambooth_rate: of all weights.
        guidance_scale: of the samples. each: pictures of a prompt; num_leak: of the one that names
            no scene.
    """

    word: Text = "disk"
    num_tokens: Width = 3
    weight: NonNegative = 0.003
    num_steps: Many = 1000
    learning_rate: Positive = 5e-3
    draws: Many = 8
    inner_steps: Many = 10
    dreambooth_steps: Many = 150
    dreambooth_rate: Positive = 2e-4
    guidance_scale: float = 2.0
    each: Many = 16
    num_leak: Many = 64

    @classmethod
    def quick(cls) -> Tuning:
        """Seconds of work."""
        return cls(
            num_tokens=2,
            num_steps=2,
            draws=2,
            inner_steps=1,
            dreambooth_steps=2,
            each=2,
            num_leak=4,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """What a way of drawing the subject gives.

    Attributes:
        error: mean squared error to the subject within its outline, prompts with unseen scenes.
        scene: share of those in front of the scene named.
        leak: share of the class-only prompt's in front of the sources' scene.
        distance: |c_s - a|, the mean over steps; 0 without rows.
        errors, scenes: a number a picture; prompts: its prompt.
        pictures: of the prompts, [4 each, 8, 8, 3]; free: of the class-only prompt.
    """

    error: float
    scene: float
    leak: float
    distance: float
    errors: np.ndarray
    scenes: np.ndarray
    prompts: tuple[str, ...]
    pictures: np.ndarray
    free: np.ndarray


def sources(words: Any = "noun", seed: int = 0) -> Sprites:
    """Five pictures of the subject in one scene, with masks and captions."""
    return sprites(5, seed, noun="disk", colors=SUBJECT, scene=SCENE, words=words)


def subject_of(base: Fitted, tuning: Tuning, weight: float, **options: Any) -> Subject:
    """The declaration."""
    return Subject(base, tuning.num_tokens, weight, draws=tuning.draws, word=tuning.word, **options)


def learn(
    base: Fitted, tuning: Tuning, *, masked: bool = True, weight: float | None = None,
    given: Any = None, seed: int = 0, backend: str | Backend = "auto", **options: Any,
) -> Fitted:  # fmt: skip
    """One set of rows, by MAP; `given` are other pictures than the five `sources`."""
    given = given or sources()
    subject = subject_of(base, tuning, tuning.weight if weight is None else weight, **options)
    return pg.fit(
        subject, {"x": given["x"]}, SVI(ELBO(), pg.Adam(tuning.learning_rate)),
        inputs=_inputs(base, given, masked), num_steps=tuning.num_steps, seed=seed,
        backend=backend, progress_bar=False,
    )  # fmt: skip


def learn_steps(
    first: Fitted, tuning: Tuning, *, given: Any = None, seed: int = 0,
    backend: str | Backend = "auto",
) -> Fitted:  # fmt: skip
    """Rows of each step, from one set of them; with the mask."""
    subject: Any = first.model
    base, given = subject.base, given or sources()
    times = sampler(base, tuning).times(base.model)
    return pg.fit(
        dataclasses.replace(subject, times=times), {"x": given["x"]},
        StepwiseMAP(first, pg.Adam(tuning.learning_rate), tuning.inner_steps),
        inputs=_inputs(base, given, True), num_steps=len(times) * tuning.inner_steps, seed=seed,
        backend=backend, progress_bar=False,
    )  # fmt: skip


def learn_longer(
    first: Fitted, tuning: Tuning, *, seed: int = 0, backend: str | Backend = "auto"
) -> Fitted:
    """The fair control of rows for each step: one set, as many further steps."""
    base, given = first.model.base, sources()  # type: ignore[attr-defined]
    more = tuning.inner_steps * len(sampler(base, tuning).times(base.model))
    return pg.fit(
        first, {"x": given["x"]}, SVI(ELBO(), pg.Adam(tuning.learning_rate)),
        inputs=_inputs(base, given, True), num_steps=more, seed=seed, backend=backend,
        progress_bar=False,
    )  # fmt: skip


def dreambooth(
    base: Fitted, tuning: Tuning, *, prior_pictures: int = 0, given: Any = None, seed: int = 0,
    backend: str | Backend = "auto",
) -> Fitted:  # fmt: skip
    """All weights, from the same pictures; with `prior_pictures` drawn by the base of the class,
    which count as much in all as the subject's (prior preservation).

    Source: Ruiz et al. 2023, arXiv:2208.12242.
    """
    given = given or sources()
    x, captions = given["x"], list(given["captions"])
    if prior_pictures:
        theirs = [f"a {tuning.word}"] * prior_pictures
        drawn = draw(base, theirs, tuning, seed=seed + 1, backend=backend)
        x = np.concatenate([np.repeat(x, prior_pictures // len(x), axis=0), drawn])
        captions = [c for c in captions for _ in range(prior_pictures // 5)] + theirs
    model: Any = base.model
    return pg.fit(
        base, np.clip(x, -1, 1), Denoising(pg.Adam(tuning.dreambooth_rate), condition_dropout=0.0),
        inputs={"condition": model.condition.tokens(captions)},
        num_steps=tuning.dreambooth_steps, batch_size=min(tuning.draws, len(x)), seed=seed,
        backend=backend, progress_bar=False,
    )  # fmt: skip


def sampler(base: Fitted, tuning: Tuning) -> DDIM:
    """All steps of the base, guided."""
    model: Any = base.model
    return DDIM(model.schedule.num_train_timesteps, guidance_scale=tuning.guidance_scale)


def draw(
    model: Fitted, captions: Sequence[str], tuning: Tuning, *, seed: int = 0,
    backend: str | Backend = "auto", **options: Any,
) -> np.ndarray:  # fmt: skip
    """[n, 8, 8, 3] a picture of each caption."""
    net: Any = model.model.condition  # type: ignore[attr-defined]
    tokens = getattr(net, "net", net).tokens(list(captions))
    return pg.generate(
        model, len(captions), method=sampler(model, tuning), inputs={"condition": tokens},
        seed=seed, backend=backend, **options,
    )["x"]  # fmt: skip


def judge(
    model: Fitted, tuning: Tuning, *, words: str = "a disk", distance: float = 0.0, seed: int = 0,
    backend: str | Backend = "auto",
) -> Judged:  # fmt: skip
    """Scores of what a model draws of prompts with unseen scenes, and of one without a scene."""
    prompts = tuple(f"{words} on {s}" for s in UNSEEN for _ in range(tuning.each))
    x = draw(model, prompts, tuning, seed=seed + 100, backend=backend)
    free = draw(model, [words] * tuning.num_leak, tuning, seed=seed + 200, backend=backend)
    asked = np.repeat([SPRITE_SCENES.index(s) for s in UNSEEN], tuning.each)
    errors = subject_error(x, "disk", SUBJECT)
    scenes = (nearest_scene(x) == asked).astype(float)
    leak = float((nearest_scene(free) == SPRITE_SCENES.index(SCENE)).mean())
    return Judged(
        float(errors.mean()), float(scenes.mean()), leak, distance, errors, scenes, prompts, x, free
    )


def of_rows(
    learned: Fitted, tuning: Tuning, *, seed: int = 0, backend: str | Backend = "auto"
) -> Judged:
    """`judge` of a fit of rows."""
    offset = np.asarray(learned.params["subject"]["value"])
    distance = float(np.sqrt((offset**2).sum((-2, -1))).mean())
    return judge(personalised(learned), tuning, distance=distance, seed=seed, backend=backend)


def _inputs(base: Fitted, given: Sprites, masked: bool) -> dict[str, Any]:
    model: Any = base.model
    found = {"condition": model.condition.tokens(given["captions"])}
    return {**found, "mask": given["mask"]} if masked else found
