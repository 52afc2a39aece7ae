"""KID: the unbiased MMD^2 of features under the kernel (a.b / d + 1)^3, averaged over subsets.

Its mean is 0 for equal laws at every N, and it may be negative. The subsets overlap, so the spread
of their mean, which the literature prints, is an error of the choice of subsets alone; the error
here adds that of the data (see `unbiased_mmd2`), which is the larger one.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np

from probgen.errors import AlgorithmError
from probgen.evaluation.samples.estimate import Estimate
from probgen.evaluation.samples.features import featured
from probgen.evaluation.samples.mmd import polynomial_kernel, unbiased_mmd2
from probgen.language.declared import checked
from probgen.language.kinds import TwoOrMore, between
from probgen.language.seeds import check_seed

MAX_JACKKNIFE = 4000  # data of each set in the error's kernel matrices


@checked
def kid(
    real: Any,
    fake: Any,
    *,
    features: Any = "raw",
    num_subsets: TwoOrMore = 100,
    subset_size: Annotated[int, between(3, 10**7)] | None = None,
    seed: int = 0,
) -> Estimate:
    """Kernel distance of two sets in a space of features: mean over subsets +- standard error.

    standard_error^2 = sd^2 / num_subsets + (jackknife error of the full estimate)^2; above 4,000
    data the second is that of 4,000 scaled by sqrt(4000 / N), which is right where the laws differ
    and too large where they are equal.

    Args:
        real, fake: [n, *event] and [m, *event] data.
        features: of both, see `as_features`: a function or network that is applied to the data, or
            a name ("raw", "pca50", "digit-net"); the result is called by it.
        num_subsets: how many subsets.
        subset_size: data of each set in a subset; None is min(1000, N / 2), N the smaller size.
        seed: of the subsets.

    Returns:
        details hold "subset_size", "subset_error" (sd / sqrt(num_subsets)) and "data_error".

    Raises:
        AlgorithmError: a subset larger than a set.
        DataError: fewer than 6 data, not finite. ShapeError: different d.

    Source: Binkowski et al. 2018, arXiv:1801.01401.
    """
    x, y, name, notes = featured(real, fake, features, "kid", least=6)
    seed = check_seed(seed, "kid")
    smaller = min(len(x), len(y))
    size = min(1000, smaller // 2) if subset_size is None else subset_size
    if size > smaller:
        raise AlgorithmError(
            f"kid: got subset_size={size} for {len(x)} real and {len(y)} fake data, expected at "
            f"most {smaller}; None takes min(1000, {smaller} // 2)."
        )
    rng, kernel = np.random.default_rng(seed), polynomial_kernel(3)
    values = np.empty(num_subsets)
    for i in range(num_subsets):
        a, b = (each[rng.choice(len(each), size, replace=False)] for each in (x, y))
        values[i] = _mmd2(a, b)
    few_x, few_y = (rng.permutation(each)[:MAX_JACKKNIFE] for each in (x, y))
    shrink = math.sqrt(min(len(few_x), len(few_y)) / smaller)
    data_error = unbiased_mmd2(few_x, few_y, kernel)[1] * shrink
    subset_error = float(values.std(ddof=1)) / math.sqrt(num_subsets)
    return Estimate(
        f"KID[{name}]", float(values.mean()), math.hypot(subset_error, data_error),
        len(x), len(y), expected=0.0, error_by="jackknife over data, and spread of subsets",
        notes=notes,
        details={
            "subset_size": size, "num_subsets": num_subsets,
            "subset_error": subset_error, "data_error": data_error,
        },
        seed=seed,
    )  # fmt: skip


def _mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """`unbiased_mmd2` of equal sizes without its error: three products."""
    n, kernel = len(x), polynomial_kernel(3)
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    inside = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
    return float(inside / (n * (n - 1)) - 2 * xy.mean())
