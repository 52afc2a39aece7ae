"""A program's density in LaTeX, composed from its sites: a product for each plate.

The text stays within what LaTeX and matplotlib's mathtext share. A net in a site's parameters shows
as a subscript theta, inputs stand behind the bar, a scale is written as a variance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from probgen.engine.fitted import Fitted
from probgen.engine.structure import Structure
from probgen.language.dist import Deferred
from probgen.language.model import Model, arguments
from probgen.language.run import DATA_PLATE
from probgen.views.picture import Picture, draw

__all__ = ["call", "latex", "symbol"]

_GREEK = re.compile(
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|phi|chi|"
    "psi|omega"
)


def latex(
    model: Model | Fitted,
    data: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> str:
    """The density: the family's own formula, else the product over the program's sites.

    See `probgen.views.picture.draw` for `data` and `inputs`.
    """
    declaration = model.model if isinstance(model, Fitted) else model
    own = declaration.formula()
    if own is not None:
        return own
    p = draw(model, data, inputs)
    sites = {n: s for n, s in p.bound.structure.sites.items() if s.kind != "deterministic"}
    index = _indices(p.bound.structure)
    given = [n for n in arguments(declaration.program) if any(a == n for a, _ in p.edges)]
    variables = ", ".join(symbol(n) for n, s in sites.items() if s.kind == "sample")
    condition = rf" \mid {', '.join(symbol(n) for n in given)}" if given else ""
    theta = r"_\theta" if p.bound.structure.nets else ""
    sign = "=" if all(s.kind == "sample" for s in sites.values()) else r"\propto"
    items = [(s.boxes, _term(p, n, index)) for n, s in sites.items()]
    return rf"p{theta}({variables}{condition}) {sign} {_product(items, index, p)}"


def symbol(name: str, plates: tuple[str, ...] = ()) -> str:
    r"""A site's name as a symbol: x, \mu, x_{3}, \mathrm{prior/z}; with its plates' indices."""
    match = re.fullmatch(r"([A-Za-z]+)_?(\d+|T)?", name)
    word, number = (match[1], match[2]) if match else (name, None)
    if _GREEK.fullmatch(word):
        word = "\\" + word
    elif len(word) > 1 or not word.isalpha():
        word = r"\mathrm{" + _escape(word) + "}"
    below = ",".join([*([number] if number else []), *plates])
    return f"{word}_{{{below}}}" if below else word


def _escape(text: str) -> str:
    """A name as text that LaTeX and mathtext print alike; what they do not share becomes a dash."""
    kept = re.sub(r"[^\w%$/.,:;'()+= -]", "-", text)
    return re.sub(r"([_%$])", r"\\\1", kept)


def _indices(structure: Structure) -> dict[str, tuple[str, str]]:
    """Plate -> (its index, its size)."""
    letters = iter(["i", "j", "k", "l", "m"])
    return {
        DATA_PLATE: ("n", "N"),
        **{n: (next(letters, "i"), str(size)) for n, size in structure.plate_sizes.items()},
        **{n: (n if len(n) == 1 else "t", str(size)) for n, size in structure.scans.items()},
    }


def _term(p: Picture, name: str, index: dict[str, tuple[str, str]]) -> str:
    site = p.bound.structure.sites[name]
    sites = p.bound.structure.sites
    sources = _sources(p, name)
    parents = [a for a in sources if a in sites]

    order = list(sites)

    def sub(n: str, time: str = "") -> str:
        return symbol(n, tuple(f"{time if q == box else ''}{index[q][0]}" for q in sites[n].boxes))

    box = site.scan[0] if site.scan else None  # in a loop a law may follow from all that is past
    before = {a: r"\le " if order.index(a) < order.index(name) else "<" for a in parents}
    given = [sub(name, "<")] if box and site.kind == "sample" else []
    given += [sub(a, before[a] if sites[a].scan == site.scan else "") for a in parents]
    given += [symbol(a, ("n",)) for a in sources if a not in sites and a not in p.params]
    nets = [a for a in sources if a in p.params]
    if site.kind == "factor":
        inside = rf"({', '.join(given)})" if given else ""
        return rf"e^{{f_{{\mathrm{{{_escape(name)}}}}}{inside}}}"
    declared = p.declared[name]
    family = _family(getattr(declared, "name", "p"))
    if given or nets:
        below = r"_\theta" if nets else ""
        bar = rf" \mid {', '.join(given)}" if given else ""
        return rf"{family}{below}({sub(name)}{bar})"
    numbers = [_number(v) for _, v in getattr(declared, "arguments", ())]
    if getattr(declared, "name", "") == "Normal" and numbers[-1] not in ("...", "1"):
        numbers[-1] += "^2"  # a scale is written as a variance, as in the families' formulas
    shown = rf";\ {', '.join(numbers)}" if numbers and "..." not in numbers else ""
    return rf"{family}({sub(name)}{shown})"


def _sources(p: Picture, name: str) -> list[str]:
    """What a site depends on, through deterministic sites: sample sites, inputs, nets."""
    sites, out = p.bound.structure.sites, []
    for a, t in p.edges:
        if t == name:
            is_shown = a not in sites or sites[a].kind == "sample"
            out += [a] if is_shown else _sources(p, a)
    return list(dict.fromkeys(out))


def _family(name: str) -> str:
    return r"\mathcal{N}" if name in ("Normal", "MultivariateNormal") else rf"\mathrm{{{name}}}"


def _product(items: list[tuple[tuple[str, ...], str]], index: dict, p: Picture) -> str:
    """Terms in the program's order, those of one plate under one product sign."""
    out, at = [], 0
    while at < len(items):
        plates, term = items[at]
        if not plates:
            out.append(term)
            at += 1
            continue
        end = at
        while end < len(items) and items[end][0][:1] == plates[:1]:
            end += 1
        letter, size = index[plates[0]]
        inner = _product([(q[1:], t) for q, t in items[at:end]], index, p)
        body = rf"\left[ {inner} \right]" if end - at > 1 else inner
        out.append(rf"\prod_{{{letter}=1}}^{{{size}}} {body}")
        at = end
    return r"\ ".join(out)


def call(declared: Any) -> str:
    """Normal(loc=0, scale=1); what is computed by the program is left open."""
    if not isinstance(declared, Deferred):
        return str(getattr(declared, "name", ""))
    return f"{declared.name}({', '.join(f'{k}={_number(v)}' for k, v in declared.arguments)})"


def _number(value: Any) -> str:
    if isinstance(value, bool | int | float):
        return f"{value:g}"
    if isinstance(value, Deferred):
        return call(value)
    return "..."
