"""Guides that are made of the model's own program: it is walked, and latents come from q.

    u ~ q(u),  z = T(u),     log q(z) = log q(u) - log |det dT/du|

T is the bijection of each latent's support, the one that NUTS climbs with, taken where the walk
stands, so that a support may depend on other latents. Plates, names and parts are the program's;
what is observed is no site of the guide, and the walk ends with the last latent. Families of q are
declared in `probgen.inference.learn.auto_guides`; the walk is `probgen.engine.guide_walk`.

A latent inside the data plate has parameters for each of the `num_data` data of the fit; which of
them a batch means is told by the input `row`, their numbers, which `fit` gives by itself.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from probgen.engine.combinations import values_of
from probgen.engine.data_types import cure_discrete
from probgen.engine.guide_walk import LatentPlace, walk
from probgen.engine.structure import Structure
from probgen.errors import AlgorithmError, DeclarationError
from probgen.language.model import Model
from probgen.language.run import ROW

if TYPE_CHECKING:
    from probgen.engine.bound import Bound

Array = Any


class Family(Protocol):
    """A declared automatic guide, such as `AutoNormal()`."""

    def base(self, place: LatentPlace, state: dict) -> tuple[Any, Callable | None]:
        """(q of the latent on the real line, what to do with its drawn u or None)."""


class Settled(NamedTuple):
    """What a fit of an automatic guide ends with.

    Attributes:
        guide: that the `Fitted` has; params: of all nets, numpy; words: for the history.
    """

    guide: AutoGuide
    params: dict
    words: str


class AutoGuide:
    """Base of automatic guides: `model.with_guide(AutoNormal())`.

    Attributes:
        is_point: a fit learns a point alone, and `settled` makes a guide of it.
    """

    is_point = False

    def __call__(self, row: Any = None) -> None:
        raise DeclarationError(
            f"{type(self).__name__}: was called as a program, expected a guide that fit, evaluate, "
            "generate and infer make of the model; to use it elsewhere write the guide by hand."
        )

    def base(self, place: LatentPlace, state: dict) -> tuple[Any, Callable | None]:
        raise NotImplementedError  # abstract: each family defines it

    def settled(
        self, bound: Bound, params: Mapping, chunks: Callable[[], Iterable[Mapping]]
    ) -> Settled | None:
        """What a fit ends with, where that is not the guide itself.

        Args:
            chunks: all data with their inputs, some rows at a time, numpy.
        """
        return None

    def program_of(
        self, model: Model, structure: Structure, observed: tuple[str, ...], num_data: int | None
    ) -> Callable:
        """The guide of a model whose structure is known.

        Raises:
            AlgorithmError: a discrete latent, or a long chain.
        """
        if words := model.sketch().left_out:
            raise AlgorithmError(
                f"{type(self).__name__}: {model.name!r} is a long chain, of which {words} show the "
                "structure, expected latents few enough to have parameters of their own; a "
                "Diffusion's forward process is its guide."
            )
        latents = [
            n for n, s in structure.sites.items()
            if s.kind == "sample" and n not in observed and not s.is_fixed
            and values_of(s) is None  # those of finitely many values are summed out
        ]  # fmt: skip
        for name in latents:
            site = structure.sites[name]
            if site.is_discrete:
                raise AlgorithmError(
                    f"{type(self).__name__}: latent {name!r} of {model.name!r} is discrete "
                    f"({site.distribution}), expected continuous latents, which have a map from "
                    f"the real line; {cure_discrete(site.scan)}, or write the guide by hand."
                )
        totals = {True: 0, False: 0}
        for name in latents:
            site = structure.sites[name]
            numbers = (*structure.plate_shape(name, 1), *site.event_shape)
            totals[site.is_local] += math.prod(numbers)
        wanted = inspect.signature(model.program).parameters
        if ROW in {*wanted, *structure.sites}:
            raise DeclarationError(
                f"{type(self).__name__}: {model.name!r} has a site or an input {ROW!r}, "
                "which is the name of the numbers of the data for this guide; rename it."
            )

        def guide(**inputs: Any) -> None:
            rows = inputs.pop(ROW, None)
            given = {k: inputs[k] for k in wanted if k in inputs}
            data = {k: v for k, v in inputs.items() if k in observed}
            walk(self, model.program, given, data, latents, rows, num_data, totals)

        optional = [
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None)
            for n in (*observed, ROW) if n not in wanted
        ]  # fmt: skip
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in wanted.values()]
        guide.__signature__ = inspect.Signature([*own, *optional])  # type: ignore[attr-defined]
        return guide


def automatic(model: Model) -> AutoGuide | None:
    """The automatic guide that a model declares, if it does."""
    return model.guide if isinstance(model.guide, AutoGuide) else None


def require_settled(model: Model, who: str) -> None:
    """Refuses a guide of which there is no more than a point yet.

    Raises:
        AlgorithmError: the covariance is not there.
    """
    found = automatic(model)
    if found is not None and found.is_point:
        raise AlgorithmError(
            f"{who}: the guide of {model.name!r} is {found!r}, a point without a covariance, "
            "expected what pg.fit makes of it, whose guide is a Gaussian; give the Fitted that "
            "pg.fit returns."
        )


def with_program(
    model: Any, structure: Structure, observed: tuple[str, ...], num_data: int | None
) -> Any:
    """The model with an automatic guide made into a program; others as they are."""
    found = automatic(model)
    if found is None:
        return model
    return model.with_guide(found.program_of(model, structure, observed, num_data))
