"""Declarations: frozen dataclasses that refuse a wrong value where it is written.

    @declaration
    class Langevin:
        step_size: Positive
        num_steps: Many = 20

A field's annotation is its check (`probgen.language.kinds`), done once, before the class's own
`__post_init__`, which is left with what concerns several fields (`require`). Functions check their
arguments by the same kinds: all of them with `@checked`, one with `argument`. Refusals name the
class, the field, what was got and what is expected; a misspelt, missing or second name of an
argument is refused in the same words.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, dataclass_transform, overload

from probgen.errors import DeclarationError, UnknownName
from probgen.language.kinds import ANYTHING, REFUSED, Kind, kind
from probgen.language.wording import did_you_mean, shown

T = TypeVar("T")
F = TypeVar("F", bound=Callable)
_CHECKED = "__checked_fields__"


@overload
def declaration(cls: type[T], /) -> type[T]: ...
@overload
def declaration(
    *, eq: bool = True, repr: bool = True, kw_only: bool = False
) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def declaration(cls: Any = None, /, **options: Any) -> Any:
    """Makes a frozen dataclass of a class, whose fields are checked against their annotations.

    Args:
        cls: the class.
        options: of `dataclasses.dataclass`.

    Raises (when the class is called):
        DeclarationError: a value that its annotation refuses, or arguments that do not fit.
    """
    if cls is None:
        return lambda each: declaration(each, **options)
    after = cls.__dict__.get("__post_init__")

    def __post_init__(self: Any) -> None:
        if _home(type(self)) is cls:
            check_fields(self)
        if after is not None:
            after(self)
        elif hasattr(super(cls, self), "__post_init__"):
            super(cls, self).__post_init__()

    cls.__post_init__ = __post_init__
    made = dataclasses.dataclass(frozen=True, **options)(cls)
    setattr(made, _CHECKED, None)
    made.__init__ = _init_in_words(made)
    return made


def _home(cls: type) -> type:
    """The first class of the line that is a declaration: a user's subclass need not be one."""
    return next(each for each in cls.__mro__ if _CHECKED in vars(each))


def _init_in_words(cls: Any) -> Callable:
    """`__init__` with Python's refusals of arguments in our words."""
    plain = cls.__init__

    @functools.wraps(plain)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            plain(self, *args, **kwargs)
        except TypeError as error:
            # Raised by the call itself and not within it: the arguments do not fit.
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise
            known = [f.name for f in dataclasses.fields(self) if f.init]
            raise _misfit(type(self).__name__, known, kwargs, error) from None

    return __init__


def _misfit(who: str, known: list[str], kwargs: dict, error: TypeError) -> DeclarationError:
    for name in kwargs:
        if name not in known:
            return UnknownName(
                f"{who}: got an argument {name!r}, expected one of "
                f"{', '.join(known) or 'none'}{did_you_mean(name, known) or '.'}"
            )
    got = str(error).split("() ", 1)[-1]
    return DeclarationError(f"{who}: {got}, expected {who}({', '.join(known)}).")


def _checks(cls: type) -> list[tuple[str, Kind, Any]]:
    """(field, kind, default) of those fields that an annotation says something of."""
    found = vars(cls)[_CHECKED]
    if found is None:
        hints = typing.get_type_hints(cls, include_extras=True)
        fields: Any = dataclasses.fields(cls)
        kinds = [(f.name, kind(hints[f.name]), f.default) for f in fields if f.init]
        found = [each for each in kinds if each[1] is not ANYTHING]
        setattr(cls, _CHECKED, found)
    return found


def check_fields(owner: Any) -> None:
    """Holds each field of a declaration to its annotation.

    Raises:
        DeclarationError: names the class, the field, what was got and what is expected.
    """
    for name, expected, default in _checks(_home(type(owner))):
        value = getattr(owner, name)
        taken = expected.take(value)
        if taken is REFUSED:
            raise _refusal(type(owner).__name__, name, value, expected, default)
        if taken is not value:
            object.__setattr__(owner, name, taken)


def argument(where: str, hint: Any, **given: Any) -> Any:
    """The one named value, checked against an annotation: `argument("fit", Count, num_steps=n)`.

    Raises:
        DeclarationError: names the function, the argument, what was got and what is expected.
    """
    ((name, value),) = given.items()
    expected = _kind_of(hint)
    taken = expected.take(value)
    if taken is REFUSED:
        raise _refusal(where, name, value, expected, dataclasses.MISSING)
    return taken


@overload
def checked(fn: F, /) -> F: ...
@overload
def checked(*, where: str) -> Callable[[F], F]: ...
def checked(fn: Any = None, /, *, where: str | None = None) -> Any:
    """A function whose arguments are checked against their annotations, as fields are.

    Args:
        fn: the function; a method goes by its own name, `__init__` by its class's.
        where: what refusals call it; its name by default.

    Raises (when it is called):
        DeclarationError: names the function, the argument, what was got and what is expected.
    """
    if fn is None:
        return functools.partial(checked, where=where)
    signature = inspect.signature(fn)
    who = where or fn.__qualname__.removesuffix(".__init__").rpartition(".")[2]
    plan: dict[str, Kind] = {}

    @functools.wraps(fn)
    def checking(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as error:
            known = [n for n in signature.parameters if n != "self"]
            raise _misfit(who, known, kwargs, error) from None
        if not plan:
            hints = typing.get_type_hints(fn, include_extras=True)
            for name, parameter in signature.parameters.items():
                if parameter.kind is parameter.VAR_POSITIONAL and name in hints:
                    hints[name] = Sequence[hints[name]]  # type: ignore[valid-type]
            kinds = {n: kind(h) for n, h in hints.items() if n not in _ELSEWHERE}
            plan.update(kinds)
        for name, value in given.arguments.items():
            expected = plan.get(name, ANYTHING)
            taken = expected.take(value)
            if taken is REFUSED:
                default = signature.parameters[name].default
                absent = dataclasses.MISSING if default is inspect.Parameter.empty else default
                raise _refusal(who, name, value, expected, absent)
            given.arguments[name] = taken
        return fn(*given.args, **given.kwargs)

    return checking


# Arguments that have one check of their own: `check_seed`, and `backends.resolve`.
_ELSEWHERE = {"seed", "backend", "return"}


_kind_of = functools.lru_cache(maxsize=None)(kind)


def _refusal(where: str, name: str, value: Any, expected: Kind, default: Any) -> DeclarationError:
    cure = ""
    if isinstance(value, type):
        cure = f"; it is a class: call it, {value.__name__}(...)"
    elif expected.words.startswith("a tuple, ") and expected.take((value,)) is not REFUSED:
        cure = f"; of one entry it is ({value!r},)"
    elif default is not dataclasses.MISSING:
        cure = "; leave it out" + (f" for {shown(default)}" if default is not None else "")
    return DeclarationError(f"{where}: got {name}={shown(value)}, expected {expected.words}{cure}.")


def require(holds: Any, owner: Any, expected: str, *names: str) -> None:
    """What concerns several fields of a declaration.

    Args:
        holds: whether it is so.
        owner: the declaration, from its `__post_init__`.
        expected: the words for it, and what to do.
        names: the fields.

    Raises:
        DeclarationError: it does not hold.
    """
    if not holds:
        got = ", ".join(f"{n}={shown(getattr(owner, n))}" for n in names)
        raise DeclarationError(f"{type(owner).__name__}: got {got}, expected {expected}.")
