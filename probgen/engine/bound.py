"""A model on a backend, with its structure known: what algorithms work with.

It is made by `probgen.engine.bind.bind`, which finds the structure by one run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend, Key, Optimizer, Site
from probgen.engine.guide_checks import left_out
from probgen.engine.structure import Structure
from probgen.errors import AlgorithmError
from probgen.language.model import Model, call_arguments
from probgen.language.optim import OptimizerDeclaration
from probgen.language.program import DATA_PLATE
from probgen.nets.buffers import after_update, keeping_up, settle
from probgen.trees import tree_items, tree_map

Array = Any


@dataclasses.dataclass(frozen=True)
class Bound:
    """A model on a backend.

    Attributes:
        observed: names of the sites that the data observe.
        latents: names of the sample sites that they do not.
        num_data: size of the data set (for minibatch scaling), or None when it is not known.
        constants: inputs that are shared by all data, on the backend.
        num_rows: size of the data plate where all data are one batch (`pg.infer`).
        num_steps: how often a step will run, for `compile`.
        accumulate: micro-batches per update.
        upkeep: nets with more than an optimiser's step to them; see `probgen.nets.buffers`.
    """

    model: Model
    backend: Backend
    structure: Structure
    guide_structure: Structure | None
    observed: tuple[str, ...]
    constants: dict[str, Any]
    num_data: int | None = None
    num_rows: int | None = None
    num_steps: int | None = None
    accumulate: int = 1
    upkeep: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __identity__(self) -> dict[str, Any]:
        """All but `num_steps`, which is a matter of cost."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: v for k, v in fields.items() if k != "num_steps"}

    @property
    def latents(self) -> tuple[str, ...]:
        return tuple(
            n
            for n, s in self.structure.sites.items()
            if s.kind == "sample" and n not in self.observed and not s.is_fixed
        )

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
        what its class says. Whatever carries a factor is not."""
        return self.model.is_normalized and not self.structure.factors

    def require_normalized(self, who: str) -> None:
        """Refuses a density that is known up to a constant, where its nats would be quoted.

        Raises:
            AlgorithmError: names the factors, and what gives the constant or does without it.
        """
        if self.is_normalized:
            return
        factors = self.structure.factors
        raise AlgorithmError(
            f"{who}: the density of {self.model.name!r} is known up to a constant"
            f"{f' (it has the factors {factors})' if factors else ''}, expected a normalised one, "
            "since log Z would be missing from every number; log_partition estimates log Z, "
            "EnergyLogLikelihood takes it, and UnnormalizedLogDensity does without."
        )

    def inputs(self, fn: Callable, batch: Mapping[str, Array], what: str) -> dict[str, Any]:
        return call_arguments(fn, {**self.constants, **batch}, what)

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

        With `num_particles` every log-probability has that axis in front. `condition=False` leaves
        the data out, except as inputs.
        """
        program = self.model.program
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
            batch_size=batch_size or self.batch_size(batch),
            particles=None if num_particles is None else (num_particles, -depth - 1),
            noise=noise,
        )

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
        depth = max(self.structure.plate_ndim, self.guide_structure.plate_ndim)  # type: ignore
        return self.backend.trace(
            guide,
            params,
            values=latents or {},
            inputs=self.inputs(guide, batch, f"guide of {self.model.name!r}"),
            key=key,
            batch_size=batch_size or self.batch_size(batch),
            particles=None if num_particles is None else (num_particles, -depth - 1),
            noise=noise,
        )

    def require_guide(self, who: str) -> Callable:
        if self.model.guide is None:
            raise AlgorithmError(
                f"{who}: the model {self.model.name!r} has no guide, expected one (an approximate "
                "posterior over its latents); give a VAE an encoder, or write one with "
                "@my_model.with_guide; without a guide use pg.infer or MaximumLikelihood."
            )
        return self.model.guide

    def require_rows(self, who: str) -> None:
        """Refuses data of sites whose first axis is not that of the data plate.

        Outside it the terms of a minibatch would not be scaled to the whole data set; inside
        further plates rows of the data are no batches.

        Raises:
            AlgorithmError: names the site, where it stands and the cure.
        """
        for name, site in self.structure.sites.items():
            if name not in self.observed and not site.has_rows:
                continue
            plates = [p for p in site.plates if p != DATA_PLATE]
            if not site.is_local:
                where = f"in the plates {plates}" if plates else "in no plate"
                raise AlgorithmError(
                    f"{who}: the data observe site {name!r}, which stands {where}, expected it "
                    "inside `with pg.data_plate():`, since batches are rows of the data and only "
                    "what stands in there is scaled to the whole data set; put the site into "
                    "pg.data_plate() and leave out .expand([n]).to_event(1) or pg.plate of the "
                    "number of data; for one value that is not made of rows use pg.infer."
                )
            if plates:
                raise AlgorithmError(
                    f"{who}: the data observe site {name!r} inside the plates {plates}, expected "
                    "the data plate alone, since batches are rows of the data; make those axes "
                    "events with .expand([...]).to_event(n), or use pg.infer on all the data."
                )

    def split_params(self, params: Mapping) -> tuple[dict, dict]:
        """(trainable, frozen) parts of a parameter dict, by the model's `frozen` names."""
        frozen = self.model.frozen()
        return (
            {k: v for k, v in params.items() if k not in frozen},
            {k: v for k, v in params.items() if k in frozen},
        )

    def optimizer(self, declaration: OptimizerDeclaration) -> Optimizer:
        """An optimiser of the model's nets: buffers are left alone, and each step ends with the
        nets' own upkeep, such as the power iteration of a spectral norm."""
        b = self.backend
        compiled = partial(b.compile, num_calls=self.num_steps)
        return keeping_up(b.optimizer(declaration), self.upkeep, compiled)

    def average(self, old: Mapping, new: Mapping, weight: float) -> dict:
        """old + weight (new - old) of parameters; buffers follow the averaged weights."""
        mean = self.backend.lerp(old, new, weight)
        moved = {n: after_update(net, mean[n]) for n, net in self.upkeep.items() if n in mean}
        return {**mean, **moved}

    def settled(self, params: Mapping) -> dict:
        """Parameters at the end of a fit: what was learned with its spectral norms converged."""
        known, frozen = self.upkeep, self.model.frozen()
        return {
            n: settle(known[n], v) if n in known and n not in frozen else v
            for n, v in params.items()
        }

    def value_and_grad(self, loss: Callable) -> Callable:
        """Compiles `loss(trainable, frozen, extra, batch, key) -> (loss, aux)` with its gradient.

        With `accumulate` > 1 the batch is worked through in that many equal parts, one after
        another; loss, gradient and aux are their means, which for a mean over data is exact.
        """
        b = self.backend
        once = b.value_and_grad(loss, has_aux=True)
        if self.accumulate == 1:
            return b.compile(once, num_calls=self.num_steps)
        k = self.accumulate

        def in_parts(trainable: Any, frozen: Any, extra: Any, batch: Any, key: Any) -> Any:
            parts = tree_map(lambda x: b.ops.reshape(x, (k, x.shape[0] // k, *x.shape[1:])), batch)
            keys = b.split(key, k)

            def step(carry: Any, i: int) -> Any:
                out = once(trainable, frozen, extra, tree_map(lambda x: x[i], parts), keys[i])
                return out if carry is None else tree_map(lambda a, c: a + c, carry, out)

            total = None
            for i in range(k):
                total = step(total, i)
            return tree_map(lambda x: x / k, total)

        return b.compile(in_parts, num_calls=self.num_steps)


def parameter_count(params: Mapping) -> dict[str, int]:
    """Number of parameters of each net."""
    return {
        name: sum(int(np.prod(np.shape(leaf))) for _, leaf in tree_items(tree))
        for name, tree in params.items()
    }
