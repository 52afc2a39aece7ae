"""A guide's latents stand where the model's stand, and have mass where they have it.

Outside the data plate one draw would serve all data, and its log-probability count once for each.
A draw outside the latent's support has density zero, so the bound is minus infinity, or a number
that means nothing; a guide whose support is the smaller leaves mass out, and its bound is that of
the part that it covers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from probgen.engine.structure import Structure
from probgen.errors import ShapeError, SupportError, UnknownName
from probgen.language.dist import did_you_mean
from probgen.language.run import DATA_PLATE
from probgen.language.supports import compare, support_of


def check_guide(name: str, model: Structure, guide: Structure, observed: tuple[str, ...]) -> None:
    """Refuses a guide that is none of this model.

    Args:
        name: of the model.
        observed: sites that the data observe; what the guide draws of them is not looked at.

    Raises:
        UnknownName: a site that the model does not have.
        ShapeError: a latent in other plates, or with events of another shape.
        SupportError: draws outside the latent's support.
    """
    hidden = {n for n, s in model.sites.items() if n in observed or s.is_fixed}
    latents = {n for n, s in model.sites.items() if s.kind == "sample"} - hidden
    drawn = [n for n, s in guide.sites.items() if s.kind == "sample"]
    extra = sorted(set(drawn) - set(model.sites))
    if extra:
        raise UnknownName(
            f"guide of {name!r}: draws {extra}, expected only latent sites of the model, "
            f"{sorted(latents)}{did_you_mean(extra[0], latents)}."
        )
    relation_of = _relations()
    for site in drawn:
        if site in latents:
            _check_axes(name, site, model, guide)
            _check_support(name, site, model, guide, relation_of)


def _check_axes(name: str, site: str, model: Structure, guide: Structure) -> None:
    q, p = guide.sites[site], model.sites[site]
    # By axes and sizes, since a plate of a guide may bear a name of its own; -1 is any number.
    layouts = guide.plate_shape(site, -1), model.plate_shape(site, -1)
    if q.is_local != p.is_local or layouts[0] != layouts[1]:
        cure = (
            "open the same plates around it"
            if q.is_local
            else "open `with pg.data_plate():` around it in the guide"
        )
        if q.is_local and not p.is_local:
            cure = "take it out of the data plate, since one value serves all data"
        raise ShapeError(
            f"guide of {name!r}: draws latent {site!r} in {_plates(q.plates)}, expected "
            f"{_plates(p.plates)}, where it stands in the model; {cure}."
        )
    if q.event_shape != p.event_shape:
        raise ShapeError(
            f"guide of {name!r}: site {site!r} has events of shape {q.event_shape}, expected "
            f"{p.event_shape} as in the model; change the guide's output or the prior's shape."
        )


def _plates(plates: tuple[str, ...]) -> str:
    shown = ["the data plate" if p == DATA_PLATE else f"plate {p!r}" for p in plates]
    return " and ".join(shown) or "no plate"


def _check_support(
    name: str, site: str, model: Structure, guide: Structure, relation_of: Callable
) -> None:
    q, p = guide.sites[site], model.sites[site]
    kinds = ["discrete" if s.is_discrete else "continuous" for s in (q, p)]
    families = [s.distribution.split("(")[0] for s in (q, p)]
    if kinds[0] != kinds[1]:
        raise SupportError(
            f"guide of {name!r}: draws the {kinds[1]} latent {site!r} ({families[1]}) from the "
            f"{kinds[0]} {families[0]}, expected a {kinds[1]} distribution; choose one with the "
            "support of the prior."
        )
    if relation_of(q.declaration, p.declaration) == "outside":
        inner, outer = support_of(q.declaration), support_of(p.declaration)
        raise SupportError(
            f"guide of {name!r}: draws latent {site!r} from {families[0]}, whose support "
            f"({inner.words}) is not within that of the prior {families[1]} "  # type: ignore
            f"({outer.words}), expected no draw outside it, where the density is zero; "  # type: ignore
            "choose a guide with the prior's support."
        )


def _relations() -> Callable[[object, object], str]:
    """How a guide's declared support lies in the prior's (`supports.compare`): looked at once for
    each pair of declarations, of which a chain of a thousand sites has a few."""
    known: dict[tuple[int, int], str] = {}

    def relation_of(q: object, p: object) -> str:
        pair = id(q), id(p)
        if pair not in known:
            inner, outer = support_of(q), support_of(p)
            known[pair] = "unknown"
            if inner is not None and outer is not None:
                known[pair] = compare(inner, outer)
        return known[pair]

    return relation_of


def left_out(model: Structure, guide: Structure | None, latents: tuple[str, ...]) -> list[str]:
    """A sentence for each latent of whose mass the guide leaves a part out."""
    said, relation_of = [], _relations()
    for site in latents if guide is not None else ():
        if site not in guide.sites:  # type: ignore[union-attr]
            continue
        q, p = guide.sites[site], model.sites[site]  # type: ignore[union-attr]
        if relation_of(q.declaration, p.declaration) == "smaller":
            words = [support_of(s.declaration).words for s in (q, p)]  # type: ignore[union-attr]
            said.append(
                f"the guide draws latent {site!r} from {q.distribution.split('(')[0]}, whose "
                f"support ({words[0]}) is smaller than the prior's ({words[1]}): the bound then "
                "misses the posterior's mass outside it, and importance weights do not tend to "
                "log p(x); choose a guide with the prior's support."
            )
    return said


def warn_left_out(name: str, sentences: list[str]) -> None:
    """Says it once (Python shows a warning once for each text)."""
    for sentence in sentences:
        warnings.warn(f"{name!r}: {sentence}", stacklevel=4)
