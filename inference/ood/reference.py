"""Reference data of a score: training or held-out data, kept whole, named by their content.

A score that is fitted to reference data must be recognised when an evaluation goes on after a kill,
so a `Reference` prints, and compares, as its shapes and a hash. How strange a datum is, relative to
them, is not here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np

from probgen.data.sources import as_arrays
from probgen.engine.data_support import SupportCheck
from probgen.engine.evaluation_context import CacheKey
from probgen.engine.measure import EvaluationContext, Rows, Values
from probgen.errors import DataError, NonFiniteError, ProbgenError
from probgen.language.content import content
from probgen.language.kinds import Rule

FIRST_ID = 2**30  # numbers of reference data, so that they share no noise with the data evaluated


class Reference:
    """Checked arrays by name, with a short repr; what `as_reference` makes of a user's data.

    Args:
        data: as in `pg.evaluate`.

    Raises:
        DataError: empty, not finite, not numbers, a stream.
    """

    def __init__(self, data: Any):
        self.data = data
        self.arrays = as_arrays(data)

    @property
    def size(self) -> int:
        """Number of data."""
        return len(next(iter(self.arrays.values())))

    @functools.cached_property
    def hash(self) -> str:
        """Of names, types, shapes and numbers."""
        return content(self.arrays)[:16]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{k} {a.dtype}{list(a.shape)}" for k, a in self.arrays.items())
        return f"Reference({shapes}, {self.hash})"

    def __identity__(self) -> str:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reference) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def require(self, who: str, at_least: int) -> None:
        """Refuses fewer than `at_least` data.

        Raises:
            DataError: says how many there are.
        """
        if self.size < at_least:
            raise DataError(
                f"{who}: got {self.size} reference data, expected at least {at_least}; give more, "
                "such as all the training data."
            )

    def rows(self, context: EvaluationContext, who: str, at_least: int = 2) -> Rows:
        """The arrays under the names of the data evaluated, held against the model.

        Raises:
            DataError: too few, a name that the model needs is missing, a wrong type.
            ShapeError: a datum of another shape. SupportError: outside the support of its site.
        """
        self.require(who, at_least)
        return context.once(
            CacheKey("reference", self, context.fitted), lambda: self._checked(context, who)
        )

    def _checked(self, context: EvaluationContext, who: str) -> Rows:
        arrays, b = as_arrays(self.data, names=context.names), context.backend
        missing = sorted(set(context.bound.observed) - set(arrays))
        if missing:
            raise DataError(
                f"{who}: the reference data have {sorted(arrays)}, expected also {missing}, as the "
                "data have; give them under the same names."
            )
        try:
            bound, params = context.fitted.bind(b, arrays)
            SupportCheck(bound, params, b.key(0))(arrays)
        except ProbgenError as error:
            raise type(error)(f"{who}, reference data: {error}") from error
        return arrays


def as_reference(data: Any) -> Reference:
    """`data` as a `Reference`; one that is one already is returned as it is."""
    return data if isinstance(data, Reference) else Reference(data)


# Data that a score is fitted to; not a text or a number, which is an option given by position.
ReferenceData = Annotated[
    Any,
    Rule(
        "reference data, ordinary ones that the score is fitted to: an array, a dict of arrays or "
        "Images, such as the training data; they come first, options by their name",
        lambda v: v is not None and not isinstance(v, str | bytes | bool | int | float),
        alone=True,
    ),
]


def set_reference(score: Any, name: str = "reference") -> None:
    """Makes a `Reference` of a declaration's field, from its `__post_init__`.

    Raises:
        DataError: what holds no data.
    """
    try:
        object.__setattr__(score, name, as_reference(getattr(score, name)))
    except ProbgenError as error:
        raise type(error)(f"{type(score).__name__}, {name}: {error}") from error


def over(
    context: EvaluationContext, measure: Any, reference: Reference, who: str = "", at_least: int = 2
) -> Values:
    """A measure of the reference data, computed once an evaluation, whichever score asks.

    Raises:
        NonFiniteError: an estimate is NaN or infinite. Further: as `Reference.rows`.
    """
    # Each score has its own least number, so that what another had computed is no answer to it.
    reference.require(who or measure.name, at_least)

    def make() -> Values:
        parts = [v for _, v in chunks(context, measure, reference, who, at_least)]
        return {q: np.concatenate([p[q] for p in parts]) for q in parts[0]}

    return dict(context.once(CacheKey("over", measure, reference, context.fitted), make))


def chunks(
    context: EvaluationContext, measure: Any, reference: Reference, who: str = "", at_least: int = 2
) -> Iterator[tuple[Rows, Values]]:
    """(rows, values) of a measure, chunk by chunk, for reference data of any size."""
    who = who or measure.name
    rows = reference.rows(context, who, at_least)
    function = context.function(measure)
    for first in range(0, reference.size, context.chunk_size):
        stop = min(first + context.chunk_size, reference.size)
        part = {k: v[first:stop] for k, v in rows.items()}
        values = function(part, FIRST_ID + np.arange(first, stop))
        check_finite(f"{who}, {measure.name}", values.get("estimate"), first)
        yield part, values


def check_finite(name: str, estimate: np.ndarray | None, first: int = 0) -> None:
    """Refuses reference data of which a measure is not finite.

    Raises:
        NonFiniteError: says how many, and the first.
    """
    bad = np.flatnonzero(~np.isfinite(estimate if estimate is not None else 0.0))
    if len(bad):
        raise NonFiniteError(
            f"{name}: is not finite for {len(bad)} reference data, the first is datum "
            f"{first + bad[0]}, expected finite numbers to fit a score to; leave those data out, "
            "or look at the model's parameters for NaN."
        )
