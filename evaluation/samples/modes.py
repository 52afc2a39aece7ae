"""Modes: which of the known ones do the samples hit, and in the right shares?

By known centres: a sample belongs to its nearest centre, and is good within 3 sd of it. By a
classifier: to its likeliest class, and is good where that has a probability of at least .9. A mode
is hit by one good sample, strictly by 20; how many modes equal laws would hit depends on n, and
stands beside it (`expected_hits`). With the shares q of the truth and p of the good samples:

    KL(p || q) = sum_k p_k log(p_k / q_k)     nats; for equal laws about (K - 1) / (2 n), not 0

A classifier knows only its own classes: a picture of nothing is some digit to it, so read its
histogram with precision beside it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import binom, chi2, chisquare

from probgen.errors import DataError, ShapeError
from probgen.evaluation.samples.checks import as_matrix, refuse_dict
from probgen.evaluation.samples.estimate import Estimate, plain, table, wilson
from probgen.language.declared import checked
from probgen.language.kinds import Count, Positive, Rule, Share

Scales = Annotated[np.ndarray, Rule("above 0", lambda v: bool((v > 0).all()))]
Classifier = Annotated[
    Any,
    Rule(
        "a callable that gives probabilities [n, K], or a classifier with predict_proba",
        lambda v: any(callable(f) for f in _functions(v)),
        alone=True,
    ),
]


@dataclasses.dataclass(frozen=True, eq=False)
class ModeCount:
    """What `count_modes` and `count_classes` return.

    Attributes:
        counts: [K] good samples of each mode.
        truth: [K] shares of the modes in the truth.
        hit: modes with at least one good sample.
        hit_strictly: modes with at least `strict`.
        good: share of good samples.
        kl: KL of the histogram of good samples to the truth, nats; details hold the p-value of the
            chi-square test "p_value" and "log_num_modes", the KL of a single mode to uniform. None
            where it is no number, and a note of `good` says why: no sample is good, so there is no
            histogram, or some are in a mode that the truth does not have, so it is infinite.
        names: [K] of the modes.
    """

    counts: np.ndarray
    truth: np.ndarray
    hit: Estimate
    hit_strictly: Estimate
    good: Estimate
    kl: Estimate | None
    names: tuple[str, ...]

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """All four; three where the KL is no number."""
        return (self.hit, self.hit_strictly, self.good, *([self.kl] if self.kl else ()))

    def intervals(self) -> np.ndarray:
        """[K, 2] 95 % intervals (Wilson) of each mode's share among the good samples; from 0 to 1
        where there are none."""
        total = int(self.counts.sum())
        if not total:
            return np.tile([0.0, 1.0], (len(self.counts), 1))
        return np.array([wilson(count / total, total) for count in self.counts])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dicts."""
        return plain(
            {
                "counts": self.counts, "truth": self.truth, "names": self.names,
                "estimates": [each.to_dict() for each in self.estimates],
                "kl": self.kl.value if self.kl else None, "notes": self.good.notes,
            }
        )  # fmt: skip

    def __repr__(self) -> str:
        return "\n".join([table(self.estimates), *(f"note: {each}" for each in self.good.notes)])


@checked
def count_modes(
    samples: Any,
    centres: Any,
    *,
    sd: Positive | Scales,
    truth: Any = None,
    within: Positive = 3.0,
    strict: Count = 20,
) -> ModeCount:
    """Mode counting against known centres.

    Args:
        samples: [n, d].
        centres: [K, d].
        sd: standard deviation of each coordinate about a centre: one number, or [K].
        truth: [K] shares of the modes; None is uniform.
        within: a sample is good at no more than so many sd from its nearest centre (in sd).
        strict: samples for a strict hit.

    Returns:
        `good.expected` is the share for isotropic normal modes far apart: chi-square with d degrees
        of freedom at within^2, .989 in two dimensions.

    Raises:
        ShapeError: centres of another dimension, sd or truth of another length.
        DeclarationError: sd or `within` not positive. DataError: no samples, not finite.
    """
    x = as_matrix(samples, "count_modes (samples)", least=1)
    c = as_matrix(centres, "count_modes (centres)", least=1)
    if x.shape[1] != c.shape[1]:
        raise ShapeError(
            f"count_modes: got samples of {x.shape[1]} numbers and centres of {c.shape[1]}, "
            "expected the same; give both in the same space."
        )
    scale = np.asarray(sd, np.float64)
    if scale.shape not in ((), (len(c),)):
        raise ShapeError(
            f"count_modes: got sd of shape {scale.shape}, expected one number, or one for each of "
            f"{len(c)} centres."
        )
    distance = cdist(x, c) / scale
    nearest = distance.argmin(1)
    good = distance[np.arange(len(x)), nearest] <= within
    expected = float(chi2.cdf(within**2, x.shape[1]))
    return _count(nearest, good, len(c), truth, strict, expected, None, "modes")


@checked
def count_classes(
    samples: Any,
    classifier: Classifier,
    *,
    truth: Any = None,
    real: Any = None,
    min_confidence: Share = 0.9,
    strict: Count = 20,
) -> ModeCount:
    """Mode counting by a classifier's classes.

    Args:
        samples: [n, *event].
        classifier: a `DigitClassifier`, a scikit-learn classifier (`predict_proba`), or a callable
            samples -> [n, K] probabilities.
        truth: [K] shares of the classes; None is uniform.
        real: data of the truth, to learn from how many of them are good, for the classes that
            equal laws would hit; None takes the share found in the samples.
        min_confidence: least probability of the likeliest class in a good sample.
        strict: samples for a strict hit.

    Raises:
        DataError: probabilities that are none. ShapeError: truth of another length.
    """
    function = next(f for f in _functions(classifier) if callable(f))
    p = _probabilities(function, samples)
    names = tuple(getattr(classifier, "classes", ())) or None
    good = p.max(1) >= min_confidence
    usual = None
    if real is not None:
        usual = float((_probabilities(function, real).max(1) >= min_confidence).mean())
    return _count(p.argmax(1), good, p.shape[1], truth, strict, None, names, "classes", usual)


def _functions(classifier: Any) -> tuple[Any, ...]:
    """What may give the probabilities, the first that is a function before the others."""
    named = (getattr(classifier, m, None) for m in ("probabilities", "predict_proba"))
    return (*named, classifier)


def _probabilities(function: Callable, data: Any) -> np.ndarray:
    """[n, K] of a classifier, checked."""
    refuse_dict(data, "count_classes")
    p = as_matrix(function(getattr(data, "images", data)), "count_classes", least=1)
    if p.shape[1] < 2 or p.min() < -1e-6 or np.abs(p.sum(1) - 1).max() > 1e-3:
        raise DataError(
            f"count_classes: got an array of shape {p.shape} whose rows sum to "
            f"{p.sum(1).min():.3g} ... {p.sum(1).max():.3g}, expected probabilities [n, K] with "
            "rows that sum to 1; apply a softmax to logits."
        )
    return p


def _count(
    mode: np.ndarray,
    good: np.ndarray,
    num_modes: int,
    truth: Any,
    strict: int,
    expected: float | None,
    names: tuple[str, ...] | None,
    what: str,
    usual: float | None = None,
) -> ModeCount:
    n, q = len(mode), _shares(truth, num_modes)
    counts = np.bincount(mode[good], minlength=num_modes)
    share = float(good.mean())
    foreign = np.flatnonzero((counts > 0) & (q == 0))
    notes: tuple[str, ...] = ()
    if not counts.any():
        notes = (
            f"none of {n} samples is good, so they have no histogram and no KL; if that is a "
            "surprise, check the scale of samples and centres, sd and within (or the classifier's "
            "min_confidence)",
        )
    elif len(foreign):
        notes = (
            f"{int(counts[foreign].sum())} good samples are in modes whose share in the truth is "
            f"0, the first of which is mode {foreign[0]}: the KL to the truth is infinite",
        )
    # The share of good samples that equal laws would give: known, measured, or that found.
    usual = next((s for s in (expected, usual, share or None) if s is not None), None)
    law = None if usual is None else usual * q
    return ModeCount(
        counts, q,
        _hits(counts, n, 1, law, f"{what} hit"),
        _hits(counts, n, strict, law, f"{what} hit by >= {strict}"),
        Estimate(
            f"share of good samples ({what})", share, math.sqrt(share * (1 - share) / n), 0, n,
            interval=wilson(share, n), expected=expected, error_by="binomial, Wilson's interval",
            better="larger" if expected is None else "nearer", notes=notes,
        ),
        None if notes else histogram_kl(counts, q, name=f"KL of {what} to truth"),
        names or tuple(map(str, range(num_modes))),
    )  # fmt: skip


def _shares(truth: Any, num_modes: int) -> np.ndarray:
    if truth is None:
        return np.full(num_modes, 1 / num_modes)
    q = np.asarray(truth, np.float64)
    if q.shape != (num_modes,):
        raise ShapeError(
            f"mode counting: got truth of shape {q.shape}, expected [{num_modes}], a share a mode."
        )
    if not np.isfinite(q).all() or q.min() < 0 or q.sum() <= 0:
        raise DataError(
            "mode counting: got shares of the truth that are negative, not finite or all 0, "
            "expected positive ones; counts are understood too."
        )
    return q / q.sum()


def expected_hits(law: np.ndarray, n: int, least: int) -> float:
    """Mean number of modes with at least `least` of n samples: sum_k P(Binomial(n, p_k) >= least).

    Exact for the multinomial, whose counts are binomial one by one.

    Args:
        law: [K] probability that a sample is a good one of mode k.
    """
    missed = binom.cdf(least - 1, n, law)
    return float((law > 0).sum() - missed[law > 0].sum())


def _hits(counts: np.ndarray, n: int, least: int, law: np.ndarray | None, name: str) -> Estimate:
    """Modes with at least `least` samples; the error is that of new samples with these shares.

    `law` is that of equal distributions, as in `expected_hits`; None where it is not known.
    """
    number = float((counts >= least).sum())
    again = binom.sf(least - 1, n, counts / n)  # P(a mode is hit in n new samples)
    error = float(np.sqrt((again * (1 - again)).sum()))
    missed = int(len(counts) - number)
    notes: tuple[str, ...] = ()
    if missed and least == 1:
        share = -math.expm1(math.log(0.05) / n)
        notes = (f"{missed} modes are missed; each has a share below {share:.2g} (95 %)",)
    return Estimate(
        name, number, error, 0, n, bias="downward",
        expected=None if law is None else expected_hits(law, n, least),
        better="larger" if law is None else "nearer",
        interval=(max(0.0, number - 1.96 * error), min(float(len(counts)), number + 1.96 * error)),
        error_by="binomial, independent modes", notes=notes,
    )  # fmt: skip


def histogram_kl(counts: np.ndarray, truth: np.ndarray, *, name: str = "KL to truth") -> Estimate:
    """KL(p || q) of observed shares p = counts / n to q, nats.

    standard_error^2 = [sum_k p_k l_k^2 - KL^2 - (K - 1) / n]_+ / n + (K - 1) / (2 n^2)

    with l = log(p / q): the delta method less what chance adds to its variance, and the variance of
    chi^2_{K-1} / (2 n), which is what is left where the laws are equal. `expected` is
    (K - 1) / (2 n), the mean for equal laws.

    Raises:
        DataError: no samples; or some in a mode whose share in the truth is 0 (the KL is infinite).
    """
    n = int(counts.sum())
    if not n:
        raise DataError(
            f"{name}: got counts that are all 0, expected at least one sample; without one there "
            "is no histogram to compare."
        )
    p = counts / n
    if (p[truth == 0] > 0).any():
        raise DataError(
            f"{name}: got samples in mode {int(np.flatnonzero((p > 0) & (truth == 0))[0])}, whose "
            "share in the truth is 0, which makes the KL infinite; give every mode a share."
        )
    seen = p > 0
    log_ratio = np.log(p[seen] / truth[seen])
    kl = float(max((p[seen] * log_ratio).sum(), 0.0))
    own = truth > 0
    free = int(own.sum()) - 1
    variance = max(float((p[seen] * log_ratio**2).sum()) - kl**2 - free / n, 0.0) / n
    error = math.sqrt(variance + free / (2 * n * n))
    p_value = float(chisquare(counts[own], n * truth[own]).pvalue) if free else 1.0
    return Estimate(
        name, kl, error, 0, n, expected=free / (2 * n), better="smaller", bias="upward",
        interval=(max(0.0, kl - 1.96 * error), kl + 1.96 * error),
        error_by="delta method and chi-square",
        details={"p_value": p_value, "log_num_modes": math.log(len(truth)), "unit": "nats"},
    )  # fmt: skip
