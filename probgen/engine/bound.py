"""A model on a backend, with its structure known: what algorithms work with.

It is made by `probgen.engine.bind.bind`, which finds the structure by one run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend, Key, Site
from probgen.engine.combinations import Summed, values_of
from probgen.engine.enumeration import summed
from probgen.engine.guide_checks import left_out
from probgen.engine.requirements import Requirements
from probgen.engine.structure import Structure
from probgen.engine.updates import ParameterUpdates
from probgen.language.model import Inputs, Model, call_arguments
from probgen.trees import tree_items

Array = Any


@dataclasses.dataclass(frozen=True)
class Bound(Requirements, ParameterUpdates):
    """A model on a backend.

    Attributes:
        observed: names of the sites that the data observe.
        latents: names of the sample sites that they do not, but for those that are summed out.
        num_data: size of the data set (for minibatch scaling), or None when it is not known.
        constants: inputs that are shared by all data, on the backend.
        held: names of inputs all of whose values lie in the domains of what they are arguments of.
        is_once: a batch's one row is the one value of what stands outside a data plate.
        num_rows: size of the data plate where all data are one batch (`pg.infer`).
        num_steps: how often a step will run, for `compile`.
        num_draws: draws per step that a fit without data asks for (`batch_size=`); else None.
        accumulate: micro-batches per update.
        freeze: names of nets, or of parts with several, that the fit was told to leave alone.
        seed: of the fit, for initial weights alone: what is compiled serves every seed.
        names: of all nets that have parameters.
        upkeep: nets with more than an optimiser's step to them; see `probgen.nets.buffers`.
        own: the algorithm's own nets, declarations by name (`new_net`).
        make_short: of a long chain, makes the bound model that draws a step in place of all
            (`by_steps`), once, when it is first asked for; else None.
    """

    model: Model
    backend: Backend
    structure: Structure
    guide_structure: Structure | None
    observed: tuple[str, ...]
    constants: dict[str, Any]
    held: frozenset[str] = frozenset()
    num_data: int | None = None
    num_rows: int | None = None
    is_once: bool = False
    num_steps: int | None = None
    num_draws: int | None = None
    accumulate: int = 1
    freeze: tuple[str, ...] = ()
    seed: int = 0
    names: tuple[str, ...] = ()
    upkeep: dict[str, Any] = dataclasses.field(default_factory=dict)
    own: dict[str, Any] = dataclasses.field(default_factory=dict)
    make_short: Callable[[], Bound] | None = None

    def __identity__(self) -> dict[str, Any]:
        """All that its programs depend on: not `num_steps`, a matter of cost, nor `seed`; what
        `make_short` makes has an identity of its own."""
        names = {f.name for f in dataclasses.fields(self)} - {"num_steps", "seed", "make_short"}
        return {n: getattr(self, n) for n in sorted(names)}

    @property
    def latents(self) -> tuple[str, ...]:
        enumerated = self.enumerated  # once: a chain has a thousand latents
        return tuple(n for n in self._hidden if n not in enumerated)

    @property
    def enumerated(self) -> tuple[str, ...]:
        """Discrete latents of finitely many values that no guide draws: they are summed out."""
        drawn = self.guide_structure.sites if self.guide_structure else {}
        sites = self.structure.sites
        return tuple(n for n in self._hidden if n not in drawn and values_of(sites[n]) is not None)

    @property
    def _hidden(self) -> tuple[str, ...]:
        return tuple(
            n
            for n, s in self.structure.sites.items()
            if s.kind == "sample" and n not in self.observed and not s.is_fixed
        )

    @property
    def nets(self) -> dict[str, Any]:
        """Declarations of the nets of the model, its guide and the algorithm, by name."""
        guide = self.guide_structure.nets if self.guide_structure else {}
        return {**self.structure.nets, **guide, **self.own}

    @property
    def left_out(self) -> list[str]:
        """What the guide's supports leave out of the latents', a sentence each."""
        return left_out(self.structure, self.guide_structure, self.latents)

    @property
    def has_global_latents(self) -> bool:
        return any(not self.structure.sites[n].is_local for n in self.latents)

    @property
    def is_normalized(self) -> bool:
        """Whether the density is known with its constant: by what the program does, not only by
        what its class says. Whatever carries a factor, or a flat or improper density, is not."""
        structure = self.structure
        return self.model.is_normalized and not structure.factors and not structure.improper

    @property
    def is_drawn(self) -> bool:
        """Whether running the program draws from the model: not where a density multiplies it that
        draws do not know. What is computed from latents alone has draws and no density."""
        structure = self.structure
        flat = set(structure.improper) - set(structure.computed)
        return self.model.is_normalized and not structure.factors and not flat

    def inputs(self, fn: Callable, batch: Mapping[str, Array], what: str) -> Inputs:
        out = call_arguments(fn, {**self.constants, **batch}, what)
        # Rows of a batch are known where all data are one: another batch brings others.
        out.held = self.held if self.num_rows is not None else self.held - batch.keys()
        return out

    def program_inputs(self, batch: Mapping[str, Array]) -> Inputs:
        """The program's own inputs among the constants and a batch; one that lacks is refused."""
        return self.inputs(self.model.program, batch, f"model {self.model.name!r}")

    def batch_size(self, batch: Mapping[str, Array]) -> int | None:
        return next((int(v.shape[0]) for v in batch.values()), None)

    def trace(
        self,
        params: Mapping,
        batch: Mapping[str, Array],
        latents: Mapping[str, Array] | None = None,
        *,
        key: Key | None = None,
        num_particles: int | None = None,
        noise: Mapping[str, Array] | None = None,
        batch_size: int | None = None,
        condition: bool = True,
    ) -> dict[str, Site]:
        """Runs the program with data and latents given; what is not given is drawn from `key`.

        Without a key discrete latents that are not given are summed out (`engine.enumeration`): the
        sites are then those of the program without them. With `num_particles` every
        log-probability has that axis in front. `condition=False` leaves the data out, except as
        inputs.
        """
        if key is None and any(n not in (latents or {}) for n in self.enumerated):
            return self.summed(
                params, batch, latents, num_particles=num_particles, batch_size=batch_size,
                condition=condition,
            ).sites  # fmt: skip
        program = self.model.program
        batch_size, batch = batch_size or self.batch_size(batch), self.values_of(batch)
        given = {n: batch[n] for n in self.observed if n in batch} if condition else {}
        depth = max(
            self.structure.plate_ndim,
            self.guide_structure.plate_ndim if self.guide_structure else 0,
        )
        return self.backend.trace(
            program,
            params,
            values={**given, **(latents or {})},
            inputs=self.inputs(program, batch, f"model {self.model.name!r}"),
            key=key,
            batch_size=batch_size,
            particles=None if num_particles is None else (num_particles, -depth - 1),
            noise=noise,
        )

    def summed(
        self, params: Mapping, batch: Mapping[str, Array],
        latents: Mapping[str, Array] | None = None, *, batch_size: int | None = None,
        extra: Callable[[dict[str, Site]], Any] = lambda sites: {}, is_told: bool = False,
        is_whole: bool = False, **options: Any,
    ) -> Summed:  # fmt: skip
        """A run with the discrete latents summed out that `latents` does not give.

        Args:
            extra: what else is wanted of the sites at each combination of values.
            is_told: the posterior of latents along a long loop is wanted too.
            is_whole: the batch is all there is.

        Raises:
            AlgorithmError: they have too many values, or all data share one.
        """
        known = latents or {}
        names = tuple(n for n in self.enumerated if n not in known)
        size = batch_size or self.batch_size(batch)

        def run(values: dict[str, Array]) -> tuple[dict[str, Site], dict]:
            given = {**known, **values}
            sites = self.trace(params, batch, given, batch_size=size, **options)
            return sites, extra(sites)

        rows = None if self.is_once else size
        return summed(
            self.backend, self.structure, names, run, rows, repr(self.model.name),
            is_whole=is_whole, is_told=is_told,
        )  # fmt: skip

    def trace_guide(
        self,
        params: Mapping,
        batch: Mapping[str, Array],
        *,
        key: Key | None = None,
        latents: Mapping[str, Array] | None = None,
        num_particles: int | None = None,
        noise: Mapping[str, Array] | None = None,
        batch_size: int | None = None,
    ) -> dict[str, Site]:
        """Runs the guide; its latents are drawn from `key`, or given, or made from `noise`."""
        guide = self.require_guide("trace_guide")
        batch_size, batch = batch_size or self.batch_size(batch), self.values_of(batch)
        within = self.guide_structure.plate_ndim if self.guide_structure else 0
        depth = max(self.structure.plate_ndim, within)
        return self.backend.trace(
            guide,
            params,
            values=latents or {},
            inputs=self.inputs(guide, batch, f"guide of {self.model.name!r}"),
            key=key,
            batch_size=batch_size,
            particles=None if num_particles is None else (num_particles, -depth - 1),
            noise=noise,
        )

    def values_of(self, batch: Mapping[str, Array]) -> Mapping[str, Array]:
        """A batch as programs take it: without the axis of its one row where that `is_once`."""
        return {k: v[0] for k, v in batch.items()} if self.is_once else batch

    def by_steps(self, who: str, is_mean: bool) -> Bound:
        """What gives the bound: itself, or of a long chain the model that draws one step of it.

        Args:
            is_mean: what is asked for is a mean of log weights, for which one step can stand.

        Raises:
            AlgorithmError: as `require_short`.
        """
        if self.is_long and self.make_short is not None and is_mean:
            return self.make_short()
        self.require_short(who)
        return self


def parameter_count(params: Mapping) -> dict[str, int]:
    """Number of parameters of each net."""
    return {
        name: sum(int(np.prod(np.shape(leaf))) for _, leaf in tree_items(tree))
        for name, tree in params.items()
    }
