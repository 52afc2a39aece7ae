"""What a measure is bound to, for tests of one measure apart from `pg.evaluate`."""

import numpy as np

from probgen.engine.fitted import Fitted
from probgen.engine.measure import EvaluationContext


def context_of(fitted, b, x, *, seed=0, num_chunks=None):
    """All of x as one chunk; of a declaration without parameters, or of a `Fitted`."""
    model = fitted if isinstance(fitted, Fitted) else Fitted(fitted, {})
    return EvaluationContext(
        model, b, b.key(seed), {"x": x}, num_data=len(x), chunk_size=len(x), num_chunks=num_chunks
    )


def measured(fitted, b, measure, x, **options):
    """Values of x by one measure."""
    return context_of(fitted, b, x, **options).function(measure)({"x": x}, np.arange(len(x)))
