"""`generate`: what does a model produce?

Draws are ancestral where the density is normalised, a sampler's chains where it is known up to a
constant. Latents outside the data plate (globals) come from the fitted guide, or from the prior:

    posterior predictive    w ~ q(w),  x ~ p(x | w)           prior predictive    w ~ p(w), ...

Every sample has globals of its own, so that samples are independent draws of these laws.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.draws import check_draws, warn_outside
from probgen.engine.fitted import AnyModel, Fitted
from probgen.engine.sample_chunks import in_chunks
from probgen.engine.spaces import OwnSpace
from probgen.engine.target import (
    AnySampler,
    DrawsModel,
    ShowsPath,
    Starts,
    transitions,
)
from probgen.engine.workers import Pool, each
from probgen.errors import AlgorithmError, DeclarationError
from probgen.language.capabilities import prior_of
from probgen.language.declared import checked
from probgen.language.kinds import Count, Inputs, PathLike
from probgen.language.memory import ask
from probgen.language.seeds import check_seed
from probgen.language.viewed import Plotted
from probgen.verbs.drawing import Drawer, Drawing
from probgen.verbs.predictive import data_sets


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
    executor: Pool | None = None,
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
        path: a folder for the samples, or an address (see `evaluate`). Chunks are kept beside it as
            they come, and the same call after a kill goes on from there, to the same samples, to
            the bit; the samples stand there when the call returns, and a further call of the same
            reads them.
        backend, device: those of the fit by default.
        executor: whose workers draw chunks, to the same samples, to the bit; see `evaluate`.

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
        WorkerError: of the executor's workers; see `evaluate`.

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
        _require_plain(draws, predictive, method, path, start, executor)
        return _at_draws(fitted, b, draws, num_samples, num_data, dict(inputs or {}), seed)
    starts: dict[str, np.ndarray] = {}
    if start is not None:
        if not isinstance(method, Starts):
            raise AlgorithmError(
                f"generate: got start= with method={method!r}, expected a sampler of a diffusion "
                "such as DDIM(50), which leads from noise to data; leave start out."
            )
        starts = method.start_rows(model, start, num_samples)
    drawing = Drawing(
        fitted, num_samples, seed, b.name if isinstance(backend, str) else b, device,
        chunk_size=chunk_size, inputs=dict(inputs or {}), starts=starts, method=method, space=space,
        predictive=predictive, return_chain=return_chain,
    )  # fmt: skip
    drawer = Drawer(drawing, b)
    sites, source = drawer.bound.structure.sites, drawer.source
    # Who draws a chain by a loop of its own keeps what it leads to alone.
    in_loop = isinstance(method, DrawsModel) or (
        method is None and source is None and model.ancestral() is not None
    )
    passed = model.sketch().sites if in_loop else ()
    numbers = 8 * drawer.bound.structure.count(1, passed) * num_samples
    cure = "draw fewer samples, call by call with other seeds"
    if method is not None and return_chain:
        shows: Any = method if isinstance(method, ShowsPath) else None
        numbers *= shows.num_calls(model) if shows else transitions(method)
        cure += ", or leave out return_chain"
    ask(f"generate: num_samples={num_samples}", numbers, cure, DeclarationError)
    spread = partial(each, executor, drawing, drawer)
    found = in_chunks(path, drawing.made, num_samples, chunk_size, spread)
    out = Samples(found["values"])
    if method is None:
        cure = "look at the parameters for NaN, and at the scales of the model's distributions"
        check_draws("generate", out, sites, 1, cure)
        out.note = "ancestral" if source is None else source.note(drawer.bound)
    else:
        check_draws(f"generate, chains of {method!r}", out, sites, 1, method.cure())
        warn_outside("generate", found["stats"].get("outside", np.zeros(0, bool)), method.cure())
        said = "" if space is None or isinstance(space, str) else f"; {space.note()}"
        if isinstance(method, DrawsModel) and prior_of(model) is not None:
            said += "; of the latent, by its prior, and x given it"
        out.note = method.note(found["stats"]) + said
        out.chain = found["chain"] if return_chain else None
    return out


def _require_plain(
    draws: Any, predictive: Any, method: Any, path: Any, start: Any, executor: Any
) -> None:
    found = {
        "predictive": predictive, "method": method, "path": path, "start": start,
        "executor": executor,
    }  # fmt: skip
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
