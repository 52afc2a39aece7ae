"""DoSE: densities of states. How rare are a model's statistics of a datum among reference data?

    -sum_j log p_j(T_j(x)),        p_j a kernel density of T_j over the reference data

Nats up to the units of the statistics (a density); larger is stranger, and strange means unusual in
either direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy  # its `stats`, half a second of every start, come when first asked for

from probgen.engine.measure import AnyMeasure, EvaluationContext, Function, Values, short_mark
from probgen.errors import DataError, ProbgenError
from probgen.inference.ood.elbo_terms import KLTerm, NegativeLogLikelihood, ReconstructionError
from probgen.inference.ood.reference import ReferenceData, over, set_reference
from probgen.language.declared import declaration, require

FEWEST = 20  # reference data that a density is made of


@declaration
class DoSE:
    """Minus the sum of log kernel densities of the model's statistics, fitted to reference data.

    In nats, larger is stranger. The kernel is Gaussian, its width Scott's rule. "log_densities" [n,
    statistics] is a diagnostic. The densities' units are shared by all data, so that only
    differences between data count.

    Assumes that each statistic on its own shows what is foreign, that they are independent (counted
    twice where they are not), and that held-out data have those of the reference. Fails where
    foreign data have usual statistics in a combination that is not, and where the reference are
    training data that the model knows better than any fresh ones.

    Args:
        reference: data of the training distribution, as in `pg.evaluate`; or a `Reference`.
        statistics: measures, each a statistic T_j by its estimate; by default -log p(x) of 1000
            draws, the reconstruction error and the KL term.

    Raises: DeclarationError: no statistics. When bound: AlgorithmError, as its statistics.
    DataError: reference data that do not fit, fewer than 20, or a statistic that is constant.

    Source: Morningstar et al. 2021, arXiv:2006.09273 (DoSE-KDE).
    """

    reference: ReferenceData
    statistics: Sequence[AnyMeasure] = (NegativeLogLikelihood(), ReconstructionError(), KLTerm())

    unit = "nats"
    larger_is_stranger = True

    def __post_init__(self) -> None:
        set_reference(self)
        set_measures(self, "statistics")

    @property
    def name(self) -> str:
        own, default = ([m.name for m in each] for each in (self.statistics, DoSE.statistics))
        mark = "" if own == default else f" {short_mark(*own)}"
        return f"DoSE({len(own)} statistics{mark})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> estimate, log_densities [n, statistics]."""
        functions = functions_of(self.statistics, context, self.name)
        densities = []
        for statistic in self.statistics:
            known = over(context, statistic, self.reference, self.name, FEWEST)["estimate"]
            densities.append(_density(known, f"{self.name}, {statistic.name}"))

        def run(rows: Any, ids: np.ndarray) -> Values:
            found = [f(rows, ids)["estimate"] for f in functions]
            logs = [d.logpdf(_finite(t)) for d, t in zip(densities, found, strict=True)]
            table = np.stack(logs, axis=1)
            return {"estimate": -table.sum(1), "log_densities": table}

        return run


def _density(known: np.ndarray, who: str) -> Any:
    """Kernel density of [n] numbers.

    Raises:
        DataError: they are all equal, up to rounding.
    """
    known = np.asarray(known, np.float64)
    if known.std() <= 1e-6 * np.abs(known).max():
        raise DataError(
            f"{who}: is {known[0]:g} for all {len(known)} reference data, expected numbers that "
            "vary, to fit a density to; leave this statistic out."
        )
    return scipy.stats.gaussian_kde(known)


def _finite(t: np.ndarray) -> np.ndarray:
    """Infinity, which no density has, becomes NaN, which `evaluate` refuses."""
    return np.where(np.isfinite(t), np.asarray(t, np.float64), np.nan)


def functions_of(measures: Sequence[Any], context: EvaluationContext, who: str) -> list[Function]:
    """Each measure's function (rows, ids) -> values.

    Raises:
        ProbgenError: what a measure raises, with the name of the score that it is a part of.
    """
    try:
        return [context.function(each) for each in measures]
    except ProbgenError as error:
        raise type(error)(f"{who}, {error}") from error


def set_measures(score: Any, name: str) -> None:
    """Holds a declaration's field of measures to be one or more, each once.

    Raises:
        DeclarationError: none, or two of one name.
    """
    names = [getattr(m, "name", repr(m)) for m in getattr(score, name)]
    once = 0 < len(names) == len(set(names))
    example = "one or more measures, each once, such as (NegativeLogLikelihood(), KLTerm())"
    require(once, score, example, name)
