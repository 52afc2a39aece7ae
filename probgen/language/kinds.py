"""What a value must be, told by a type annotation: `kind(hint)` checks it and has the words.

    float                                a finite number (in single precision, where it will live)
    Annotated[int, at_least(1)]          a whole number of at least 1
    tuple[Width, ...] | None             a tuple, each entry a whole number ..., or None

A boolean is no number, a fraction no count, a class no instance of itself. Nothing is changed on
its way in but numpy's scalars to Python's, whole numbers to floats where a float is meant, and
lists to tuples, so that declarations hash, or to arrays. Nothing of ours is imported here.
"""

from __future__ import annotations

import collections.abc
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np

LARGEST = float(np.finfo(np.float32).max)
REFUSED: Any = object()


class Kind(NamedTuple):
    """`take(value)` is the value as it is kept, or `REFUSED`; `words` say what is expected."""

    words: str
    take: Callable[[Any], Any]


class Rule(NamedTuple):
    """A marker for `Annotated`: what holds of a value beyond its type, and the words for it.

    The words follow those of the type, or stand alone.
    """

    words: str
    holds: Callable[[Any], bool] = lambda value: True
    alone: bool = False


class Unbounded(NamedTuple):
    """A marker for `Annotated[float, ...]`: infinities are meant; NaN never is."""


# ---- rules ---------------------------------------------------------------------------------------


def at_least(low: float) -> Rule:
    """value >= low."""
    return Rule(f"of at least {low:g}", lambda v: v >= low)


def between(low: int, high: int) -> Rule:
    """low <= value <= high, of whole numbers."""
    return Rule(f"of at least {low} and at most {high:,}", lambda v: low <= v <= high)


def within(low: float, high: float, ends: str = "[]") -> Rule:
    """From low to high; `ends` such as "(]" say whether they are in it."""

    def holds(v: Any) -> bool:
        above = v > low if ends[0] == "(" else v >= low
        return above and (v < high if ends[1] == ")" else v <= high)

    return Rule(f"in {ends[0]}{low:g}, {high:g}{ends[1]}", holds)


def one_of(names: Iterable[Any]) -> Rule:
    """One of some values."""
    known = tuple(names)
    return Rule(f"one of {', '.join(map(repr, known))}", lambda v: v in known, alone=True)


def having(words: str, *methods: str) -> Rule:
    """An object with these methods, whatever its class."""
    return Rule(words, lambda v: all(callable(getattr(v, m, None)) for m in methods), alone=True)


above_zero = Rule("above 0", lambda v: v > 0)
distinct = Rule("(none twice)", lambda v: len(set(v)) == len(v))
not_empty = Rule("(at least one)", lambda v: len(v) > 0)


def _by_site(words: str, holds: Callable[[Any], bool]) -> Any:
    """A mapping from names of sites to values of which something holds."""

    def each(v: Mapping) -> bool:
        return len(v) > 0 and all(isinstance(n, str) and holds(h) for n, h in v.items())

    return Annotated[Mapping, Rule(f"by site, of {words}", each)]


def _is_above(v: Any) -> bool:
    """A finite number above 0, or an array of them."""
    taken = _array(v) if np.ndim(v) else _finite(v)
    return taken is not REFUSED and bool(np.all(taken > 0))


def _is_size(v: Any) -> bool:
    return _finite(v) is not REFUSED and v >= 0


# ---- names for what recurs -----------------------------------------------------------------------

Count = Annotated[int, between(1, 10**9)]  # of steps, data, updates
CountOrZero = Annotated[int, between(0, 10**9)]
Many = Annotated[int, between(1, 10**7)]  # of what memory holds at once: draws, chains, their steps
Width = Annotated[int, between(1, 10**8)]  # of a layer or an axis
Size = Annotated[int, between(0, 10**8)]
Positive = Annotated[float, above_zero]
NonNegative = Annotated[float, at_least(0)]
StepSize = Positive | _by_site("steps above 0", lambda v: not np.ndim(v) and _is_above(v))
NoiseSize = NonNegative | _by_site("sizes of at least 0", _is_size)
Diagonal = (
    Positive
    | Annotated[np.ndarray, Rule("above 0", _is_above)]
    | _by_site("numbers or arrays above 0", _is_above)
)  # of a matrix, of all sites or by site
Share = Annotated[float, within(0, 1)]
OpenShare = Annotated[float, within(0, 1, "()")]
BelowOne = Annotated[float, within(0, 1, "[)")]
Text = Annotated[str, Rule("that is not empty", bool)]
Axes = Annotated[int, between(0, 64)]  # how many axes
Widths = Annotated[tuple[Width, ...], not_empty]
Shape = tuple[Size, ...]
Resamples = Annotated[int, between(100, 10**7)]  # fewer have no outer percentiles
TwoOrMore = Annotated[int, between(2, 10**7)]  # of draws, where an error is taken over them
Limit = Annotated[float, Unbounded()]  # an end of a range, which may be open
PathLike = str | os.PathLike
Inputs = Mapping[str, Any] | None
Names = tuple[str, ...] | None


def _is_net(v: Any) -> bool:
    """Has `init` and `apply`, and is no bare module of a framework, whose own mean other things."""
    has_both = callable(getattr(v, "init", None)) and callable(getattr(v, "apply", None))
    rooms = {cls.__module__.split(".")[0] for cls in type(v).__mro__}
    return has_both and not rooms & {"torch", "flax", "equinox"}


AnyNet = Annotated[
    Any,
    Rule(
        "a net: an object with `init` and `apply`, such as nets.MLP(), or a module of another "
        "library in its wrapper: nets.from_torch(module, in_ndim=1), from_flax or from_equinox, "
        "in_ndim the number of axes of one input",
        _is_net,
        alone=True,
    ),
]

# ---- from annotations to checks ------------------------------------------------------------------


def kind(hint: Any) -> Kind:
    """The check that an annotation stands for; unknown annotations hold of everything."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return _annotated(hint)
    if origin in (typing.Union, types.UnionType):
        return _union([kind(each) for each in typing.get_args(hint)])
    if origin is typing.Literal:
        return _literal(typing.get_args(hint))
    if origin is tuple:
        return _tuple(typing.get_args(hint))
    if origin is collections.abc.Sequence:
        return _tuple((*typing.get_args(hint), Ellipsis))
    if origin is collections.abc.Callable or hint is collections.abc.Callable:
        return Kind("a function", lambda v: _if(callable(v) and not isinstance(v, type), v))
    if origin in (Mapping, dict) and kind(typing.get_args(hint)[1]) is not ANYTHING:
        return _mapping(*map(kind, typing.get_args(hint)))
    if origin is type:
        return Kind("a class", lambda v: _if(isinstance(v, type), v))
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    base = origin or hint
    return _instance(base) if isinstance(base, type) and base is not object else ANYTHING


def _if(holds: bool, value: Any) -> Any:
    return value if holds else REFUSED


def _whole(value: Any) -> Any:
    if type(value) is int:
        return value
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return int(value) if whole else REFUSED


def _number(value: Any) -> Any:
    """A float, infinities among them."""
    if type(value) is not float:
        is_number = isinstance(value, int | float | np.integer | np.floating)
        if not is_number or isinstance(value, bool):
            return REFUSED
        try:
            value = float(value)
        except OverflowError:
            return REFUSED
    return _if(value == value, value)


def _finite(value: Any) -> Any:
    value = _number(value)
    return _if(value is not REFUSED and abs(value) <= LARGEST, value)


def _flag(value: Any) -> Any:
    return bool(value) if isinstance(value, bool | np.bool_) else REFUSED


def _array(value: Any) -> Any:
    if not isinstance(value, list | tuple) and not hasattr(type(value), "__array__"):
        return REFUSED
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):  # rows of unequal length, an array with gradients
        return REFUSED
    is_number = array.dtype.kind in "biuf" and array.size > 0
    return _if(is_number and np.isfinite(array).all(), array)


ANYTHING = Kind("anything", lambda v: v)
_SIMPLE: dict[Any, Kind] = {
    Any: ANYTHING,
    int: Kind("a whole number", _whole),
    float: Kind("a finite number", _finite),
    bool: Kind("True or False", _flag),
    str: Kind("a text", lambda v: str(v) if isinstance(v, str) else REFUSED),
    type(None): Kind("None", lambda v: _if(v is None, v)),
    np.ndarray: Kind("an array of finite numbers", _array),
}
_UNBOUNDED = Kind("a number", _number)


def _annotated(hint: Any) -> Kind:
    base_hint, *markers = typing.get_args(hint)
    base = _UNBOUNDED if any(isinstance(m, Unbounded) for m in markers) else kind(base_hint)
    rules = [m for m in markers if isinstance(m, Rule)]
    first = [] if any(rule.alone for rule in rules) else [base.words]
    words = " ".join([*first, *(rule.words for rule in rules)])

    def take(value: Any) -> Any:
        if base is ANYTHING and isinstance(value, type):
            return REFUSED
        value = base.take(value)
        holds = value is not REFUSED and all(rule.holds(value) for rule in rules)
        return value if holds else REFUSED

    return Kind(words, take)


def _union(members: list[Kind]) -> Kind:
    if ANYTHING in members:
        return ANYTHING

    def take(value: Any) -> Any:
        for member in members:
            taken = member.take(value)
            if taken is not REFUSED:
                return taken
        return REFUSED

    return Kind(", or ".join(m.words for m in members), take)


def _literal(choices: tuple) -> Kind:
    def take(value: Any) -> Any:
        same = (c for c in choices if type(c) is type(value) and c == value)
        return next(same, REFUSED)

    return Kind("one of " + ", ".join(map(repr, choices)), take)


def _tuple(args: tuple) -> Kind:
    if len(args) == 2 and args[1] is Ellipsis:
        element = kind(args[0])

        def take(value: Any) -> Any:
            if not isinstance(value, tuple | list):
                return REFUSED
            return _entries([element] * len(value), value)

        if element is ANYTHING:
            return Kind("a tuple", take)
        return Kind(f"a tuple, each entry {element.words}", take)
    elements = [kind(each) for each in args]

    def take_all(value: Any) -> Any:
        fits = isinstance(value, tuple | list) and len(value) == len(elements)
        return _entries(elements, value) if fits else REFUSED

    return Kind(f"a tuple of {len(args)}: " + "; ".join(e.words for e in elements), take_all)


def _mapping(key: Kind, value: Kind) -> Kind:
    def take(given: Any) -> Any:
        if not isinstance(given, Mapping):
            return REFUSED
        taken = [*map(key.take, given), *map(value.take, given.values())]
        return REFUSED if any(v is REFUSED for v in taken) else given

    return Kind(f"a mapping, each entry {value.words}", take)


def _entries(elements: list[Kind], value: Iterable[Any]) -> Any:
    taken = tuple(e.take(v) for e, v in zip(elements, value, strict=True))
    return REFUSED if any(v is REFUSED for v in taken) else taken


def _instance(cls: type) -> Kind:
    name = cls.__name__
    article = "an" if name[0] in "AEIOU" else "a"
    if getattr(cls, "_is_protocol", False):
        methods = [n for n, v in vars(cls).items() if callable(v) and n[0] != "_"]
        protocol = having(f"{article} {name} (an object with {', '.join(methods)})", *methods)
        return _annotated(Annotated[Any, protocol])
    return Kind(
        f"{article} {name}", lambda v: _if(isinstance(v, cls) and not isinstance(v, type), v)
    )
