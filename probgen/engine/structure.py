"""What one run of a program shows of it: its sites, its nets, and how its plates lie.

A value of a site has the axes [*plates, *event]; the outermost plate is the last of the plates'
axes, as in Pyro and NumPyro.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.backends.lowering import axis_sizes
from probgen.backends.protocol import Backend, Site
from probgen.language.identity import Form
from probgen.language.run import DATA_PLATE
from probgen.language.supports import support_of


class SiteInfo(NamedTuple):
    """What a run shows of a site.

    kind: sample, factor or deterministic; plates: names, the data plate's included;
    event_shape and support: of its distribution; distribution: the declaration as text;
    is_fixed: the program itself gives its value (`obs=`); declaration: the distribution itself;
    has_rows: such a value has as many rows as there are data; shape: of the value in that run;
    batch_shape: of the distribution, within the plates but for native programs;
    noise_shape: of the normal noise that one event is a function of, None where it is not one;
    scan: (name, length) of the loop over time that it stands in, whose axis leads its event.
    """

    kind: str
    plates: tuple[str, ...]
    event_shape: tuple[int, ...]
    support: str
    distribution: str
    is_discrete: bool
    is_fixed: bool = False
    declaration: Any = None
    has_rows: bool = False
    shape: tuple[int, ...] = ()
    batch_shape: tuple[int, ...] = ()
    noise_shape: tuple[int, ...] | None = None
    scan: tuple[str, int] | None = None

    def __identity__(self) -> dict[str, Any]:
        """Without the numbers that the run had, which a computed end of a support shows too."""
        mine = {n: v for n, v in self._asdict().items() if n != "support"}
        return {**mine, "distribution": self.family, "declaration": Form(self.declaration)}

    @property
    def is_local(self) -> bool:
        return DATA_PLATE in self.plates

    @property
    def boxes(self) -> tuple[str, ...]:
        """Plates, the outermost first, and the loop over time: what pictures draw around it."""
        return self.plates if self.scan is None else (*self.plates, self.scan[0])

    @property
    def family(self) -> str:
        """Name of the distribution, as in `probgen.dist`."""
        return self.distribution.split("(")[0].removeprefix("dist.")

    @property
    def mass(self) -> str:
        """Its support in words, alike on both backends; the library's where it has a class that
        is not ours."""
        known = None if self.declaration is None else support_of(self.declaration)
        return self.support if known is None else known.words


class Structure(NamedTuple):
    """Sites and nets of a program (or guide), and how deep its plates are nested.

    plate_sizes: of the plates beside the data plate; plate_axes: where each lies, from the right.
    """

    sites: dict[str, SiteInfo]
    nets: dict[str, Any]
    plate_ndim: int
    plate_sizes: dict[str, int]
    plate_axes: dict[str, int]

    @property
    def scans(self) -> dict[str, int]:
        """Length of each loop over time, by its name."""
        return dict(s.scan for s in self.sites.values() if s.scan is not None)

    @property
    def factors(self) -> list[str]:
        """Names of what multiplies the density beside distributions."""
        return [n for n, s in self.sites.items() if s.kind == "factor"]

    @property
    def improper(self) -> list[str]:
        """Names of sites whose density does not integrate to one, by its author's word."""
        drawn = {n: s.declaration for n, s in self.sites.items() if s.kind == "sample"}
        return [n for n, d in drawn.items() if not getattr(d, "is_normalized", True)]

    @property
    def computed(self) -> list[str]:
        """Names of sites whose values the program computes, and which have no density."""
        return [n for n in self.improper if self.sites[n].noise_shape == (0,)]

    def plate_shape(self, name: str, num_rows: int) -> tuple[int, ...]:
        """Sizes of a site's plates from left to right, 1 where none lies."""
        sizes = {**self.plate_sizes, DATA_PLATE: num_rows}
        return axis_sizes({self.plate_axes[p]: sizes[p] for p in self.sites[name].plates})

    def over_plates(self, ops: Any, name: str, value: Any) -> Any:
        """Sum of [*plates] numbers of a site over all its plates but the data's."""
        if not self.sites[name].is_local:
            return ops.sum(value)
        keep = value.ndim + self.plate_axes[DATA_PLATE]
        rest = tuple(i for i in range(value.ndim) if i != keep)
        return ops.sum(value, axis=rest) if rest else value

    def count(self, num_rows: int, without: Collection[str] = ()) -> int:
        """How many numbers its random variables are, for so many data; some sites left out."""
        shapes = (
            (*self.plate_shape(n, num_rows), *s.event_shape)
            for n, s in self.sites.items()
            if s.kind == "sample" and n not in without
        )
        return sum(map(math.prod, shapes))


def expanded(sites: Mapping[str, Any], like: Mapping[str, str]) -> dict[str, Any]:
    """Sites of a sketch as those of the large model (`probgen.language.model.Sketch.sites`)."""
    if not like:
        return dict(sites)
    out: dict[str, Any] = {}
    small = set(like.values())
    for name, site in sites.items():
        out.update({k: sites[v] for k, v in like.items()} if name in small else {name: site})
    return out


def structure_of(
    backend: Backend, run: Any, sites: Mapping[str, Site], like: Mapping[str, str] | None = None
) -> Structure:
    """The structure of a program from a run of it (`Backend.probe`), or of its sketch, where `like`
    says which of the sketch's sites each repeated site is like."""
    infos = {}
    for name, known in run.sites.items():
        fn = sites[name].fn
        infos[name] = SiteInfo(
            known["kind"],
            known["plates"],
            known.get("event_shape", ()),
            backend.support_name(fn) if fn is not None else "",
            repr(known["distribution"]) if "distribution" in known else "",
            fn is not None and backend.is_discrete(fn),
            known.get("is_fixed", False),
            known.get("distribution"),
            shape=tuple(np.shape(sites[name].value)),
            batch_shape=tuple(fn.batch_shape) if fn is not None else (),
            noise_shape=backend.noise_shape(fn) if fn is not None else None,
            scan=known.get("scan"),
        )
    axes = {name: dim for name, (dim, _) in run.plates.items()}
    sizes = {name: plate.size for name, (_, plate) in run.plates.items() if name != DATA_PLATE}
    depth = max((-axis for axis in axes.values()), default=0)
    infos = expanded(infos, like or {})
    return Structure(infos, dict(run.nets), depth, sizes, axes)
