"""What `pg.evaluate` can be asked for: a name, a unit, a direction, and one hook.

    bind_measure(context) -> (rows, ids) -> values        rows: a chunk of data, ids: their numbers

Most measures are one function of a datum on the device,

    def bind_measure(self, context):
        def measure(params, batch, key):
            return {"estimate": ...}                        [batch], and diagnostics [batch, ...]

        return context.device(measure, self.name)

and what is done on the host, or with several models, or with reference data, is done in the
function that is returned. What a measure makes of another one's values it asks for by
`context.function(other)`, which is computed once a chunk for all who ask.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Protocol

import numpy as np

from probgen.engine.evaluation_context import EvaluationContext, Function, Rows, Values
from probgen.errors import NonFiniteError
from probgen.language.kinds import Rule

__all__ = [
    "AnyMeasure", "EvaluationContext", "Function", "Measure", "Rows", "Values", "changed_settings",
    "check_finite", "short_mark",
]  # fmt: skip


class Measure(Protocol):
    """Something that is known of each datum, with its error.

    Attributes:
        name: of the measure, with its settings (see `changed_settings`); without a slash.
        unit: such as "nats".
        larger_is_stranger: the direction.

    The hook gets an `EvaluationContext` (the model bound with its parameters, the backend, how many
    data there are) and gives a function of a chunk, whose values are numpy arrays by name:
    "estimate" [n], "standard_error" [n] where there is one, and diagnostics [n, ...]. What cannot
    be measured is refused there, before anything is computed.

    Optional, looked for by name, all about the whole table:
        settle(values): on the host, once all data are in: what only they together can tell.
        warnings(values): sentences about all the data, for the printed table.
        shared_error: True where its standard errors are one error that all data share.
        takes_one_value: True where it also measures data of a program without a data plate, whose
            sites have one value each: its batch has one row then, and `bound.is_once` is True.
        __identity__(): what tells it from others where its attributes do not
            (`probgen.language.identity`).
    """

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def larger_is_stranger(self) -> bool: ...

    def bind_measure(self, context: EvaluationContext) -> Function: ...


# A measure as a part of a declaration.
AnyMeasure = Annotated[
    Any,
    Rule(
        "a measure such as IWAE(1000)",
        lambda v: hasattr(v, "bind_measure"),
        alone=True,
    ),
]


def changed_settings(measure: Any, *, shown: Iterable[str] = ()) -> list[str]:
    """Texts "field=value" for each setting that is not the default, for a measure's name.

    Left out are fields without a default, which are data or models, and those that say how much is
    done at a time (`..._at_once`), which is a matter of memory.

    Args:
        measure: a dataclass.
        shown: fields that the name says already.
    """
    said, known = [], set(shown)
    for field in dataclasses.fields(measure):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        is_silent = field.name.endswith("_at_once")
        if field.name in known or is_silent or default is dataclasses.MISSING:
            continue
        value = getattr(measure, field.name)
        if not _equal(value, default):
            said.append(f"{field.name}={_text(value)}")
    return said


def _equal(value: Any, default: Any) -> bool:
    return bool(np.array_equal(value, default)) if value is not None else default is None


def _text(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    text = value if isinstance(value, str) else repr(value)
    return text.replace("/", "|")  # names become paths in a table


def short_mark(*parts: str) -> str:
    """Four hexadecimal digits that tell texts apart, for names: "#3f2a"."""
    return "#" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:4]


def check_finite(
    name: str, estimate: np.ndarray, first: int, why: Callable[[int], str] | None = None
) -> None:
    """Refuses NaN among estimates.

    Args:
        first: place of the first of them among the data.
        why: what an index among them says of the cause (`probgen.engine.explain`).

    Raises:
        NonFiniteError: says how many, and the first datum.
    """
    bad = np.flatnonzero(np.isnan(estimate))
    if len(bad):
        raise NonFiniteError(
            f"evaluate: {name} is NaN for {len(bad)} data, the first is datum {first + bad[0]}; "
            "look at that datum, and at the model's parameters for NaN"
            f"{why(int(bad[0])) if why else ''}."
        )
