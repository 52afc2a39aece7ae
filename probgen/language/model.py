"""The `Model` protocol: what algorithms may ask of a declaration.

A model is a program with named sites, perhaps a guide (an approximate posterior, itself a program),
and what it carries from elsewhere: parameters of fitted parts, and the names of those that stay
frozen. Families subclass `Model`; `@pg.model` makes one of a function:

    @pg.model
    def regression(covariates): ...

    @regression.with_guide
    def regression(covariates, y): ...

Arguments are given by name: a program's are inputs (what it conditions on), a guide's may be inputs
or observed sites.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

from probgen.errors import DeclarationError, UnknownName
from probgen.language.capabilities import Ancestral, prior_of
from probgen.language.dist import Deferred
from probgen.language.kinds import Rule
from probgen.language.viewed import Viewed

# A distribution as a part of a declaration; its message shows how one is written.
Distribution = Annotated[
    Deferred,
    Rule("a distribution such as dist.Normal(0, 1).expand([2]).to_event(1)", alone=True),
]


class Sketch(NamedTuple):
    """A small model that shows the structure of a large one, such as a few steps of a long chain.

    Attributes:
        model: with the same nets.
        left_out: what it leaves out, in words; "" when it is the model itself.
        sites: of the large model's repeated sites, in their order, the small one's that each is
            like; sites with no place here are the same in both.
    """

    model: Model
    left_out: str = ""
    sites: Mapping[str, str] = {}

    def within(self, model: Model, prefix: str = "") -> Sketch:
        """The sketch of a model whose part, with that prefix, this is the sketch of."""
        return Sketch(model, self.left_out, {prefix + k: prefix + v for k, v in self.sites.items()})


class Model(Viewed):
    """Base of every declaration. Subclasses are frozen dataclasses that define `program`.

    Attributes:
        guide: a program with the model's latent sites and no others, or None.
        is_normalized: False when the density is known up to a constant for a reason that its
            program does not show; a `pg.factor` in it is seen by itself (`Bound.is_normalized`).
        backend: the only backend that it runs on ("" when both do); "auto" means this one then.
        random_sites: names of what is drawn anew in each step of a fit, by one law in program and
            guide, so that the density is an estimate; no posterior is of them.
    """

    guide: Callable | None = None
    is_normalized: bool = True
    random_sites: tuple[str, ...] = ()

    @property
    def backend(self) -> str:
        """The framework of the first net in the declaration that has one of its own."""
        return framework_of(self)

    @property
    def program(self) -> Callable:
        """The generative program, a function of its inputs."""
        raise DeclarationError(f"{type(self).__name__}: declares no program.")

    @property
    def name(self) -> str:
        return type(self).__name__

    def fitted_params(self) -> dict:
        """Parameters that the declaration carries (of fitted parts): net name -> tree."""
        return {}

    def frozen(self) -> frozenset[str]:
        """Names of nets that no algorithm may change."""
        return frozenset()

    def check_rows(self, rows: Mapping[str, Any]) -> None:
        """Refuses rows of data and inputs, arrays by name, that this family has no use for and that
        no support tells; a verb calls it before anything is computed with them."""

    def formula(self) -> str | None:
        """The density in LaTeX where the family knows a nicer one than the sites give."""
        return None

    def sketch(self) -> Sketch:
        """What `bind` runs to know the structure, and a picture shows: the model itself, or fewer
        steps of a long chain."""
        return Sketch(self)

    def by_steps(self) -> Model | None:
        """Of a long chain a model with the same nets and observed sites whose log p - log q under
        its guide has the same mean, for less work: by a random step in place of all. Else None."""
        return None

    def ancestral(self) -> Ancestral | None:
        """Who draws from the model where its program is not the best way to; else None."""
        return self if isinstance(self, Ancestral) else None

    def with_guide(self, guide: Callable) -> Model:
        """The same model with a guide in place of its own: a program of its latent sites (use it as
        a decorator), or an automatic one, such as `AutoNormal()`."""
        return Guided(self, guide)


class ProgramModel(Model):
    """A function as a model; made by `pg.model`."""

    def __init__(self, fn: Callable, guide: Callable | None = None):
        self._fn = fn
        self.guide = guide
        self.__doc__ = fn.__doc__

    @property
    def program(self) -> Callable:
        return self._fn

    @property
    def name(self) -> str:
        return self._fn.__name__

    def with_guide(self, guide: Callable) -> ProgramModel:
        """As `Model.with_guide`."""
        return ProgramModel(self._fn, _checked_guide(self.name, guide))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"pg.model({self.name})"


@dataclasses.dataclass(frozen=True)
class Guided(Model):
    """A model of a family with another guide; made by `Model.with_guide`."""

    model: Model
    guide: Callable

    def __post_init__(self) -> None:
        _checked_guide(self.name, self.guide)

    @property
    def program(self) -> Callable:
        return self.model.program

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def is_normalized(self) -> bool:  # type: ignore[override]
        return self.model.is_normalized

    @property
    def random_sites(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.model.random_sites

    def fitted_params(self) -> dict:
        return self.model.fitted_params()

    def frozen(self) -> frozenset[str]:
        return self.model.frozen()

    def check_rows(self, rows: Mapping[str, Any]) -> None:
        self.model.check_rows(rows)

    def formula(self) -> str | None:
        return self.model.formula()

    def sketch(self) -> Sketch:
        inner = self.model.sketch()
        return inner._replace(model=dataclasses.replace(self, model=inner.model))

    def ancestral(self) -> Ancestral | None:
        return self.model.ancestral()

    def prior(self) -> Any:
        return prior_of(self.model)

    def with_latent(self, latent: Any) -> Guided:
        inner: Any = self.model
        return dataclasses.replace(self, model=inner.with_latent(latent))

    def with_guide(self, guide: Callable) -> Guided:
        return dataclasses.replace(self, guide=guide)


def family_of(model: Any) -> Any:
    """The model itself; of one with another guide (`with_guide`) the model that it was given to,
    which has what its family can do beyond a program."""
    return model.model if isinstance(model, Guided) else model


def capability(model: Any, protocol: type) -> Any:
    """The family of `model` (`family_of`), if it can do what that protocol says; else None."""
    family = family_of(model)
    return family if isinstance(family, protocol) else None


def _checked_guide(model: str, guide: Any) -> Callable:
    if isinstance(guide, type) or not callable(guide):
        what = f"the class {guide.__name__}" if isinstance(guide, type) else repr(guide)
        raise DeclarationError(
            f"with_guide: got {what} for {model!r}, expected a program of its latent sites, or an "
            "automatic guide, such as AutoNormal()."
        )
    return guide


def framework_of(thing: Any) -> str:
    """The framework that a declaration's nets run on, "" where they run on both.

    Looked for in fields of dataclasses, in containers, and in what functions close over or read by
    name; a net that a program makes as it runs is not seen.
    """
    waiting: list[Any] = [thing]
    seen: set[int] = set()
    while waiting and len(seen) < 10_000:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        found = getattr(type(part), "framework", "")
        if isinstance(found, str) and found:
            return found
        if isinstance(part, list | tuple):
            waiting += part
        elif isinstance(part, Mapping):
            waiting += part.values()
        elif dataclasses.is_dataclass(part) and not isinstance(part, type):
            waiting += [getattr(part, f.name) for f in dataclasses.fields(part)]
        elif isinstance(part, ProgramModel):
            waiting += [part._fn, part.guide]
        elif isinstance(part, types.FunctionType):
            closed = inspect.getclosurevars(part)
            waiting += [*closed.nonlocals.values(), *closed.globals.values()]
    return ""


def model(fn: Callable) -> ProgramModel:
    """Makes a model of a program; the function's arguments are its inputs, given by name."""
    return ProgramModel(fn)


def arguments(fn: Callable) -> dict[str, bool]:
    """Names of a program's arguments, and whether each is needed."""
    parameters = inspect.signature(fn).parameters.values()
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY):
            raise DeclarationError(
                f"program {getattr(fn, '__name__', fn)!r}: got the argument {p}, expected named "
                "arguments only, since probgen gives inputs by name."
            )
    return {p.name: p.default is p.empty for p in parameters}


class Inputs(dict):
    """Arguments of a program by name.

    Attributes:
        held: names of those that lie in the domain of every argument of a distribution that they
            are as they stand, so that a run need not look again.
    """

    held: frozenset[str] = frozenset()


def call_arguments(fn: Callable, available: Mapping[str, Any], what: str) -> Inputs:
    """Those of `available` that the program takes, or an error that names what lacks."""
    wanted = arguments(fn)
    missing = [k for k, needed in wanted.items() if needed and k not in available]
    if missing:
        raise UnknownName(
            f"{what}: got no {' and no '.join(map(repr, missing))}, expected inputs "
            f"{sorted(wanted)}; there are {sorted(available)}. Give them by "
            "inputs={...} or as data."
        )
    return Inputs({k: available[k] for k in wanted if k in available})
