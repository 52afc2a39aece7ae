"""A model on a backend, with its structure known: what algorithms work with.

`bind` runs the program and the guide once on one datum. That run finds the sites, draws parameters
for nets that have none, and refuses what does not fit before anything is computed.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from probgen.backends.protocol import Backend, Key, Optimizer, Site
from probgen.dist import did_you_mean
from probgen.errors import AlgorithmError, DeclarationError, ProbgenError, ShapeError, UnknownName
from probgen.modelling import Model, arguments, call_arguments
from probgen.nets.buffers import after_update, has_upkeep, keeping_up, settle
from probgen.optim import OptimizerDeclaration
from probgen.program import DATA_PLATE
from probgen.support import check_support, check_types
from probgen.trees import tree_items, tree_map

Array = Any


class SiteInfo(NamedTuple):
    """What a run on one datum shows of a site.

    kind: sample, factor or deterministic; plates: names, the data plate's included;
    event_shape and support: of its distribution; distribution: the declaration as text;
    is_fixed: the program itself gives its value (`obs=`); shape: of its value in that run.
    """

    kind: str
    plates: tuple[str, ...]
    event_shape: tuple[int, ...]
    support: str
    distribution: str
    is_discrete: bool
    is_fixed: bool = False
    shape: tuple[int, ...] = ()

    @property
    def is_local(self) -> bool:
        return DATA_PLATE in self.plates


class Structure(NamedTuple):
    """Sites and nets of a program (or guide), and how deep its plates are nested."""

    sites: dict[str, SiteInfo]
    nets: dict[str, Any]
    plate_ndim: int
    plate_sizes: dict[str, int]

    @property
    def factors(self) -> list[str]:
        """Names of what multiplies the density beside distributions."""
        return [n for n, s in self.sites.items() if s.kind == "factor"]


@dataclasses.dataclass(frozen=True)
class Bound:
    """A model on a backend.

    Attributes:
        observed: names of the sites that the data observe.
        latents: names of the sample sites that they do not.
        num_data: size of the data set (for minibatch scaling), or None when it is not known.
        constants: inputs that are shared by all data, on the backend.
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
    num_steps: int | None = None
    accumulate: int = 1
    upkeep: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def latents(self) -> tuple[str, ...]:
        return tuple(
            n
            for n, s in self.structure.sites.items()
            if s.kind == "sample" and n not in self.observed and not s.is_fixed
        )

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
        """Refuses data of sites inside further plates, whose first axis is not the data's.

        Raises:
            AlgorithmError: names the site, its plates and the cure.
        """
        for name in self.observed:
            plates = [p for p in self.structure.sites[name].plates if p != DATA_PLATE]
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


def bind(
    model: Model,
    backend: Backend,
    *,
    data: Mapping[str, Any] | None = None,
    constants: Mapping[str, Any] | None = None,
    params: Mapping | None = None,
    seed: int = 0,
    **fields: Any,
) -> tuple[Bound, dict]:
    """Binds a model to a backend by running it once on one datum.

    Args:
        data: a few rows of the data and per-datum inputs, numpy; may be empty.
        constants: inputs shared by all data.
        params: parameters that exist already; nets without any are initialised from `seed`.

    Returns:
        The bound model, and its parameters on the backend.

    Raises:
        UnknownName: data under a name that is neither a site nor an input.
        ShapeError, SupportError, DuplicateSite: see `probgen.program`.
    """
    data, constants = dict(data or {}), dict(constants or {})
    fixed = {
        k: backend.asarray(v) if isinstance(v, np.ndarray | list) else v
        for k, v in constants.items()
    }
    row = {k: backend.asarray(np.asarray(v)[:1]) for k, v in data.items()}
    everything = {**model.fitted_params(), **(params or {})}
    started = tree_map(backend.asarray, everything)
    key = backend.key(seed)

    def initialise(name: str, declaration: Any, shapes: Any) -> Any:
        rng = np.random.Generator(
            np.random.Philox(key=[seed & (2**64 - 1), zlib.crc32(name.encode())])
        )
        return declaration.init(rng, *shapes)

    program = model.program
    input_names = arguments(program)
    guide_names = arguments(model.guide) if model.guide is not None else {}
    inputs = call_arguments(program, {**fixed, **row}, f"model {model.name!r}")
    given = {k: v for k, v in row.items() if k not in input_names}

    def probe(values: dict) -> Any:
        return backend.probe(
            program, started, values=values, inputs=inputs, key=key, batch_size=1,
            initialise=initialise,
        )  # fmt: skip

    try:
        run, sites = probe(given)
    except ProbgenError:
        raise
    except Exception:
        # A framework's own words: perhaps the data do not fit, which a run without them shows.
        run, sites = probe({})
        check_types(run.sites, {k: data[k] for k in given})
        seen = tuple(n for n in run.sites if n in given)
        _check_shapes(model, _structure(backend, run, sites), data, seen)
        raise
    check_types(run.sites, {k: data[k] for k in given})
    structure = _structure(backend, run, sites)
    observed = tuple(n for n, s in structure.sites.items() if n in row and s.kind == "sample")
    for name in [*row, *fixed]:
        if name not in observed and name not in input_names and name not in guide_names:
            names = [n for n, s in structure.sites.items() if s.kind == "sample"]
            raise UnknownName(
                f"data {name!r}: got a name that is neither a site nor an input of "
                f"{model.name!r}, expected one of {sorted([*names, *input_names])}"
                f"{did_you_mean(name, [*names, *input_names])}."
            )
    _check_shapes(model, structure, data, observed)
    guide_structure = None
    if model.guide is not None:
        values = {n: s.value for n, s in sites.items() if s.kind == "sample"}
        guide_structure = _probe_guide(
            model, backend, started, {**fixed, **_concrete(backend, values), **row}, key, initialise
        )
        _check_guide(model, structure, guide_structure, observed)
    final = tree_map(backend.asarray, started)
    nets = {**structure.nets, **(guide_structure.nets if guide_structure else {})}
    upkeep = {n: net for n, net in nets.items() if has_upkeep(net, final[n])}
    bound = Bound(
        model, backend, structure, guide_structure, observed, fixed, upkeep=upkeep, **fields
    )
    return bound, final


def _concrete(backend: Backend, values: Mapping[str, Any]) -> dict[str, Any]:
    """Zeros in the shape of a probe's values, for guides that read sites no data were given for."""
    return {n: backend.asarray(np.zeros(tuple(v.shape), np.float32)) for n, v in values.items()}


def _probe_guide(
    model: Model, backend: Backend, params: dict, available: dict, key: Key, initialise: Any
) -> Structure:
    guide: Any = model.guide
    run, sites = backend.probe(
        guide,
        params,
        values={},
        inputs=call_arguments(guide, available, f"guide of {model.name!r}"),
        key=key,
        batch_size=1,
        initialise=initialise,
    )
    return _structure(backend, run, sites)


def _structure(backend: Backend, run: Any, sites: Mapping[str, Site]) -> Structure:
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
            tuple(np.shape(sites[name].value)),
        )
    depth = max((-dim for dim, _ in run.plates.values()), default=0)
    sizes = {name: plate.size for name, (_, plate) in run.plates.items() if name != DATA_PLATE}
    return Structure(infos, dict(run.nets), depth, sizes)


def _check_shapes(
    model: Model, structure: Structure, data: Mapping[str, Any], observed: tuple[str, ...]
) -> None:
    for name in observed:
        site, got = structure.sites[name], np.shape(data[name])
        inner = tuple(structure.plate_sizes[p] for p in site.plates if p != DATA_PLATE)
        want = (*inner[::-1], got[0], *site.event_shape) if inner else (got[0], *site.event_shape)
        if site.is_local and got != want and not inner:
            raise ShapeError(
                f"data {name!r}: got shape {tuple(got)}, expected (number of data, "
                f"{', '.join(map(str, site.event_shape))}) since site {name!r} of "
                f"{model.name!r} has events of shape {site.event_shape}; reshape the data, or "
                "change the declaration's output shape."
            )


def _check_guide(
    model: Model, structure: Structure, guide: Structure, observed: tuple[str, ...]
) -> None:
    latents = {n for n, s in structure.sites.items() if s.kind == "sample" and n not in observed}
    drawn = {n for n, s in guide.sites.items() if s.kind == "sample"}
    if not drawn <= set(structure.sites):
        extra = sorted(drawn - set(structure.sites))
        raise UnknownName(
            f"guide of {model.name!r}: draws {extra}, expected only latent sites of the model, "
            f"{sorted(latents)}{did_you_mean(extra[0], latents)}."
        )
    for name in drawn & latents:
        got, want = guide.sites[name].event_shape, structure.sites[name].event_shape
        if got != want:
            raise ShapeError(
                f"guide of {model.name!r}: site {name!r} has events of shape {got}, expected "
                f"{want} as in the model; change the guide's output or the prior's shape."
            )


def parameter_count(params: Mapping) -> dict[str, int]:
    """Number of parameters of each net."""
    return {
        name: sum(int(np.prod(np.shape(leaf))) for _, leaf in tree_items(tree))
        for name, tree in params.items()
    }


__all__ = ["Bound", "DeclarationError", "Structure", "bind", "check_support", "parameter_count"]
