"""One run of a program that shows its structure, against which data are then held.

Nothing observes a site in that run, so that a value of the wrong shape cannot be stretched into a
right one on the way. Verbs that work on rows run the program on one datum. Where all data are one
batch (`pg.infer`) it runs on all of them, and the data plate has the size with which everything
fits: a site in further plates has their axes before that of the data, and one outside all plates
has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.backends.lowering import declarations
from probgen.backends.protocol import Backend, Key, Site
from probgen.data.checks import on_device
from probgen.engine.data_types import check_types
from probgen.engine.structure import SiteInfo, Structure, expanded, structure_of
from probgen.errors import AlgorithmError, DeclarationError, ProbgenError, UnknownName
from probgen.language import domains
from probgen.language.dist import did_you_mean
from probgen.language.model import Model, arguments, call_arguments
from probgen.language.run import DATA_PLATE
from probgen.language.site_shapes import check_value

Arrays = Mapping[str, Any]


class Seen(NamedTuple):
    """What the run showed.

    Attributes:
        structure: of the program.
        sites: as the run left them; on JAX shapes and types only.
        observed: names of the sites that the data observe.
        rows: the data as the run was given them, on the backend.
        num_rows: size of the data plate in the run; None where there is none.
        held: names of the inputs of which the run has seen that they lie in their domains.
    """

    structure: Structure
    sites: Mapping[str, Site]
    observed: tuple[str, ...]
    rows: dict[str, Any]
    num_rows: int | None
    held: frozenset[str]


@dataclasses.dataclass
class Probe:
    """A program on a backend, with all but the data.

    Attributes:
        params: those that exist; a run adds those that `initialise` draws.
        constants: inputs that all data share.
        whole: names of inputs that are here with all their values, which are then looked at.
    """

    model: Model
    backend: Backend
    params: dict
    constants: Arrays
    key: Key
    initialise: Callable
    whole: frozenset[str] = frozenset()

    def observes_once(self, data: Arrays) -> bool:
        """Whether data are values of sites of a program that opens no data plate at all."""
        before, self.params = self.params, dict(self.params)
        try:
            structure, *_ = self.run({}, None)  # a data plate of no known size ends the run
        except Exception:  # whatever it is, the run on a row says it better
            return False
        finally:
            self.params = before
        samples = [n for n, s in structure.sites.items() if s.kind == "sample"]
        return DATA_PLATE not in structure.plate_axes and any(n in samples for n in data)

    def one_value(self, data: Arrays) -> Seen:
        """As `one_row`, of data that are one value of each site: [1, *plates, *event].

        Raises:
            as `one_row`.
        """
        rows = on_device(self.backend, {k: np.asarray(v)[0] for k, v in data.items()})
        structure, sites, held = self.run(rows, None)
        observed = self._names(structure, data)
        self._types(structure, sites, data)
        for name in observed:
            self._check(structure, name, np.shape(data[name])[1:], None)
        return Seen(structure, sites, observed, rows, None, held)

    def one_row(self, data: Arrays) -> Seen:
        """The structure as one datum shows it, and the data held against it.

        Raises:
            UnknownName, ShapeError, DataError: data under an unknown name, of another shape than
                their site's, of a type that its distribution does not take.
        """
        rows = on_device(self.backend, {k: np.asarray(v)[:1] for k, v in data.items()})
        structure, sites, held = self.run(rows, 1)
        observed = self._names(structure, data)
        self._types(structure, sites, data)
        for name in observed:
            site, got = structure.sites[name], np.shape(data[name])
            if site.plates == (DATA_PLATE,):
                check_value(
                    f"data {name!r}", got, ("number of data",), site.event_shape,
                    where={DATA_PLATE: "any size"}, is_local=True,
                )  # fmt: skip
        structure = self._with_rows(structure, sites, rows)
        return Seen(structure, sites, observed, rows, 1, held)

    def all_rows(self, data: Arrays, num_data: int | None = None) -> Seen:
        """The structure as all the data show it, taken as one batch, and the data held against it.

        Args:
            num_data: the size of the data plate where data and inputs do not tell it, or how many
                data they stand for.

        Raises:
            as `one_row`; DeclarationError: nothing tells the size of the data plate;
            AlgorithmError: a `num_data` below it, or without such a plate.
        """
        rows = on_device(self.backend, {k: np.asarray(v) for k, v in data.items()})
        errors: list[Exception] = []
        given, inputs = self.params, self._inputs(data)
        for size in _sizes(inputs, {k: v for k, v in data.items() if k not in inputs}, num_data):
            self.params = dict(given)
            try:
                structure, sites, held = self.run(rows, size)
            except Exception as error:  # also a framework's, of axes that do not meet
                errors.append(error)
                continue
            observed = self._names(structure, data)
            try:
                self._types(structure, sites, data)
                for name in observed:
                    self._check(structure, name, np.shape(data[name]), size)
            except ProbgenError as error:
                errors.append(error)
                continue
            if DATA_PLATE not in structure.plate_axes:
                _check_num_data(self.model.name, num_data, None)
                return Seen(structure, sites, observed, rows, None, held)
            known = {n for n, s in structure.sites.items() if s.is_fixed or n in observed}
            if size in [num_data, *(len(v) for v in inputs.values())] or any(
                structure.sites[n].is_local for n in known
            ):
                _check_num_data(self.model.name, num_data, size)
                return Seen(structure, sites, observed, rows, size, held)
            errors.append(DeclarationError(NO_SIZE))
        raise errors[0]

    def run(
        self, rows: Arrays, size: int | None
    ) -> tuple[Structure, dict[str, Site], frozenset[str]]:
        """One run with no site observed: structure, sites, and inputs held to their domains."""
        small = self.model.sketch()
        program, b = small.model.program, self.backend
        names = arguments(program)
        inputs = call_arguments(program, {**self.constants, **rows}, f"model {self.model.name!r}")

        def once(values: Arrays) -> Any:
            return b.probe(
                program, self.params, values=values, inputs=inputs, key=self.key,
                batch_size=size, initialise=self.initialise,
            )  # fmt: skip

        values = {k: v for k, v in rows.items() if k not in names}
        try:
            found, sites = once({})
        except ProbgenError:
            raise
        except Exception as error:
            # A distribution may have no draws, or none at parameters that are not learned yet.
            if not values:
                raise
            try:
                found, sites = once(values)
            except Exception:
                raise error from None
        held = self.held(found, inputs)
        structure = structure_of(b, found, sites, small.sites)
        sites = expanded(sites, small.sites)
        for name, site in structure.sites.items():
            if site.is_fixed and name not in rows:
                _check_counts(structure, name, size)
        return structure, sites, held

    def held(self, run: Any, inputs: Arrays) -> frozenset[str]:
        """Names of the inputs that are arguments of distributions as they stand.

        Raises:
            DeclarationError: one of them has a value outside the argument's domain.
        """
        names = {id(v): n for n, v in inputs.items() if n in self.whole and hasattr(v, "shape")}
        seen: set[str] = set()

        def read(value: Any) -> np.ndarray | None:
            if id(value) not in names:
                return None
            seen.add(names[id(value)])
            return self.backend.to_numpy(value)

        for site, deferred in declarations(run).items():
            domains.check(site, deferred, read)
        return frozenset(seen)

    def _inputs(self, data: Arrays) -> dict[str, Any]:
        """Arrays that the program takes as arguments."""
        known = {**self.constants, **data}
        names = arguments(self.model.program)
        return {k: v for k, v in known.items() if k in names and len(np.shape(v))}

    def _names(self, structure: Structure, data: Arrays) -> tuple[str, ...]:
        """Names of the observed sites."""
        model = self.model
        sites = [n for n, s in structure.sites.items() if s.kind == "sample"]
        inputs = arguments(model.program)
        known = {*sites, *inputs, *(arguments(model.guide) if model.guide is not None else ())}
        for name in [*data, *self.constants]:
            if name not in known:
                expected = [*sites, *inputs]
                raise UnknownName(
                    f"data {name!r}: got a name that is neither a site nor an input of "
                    f"{model.name!r}, expected one of {sorted(expected)}"
                    f"{did_you_mean(name, expected)}."
                )
        return tuple(n for n in sites if n in data)

    def _types(self, structure: Structure, sites: Mapping[str, Site], data: Arrays) -> None:
        fixed = {
            n: sites[n].value
            for n, s in structure.sites.items()
            if s.is_fixed and n not in data and hasattr(sites[n].value, "dtype")
        }
        check_types(structure.sites, {**fixed, **data})

    def _check(self, structure: Structure, name: str, got: tuple[int, ...], size: Any) -> None:
        site = structure.sites[name]
        batch = np.broadcast_shapes(structure.plate_shape(name, size), site.batch_shape)
        check_value(
            f"data {name!r}", got, batch, site.event_shape,
            where=_sizes_of(structure, site, size), is_local=site.is_local,
        )  # fmt: skip

    def _with_rows(
        self, structure: Structure, sites: Mapping[str, Site], rows: Arrays
    ) -> Structure:
        """Marks sites outside the data plate whose `obs=` has a row a datum: it grows with them."""
        asked = [n for n, s in structure.sites.items() if s.is_fixed and not s.is_local]
        if not asked or not rows:
            return structure
        two = {k: self.backend.ops.concatenate([v, v], axis=0) for k, v in rows.items()}
        try:
            _, more, _ = self.run(two, 2)
            grown = [n for n in asked if _shape(more[n].value) != _shape(sites[n].value)]
        except Exception:  # a plate that holds one value only
            grown = asked
        marked = {n: structure.sites[n]._replace(has_rows=True) for n in grown}
        return structure._replace(sites={**structure.sites, **marked})


NO_SIZE = (
    "pg.data_plate: nothing tells how many data there are, expected data of a site inside it, or "
    "an input with one row a datum; give one of them, or num_data= of pg.infer."
)


def _sizes_of(structure: Structure, site: SiteInfo, size: Any) -> dict[str, Any]:
    sizes = {**structure.plate_sizes, DATA_PLATE: size}
    return {p: sizes[p] for p in site.plates}


def _check_counts(structure: Structure, name: str, size: Any) -> None:
    """Refuses a native program's `obs=` of which a value would count more than once.

    Such a program may have batch axes outside its plates, each value of which counts once.
    """
    site = structure.sites[name]
    batch = np.broadcast_shapes(structure.plate_shape(name, size), site.batch_shape)
    own = site.shape[: max(0, len(site.shape) - len(site.event_shape))]
    try:
        is_once = np.broadcast_shapes(batch, own) == own
    except ValueError:
        is_once = False
    if not is_once:
        check_value(
            f"site {name!r}, obs=", site.shape, batch, site.event_shape,
            where=_sizes_of(structure, site, size), is_local=site.is_local,
        )  # fmt: skip


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _check_num_data(model: str, num_data: int | None, size: int | None) -> None:
    if num_data is None or (size is not None and num_data >= size):
        return
    there = "no data plate" if size is None else f"{size} data"
    raise AlgorithmError(
        f"infer: got num_data={num_data} for {model!r} with {there}, expected the size of its data "
        "plate, or at least as many as the data given, which stand for them; leave num_data out."
    )


def _sizes(inputs: Arrays, data: Arrays, num_data: int | None) -> list[int | None]:
    """Sizes that the data plate may have, the likeliest first."""
    lengths = [len(v) for v in inputs.values()]
    shapes = [np.shape(v) for v in data.values()]
    lengths += [s[0] for s in shapes if s] + [n for s in shapes for n in s[1:]]
    return list(dict.fromkeys([*lengths, *([] if num_data is None else [num_data])])) or [None]
