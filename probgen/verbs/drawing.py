"""The samples of a call of `generate`, in chunks: what it draws here, and its workers elsewhere.

One text for both: a `Drawing` is plain data, and `start` binds the model and compiles what draws.
A chunk's noise belongs to its first sample's number, so that whoever draws it draws the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import numpy as np

from probgen.backends import resolve
from probgen.backends.protocol import Backend
from probgen.engine import provenance
from probgen.engine.batches import merge_inputs
from probgen.engine.bound import Bound
from probgen.engine.draws import samples_first, without_data_axis
from probgen.engine.explain import check_ancestral
from probgen.engine.fitted import Fitted
from probgen.engine.target import DrawsModel, HasRows
from probgen.errors import AlgorithmError, DataError
from probgen.language.identity import identity
from probgen.language.model import arguments
from probgen.trees import tree_map
from probgen.verbs.chains import chains
from probgen.verbs.predictive import require_params


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Samples as `generate` is asked for them; see there.

    Attributes:
        backend, device: as `backends.resolve` takes them; a worker finds its own device.
        starts: rows that a diffusion's sampler starts from.
    """

    fitted: Fitted
    num_samples: int
    seed: int
    backend: str | Backend
    device: str
    chunk_size: int
    inputs: dict[str, Any]
    starts: dict[str, np.ndarray]
    method: Any
    space: Any
    predictive: str | None
    return_chain: bool

    def made(self) -> dict[str, Any]:
        """What the samples depend on."""
        is_named = self.space is None or isinstance(self.space, str)
        space = self.space if is_named else identity(self.space, "space")
        return provenance.of_samples(
            self.fitted, resolve(self.backend, self.device), seed=self.seed, method=self.method,
            inputs={**self.inputs, **self.starts}, num_samples=self.num_samples,
            chunk_size=self.chunk_size, predictive=self.predictive, space=space,
            return_chain=self.return_chain,
        )  # fmt: skip

    def start(self) -> Drawer:
        """It, ready to draw chunks."""
        return Drawer(self, resolve(self.backend, self.device))


class Drawer:
    """A drawing on a backend: (first, stop) -> those samples, "values", "stats" and "chain"."""

    def __init__(self, drawing: Drawing, backend: Backend):
        fitted, method, self.drawing = drawing.fitted, drawing.method, drawing
        count, model = drawing.num_samples, fitted.model
        bound, params, rows = _bind(fitted, backend, drawing.inputs, count)
        require_params(bound, fitted.params, "generate")
        if method is None and not bound.is_drawn:
            raise AlgorithmError(
                f"generate: the density of {model.name!r} is known up to a constant, so it has no "
                "ancestral draws; give a method such as Langevin(step_size=1e-2, num_steps=100)."
            )
        if isinstance(method, HasRows):
            rows = {**rows, **method.sample_rows(model, count)}
        self.bound, self.params, self.rows = bound, params, {**rows, **drawing.starts}
        self.source = _source(fitted, bound, drawing.predictive, method, drawing.inputs)
        self.key, self._runs = backend.key(drawing.seed), _Runs(bound)
        self._ends: Callable | None = None
        if isinstance(method, DrawsModel):
            self._ends = _own_draws(bound, method, drawing.return_chain)
        elif method is not None:
            num_chunks = -(-count // drawing.chunk_size)
            self._ends = chains(bound, method, drawing.space, num_chunks, drawing.return_chain)

    def __call__(self, start: int, stop: int) -> dict[str, dict[str, np.ndarray]]:
        bound, source, kept = self.bound, self.source, stop - start
        b, sites = bound.backend, bound.structure.sites
        # Of two data it can be told which axis of a computed value is theirs.
        has_computed = any(s.kind == "deterministic" for s in sites.values())
        count = max(kept, 2 if has_computed and source is None else 1)
        index = np.minimum(np.arange(start, start + count), self.drawing.num_samples - 1)
        batch = {k: b.asarray(v[index]) for k, v in self.rows.items()}
        values, chain, stats = self._draw(batch, b.fold_in(self.key, start), count)
        return {
            "values": {
                n: samples_first(sites[n], v, count)[:kept] if source is None
                else without_data_axis(sites[n], v)
                for n, v in tree_map(b.to_numpy, values).items()
            },
            "stats": tree_map(lambda v: b.to_numpy(v)[:kept], stats),
            "chain": tree_map(lambda v: b.to_numpy(v)[:, :kept], chain),
        }  # fmt: skip

    def _draw(self, batch: dict, key: Any, count: int) -> tuple[dict, dict, dict]:
        """(values of sites, what is kept of the chain, statistics)."""
        bound, params = self.bound, self.params
        if self._ends is not None:
            values, chain, stats = self._ends(params, batch, key, count)
            return values, chain or {}, stats
        if self.source is not None:
            return _each(bound, params, batch, key, count, self.source), {}, {}
        if bound.model.ancestral() is not None:
            return self._runs[count](params, batch, key), {}, {}
        once = partial(self._runs[count], params, batch, key)
        return check_ancestral(bound, params, batch, key, count, once), {}, {}


def _own_draws(bound: Bound, method: Any, return_chain: bool) -> Callable:
    """(params, batch, key, n) -> (values, chain, no statistics) of what climbs nothing."""
    if return_chain:
        with_path = method.path_of(bound)
        return lambda *given: (*with_path(*given), {})
    own = method.draws_of(bound)
    return lambda *given: (own(*given), {}, {})


def _bind(
    fitted: Fitted, b: Backend, inputs: dict[str, Any], num_samples: int
) -> tuple[Bound, dict, dict[str, np.ndarray]]:
    """(the model bound under these inputs, its parameters, inputs with one row a sample)."""
    own = arguments(fitted.model.program)
    shared, rows = merge_inputs(
        fitted.model, {}, {k: v for k, v in inputs.items() if k in own}, size=num_samples
    )
    # What the guide alone reads are data of the fit, or settings: shared by all samples.
    rest, _ = merge_inputs(fitted.model, {}, {k: v for k, v in inputs.items() if k not in own})
    blank = {k: v for k, v in fitted._blank_rows().items() if k not in shared}
    bound, params = fitted.bind(b, {**blank, **rows}, constants=shared)
    more = {k: b.asarray(v) if isinstance(v, np.ndarray) else v for k, v in rest.items()}
    return dataclasses.replace(bound, constants={**bound.constants, **more}), params, rows


@dataclasses.dataclass(frozen=True)
class _Globals:
    """Where a sample's global latents come from.

    Attributes:
        guide: those that the guide draws, given a batch of `batch_size` data.
        prior: those that the program draws; data of a program without a data plate are none.
    """

    guide: tuple[str, ...]
    prior: tuple[str, ...]
    batch_size: int

    def note(self, bound: Bound) -> str:
        """What the samples are."""
        drawn = f"{', '.join(self.prior)} from the prior" if self.prior else ""
        if not self.guide:
            return f"prior predictive: globals {drawn}" if drawn else "ancestral"
        text = f"posterior predictive: globals {', '.join(self.guide)} from the guide"
        return f"{text}, {drawn}" if drawn else text


def _source(
    fitted: Fitted, bound: Bound, predictive: str | None, method: Any, inputs: dict[str, Any]
) -> _Globals | None:
    """Where global latents come from, or None where a sample needs none of its own.

    Raises:
        AlgorithmError, DataError: see `generate`.
    """
    name, sites = bound.model.name, bound.structure.sites
    if method is not None and predictive is not None:
        raise AlgorithmError(
            f"generate: got predictive={predictive!r} with the method {method!r}, expected one of "
            "them: a chain draws all sites from their joint density; leave predictive out."
        )
    shared = [
        n for n, s in sites.items() if s.kind == "sample" and not s.is_local and not s.is_fixed
    ]
    guide = bound.guide_structure.sites if bound.guide_structure is not None else {}
    drawn = tuple(n for n in shared if n in guide)
    if predictive == "posterior" and not drawn:
        raise AlgorithmError(
            f"generate: got predictive='posterior', but {name!r} has "
            + ("no guide" if not guide else f"a guide that draws {sorted(guide)}")
            + f" and the globals {shared}, expected a guide of global latents (a sample's own "
            "latents always come from the prior); leave predictive out, or fit such a guide."
        )
    if method is not None or predictive == "prior":
        drawn = ()
    data = [n for n in inputs if n in sites]
    if data and not drawn:
        raise DataError(
            f"inputs: got {data[0]!r}, a site of {name!r}, expected inputs of its program, "
            f"{sorted(arguments(bound.model.program))}: generate draws the sites."
        )
    if drawn:
        _check_guide(fitted, bound, drawn)
    if not shared or method is not None:
        return None
    size = next((len(np.asarray(inputs[n])) for n in data), 1)
    known = {*drawn, *fitted.shapes}
    return _Globals(drawn, tuple(n for n in shared if n not in known), size)


def _check_guide(fitted: Fitted, bound: Bound, drawn: tuple[str, ...]) -> None:
    name, guide = bound.model.name, bound.require_guide("generate")
    known = {*fitted.params, *bound.model.fitted_params()}
    missing = sorted(set(bound.guide_structure.nets) - known)  # type: ignore[union-attr]
    if missing:
        raise AlgorithmError(
            f"generate: the nets {missing} of the guide of {name!r} have no parameters, expected "
            f"fitted ones to draw the globals {list(drawn)} from; fit it with SVI, or ask for "
            "predictive='prior'."
        )
    given = {*bound.constants, *arguments(bound.model.program)}
    wanted = [n for n, needed in arguments(guide).items() if needed and n not in given]
    if wanted:
        raise AlgorithmError(
            f"generate: the guide of {name!r} reads {wanted} to draw the globals {list(drawn)}, "
            f"expected them: inputs={{{wanted[0]!r}: the data of the fit}}; or ask for "
            "predictive='prior'."
        )


def _values(sites: Mapping[str, Any]) -> dict[str, Any]:
    return {n: s.value for n, s in sites.items() if s.kind != "factor"}


class _Runs(dict):
    """What makes so many draws at once, by their number, each compiled once for all chunks: a
    model's own loop (`Ancestral`), or its program."""

    def __init__(self, bound: Bound):
        self.bound, self.maker = bound, cast(Any, bound.model.ancestral())

    def __missing__(self, count: int) -> Callable:
        bound, compiled = self.bound, self.bound.backend.compile

        def loop(params: Any, batch: Any, key: Any) -> dict:
            return self.maker.generate(bound, params, key, count, batch)

        def program(params: Any, batch: Any, key: Any) -> dict:
            return _values(bound.trace(params, batch, key=key, batch_size=count, condition=False))

        has_loop = self.maker is not None
        self[count] = compiled(loop, over="steps") if has_loop else compiled(program, num_calls=1)
        return self[count]


def _each(
    bound: Bound, params: Any, batch: Any, key: Any, count: int, source: _Globals
) -> dict[str, Any]:
    """One run a sample, with globals of its own; values are stacked."""
    b = bound.backend

    def one(params: Any, row: Any, key: Any) -> dict:
        k_guide, k_model = b.split(key, 2)
        rows = {n: v[None] for n, v in row.items()}
        held = {}
        if source.guide:
            drawn = bound.trace_guide(params, rows, key=k_guide, batch_size=source.batch_size)
            held = {n: drawn[n].value for n in source.guide}
        sites = bound.trace(params, rows, held, key=k_model, batch_size=1, condition=False)
        return _values(sites)

    step = b.compile(one, num_calls=count)

    def run(params: Any, batch: Any, key: Any) -> dict:
        def body(carry: Any, x: tuple) -> tuple[Any, dict]:
            k, row = x
            return carry, step(params, row, k)

        return b.scan(body, b.asarray(np.zeros(())), (b.split(key, count), batch))[1]

    return b.compile(run, over="steps")(params, batch, key)
