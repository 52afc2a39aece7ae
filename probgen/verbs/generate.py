"""`generate`: what does a model produce?

Draws are ancestral where the density is normalised, a sampler's chains where it is known up to a
constant. Latents outside the data plate (globals) come from the fitted guide, or from the prior:

    posterior predictive    w ~ q(w),  x ~ p(x | w)           prior predictive    w ~ p(w), ...

Every sample has globals of its own, so that samples are independent draws of these laws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, cast

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine import provenance
from probgen.engine.batches import merge_inputs
from probgen.engine.bound import Bound
from probgen.engine.draws import check_draws, samples_first, warn_outside, without_data_axis
from probgen.engine.explain import check_ancestral
from probgen.engine.fitted import AnyModel, Fitted
from probgen.engine.sample_chunks import in_chunks
from probgen.engine.spaces import OwnSpace
from probgen.engine.target import (
    AnySampler,
    DrawsModel,
    HasRows,
    ShowsPath,
    Starts,
    transitions,
)
from probgen.errors import AlgorithmError, DataError, DeclarationError
from probgen.language.capabilities import prior_of
from probgen.language.declared import checked
from probgen.language.kinds import Count, Inputs, PathLike
from probgen.language.memory import ask
from probgen.language.model import arguments
from probgen.language.seeds import check_seed
from probgen.language.viewed import Plotted
from probgen.trees import tree_map
from probgen.verbs.chains import chains
from probgen.verbs.predictive import data_sets, require_params


class Samples(Plotted, dict):
    """Draws by site name, numpy [num_samples, *plates, *event].

    Attributes:
        note: how they were made, what they target where that is not the model itself, and how
            chains went.
        chain: values along the chain (noise in noise space), [steps, chains, ...], when they were
            asked for.
    """

    _plot = "plot_samples"
    note: str = "ancestral"
    chain: dict[str, np.ndarray] | None = None

    def __repr__(self) -> str:
        shapes = ", ".join(f"{k}: {v.shape}" for k, v in self.items())
        return f"Samples({shapes}; {self.note})"


@checked
def generate(
    fitted: AnyModel,
    num_samples: Count,
    *,
    draws: Any = None,
    num_data: Count | None = None,
    seed: int | None = None,
    predictive: Literal["prior", "posterior"] | None = None,
    method: AnySampler | None = None,
    space: Literal["data", "noise", "latent"] | OwnSpace | None = None,
    inputs: Inputs = None,
    start: Any = None,
    chunk_size: Count = 1000,
    return_chain: bool = False,
    path: PathLike | None = None,
    backend: str | Backend = "auto",
    device: str = "auto",
) -> Samples:
    """Draws from a model: of new data one by one, or of whole data sets at posterior draws.

    Args:
        fitted: model and parameters; or a declaration without nets, whose globals then come from
            the prior (prior predictive) or from `draws`.
        num_samples: how many data; with `draws`, how many data sets, each by a draw of its own.
        draws: what `pg.infer` returned (by NUTS, or by `Guide` of an SVI fit), or globals by name,
            [chain, draw, ...]: the posterior predictive at `inputs`, old or new. Latents of single
            data are drawn anew.
        num_data: with `draws`, how many data there are in a set, where no input tells it.
        seed: an integer.
        predictive: where global latents come from: "posterior", the fitted guide, or "prior". None
            is "posterior" for a model whose guide draws some. Each sample has its own. A guide that
            reads the data gets them by `inputs` (all of them, under the site's name).
        method: a sampler such as `Langevin(step_size, num_steps)`; needed for densities that are
            known up to a constant, which have no ancestral draws. `Ancestral()` is what is done
            without a method; `DDIM(num_steps=50)` draws from a diffusion in fewer steps, also where
            it is the prior of a VAE's latent.
        space: where the chains live: "data", the default without latents, or "noise", with them; or
            a space of one's own, such as `Noise(as_released=True)`, of which the note speaks.
        inputs: arrays with one row per sample, or constants.
        start: where a diffusion's sampler starts, in place of noise of its own: an array
            [num_samples, *event], or the dict that `fitted.encode(x, method=DDIMInverse(50))`
            gives, or `NullTextInversion(...)`, with the null text of each step.
        chunk_size: samples drawn at a time, for memory; noise belongs to the chunk, so that others
            give other draws.
        return_chain: also keep the sampler's values along the way, in `Samples.chain`; of a
            diffusion's sampler after each call of the network.
        path: a folder for the samples. Chunks are kept beside it as they come, and the same call
            after a kill goes on from there, to the same samples, to the bit; the samples stand
            there when the call returns, and a further call of the same reads them.
        backend, device: those of the fit by default.

    Returns:
        `Samples`: a dict of every site's values, global and deterministic ones too; with `draws`
        [num_samples, *plates, *event], the data plate as long as the inputs.

    Raises:
        MissingSeed: there is no seed, or no integer.
        AlgorithmError: the density is not normalised and no method was given, or the reverse; there
            is no guide to draw globals from.
        DataError: an input that the model does not take, or that is one of its sites; `start` is of
            another site.
        ShapeError: `start` of another shape.
        NonFiniteError: draws that are NaN or infinite; says what to do.
        SaveError: `path` cannot be written, or holds something else, or samples of another call
            (says what differs); another process is writing there.

    Warns: chains that end where the density is 0 or no number: how many, and what to do.
    """
    seed = check_seed(seed, "generate")
    if getattr(method, "is_ancestral", False):
        method = None
    no_space = method is None or isinstance(method, DrawsModel)
    no_chain = no_space and not isinstance(method, ShowsPath)
    if (no_space and space is not None) or (no_chain and return_chain):
        raise AlgorithmError(
            f"generate: got space={space!r}, return_chain={return_chain} without a method, "
            "expected one whose chains they are about, such as Langevin(1e-2, num_steps=100)."
        )
    if not isinstance(fitted, Fitted):
        fitted, predictive = Fitted(fitted, {}), None if draws is not None else "prior"
    model, b = fitted.model, fitted.resolve(backend, device)
    if draws is not None or num_data is not None:
        _require_plain(draws, predictive, method, path, start)
        return _at_draws(fitted, b, draws, num_samples, num_data, dict(inputs or {}), seed)
    bound, params, rows = _bind(fitted, b, dict(inputs or {}), num_samples)
    require_params(bound, fitted.params, "generate")
    if method is None and not bound.is_drawn:
        raise AlgorithmError(
            f"generate: the density of {model.name!r} is known up to a constant, so it has no "
            "ancestral draws; give a method such as Langevin(step_size=1e-2, num_steps=100)."
        )
    starts: dict[str, np.ndarray] = {}
    if start is not None:
        if not isinstance(method, Starts):
            raise AlgorithmError(
                f"generate: got start= with method={method!r}, expected a sampler of a diffusion "
                "such as DDIM(50), which leads from noise to data; leave start out."
            )
        starts = method.start_rows(model, start, num_samples)
    if isinstance(method, HasRows):
        rows = {**rows, **method.sample_rows(model, num_samples)}
    rows = {**rows, **starts}
    source = _source(fitted, bound, predictive, method, dict(inputs or {}))
    sites, key = bound.structure.sites, b.key(seed)
    # Who draws a chain by a loop of its own keeps what it leads to alone.
    in_loop = isinstance(method, DrawsModel) or (
        method is None and source is None and model.ancestral() is not None
    )
    passed = model.sketch().sites if in_loop else ()
    numbers = 8 * bound.structure.count(1, passed) * num_samples
    cure = "draw fewer samples, call by call with other seeds"
    if method is not None and return_chain:
        shows: Any = method if isinstance(method, ShowsPath) else None
        numbers *= shows.num_calls(model) if shows else transitions(method)
        cure += ", or leave out return_chain"
    ask(f"generate: num_samples={num_samples}", numbers, cure, DeclarationError)
    # Of two data it can be told which axis of a computed value is theirs.
    least = 2 if any(s.kind == "deterministic" for s in sites.values()) and source is None else 1
    ends, runs = None, _Runs(bound)
    if isinstance(method, DrawsModel):
        ends = _own_draws(bound, method, return_chain)
    elif method is not None:
        num_chunks = -(-num_samples // chunk_size)
        ends = chains(bound, method, space, num_chunks, return_chain)

    def draw(start: int, stop: int) -> dict[str, dict[str, np.ndarray]]:
        kept = stop - start
        count = max(kept, least)
        index = np.minimum(np.arange(start, start + count), num_samples - 1)
        batch = {k: b.asarray(v[index]) for k, v in rows.items()}
        k, stats, chain = b.fold_in(key, start), {}, {}
        if ends is not None:
            values, chain, stats = ends(params, batch, k, count)
        elif source is not None:
            values = _each(bound, params, batch, k, count, source)
        elif model.ancestral() is not None:
            values = runs[count](params, batch, k)
        else:
            once = partial(runs[count], params, batch, k)
            values = check_ancestral(bound, params, batch, k, count, once)
        return {
            "values": {
                n: samples_first(sites[n], v, count)[:kept] if source is None
                else without_data_axis(sites[n], v)
                for n, v in tree_map(b.to_numpy, values).items()
            },
            "stats": tree_map(lambda v: b.to_numpy(v)[:kept], stats),
            "chain": tree_map(lambda v: b.to_numpy(v)[:, :kept], chain or {}),
        }  # fmt: skip

    def made() -> dict[str, Any]:
        given = {**(inputs or {}), **starts}
        return provenance.of_samples(
            fitted, b, seed=seed, method=method, inputs=given, num_samples=num_samples,
            chunk_size=chunk_size, predictive=predictive, space=space, return_chain=return_chain,
        )  # fmt: skip

    found = in_chunks(path, made, num_samples, chunk_size, draw)
    out = Samples(found["values"])
    if method is None:
        cure = "look at the parameters for NaN, and at the scales of the model's distributions"
        check_draws("generate", out, sites, 1, cure)
        out.note = "ancestral" if source is None else source.note(bound)
    else:
        check_draws(f"generate, chains of {method!r}", out, sites, 1, method.cure())
        warn_outside("generate", found["stats"].get("outside", np.zeros(0, bool)), method.cure())
        said = "" if space is None or isinstance(space, str) else f"; {space.note()}"
        if isinstance(method, DrawsModel) and prior_of(model) is not None:
            said += "; of the latent, by its prior, and x given it"
        out.note = method.note(found["stats"]) + said
        out.chain = found["chain"] if return_chain else None
    return out


def _own_draws(bound: Bound, method: Any, return_chain: bool) -> Callable:
    """(params, batch, key, n) -> (values, chain, no statistics) of what climbs nothing."""
    if return_chain:
        with_path = method.path_of(bound)
        return lambda *given: (*with_path(*given), {})
    own = method.draws_of(bound)
    return lambda *given: (own(*given), {}, {})


def _require_plain(draws: Any, predictive: Any, method: Any, path: Any, start: Any) -> None:
    found = {"predictive": predictive, "method": method, "path": path, "start": start}
    given = [k for k, v in found.items() if v is not None]
    if draws is None or given:
        got = f"{given[0]}= with draws=" if draws is not None else "num_data= without draws="
        raise AlgorithmError(
            f"generate: got {got}, expected draws= by itself: whole data sets, ancestral given "
            "these globals; leave the other out."
        )


def _at_draws(
    fitted: Fitted, b: Backend, draws: Any, num_samples: int, num_data: int | None,
    inputs: dict[str, Any], seed: int,
) -> Samples:  # fmt: skip
    given = {k: np.asarray(v) if isinstance(v, list | tuple) else v for k, v in inputs.items()}
    values, bound = data_sets(fitted, b, draws, num_samples, num_data, given, b.key(seed), seed)
    out = Samples(values)
    check_draws("generate", out, bound.structure.sites, 1, "look at the draws of its parameters")
    names = [n for n in bound.latents if not bound.structure.sites[n].is_local]
    out.note = f"posterior predictive: globals {', '.join(names)} from the draws"
    return out


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
