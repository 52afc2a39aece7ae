"""`generate`: what does a model produce?

Draws are ancestral where the density is normalised, a sampler's chains where it is known up to a
constant. Latents outside the data plate (globals) come from the fitted guide, or from the prior:

    posterior predictive    w ~ q(w),  x ~ p(x | w)           prior predictive    w ~ p(w), ...

Every sample has globals of its own, so that samples are independent draws of these laws.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, Protocol

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.batches import merge_inputs
from probgen.engine.bound import Bound
from probgen.engine.draws import check_draws, samples_first, without_data_axis
from probgen.engine.explain import check_ancestral
from probgen.engine.fitted import AnyFitted, Fitted
from probgen.errors import AlgorithmError, DataError, DeclarationError
from probgen.language.declared import checked
from probgen.language.kinds import Count, Inputs, having
from probgen.language.memory import ask
from probgen.language.model import arguments
from probgen.language.seeds import check_seed
from probgen.trees import tree_map


class Sampler(Protocol):
    """A method of drawing from a model, such as `Langevin`: used where ancestral draws cannot be.

    `generate` gives (values by site, the chain or None, statistics [chains] by name); `batch` are
    the inputs with one row a sample. `note` says what the draws target and how the chains went;
    `cure` what to do where they end at NaN.
    """

    def generate(
        self, bound: Bound, params: Any, batch: Any, key: Any, num_samples: int, space: str | None,
        *, keep_chain: bool,
    ) -> tuple[dict, dict | None, dict]: ...  # fmt: skip

    def note(self, stats: Mapping[str, np.ndarray] | None = None) -> str: ...

    def cure(self) -> str: ...


AnySampler = Annotated[
    Sampler, having("a sampler such as Langevin(step_size=1e-2, num_steps=100)", "generate")
]


class Samples(dict):
    """Draws by site name, numpy [num_samples, *plates, *event].

    Attributes:
        note: how they were made, what they target where that is not the model itself, and how
            chains went.
        chain: values along the chain (noise in noise space), [steps, chains, ...], when they were
            asked for.
    """

    note: str = "ancestral"
    chain: dict[str, np.ndarray] | None = None

    def __repr__(self) -> str:
        shapes = ", ".join(f"{k}: {v.shape}" for k, v in self.items())
        return f"Samples({shapes}; {self.note})"


@checked
def generate(
    fitted: AnyFitted,
    num_samples: Count,
    *,
    seed: int | None = None,
    predictive: Literal["prior", "posterior"] | None = None,
    method: AnySampler | None = None,
    space: Literal["data", "noise", "latent"] | None = None,
    inputs: Inputs = None,
    chunk_size: Count = 1000,
    return_chain: bool = False,
    backend: str | Backend = "auto",
    device: str = "auto",
) -> Samples:
    """Draws from a fitted model.

    Args:
        fitted: model and parameters.
        num_samples: how many data.
        seed: an integer.
        predictive: where global latents come from: "posterior", the fitted guide, or "prior". None
            is "posterior" for a model whose guide draws some. Each sample has its own. A guide that
            reads the data gets them by `inputs` (all of them, under the site's name).
        method: a sampler such as `Langevin(step_size, num_steps)`; needed for densities that are
            known up to a constant, which have no ancestral draws.
        space: where the sampler lives: "data" or "noise" (its default).
        inputs: arrays with one row per sample, or constants.
        chunk_size: samples drawn at a time, for memory.
        return_chain: also keep the sampler's values along the way, in `Samples.chain`.
        backend, device: those of the fit by default.

    Returns:
        `Samples`: a dict of every site's values, global and deterministic ones too.

    Raises:
        MissingSeed: there is no seed, or no integer.
        AlgorithmError: the density is not normalised and no method was given, or the reverse; there
            is no guide to draw globals from.
        DataError: an input that the model does not take, or that is one of its sites.
        NonFiniteError: draws that are NaN or infinite; says what to do.
    """
    seed = check_seed(seed, "generate")
    if method is None and (space is not None or return_chain):
        raise AlgorithmError(
            f"generate: got space={space!r}, return_chain={return_chain} without a method, "
            "expected one whose chains they are about, such as Langevin(1e-2, num_steps=100)."
        )
    model, b = fitted.model, fitted.resolve(backend, device)
    bound, params, rows = _bind(fitted, b, dict(inputs or {}), num_samples)
    if method is None and not bound.is_normalized:
        raise AlgorithmError(
            f"generate: the density of {model.name!r} is known up to a constant, so it has no "
            "ancestral draws; give a method such as Langevin(step_size=1e-2, num_steps=100)."
        )
    source = _source(fitted, bound, predictive, method, dict(inputs or {}))
    sites, key = bound.structure.sites, b.key(seed)
    numbers = sum(math.prod(s.event_shape) for s in sites.values() if s.kind == "sample")
    cure = "draw fewer samples, call by call with other seeds"
    ask(f"generate: num_samples={num_samples}", 8 * numbers * num_samples, cure, DeclarationError)
    # Of two data it can be told which axis of a computed value is theirs.
    least = 2 if any(s.kind == "deterministic" for s in sites.values()) and source is None else 1
    parts, chains, stats = [], [], []
    for start in range(0, num_samples, chunk_size):
        kept = min(chunk_size, num_samples - start)
        count = max(kept, least)
        index = np.minimum(np.arange(start, start + count), num_samples - 1)
        batch = {k: b.asarray(v[index]) for k, v in rows.items()}
        k = b.fold_in(key, start)
        if method is not None:
            values, chain, run = method.generate(
                bound, params, batch, k, count, space, keep_chain=return_chain
            )
            stats.append(tree_map(lambda v, n=kept: b.to_numpy(v)[:n], run))
            chains.append(tree_map(lambda v, n=kept: b.to_numpy(v)[:, :n], chain or {}))
        elif source is not None:
            values = _each(bound, params, batch, k, count, source)
        elif hasattr(model, "generate"):
            values = model.generate(bound, params, batch, k, count)
        else:
            draw = partial(_together, bound, params, batch, k, count)
            values = check_ancestral(bound, params, batch, k, count, draw)
        found = tree_map(b.to_numpy, values)
        parts.append({
            n: samples_first(sites[n], v, count)[:kept] if source is None
            else without_data_axis(sites[n], v) for n, v in found.items()
        })  # fmt: skip
    out = Samples(_joined(parts, 0))
    if method is None:
        cure = "look at the parameters for NaN, and at the scales of the model's distributions"
        check_draws("generate", out, sites, 1, cure)
        out.note = "ancestral" if source is None else source.note(bound)
    else:
        check_draws(f"generate, chains of {method!r}", out, sites, 1, method.cure())
        out.note = method.note(_joined(stats, 0))
        out.chain = _joined(chains, 1) if return_chain else None
    return out


def _joined(parts: list[dict], axis: int) -> dict[str, np.ndarray]:
    return {n: np.concatenate([p[n] for p in parts], axis=axis) for n in parts[0]}


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
        prior: those that the program draws.
    """

    guide: tuple[str, ...]
    prior: tuple[str, ...]
    batch_size: int

    def note(self, bound: Bound) -> str:
        """What the samples are."""
        drawn = f"{', '.join(self.prior)} from the prior" if self.prior else ""
        if not self.guide:
            return f"prior predictive: globals {drawn}"
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
    return _Globals(drawn, tuple(n for n in shared if n not in drawn), size)


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


def _together(bound: Bound, params: Any, batch: Any, key: Any, count: int) -> dict:
    """All samples by one run."""

    def run(params: Any, batch: Any, key: Any) -> dict:
        return _values(bound.trace(params, batch, key=key, batch_size=count, condition=False))

    return bound.backend.compile(run, num_calls=1)(params, batch, key)


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

    return b.loop(run)(params, batch, key)
