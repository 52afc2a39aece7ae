"""Is a datum, or a batch, as probable as data of the model usually are: neither less nor more?

    single   |-log p(x) - H|                   H = mean of -log p over reference data
    batch    |mean_i -log p(x_i) - H|          with a bootstrap threshold and p-value

In nats, larger is stranger. A typical set is one of sequences: the statement about batches is the
sound one, and a single datum is a batch of one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from probgen.engine.measure import EvaluationContext, Function, Values
from probgen.errors import DataError, DeclarationError
from probgen.inference.likelihood.interval import Weighted
from probgen.inference.ood.elbo_terms import NegativeLogLikelihood
from probgen.inference.ood.moments import check_guide
from probgen.inference.ood.reference import ReferenceData, over, set_reference
from probgen.language.declared import declaration
from probgen.language.kinds import Many
from probgen.records.evaluation import Evaluation

FEWEST = 20  # reference values that a bootstrap is made of
_BLOCK = 2**22  # numbers drawn at a time


@declaration
class Typicality(Weighted):
    """|-log p(x) - H|, H the mean of -log p over reference data: strange in either direction.

    In nats, larger is stranger. Its standard error is that of the datum's own log p, with H held
    fixed; "nll" and "entropy" are diagnostics. Assumes that log p of in-distribution data is
    concentrated about its mean, as it is in many dimensions. Fails where foreign data have just the
    usual log p (mixtures of too simple and too complex), and for test data with a likelihood other
    than that of the training data; typical-set tests and their benchmarks are questioned in
    arXiv:2010.13064 and arXiv:2107.06908.

    Args:
        reference: held-out data of the training distribution, as in `pg.evaluate`. On training
            data that the model has learned by heart H is too small.
        num_particles: of the importance-weighted estimate of log p.
        label: told apart by, where several references are compared.

    Raises (when bound): AlgorithmError: no guide, global latents. DataError, ShapeError,
    SupportError: reference data that do not fit.

    Source: Nalisnick, Matsukawa, Teh & Lakshminarayanan 2019, arXiv:1906.02994.
    """

    reference: ReferenceData
    num_particles: Many = 1000
    label: str = ""

    unit = "nats"
    larger_is_stranger = True
    of_bound = ""

    def __post_init__(self) -> None:
        set_reference(self)

    @property
    def name(self) -> str:
        label = f"{self.label}, " if self.label else ""
        return f"Typicality({label}{self.num_particles})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> estimate, standard_error, nll, entropy, khat, effective_particles."""
        check_guide(context.bound, self.name)
        likelihood = NegativeLogLikelihood(self.num_particles)
        known = over(context, likelihood, self.reference, self.name)["estimate"]
        entropy = float(known.mean())
        function = context.function(likelihood)

        def run(rows: Any, ids: np.ndarray) -> Values:
            values = function(rows, ids)
            del values["upper_bound"]  # none of a distance
            nll = values["estimate"]
            estimate = np.abs(nll - entropy)
            return {**values, "estimate": estimate, "nll": nll, "entropy": 0.0 * nll + entropy}

        return run


@dataclasses.dataclass(frozen=True, eq=False)
class BatchTypicality:
    """What `batch_typicality` found.

    Attributes:
        statistic: [batches] |mean NLL of the batch - H|, nats.
        p_value: [batches] share of batches of the reference that are as far off, or farther.
        mean_nll: [batches] nats.
        threshold: what a share alpha of the reference's batches exceeds, nats.
        entropy: H, nats.
        batch_size, alpha, num_left_out: as asked for, and data that filled no batch.
    """

    statistic: np.ndarray
    p_value: np.ndarray
    mean_nll: np.ndarray
    threshold: float
    entropy: float
    batch_size: int
    alpha: float
    num_left_out: int

    @property
    def is_rejected(self) -> np.ndarray:
        """[batches] whether the batch is called out of distribution at level alpha."""
        return self.p_value <= self.alpha

    def __repr__(self) -> str:
        count = int(self.is_rejected.sum())
        return (
            f"BatchTypicality({count} of {len(self.p_value)} batches of {self.batch_size} out of "
            f"distribution at level {self.alpha:g}; threshold {self.threshold:.3f} nats from "
            f"H = {self.entropy:.3f})"
        )


def batch_typicality(
    nll: Any,
    reference_nll: Any,
    *,
    batch_size: int,
    alpha: float = 0.05,
    num_bootstrap: int = 2000,
    measure: str | None = None,
    seed: int | None = None,
) -> BatchTypicality:
    """Tests batches of data for being typical of the reference.

    The data are cut, in their order, into batches of M; each has the statistic
    |mean NLL - H|. Under the null hypothesis it is distributed as |mean of M - mean of n| with both
    sets drawn with replacement from the n reference values: that H is itself a mean of n values is
    in the threshold, so that the test keeps its level for a small reference too. The p-value is
    (1 + number of draws at least as large) / (1 + draws).

    The reference must not be data that the model was fitted to: their NLL is too small, and every
    fresh batch would be called strange.

    Args:
        nll: [n] -log p of the data, nats; or an `Evaluation` with it.
        reference_nll: the same of held-out data of the training distribution.
        batch_size: M; 1 tests single data.
        alpha: level of the test.
        num_bootstrap: draws.
        measure: which of an evaluation's measures; may be left out if it has one.
        seed: an integer.

    Raises:
        DataError: NaN, not one axis, fewer data than one batch, a reference of fewer than 20
            values or with all values equal.
        DeclarationError: a setting out of range, no seed.

    Source: Nalisnick et al. 2019, arXiv:1906.02994, algorithm 1 (there H is taken as known).
    """
    x = values_of(nll, "nll", measure)
    known = values_of(reference_nll, "reference_nll", measure)
    _check_settings(batch_size, alpha, num_bootstrap, seed)
    if len(x) < batch_size:
        raise DataError(
            f"batch_typicality: got {len(x)} data for batches of {batch_size}, expected at least "
            "one batch; give more data, or a smaller batch_size."
        )
    if len(known) < FEWEST or known.min() == known.max():
        what = "all equal" if len(known) >= FEWEST else f"{len(known)} in number"
        raise DataError(
            f"batch_typicality: the reference values are {what}, expected at least {FEWEST} that "
            "differ, to draw batches from; evaluate more held-out data."
        )
    count = len(x) // batch_size
    means = x[: count * batch_size].reshape(count, batch_size).mean(1)
    entropy = float(known.mean())
    rng = np.random.default_rng(seed)
    draws = _means(rng, known, batch_size, num_bootstrap)
    draws = np.sort(np.abs(draws - _means(rng, known, len(known), num_bootstrap)))
    statistic = np.abs(means - entropy)
    above = num_bootstrap - np.searchsorted(draws, statistic, side="left")
    return BatchTypicality(
        statistic, (1.0 + above) / (1.0 + num_bootstrap), means,
        float(np.quantile(draws, 1.0 - alpha)), entropy, batch_size, alpha,
        len(x) - count * batch_size,
    )  # fmt: skip


def _means(rng: np.random.Generator, values: np.ndarray, size: int, count: int) -> np.ndarray:
    """[count] means of `size` values drawn with replacement, in blocks."""
    at_once = max(1, _BLOCK // size)
    return np.concatenate(
        [
            values[rng.integers(0, len(values), (min(at_once, count - i), size))].mean(1)
            for i in range(0, count, at_once)
        ]
    )


def _check_settings(batch_size: int, alpha: float, num_bootstrap: int, seed: Any) -> None:
    if not isinstance(seed, int):
        raise DeclarationError(
            f"batch_typicality: got seed={seed!r}, expected an integer such as seed=0."
        )
    if not isinstance(batch_size, int) or batch_size < 1 or not 0.0 < alpha < 1.0:
        raise DeclarationError(
            f"batch_typicality: got batch_size={batch_size!r} and alpha={alpha!r}, expected a "
            "positive integer and a level between 0 and 1; 0.05, say."
        )
    if (1.0 + num_bootstrap) * alpha < 1.0:
        raise DeclarationError(
            f"batch_typicality: got num_bootstrap={num_bootstrap} draws for alpha={alpha}, "
            f"expected at least {int(np.ceil(1.0 / alpha))}, since no p-value could be so small."
        )


def values_of(given: Any, what: str, measure: str | None = None) -> np.ndarray:
    """[n] finite numbers, from an array or from an evaluation's measure, larger being stranger.

    Raises:
        DataError: not one axis, empty, not finite, or an evaluation of several measures.
    """
    if isinstance(given, Evaluation):
        if measure is None and len(given.names) > 1:
            raise DataError(
                f"{what}: got an evaluation with the measures {given.names}, expected one; say "
                f"which by measure={given.names[0]!r}."
            )
        given = given.strangeness(measure or given.names[0])
    x = np.asarray(given, np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).sum())
        raise DataError(
            f"{what}: got an array of shape {x.shape} with {bad} values that are not finite, "
            "expected [n] finite numbers, one a datum; pass the estimates of one measure."
        )
    return x
