"""Detection metrics as functions of counts in tie groups, so that resamples are one more axis.

Groups hold equal scores and are sorted, the most positive first. With TP_g, FP_g the positives and
negatives in groups 1..g, of P and N in all:

    auroc   sum_g pos_g (N - FP_g + neg_g / 2) / (P N)       = P(s+ > s-) + P(s+ = s-) / 2
    aupr    sum_g (pos_g / P) TP_g / (TP_g + FP_g)           average precision, a step sum
    fpr     FP_g / N at the first g with TP_g / P >= tpr     largest threshold, no interpolation

A bootstrap resample is a row of counts, which makes thousands of them a few passes over an array.
Point estimates of AUROC and average precision come from scikit-learn, in `roc`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from probgen.evaluation.detection.scores import PositiveClass, Scores
from probgen.language.declared import declaration
from probgen.language.kinds import OpenShare
from probgen.language.seeds import check_seed

Kind = Literal["auroc", "aupr", "fpr"]


@declaration
class Metric:
    """One number on a pair of score sets: "auroc", "aupr", or "fpr" at the true positive rate tpr.

    Raises:
        DeclarationError: an unknown kind or positive class, or tpr outside (0, 1).
    """

    kind: Kind = "auroc"
    positive: PositiveClass = "ood"
    tpr: OpenShare = 0.95

    def of_counts(self, in_counts: np.ndarray, out_counts: np.ndarray) -> np.ndarray:
        """[*batch] the metric, from counts [*batch, u] in tie groups, the strangest first."""
        positive, negative = out_counts, in_counts
        if self.positive == "in":
            positive, negative = in_counts[..., ::-1], out_counts[..., ::-1]
        if self.kind == "fpr":
            return fpr_of_counts(positive, negative, self.tpr)
        return _KINDS[self.kind](positive, negative)


def auroc_of_counts(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """[*batch] share of (positive, negative) pairs in the right order, a tie counting one half."""
    below = np.cumsum(negative, axis=-1)
    total = below[..., -1:].astype(np.float64)
    wins = (positive * (total - below + 0.5 * negative)).sum(-1)
    return wins / (positive.sum(-1) * total[..., 0])


def average_precision_of_counts(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """[*batch] precision averaged over the positives, groups of ties taken whole."""
    hits = np.cumsum(positive, axis=-1)
    named = hits + np.cumsum(negative, axis=-1)
    return (positive * hits / np.maximum(named, 1)).sum(-1) / hits[..., -1]


def fpr_of_counts(positive: np.ndarray, negative: np.ndarray, tpr: float) -> np.ndarray:
    """[*batch] false positive rate at the largest threshold whose true positive rate reaches tpr.

    The rates are compared after the division: 19 / 20 rounds to the same double as 0.95 does.
    """
    hits, false = np.cumsum(positive, axis=-1), np.cumsum(negative, axis=-1)
    first = np.argmax(hits / hits[..., -1:] >= tpr, axis=-1)[..., None]
    return np.take_along_axis(false, first, -1)[..., 0] / false[..., -1]


_KINDS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "auroc": auroc_of_counts,
    "aupr": average_precision_of_counts,
}


def counts(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of in and of out data in each tie group, the strangest first: [u] and [u]."""
    in_codes, out_codes, values = scores.groups()
    size = len(values)
    return np.bincount(in_codes, minlength=size), np.bincount(out_codes, minlength=size)


def resampled_counts(
    scores: Scores, *, num_resamples: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stratified bootstrap: both sets drawn anew with replacement, each to its own size.

    Where only d of a set's n data are distinct, d are drawn and weigh n / d each: the spread is
    that of d data, and the prevalence stays.

    Yields:
        chunks of counts (in, out) [rows, u]; the rows of all chunks are num_resamples.

    Raises:
        MissingSeed: none, or no whole number from 0 upwards.
    """
    seed = check_seed(seed, "bootstrap")
    in_codes, out_codes, values = scores.groups()
    in_random, out_random = (np.random.default_rng(each) for each in _spawn(seed))
    # Chunks that stay in the processor's cache are twice as fast as one large array.
    most = max(1, 2**17 // max(len(values), 1))
    for start in range(0, num_resamples, most):
        rows = min(most, num_resamples - start)
        yield (
            _one_chunk(in_codes, len(values), rows, in_random, scores.sizes[0]),
            _one_chunk(out_codes, len(values), rows, out_random, scores.sizes[1]),
        )


def _spawn(seed: int) -> list[np.random.SeedSequence]:
    return np.random.SeedSequence(seed).spawn(2)


def _one_chunk(
    codes: np.ndarray, size: int, rows: int, random: np.random.Generator, num_drawn: int
) -> np.ndarray:
    drawn = codes[random.integers(0, len(codes), size=(rows, num_drawn))]
    drawn += np.arange(rows)[:, None] * size
    found = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
    return found if num_drawn == len(codes) else found * (len(codes) / num_drawn)
