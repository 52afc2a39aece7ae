"""Several tests of "this datum is of the model's distribution", put together by their p-values.

    p_j(x) = (1 + #{i: T_j(x_i) >= T_j(x)}) / (n + 1)       over n reference data
    Fisher's statistic  -2 sum_j log p_j(x)

Larger is stranger; a chi-squared statistic, with 2 degrees of freedom for each independent test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from probgen.engine.measure import (
    AnyMeasure,
    EvaluationContext,
    Function,
    Values,
    changed_settings,
    short_mark,
)
from probgen.errors import DataError
from probgen.inference.ood.dose import FEWEST, functions_of, set_measures
from probgen.inference.ood.gradient import GradientNorm
from probgen.inference.ood.ranks import brown, fisher, right_tail
from probgen.inference.ood.reference import ReferenceData, over, set_reference
from probgen.inference.ood.typicality import Typicality
from probgen.language.declared import declaration


@declaration
class CombinedTest:
    """Fisher's combination of the p-values of the typicality test and the score statistic.

    A chi-squared statistic, -2 sum_j log p_j, with two degrees of freedom a test where these are
    independent; larger is stranger. "p_value" [n] is that of the combination, "p_values" [n, tests]
    those of each test. No p-value of a test is below 1 / (n + 1), so that data beyond all of the
    reference in every test tie.

    Assumes held-out reference data, which a p-value needs: on training data the model knows better
    than any fresh ones every p-value is too small. Each of the tests is two-sided in effect, so the
    direction of the failure of the likelihood does not matter; what neither test sees stays unseen
    (arXiv:2203.01097 reports an AUROC of 0.87 on CIFAR-10 against SVHN for VAEs, below other
    scores). "brown" allows for tests that depend on each other, as these do.

    Args:
        reference: held-out data of the training distribution, as in `pg.evaluate`.
        tests: measures whose large (or small, if they say so) estimates reject; by default
            `Typicality` and `GradientNorm` ("fisher") with this reference.
        dependence: "brown" scales the chi-square law by the tests' correlation over the reference;
            "none" takes them as independent. The score itself is the same.

    Raises: DeclarationError: a setting out of range. When bound: as its tests. DataError: fewer
    than 20 reference data, or a test whose statistic is constant over them.

    Source: Bergamin et al. 2022, arXiv:2203.01097.
    """

    reference: ReferenceData
    tests: Sequence[AnyMeasure] | None = None
    dependence: Literal["brown", "none"] = "brown"

    unit = "chi-squared"
    larger_is_stranger = True

    def __post_init__(self) -> None:
        set_reference(self)
        if self.tests is None:
            object.__setattr__(self, "tests", self._default())
        set_measures(self, "tests")

    def _default(self) -> tuple[Any, ...]:
        return Typicality(self.reference), GradientNorm(self.reference)

    @property
    def name(self) -> str:
        own, default = ([m.name for m in each] for each in (self.tests or (), self._default()))
        mark = "" if own == default else f" {short_mark(*own)}"
        more = changed_settings(self, shown=("tests",))
        said = [f"{len(own)} tests{mark}", *more]
        return f"CombinedTest({', '.join(said)})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> estimate, p_value, p_values [n, tests]."""
        tests = self.tests or ()
        functions = functions_of(tests, context, self.name)
        signs = [1.0 if t.larger_is_stranger else -1.0 for t in tests]
        known = [over(context, t, self.reference, self.name, FEWEST)["estimate"] for t in tests]
        known = [s * np.asarray(k, np.float64) for s, k in zip(signs, known, strict=True)]
        for test, values in zip(tests, known, strict=True):
            if values.min() == values.max():
                raise DataError(
                    f"{self.name}: {test.name} is {values[0]:g} for all {len(values)} reference "
                    "data, expected a statistic that varies; leave this test out."
                )
        own = np.stack([right_tail(k, k) for k in known], axis=1)

        def run(rows: Any, ids: np.ndarray) -> Values:
            found = [s * f(rows, ids)["estimate"] for s, f in zip(signs, functions, strict=True)]
            p = np.stack([right_tail(k, t) for k, t in zip(known, found, strict=True)], axis=1)
            statistic, value = fisher(p) if self.dependence == "none" else brown(p, own)
            return {"estimate": statistic, "p_value": value, "p_values": p}

        return run
