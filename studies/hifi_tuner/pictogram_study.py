"""The flat octopus, which the base never saw, from five pictures on one lawn: checks P1 to P8.

Scores by a `Judge`, of a class-only prompt and of prompts with the other three scenes:

    similarity   mean cosine of its centred features to real pictures of the subject in those scenes
    leak         share of class-only pictures in front of the lawn
    scene        share of the others in front of the scene named
    noun, flat   mean probability of the noun, and of the subject's rendition
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import probgen as pg
from probgen.data import Pictograms
from probgen.engine.fitted import Fitted
from probgen.evaluation.subjects import subject_fidelity
from probgen.inference import PivotalInversion, ReferenceGuided
from probgen.models import personalised
from studies.hifi_tuner.guiding import WINDOWS, tokens
from studies.hifi_tuner.judge import HEADS, Judge, composites
from studies.hifi_tuner.pictogram_base import SCENES, SUBJECT
from studies.hifi_tuner.study import Tuning, draw, sampler

NOUN, RENDITION = SUBJECT
SCENE = "lawn"
UNSEEN = tuple(s for s in SCENES if s != SCENE)
TUNING = Tuning(NOUN, num_steps=400, weight=0.01, each=8, num_leak=40)


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What the judge says; `similarities` [n] a number a picture of `prompts`; `pictures` of these
    and `free` of the class-only prompt."""

    similarity: float
    leak: float
    scene: float
    noun: float
    flat: float
    distance: float
    similarities: np.ndarray
    scenes: np.ndarray
    prompts: tuple[str, ...]
    pictures: np.ndarray
    free: np.ndarray

    def line(self) -> str:
        """The numbers."""
        names = ("similarity", "leak", "scene", "noun", "flat", "distance")
        return "  ".join(f"{n} {getattr(self, n):.3f}" for n in names)


def _one(count: int, seed: int, scenes: tuple[str, ...], words: Any) -> Pictograms:
    return composites(
        count, seed, nouns=(NOUN,), renditions=(RENDITION,), scenes=scenes, hue=0.0, words=words
    )


def sources() -> Pictograms:
    """Five pictures of the subject on the lawn, with captions that name the noun alone."""
    return _one(5, 3, (SCENE,), "noun")


def scored(
    model: Fitted, judge: Judge, tuning: Tuning = TUNING, *, words: str = f"a {NOUN}",
    distance: float = 0.0, seed: int = 0, backend: Any = "auto",
) -> Scores:  # fmt: skip
    """Scores of what a model draws."""
    prompts = tuple(f"{words} on {s}" for s in UNSEEN for _ in range(tuning.each))
    x = draw(model, prompts, tuning, seed=seed + 100, backend=backend)
    free = draw(model, [words] * tuning.num_leak, tuning, seed=seed + 200, backend=backend)
    real = _one(48, 5, UNSEEN, "full")["x"]
    middle = composites(400, 7)["x"]
    similar = subject_fidelity(x, real, judge.features, center=middle)
    of_x, of_free = judge.probabilities(x), judge.probabilities(free)
    asked = np.repeat([SCENES.index(s) for s in UNSEEN], tuning.each)
    scenes = (of_x["scene"].argmax(1) == asked).astype(float)
    return Scores(
        float(similar.mean()), float((of_free["scene"].argmax(1) == SCENES.index(SCENE)).mean()),
        float(scenes.mean()), float(of_x["noun"][:, HEADS["noun"].index(NOUN)].mean()),
        float(of_x["rendition"][:, HEADS["rendition"].index(RENDITION)].mean()), distance, similar,
        scenes, prompts, x, free,
    )  # fmt: skip


def of_rows(
    learned: Fitted, judge: Judge, tuning: Tuning = TUNING, *, seed: int = 0, backend: Any = "auto"
) -> Scores:
    """`scored` of a fit of rows."""
    offset = np.asarray(learned.params["subject"]["value"])
    distance = float(np.sqrt((offset**2).sum((-2, -1))).mean())
    return scored(
        personalised(learned), judge, tuning, distance=distance, seed=seed, backend=backend
    )


def led(
    base: Fitted, rows: Fitted, tuning: Tuning = TUNING, *, seed: int = 0, backend: Any = "auto"
) -> dict[str, float]:
    """Masked mean squared error to a source picture, where it stands there, of draws with learned
    rows in the other scenes: not led, and led by it with 1 and with 10 inner steps."""
    given, ddim, model = sources(), sampler(base, tuning), personalised(rows)
    of = np.arange(2 * len(UNSEEN)) % len(given["x"])
    x, mask = np.clip(given["x"][of], -1, 1), given["mask"][of].astype(np.float32)
    inside = np.broadcast_to(mask > 0, x.shape)
    asked = tokens(model, [f"a {NOUN} on {s}" for s in UNSEEN for _ in range(2)])
    pivots = base.encode(
        x, tokens(base, [f"a {NOUN} on {SCENE}"] * len(x)), method=PivotalInversion(ddim)
    )["pivots"]
    found = {}
    for inner in (0, 1, 10):
        way = ReferenceGuided(ddim, pivots, mask, *WINDOWS[0], inner)
        drawn = pg.generate(
            model, len(x), method=way, inputs=asked, seed=seed + 300, backend=backend
        )["x"]
        found[f"J = {inner}"] = float(((drawn - x) ** 2)[inside].mean())
    return found


def gate(base: Fitted, judge: Judge, *, seed: int = 0, backend: Any = "auto") -> dict[str, float]:
    """Whether the base draws what it is asked for: shares of nouns, renditions and scenes, of 192
    pictures of individuals that it has seen."""
    nouns, renditions = HEADS["noun"], HEADS["rendition"]
    asked = [(n, r, s) for n in nouns for r in renditions for s in SCENES if (n, r) != SUBJECT] * 2
    captions = [f"a {r} {n} on {s}" for n, r, s in asked]
    said = judge.probabilities(draw(base, captions, TUNING, seed=seed, backend=backend))
    want = zip(*[(nouns.index(n), renditions.index(r), SCENES.index(s)) for n, r, s in asked],
               strict=True)  # fmt: skip
    return {
        name: float((said[name].argmax(1) == np.array(w)).mean())
        for name, w in zip(HEADS, want, strict=True)
    }
