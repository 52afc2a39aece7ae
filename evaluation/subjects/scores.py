"""Scores of pictures of a subject, a number a picture, by cosines of features.

    subject fidelity   mean_j cos(f(g_i), f(r_j)) over real pictures r_j     (DINO, CLIP-I)
    prompt fidelity    cos(f(g_i), h(prompt_i)), of a shared space           (CLIP-T)
    diversity          mean_j 1 - cos(f(g_i), f(g_j)) over the same prompt's other pictures
    leak               1 where a classifier of scenes says the training scene

What they mean depends on f: with DINO's or CLIP's features they are the published scores; with
another network they are not those numbers, and its name belongs beside them. Features are centred
on the real pictures' mean first where `center` says so, since features of a network whose outputs
are all positive have cosines near 1 whatever they show.

Source: Ruiz et al. 2023, arXiv:2208.12242, section 4.2 (the three scores).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from probgen.errors import DataError, NonFiniteError, ShapeError

Array = np.ndarray


def subject_fidelity(drawn: Any, real: Any, features: Callable, *, center: Any = None) -> Array:
    """[n] mean cosine of each drawn picture [n, ...] with the real ones [m, ...].

    Args:
        features: pictures -> [n, d].
        center: pictures whose mean feature is taken off first; None, nothing is.

    Raises:
        DataError, NonFiniteError: no pictures, or features that are 0 or no numbers.
    """
    middle = 0.0 if center is None else np.asarray(features(center)).mean(axis=0)
    a = _unit(np.asarray(features(drawn)) - middle, "drawn")
    b = _unit(np.asarray(features(real)) - middle, "real")
    return (a @ b.T).mean(axis=1)


def prompt_fidelity(
    drawn: Any, prompts: Any, image_features: Callable, text_features: Callable
) -> Array:
    """[n] cosine of each picture [n, ...] with its own prompt, of features in one space.

    Raises:
        ShapeError: another number of prompts than of pictures.
        DataError, NonFiniteError: as `subject_fidelity`.
    """
    _one_each("prompt_fidelity", drawn, prompts)
    a = _unit(image_features(drawn), "drawn")
    b = _unit(text_features(prompts), "prompts")
    return (a * b).sum(axis=1)


def diversity(drawn: Any, prompts: Sequence, features: Callable) -> Array:
    """[n] 1 - mean cosine of each picture with the others of its prompt.

    Raises:
        ShapeError: another number of prompts than of pictures.
        DataError: a prompt with one picture; and as `subject_fidelity`.
    """
    _one_each("diversity", drawn, prompts)
    a, groups = _unit(features(drawn), "drawn"), np.asarray(prompts)
    out = np.empty(len(a))
    for prompt in dict.fromkeys(prompts):
        own = np.flatnonzero(groups == prompt)
        if len(own) < 2:
            raise DataError(
                f"diversity: got one picture of the prompt {prompt!r}, expected two or more, since "
                "it compares pictures of one prompt; draw more of each."
            )
        near = a[own] @ a[own].T
        out[own] = 1.0 - (near.sum(axis=1) - np.diag(near)) / (len(own) - 1)
    return out


def leak(drawn: Any, scene: Any, classify: Callable) -> Array:
    """[n] 1 where `classify` (pictures -> labels [n]) says the scene of the source pictures.

    Raises:
        ShapeError: another number of labels than of pictures.
        DataError: a scene of another kind than the labels, which none could be.
    """
    said, kind = np.asarray(classify(drawn)), np.asarray(scene).dtype.kind
    if said.shape != (len(drawn),):
        raise ShapeError(
            f"leak: got labels of shape {list(said.shape)} for {len(drawn)} pictures, expected one "
            "for each; take the argmax of scores."
        )
    if (kind in "US") != (said.dtype.kind in "US"):
        raise DataError(
            f"leak: got the scene {scene!r} for labels of type {said.dtype}, expected one of them; "
            "give it as the classifier says it."
        )
    return (said == scene).astype(float)


def crops(pictures: Any, masks: Any, size: int, background: float = 1.0) -> Array:
    """[n, size, size, c]: what each mask shows, its box made square, on a plain background.

    Features of whole pictures tell scene and place before the subject; of crops they tell it.

    Args:
        pictures: [n, h, w, c]; masks: [n, h, w, 1] of 0 and 1.
        background: value around the subject.

    Raises:
        DataError: an empty mask: the subject was not found. ShapeError: masks of another size.
    """
    from skimage.transform import resize

    if np.shape(masks) != (*np.shape(pictures)[:3], 1):
        raise ShapeError(
            f"crops: got masks of shape {list(np.shape(masks))} for pictures of "
            f"{list(np.shape(pictures))}, expected {[*np.shape(pictures)[:3], 1]}, one for each."
        )
    out = np.empty((len(pictures), size, size, np.shape(pictures)[-1]), np.float32)
    for i, (picture, mask) in enumerate(zip(pictures, np.asarray(masks) > 0.5, strict=True)):
        rows, columns = (np.flatnonzero(mask.any(axis=a)) for a in ((1, 2), (0, 2)))
        if not len(rows):
            raise DataError(
                f"crops: got mask {i}, which is empty, expected some of the picture to be the "
                "subject; leave pictures without it out, or count them as failures."
            )
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        part = np.where(mask, picture, background)[box]
        side = max(part.shape[:2])
        frame = np.full((side, side, part.shape[2]), background, float)
        top, left = (side - part.shape[0]) // 2, (side - part.shape[1]) // 2
        frame[top : top + part.shape[0], left : left + part.shape[1]] = part
        out[i] = resize(frame, (size, size), order=1, mode="edge", anti_aliasing=side > size)
    return out


def _one_each(who: str, drawn: Any, prompts: Any) -> None:
    """Refuses another number of prompts than of pictures, with a ShapeError."""
    if len(drawn) != len(prompts):
        raise ShapeError(
            f"{who}: got {len(prompts)} prompts for {len(drawn)} pictures, expected one for each; "
            "repeat a prompt for all its pictures."
        )


def _unit(features: Any, what: str) -> Array:
    """Rows of length one.

    Raises:
        DataError: there are none, or one of them is zero; NonFiniteError: NaN.
    """
    rows = np.asarray(features, float)
    rows = rows.reshape(len(rows), -1)
    if not np.isfinite(rows).all():
        raise NonFiniteError(
            f"features of {what}: got NaN or infinity, expected finite numbers; look at the "
            "pictures' range and at the network."
        )
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    if not len(rows) or not (length > 0).all():
        raise DataError(
            f"features of {what}: got {'none' if not len(rows) else 'some that are 0'}, expected "
            "vectors that have a direction; give pictures, or other features."
        )
    return rows / length
