"""Inversion, guidance by a reference and replacement on the 8 x 8 bed: checks H4, H5 and H7.

A drawn sprite's mask is its outline at the place where the subject fits best: the stand-in of a
segmenter. A reference is one of the five source pictures, laid on that mask by `align_masks`.

Source: Wang et al. 2023, arXiv:2312.00079, sections 3.3 and 3.4; numbers are ours.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import probgen as pg
from probgen.data import SPRITE_SCENES, Similarity, align_masks, sprite_template, sprites
from probgen.engine.fitted import Fitted
from probgen.inference import (
    DDIM,
    AttentionControl,
    DDIMInverse,
    NullTextInversion,
    PivotalInversion,
    ReferenceGuided,
)
from studies.hifi_tuner.base import SUBJECT
from studies.hifi_tuner.scores import nearest_scene, places, subject_error
from studies.hifi_tuner.study import SCENE, UNSEEN, Tuning, sampler, sources

WINDOWS = ((40, 10), (50, 1), (10, 1))


def tokens(model: Fitted, captions: list[str]) -> dict[str, np.ndarray]:
    """Captions as the input "condition"."""
    net: Any = model.model.condition  # type: ignore[attr-defined]
    return {"condition": getattr(net, "net", net).tokens(captions)}


# ---- H4: there and back ----


def round_trips(base: Fitted, seed: int = 0, backend: Any = "auto") -> dict[str, float]:
    """Mean squared error of eight pictures led to noise without guidance and back with some, by
    both conventions of the way up, and by null texts learned for a guidance of 4."""
    given = sprites(8, seed + 50, words="full")
    x, caption = given["x"], tokens(base, list(given["captions"]))
    steps, found = len(base.model.table()["signal"]), {}  # type: ignore[attr-defined]

    def back(codes: Any, guidance: float) -> float:
        ddim = DDIM(steps, guidance_scale=guidance)
        again = pg.generate(
            base, 8, method=ddim, start=codes, inputs=caption, seed=0, backend=backend
        )
        return float(((again["x"] - x) ** 2).mean())

    for time in ("target", "current"):
        codes = base.encode(x, caption, method=DDIMInverse(steps, time=time))
        for guidance in (1.0, 2.0, 4.0):
            found[f"{time}, guidance {guidance:g}"] = back(codes, guidance)
    learn = NullTextInversion(DDIM(steps, guidance_scale=4.0))
    found["null text, guidance 4"] = back(base.encode(x, caption, method=learn), 4.0)
    return found


# ---- H5: led by a reference ----


@dataclasses.dataclass(frozen=True, eq=False)
class Led:
    """Draws led by a reference.

    Attributes:
        error: masked mean squared error to the placed reference; subject: to the subject.
        outside: mean squared change outside the mask, against the draws that are not led.
        scene: share in front of the scene named.
        pictures, masks, placed: [n, 8, 8, 3 or 1].
    """

    error: float
    subject: float
    outside: float
    scene: float
    pictures: np.ndarray
    masks: np.ndarray
    placed: np.ndarray


def outlines(x: np.ndarray) -> np.ndarray:
    """[n, 8, 8, 1] the subject's outline at its best place in each picture."""
    _, outline = sprite_template("disk", SUBJECT)
    at, size = places(x, "disk", SUBJECT), outline.shape[0]
    masks = np.zeros((*x.shape[:3], 1), np.float32)
    for mask, (top, left) in zip(masks, at, strict=True):
        mask[top : top + size, left : left + size] = outline
    return masks


def placed_references(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a source picture moved onto each mask, its moved mask), the nearest source by the transform
    that moves it least."""
    given = sources()
    pictures, moved = [], []
    for mask in masks:
        ways = [align_masks(m, mask) for m in given["mask"]]
        best = int(np.argmin([np.hypot(*way.shift) for way in ways]))
        way: Similarity = ways[best]
        pictures.append(way.apply(given["x"][best], fill=None))
        moved.append(way.apply(given["mask"][best].astype(bool)))
    return np.stack(pictures).astype(np.float32), np.stack(moved).astype(np.float32)


def led(
    base: Fitted, model: Fitted, tuning: Tuning, *, each: int = 4, seed: int = 0,
    backend: Any = "auto",
) -> dict[str, Led]:  # fmt: skip
    """Draws of prompts with unseen scenes, not led and led, by inner steps and by windows."""
    ddim = sampler(base, tuning)
    prompts = [f"a disk on {s}" for s in UNSEEN for _ in range(each)]
    asked = np.repeat([SPRITE_SCENES.index(s) for s in UNSEEN], each)
    inputs, n = tokens(model, prompts), len(prompts)
    options = {"inputs": inputs, "seed": seed + 300, "backend": backend}
    plain = pg.generate(model, n, method=ddim, **options)["x"]
    placed, masks = placed_references(outlines(plain))
    said = tokens(base, [f"a disk on {SCENE}"] * n)
    pivots = base.encode(np.clip(placed, -1, 1), said, method=PivotalInversion(ddim))["pivots"]

    def judged(x: np.ndarray) -> Led:
        inside = np.broadcast_to(masks > 0, x.shape)
        return Led(
            float(((x - placed) ** 2)[inside].mean()),
            float(subject_error(x, "disk", SUBJECT).mean()),
            float(((x - plain) ** 2)[~inside].mean()),
            float((nearest_scene(x) == asked).mean()), x, masks, placed,
        )  # fmt: skip

    found = {"not led": judged(plain)}
    wanted = [(f"J = {j}", (*WINDOWS[0], j)) for j in (1, 10)]
    wanted += [(f"J = 10, {a} to {b}", (a, b, 10)) for a, b in WINDOWS[1:]]
    for name, (start, stop, inner) in wanted:
        total = ddim.num_steps
        method = ReferenceGuided(ddim, pivots, masks, min(start, total), stop, inner)
        found[name] = judged(pg.generate(model, n, method=method, **options)["x"])
    return found


# ---- H7: another subject in its place ----


def replaced(
    base: Fitted, model: Fitted, tuning: Tuning, *, each: int = 8, seed: int = 0,
    backend: Any = "auto",
) -> dict[str, Any]:  # fmt: skip
    """Squares in four scenes become the subject, with the source's attention and without.

    Returns:
        "outside" and "outside, free": mean squared error to the source outside of both objects;
        "subject", "subject, free" and "class only": errors to the subject; "sources", "pictures",
        "free pictures".
    """
    parts = [sprites(each, seed + 70 + i, noun="square", scene=s) for i, s in enumerate(UNSEEN)]
    x, old = (np.concatenate([p[k] for p in parts]) for k in ("x", "mask"))  # type: ignore[literal-required]
    scenes = [s for s in UNSEEN for _ in range(each)]
    ddim = sampler(base, tuning)
    said = tokens(base, [f"a square on {s}" for s in scenes])
    new = tokens(model, [f"a disk on {s}" for s in scenes])
    codes = base.encode(x, said, method=NullTextInversion(ddim, keeps_maps=True))
    length = new["condition"].shape[1]
    kept = np.zeros(length, bool)
    kept[2], kept[length - tuning.num_tokens :] = True, True  # the noun, and the subject's rows
    # Weights that sum to one: the stored columns and the new ones together else sum to more.
    control = AttentionControl(ddim, kept, is_renormalized=True)
    free = {k: v for k, v in codes.items() if not k.startswith("maps/")}
    options = {"inputs": new, "seed": 0, "backend": backend}
    drawn = {
        "": pg.generate(model, len(x), method=control, start=codes, **options),
        ", free": pg.generate(model, len(x), method=ddim, start=free, **options),
        ", class": pg.generate(base, len(x), method=ddim, start=free, **options),
    }
    found: dict[str, Any] = {"sources": x}
    for name, samples in drawn.items():
        y = samples["x"]
        outside = np.broadcast_to((old + outlines(y)) == 0, y.shape)
        found[f"outside{name}"] = float(((y - x) ** 2)[outside].mean())
        found[f"subject{name}"] = float(subject_error(y, "disk", SUBJECT).mean())
        found[f"pictures{name}"] = y
    return found
