"""Several ways to one posterior, side by side: how far is each, what did it cost, what is proved?

    found = pg.compare(model, data, {"NUTS": NUTS(), "mean field": AutoNormal()}, seed=0)
    print(found); found.save("runs/compare.html")

`methods` is what can be compared and how one is run, `moments` the numbers that are compared,
`comparison` the table, `page` what people look at.
"""

from probgen.evaluation.posteriors.compare import compare
from probgen.evaluation.posteriors.comparison import (
    MethodResult,
    PosteriorComparison,
    PosteriorDifference,
)
from probgen.evaluation.posteriors.methods import FitThenDraw
from probgen.evaluation.posteriors.moments import Moments, moments

__all__ = [
    "FitThenDraw", "MethodResult", "Moments", "PosteriorComparison", "PosteriorDifference",
    "compare", "moments",
]  # fmt: skip
