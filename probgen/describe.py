"""The teaching view: a declaration as a table, as a formula, as a picture in plate notation.

    describe(model)   sites and nets, one a line: shapes, plates, supports, numbers of parameters
    latex(model)      the density, for LaTeX or matplotlib's mathtext
    graph(model)      graphviz source: circles, shaded where observed; plates; factors as squares

They run on whichever backend is installed. Which site depends on which is found by experiment, so
that it is the program's own truth and the same on both: all values are held fixed, one variable is
set to NaN, and the log-probabilities that become NaN depend on it, since NaN goes through every
arithmetic operation, a product with a zero weight included. A discrete variable, through which NaN
may not go, is also drawn anew several times, and what changes depends on it. Only direct dependence
shows: all other values are held, those of deterministic sites too.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.backends import resolve
from probgen.bound import Bound, Structure, bind, parameter_count
from probgen.dist import Deferred
from probgen.fitted import Fitted
from probgen.modelling import Model, arguments
from probgen.program import DATA_PLATE
from probgen.program import held as program_held
from probgen.trees import tree_items, tree_map

__all__ = ["Picture", "describe", "draw", "graph", "latex"]

ROWS = 8  # data in the experiments: enough that a redrawn coin changes somewhere
REDRAWS = 4

_SUPPORTS = {
    "real": "AsymmetricLaplace Cauchy Gumbel Laplace Logistic LowRankMultivariateNormal "
    "MultivariateNormal MultivariateStudentT Normal SoftLaplace Stable StudentT",
    "positive": "Chi2 Exponential FisherSnedecor Gamma Gompertz HalfCauchy HalfNormal InverseGamma "
    "LogNormal Weibull",
    "[0, 1]": "Beta BetaProportion ContinuousBernoulli Kumaraswamy RelaxedBernoulli",
    "{0, 1}": "Bernoulli",
    "{0, 1, ...}": "GammaPoisson Geometric NegativeBinomial Poisson ZeroInflatedPoisson",
    "simplex": "Dirichlet",
    "counts": "DirichletMultinomial Multinomial",
    "one-hot": "OneHotCategorical",
    "classes": "Categorical OrderedLogistic",
    "circle": "VonMises",
    "levels": "DiscretizedLogistic",
    "correlations": "LKJ LKJCholesky",
}
SUPPORTS = {name: words for words, names in _SUPPORTS.items() for name in names.split()}


class Picture(NamedTuple):
    """What the three views draw from.

    Attributes:
        bound, params: the model on a backend.
        declared: site -> its distribution, as the program wrote it.
        observed: sites that data observe.
        edges: (from, to): sites, inputs and nets to sites of the program.
        guide_edges: the same for the guide.
        per_datum: inputs with one row a datum.
        note: what was left out, or "".
    """

    name: str
    bound: Bound
    params: Mapping
    declared: Mapping[str, Any]
    observed: frozenset[str]
    edges: list[tuple[str, str]]
    guide_edges: list[tuple[str, str]]
    per_datum: frozenset[str]
    note: str = ""


# ---- looking at a model --------------------------------------------------------------------------


def draw(
    model: Model | Fitted,
    data: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
    *,
    with_edges: bool = True,
    sketch: bool = True,
) -> Picture:
    """Runs a model on a few made-up data and finds its structure.

    Args:
        data: what the program needs to run: name -> example rows [n, ...], or the shape of one
            datum as a tuple. The sites named are the observed ones. Families need none.
        inputs: what the program conditions on and all data share.
        with_edges: also find which site depends on which.
        sketch: take the model's own small stand-in where it has one (`Model.sketch`).
    """
    params: Mapping | None = None
    constants = dict(inputs or {})
    given = dict(data or {})
    declaration = model
    if isinstance(model, Fitted):
        declaration, params = model.model, model.params
        constants = {**model.constants, **constants}
        given = given or dict(model.shapes)
    note = ""
    small, words = declaration.sketch()  # type: ignore[union-attr]
    if sketch and words:
        declaration, note = small, words
    rows = {k: _rows(v) for k, v in given.items()}
    backend = resolve("auto", "cpu", prefer=declaration.backend or "torch")  # type: ignore[union-attr]
    bound, found = bind(declaration, backend, data=rows, constants=constants, params=params)
    declared = _declared(bound, found, rows)
    observed = _observed(bound, rows)
    edges: list = []
    guide_edges: list = []
    if with_edges:
        experiment = _Experiment(bound, found, rows)
        edges = experiment.edges()
        if declaration.guide is not None:  # type: ignore[union-attr]
            guide_edges = experiment.guide_edges()
    return Picture(
        declaration.name, bound, found, declared, observed, edges, guide_edges,  # type: ignore
        frozenset(rows), note,
    )  # fmt: skip


def _rows(example: Any) -> np.ndarray:
    """`ROWS` rows of an example, or of zeros in the shape of one datum."""
    if isinstance(example, tuple) and all(isinstance(n, int) for n in example):
        return np.zeros((ROWS, *example), np.float32)
    array = np.asarray(example)
    array = array.astype(np.float32) if array.dtype == np.float64 else array
    return np.resize(array, (ROWS, *array.shape[1:]))


def _declared(bound: Bound, params: Mapping, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    b: Any = bound.backend
    one = {k: b.asarray(v[:1]) for k, v in rows.items()}
    program = bound.model.program
    run, _ = b.probe(
        program, dict(params), values={}, inputs=bound.inputs(program, one, "model"),
        key=b.key(0), batch_size=1, initialise=None,
    )  # fmt: skip
    return {n: s["distribution"] for n, s in run.sites.items() if "distribution" in s}


def _observed(bound: Bound, rows: Mapping[str, Any]) -> frozenset[str]:
    """Sites with data or `obs=`; else those that the guide leaves out; else "x"."""
    sites = bound.structure.sites
    known = {n for n, s in sites.items() if s.is_fixed or (n in rows and s.kind == "sample")}
    if known:
        return frozenset(known)
    samples = {n for n, s in sites.items() if s.kind == "sample"}
    if bound.guide_structure is not None:
        return frozenset(samples - set(bound.guide_structure.sites))
    return frozenset(samples & {"x"})


class _Experiment:
    """Dependencies of a program and its guide, found by changing one thing at a time."""

    def __init__(self, bound: Bound, params: Mapping, rows: Mapping[str, np.ndarray]):
        self.bound, b = bound, bound.backend
        rng = np.random.default_rng(0)
        # Off zero, where a freshly drawn last layer often is.
        self.params = tree_map(
            lambda p: p + b.asarray(0.1 * rng.standard_normal(tuple(p.shape)).astype(np.float32)),
            dict(params),
        )
        self.rows = {k: b.asarray(v) for k, v in rows.items()}
        sites = self._trace(self.params, self.rows, {}, key=0)
        self.sites = bound.structure.sites
        self.values = {n: s.value for n, s in sites.items() if s.kind == "sample"}
        self.held = {n: s.value for n, s in sites.items() if s.kind == "deterministic"}
        self.base = self._shown(sites)

    def _trace(self, params: Any, rows: Any, values: Any, key: int) -> Any:
        b: Any = self.bound.backend
        return self.bound.trace(
            params, rows, values, key=b.key(key), batch_size=ROWS, condition=False
        )

    def _shown(self, sites: Any) -> dict[str, np.ndarray]:
        """What a site shows: its log-probability, or its value when it is deterministic."""
        to_numpy = self.bound.backend.to_numpy  # type: ignore[attr-defined]
        return {
            n: to_numpy(s.value if s.log_prob is None else s.log_prob) for n, s in sites.items()
        }

    def _affected(self, params: Any, rows: Any, values: Any, held: Any) -> set[str]:
        """Sites that are not what they were, or none where the change cannot be made at all.

        A deterministic site is held for the others, but shows what it would have been: each is
        therefore looked at once more with itself let go.
        """
        found: set[str] = set()
        for free in [None, *held]:
            rest = {n: v for n, v in held.items() if n != free}
            token = program_held.set(rest)
            try:
                shown = self._shown(self._trace(params, rows, values, 0))
            except Exception:
                return found  # a factorisation, or an index, may refuse NaN
            finally:
                program_held.reset(token)
            seen = [n for n in shown if n not in self.held] if free is None else [free]
            found |= {n for n in seen if _differs(shown[n], self.base[n])}
        return found

    def edges(self) -> list[tuple[str, str]]:
        """(from, to): from inputs, sites and nets, in the program's order."""
        out: list[tuple[str, str]] = []

        def add(source: str, targets: set[str]) -> None:
            out.extend((source, t) for t in self.base if t in targets and t != source)

        for name in arguments(self.bound.model.program):
            if name in self.rows:
                changes = [{**self.rows, name: row} for row in _changes(self.rows[name])]
                add(name, self._union(lambda c: (self.params, c, self.values, self.held), changes))
        for name in self.base:
            if name in self.held:
                changes = [{**self.held, name: v} for v in _changes(self.held[name])]
                add(name, self._union(lambda c: (self.params, self.rows, self.values, c), changes))
            elif name in self.values:
                changes = [{**self.values, name: v} for v in self._new_values(name)]
                add(name, self._union(lambda c: (self.params, self.rows, c, self.held), changes))
        for name in self.bound.structure.nets:
            add(name, self._affected(self._nan_net(name), self.rows, self.values, self.held))
        return out

    def _union(self, arguments_of: Callable, changes: list) -> set[str]:
        return set().union(*(self._affected(*arguments_of(c)) for c in changes))

    def _new_values(self, name: str) -> list:
        """NaN, and for a discrete site some other draws of it."""
        value = self.values[name]
        out = [value * np.nan]
        if self.sites[name].is_discrete:
            others = {n: v for n, v in self.values.items() if n != name}
            keys = range(1, REDRAWS + 1)
            out += [self._trace(self.params, self.rows, others, k)[name].value for k in keys]
        return out

    def _nan_net(self, name: str) -> dict:
        return {**self.params, name: tree_map(lambda p: p * np.nan, self.params[name])}

    def guide_edges(self) -> list[tuple[str, str]]:
        """The same for the guide, whose inputs are data and observed sites."""
        bound, b = self.bound, self.bound.backend
        structure = bound.guide_structure
        names = arguments(bound.require_guide("graph"))
        seen = {**{n: self.values[n] for n in names if n in self.values}, **self.rows}
        latents = {n: v for n, v in self.values.items() if n in structure.sites}  # type: ignore

        def run(params: Any, rows: Any, values: Any) -> dict[str, np.ndarray]:
            sites = bound.trace_guide(params, rows, key=b.key(0), latents=values)
            return self._shown({n: s for n, s in sites.items() if n in latents})

        base = run(self.params, seen, latents)
        out: list[tuple[str, str]] = []

        def add(source: str, params: Any, rows: Any, values: Any) -> None:
            try:
                shown = run(params, rows, values)
            except Exception:
                return  # as in `_affected`
            for t, v in shown.items():
                if t != source and _differs(v, base[t]) and (source, t) not in out:
                    out.append((source, t))

        for name in names:
            for row in _changes(seen[name]) if name in seen else []:
                add(name, self.params, {**seen, name: row}, latents)
        for name in latents:
            for value in self._new_values(name):
                add(name, self.params, seen, {**latents, name: value})
        for name in structure.nets:  # type: ignore[union-attr]
            add(name, self._nan_net(name), seen, latents)
        return out


def _changes(row: Any) -> list:
    """Other values for rows of data: NaN, and for integers what the other rows hold."""
    return (
        [row * np.nan] if "float" in str(row.dtype) else [row * np.nan, row[[*range(1, ROWS), 0]]]
    )


def _differs(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape != b.shape or not np.array_equal(a, b, equal_nan=True)


# ---- the table -----------------------------------------------------------------------------------


def describe(
    model: Model | Fitted,
    data: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> str:
    """Sites and nets of a model as text; see `draw` for `data` and `inputs`."""
    p = draw(model, data, inputs, with_edges=False)
    sites = [_site_line(p, name, p.bound.structure) for name in p.bound.structure.sites]
    header = ("site", "kind", "distribution", "plates", "event", "support")
    parts = [f"{p.name}{' (' + p.note + ')' if p.note else ''}", _table([header, *sites])]
    guide = p.bound.guide_structure
    if guide is not None:
        lines = [
            (n, "guide", _head(s.distribution), _plates(s.plates, guide), _shape(s.event_shape), "")
            for n, s in guide.sites.items()
        ]
        parts.append(_table([("guide", "", "distribution", "plates", "event", ""), *lines]))
    parts.append(_nets_table(p))
    if not p.bound.model.is_normalized:
        parts.append("The density is known up to a constant.")
    return "\n\n".join(parts)


def _site_line(p: Picture, name: str, structure: Structure) -> tuple[str, ...]:
    site = structure.sites[name]
    kind = site.kind
    if kind == "sample":
        kind = "observed" if name in p.observed else "latent" if site.is_local else "global latent"
    shape = _shape(site.event_shape) if site.kind == "sample" else ""
    declared = p.declared.get(name)
    family = getattr(declared, "name", "")
    return (
        name, kind, _call(declared), _plates(site.plates, structure), shape,
        SUPPORTS.get(family, site.support if site.kind == "sample" else ""),
    )  # fmt: skip


def _nets_table(p: Picture) -> str:
    guide = p.bound.guide_structure
    nets = {**p.bound.structure.nets, **(guide.nets if guide is not None else {})}
    counts, frozen = parameter_count(p.params), p.bound.model.frozen()
    lines: list[tuple[str, ...]] = [("net", "declaration", "parameters", "shape")]
    for name, declaration in nets.items():
        about = _short(declaration) + (" frozen" if name in frozen else "")
        lines.append((name, about, f"{counts.get(name, 0):,}", ""))
        for path, leaf in tree_items(p.params.get(name)):
            size = int(np.prod(leaf.shape))
            lines.append(("", "  " + "/".join(path), f"{size:,}", _shape(tuple(leaf.shape))))
    total = sum(counts.get(n, 0) for n in nets)
    return _table([*lines, ("total", "", f"{total:,}", "")]) if nets else "no nets"


def _short(declaration: Any) -> str:
    """A declaration with the options that are not its defaults."""
    if not dataclasses.is_dataclass(declaration):
        return repr(declaration)
    shown = []
    for f in dataclasses.fields(declaration):
        value = getattr(declaration, f.name)
        if f.repr and not (f.default is not dataclasses.MISSING and value == f.default):
            shown.append(f"{f.name}={value!r}")
    return f"{type(declaration).__name__}({', '.join(shown)})"


def _call(declared: Any) -> str:
    """Normal(loc=0, scale=1); what is computed by the program is left open."""
    if not isinstance(declared, Deferred):
        return str(getattr(declared, "name", ""))
    return f"{declared.name}({', '.join(f'{k}={_number(v)}' for k, v in declared.arguments)})"


def _number(value: Any) -> str:
    if isinstance(value, bool | int | float):
        return f"{value:g}"
    if isinstance(value, Deferred):
        return _call(value)
    return "..."


def _head(text: str) -> str:
    return text.split("(")[0].removeprefix("dist.") + "(...)"


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]" if shape else "scalar"


def _plates(plates: tuple[str, ...], structure: Structure) -> str:
    sizes = structure.plate_sizes
    return ", ".join(p if p == DATA_PLATE else f"{p} ({sizes[p]})" for p in plates) or "-"


def _table(lines: list[tuple[str, ...]]) -> str:
    """Left-aligned columns under a rule; numbers with thousands separators to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]

    def row(line: tuple[str, ...]) -> str:
        cells = [
            c.rjust(w) if re.fullmatch(r"[\d,]+", c) else c.ljust(w)
            for c, w in zip(line, widths, strict=True)
        ]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * w for w in widths if w)
    return "\n".join([row(lines[0]), rule, *map(row, lines[1:])])


# ---- the formula ---------------------------------------------------------------------------------

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

    It is written in what LaTeX and matplotlib's mathtext share. See `draw` for the arguments.
    """
    declaration = model.model if isinstance(model, Fitted) else model
    own = declaration.formula()
    if own is not None:
        return own
    p = draw(declaration, data, inputs)
    sites = {n: s for n, s in p.bound.structure.sites.items() if s.kind != "deterministic"}
    index = _indices(p.bound.structure)
    given = [n for n in arguments(declaration.program) if any(a == n for a, _ in p.edges)]
    variables = ", ".join(symbol(n) for n, s in sites.items() if s.kind == "sample")
    condition = rf" \mid {', '.join(symbol(n) for n in given)}" if given else ""
    theta = r"_\theta" if p.bound.structure.nets else ""
    sign = "=" if all(s.kind == "sample" for s in sites.values()) else r"\propto"
    items = [(s.plates, _term(p, n, index)) for n, s in sites.items()]
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
    }


def _term(p: Picture, name: str, index: dict[str, tuple[str, str]]) -> str:
    site = p.bound.structure.sites[name]
    sites = p.bound.structure.sites
    sources = _sources(p, name)
    parents = [a for a in sources if a in sites]

    def sub(n: str) -> str:
        return symbol(n, tuple(index[q][0] for q in sites[n].plates))

    given = [sub(a) for a in parents]
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


# ---- the picture ---------------------------------------------------------------------------------


def graph(
    model: Model | Fitted,
    data: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> str:
    """Graphviz source in plate notation; render it with `dot -Tsvg`. See `draw` for the arguments.

    Circles are variables, shaded when observed; a double circle is deterministic; a black square
    is a factor; plain text an input; a rounded box a net. Dashed arrows belong to the guide.
    """
    p = draw(model, data, inputs)
    structure, guide = p.bound.structure, p.bound.guide_structure
    lines = [
        "digraph model {",
        "  graph [rankdir=TB, fontname=Helvetica, labeljust=r, labelloc=b];",
        "  node [fontname=Helvetica, shape=circle, width=0.6, style=filled, fillcolor=white];",
    ]
    if p.note:
        lines.append(f"  label={_quote(p.note)};")
    outside = {a for a, _ in [*p.edges, *p.guide_edges]} - set(structure.sites)
    nets = {*structure.nets, *(guide.nets if guide is not None else ())}
    has_data = any(DATA_PLATE in site.plates for site in structure.sites.values())
    local = {n for n in outside - nets if n in p.per_datum} if has_data else set()
    look = 'shape=box, style="rounded"'
    for name in sorted(outside - local):
        lines.append(f"  {_quote(name)} [{look if name in nets else PLAIN}];")
    lines += _cluster(p, (), "  ", sorted(local))
    lines += [f"  {_quote(a)} -> {_quote(t)};" for a, t in p.edges]
    lines += [
        f"  {_quote(a)} -> {_quote(t)} [style=dashed, constraint=false];" for a, t in p.guide_edges
    ]
    return "\n".join([*lines, "}"]) + "\n"


PLAIN = "shape=plaintext, fillcolor=none"


def _cluster(p: Picture, path: tuple[str, ...], indent: str, local: list[str]) -> list[str]:
    """Nodes whose plates are `path`, and one cluster for every plate just inside.

    `local` are inputs with one row a datum, which stand in the data plate.
    """
    structure = p.bound.structure
    lines = [
        indent + _node(p, name) for name, s in structure.sites.items() if tuple(s.plates) == path
    ]
    depth = len(path)
    inner = dict.fromkeys(
        s.plates[depth]
        for s in structure.sites.values()
        if tuple(s.plates[:depth]) == path and len(s.plates) > depth
    )
    for plate in inner:
        size = "N" if plate == DATA_PLATE else str(structure.plate_sizes[plate])
        label = f"{plate}: {size}"
        name = "cluster_" + "_".join((*path, plate))
        lines.append(f"{indent}subgraph {_quote(name)} {{")
        lines.append(f'{indent}  graph [label={_quote(label)}, style="rounded"];')
        if plate == DATA_PLATE:
            lines += [f"{indent}  {_quote(n)} [{PLAIN}];" for n in local]
            local = []
        lines += _cluster(p, (*path, plate), indent + "  ", local)
        lines.append(f"{indent}}}")
    return lines


def _node(p: Picture, name: str) -> str:
    kind = p.bound.structure.sites[name].kind
    if kind == "factor":
        look = f'shape=square, width=0.2, label="", xlabel={_quote(name)}, fillcolor=black'
    elif kind == "deterministic":
        look = "peripheries=2"
    else:
        look = "fillcolor=lightgray" if name in p.observed else "fillcolor=white"
    return f"{_quote(name)} [{look}];"


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
