"""The demo's strangers: sets that are no digits, and five measures of how strange they are.

    letters   inverted digits   patches of photographs   noise   constants

all made black and white like the digits, since that is what the model is of. A model that knows
digits should find each of them strange; which measures do is seen, not assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import probgen as pg
from probgen import data
from probgen.engine.fitted import Fitted
from probgen.evaluation.page import GatheredTables, gather, split_table
from probgen.inference import IWAE, LikelihoodRegret
from probgen.inference.ood import InputComplexity, LikelihoodRatio, NegativeLogLikelihood

OWN = "held-out digits"


def strangers(held_out: np.ndarray, count: int, *, seed: int) -> dict[str, np.ndarray]:
    """{set: [n, 28, 28, 1] in {0, 1}}, the held-out digits first; n is at most half of theirs.

    The inverted digits are the other half, so that no picture is in two sets.
    """
    n, shape = min(count, len(held_out) // 2), held_out.shape[1:]
    letters = data.letters(shape[0], seed=seed, per_letter=-(-n // 52))
    kept = np.random.default_rng(seed).choice(len(letters), n, replace=False)
    return {
        OWN: held_out[:n],
        "letters": data.binarize(letters.take(kept)).images,
        "inverted digits": data.inverted(held_out[n : 2 * n]),
        "patches": data.binarize(data.patches(shape[0], n, seed)).images,
        "noise": data.binarize(data.noise(n, shape, seed)).images,
        "constants": data.binarize(data.constants(n, shape, seed)).images,
    }


def confront(
    fitted: Fitted,
    background: Fitted,
    sets: Mapping[str, np.ndarray],
    *,
    particles: int,
    num_steps: int,
    seed: int,
) -> GatheredTables:
    """Likelihood, regret, ratio and complexity of every set, on the backend of the fit.

    The regret is that of K = 1, searched over each datum's own posterior, which is cheap.

    Args:
        background: a model of perturbed digits.
        particles: of each estimate of log p(x).
        num_steps: of the regret's search.
    """
    measures: list[Any] = [
        NegativeLogLikelihood(particles),
        LikelihoodRegret(search="posterior", num_steps=num_steps),
        LikelihoodRatio(background, particles),
        InputComplexity(IWAE(particles)),
    ]
    table = pg.evaluate(fitted, np.concatenate(list(sets.values())), measures, seed=seed)
    tables = split_table(table, {k: len(x) for k, x in sets.items()}, measures)
    own = tables.pop(OWN)
    return gather(own, tables, name=OWN, images=sets, seed=seed, labels={
        measures[0].name: "likelihood"})  # fmt: skip
