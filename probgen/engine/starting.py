"""What a fit starts from, checked before anything is computed: parameters given by hand, nets that
stay, and whether the data are what the algorithm reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probgen.backends.protocol import Backend
from probgen.engine.batches import NoData
from probgen.engine.bound import Bound
from probgen.engine.given import like
from probgen.engine.learner import Learner
from probgen.errors import AlgorithmError, DataError, UnknownName
from probgen.language.optim import stands_for
from probgen.language.wording import did_you_mean

Tree = Any


def given(backend: Backend, fresh: Mapping[str, Tree], init: Mapping[str, Tree] | None) -> dict:
    """`init=` of a fit, numpy, one tree a net as the model draws it.

    Args:
        fresh: all parameters as they would start.

    Raises:
        UnknownName: of no net; ShapeError: of another form; NonFiniteError: NaN or infinity.
    """
    out = {}
    for name, tree in (init or {}).items():
        if name not in fresh:
            raise UnknownName(
                f"init: got parameters of {name!r}, expected those of some of the nets "
                f"{sorted(fresh)}{did_you_mean(name, fresh)}."
            )
        out[name] = like(backend, f"init[{name!r}]", tree, fresh[name])
    return out


def check_freeze(bound: Bound) -> None:
    """Refuses names that freeze nothing.

    Raises:
        UnknownName: no net, and no part with nets, has the name.
    """
    for name in bound.freeze:
        if not any(stands_for((name,), net) for net in bound.names):
            raise UnknownName(
                f"freeze: got {name!r}, expected names of the nets {list(bound.names)}, or of "
                f"parts of them{did_you_mean(name, bound.names)}."
            )


def check_feed(learner: Learner, algorithm: Any, source: Any, accumulate: int) -> None:
    """Refuses data that are not what an algorithm reads.

    Raises:
        AlgorithmError: no data where it learns from them, or a stream where it keeps something for
            each datum.
    """
    who = type(algorithm).__name__
    if isinstance(source, NoData):
        if learner.needs_data:
            raise AlgorithmError(f"{who}: got data=None, expected data: it learns from them.")
        if accumulate > 1:
            raise AlgorithmError(
                f"gradient_accumulation: got {accumulate} without data, expected 1: there is no "
                "batch to be cut into parts; lower batch_size instead."
            )
    elif learner.needs_rows and source.size is None:
        raise AlgorithmError(
            f"{who}: got a stream, expected data of a known size: it keeps something for each "
            "datum, and a stream's have no numbers; collect it into arrays first."
        )


def draws(batch_size: Any, names: Any, validation: Any) -> int:
    """`batch_size=` of a fit without data.

    Raises:
        AlgorithmError, DataError: it is not a number; names, or held-out data, without data.
    """
    if not isinstance(batch_size, int):
        raise AlgorithmError(
            f"fit: got data=None and batch_size={batch_size!r}, expected data, or, of an algorithm "
            "that needs none, how many draws a step is made of: batch_size=128, say."
        )
    if names is not None or validation is not None:
        raise DataError("fit: got names or validation without data, expected neither.")
    return batch_size
