"""`infer`: which latents, given data? Draws from the posterior as an ArviZ DataTree.

All data are one batch here and the density is not scaled: a posterior is that of the whole data
set. Samplers know nothing of results; this file turns their draws on the real line into values.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

import probgen
from probgen.backends.chains import Chains
from probgen.backends.protocol import Backend
from probgen.data.sources import as_whole
from probgen.engine import provenance
from probgen.engine import warm_start as warm_starts
from probgen.engine.auto_guide import require_settled
from probgen.engine.batches import merge_inputs
from probgen.engine.bound import Bound
from probgen.engine.chain_pieces import Pieces, apart
from probgen.engine.chain_pieces import chains as kept_chains
from probgen.engine.chain_watch import Until, lacking
from probgen.engine.draws import check_draws, warn_outside
from probgen.engine.fitted import AnyModel
from probgen.engine.posterior import Posterior
from probgen.engine.target import AnySampler, Sampler
from probgen.engine.workers import Pool, each
from probgen.errors import AlgorithmError, DeclarationError
from probgen.language.declared import checked
from probgen.language.kinds import Count, Inputs, Names, PathLike
from probgen.language.memory import ask
from probgen.language.seeds import check_seed
from probgen.progress import log
from probgen.records import places, store
from probgen.verbs.datatree import check_names, to_datatree
from probgen.verbs.sampling import Sampling, Walker, start


@checked
def infer(
    model: AnyModel,
    data: Any,
    method: AnySampler,
    *,
    inputs: Inputs = None,
    names: Names = None,
    num_data: Count | None = None,
    seed: int | None = None,
    backend: str | Backend = "auto",
    device: str = "auto",
    log_likelihood: bool = False,
    chunk_size: Count | None = None,
    until: Until | None = None,
    warm_start: Any = None,
    path: PathLike | None = None,
    executor: Pool | None = None,
    progress_bar: bool = True,
) -> Any:
    """Draws from p(latents | data), by Markov chains or by the model's guide.

    Args:
        model: a declaration, or a `Fitted` (whose parameters are held: only latents are inferred).
        data: as in `fit`: an array (observes the site "x"), or arrays by site name; None or {} for
            a program that is itself the density, or observes by `obs=`. All are one batch, so a
            site in further plates, [*plates, data, *event], or outside the data plate, [*event],
            may be observed too.
        method: a sampler: `NUTS(num_warmup=500, num_samples=1000, num_chains=4)` and `HMC`;
            `Langevin`, plain or with metropolis=True; `Guide(num_samples=1000)`, the
            model's own guide, for a `Fitted`.
        inputs: what the program conditions on; arrays as long as the data have one row a datum.
        names: which entries of a data set observe which sites.
        num_data: size of the data plate where neither data nor inputs set it; or, above the number
            of data given, how many they stand for: what is observed in the data plate then counts
            num_data / (rows given) times, for a model without latents of single data.
        seed: an integer; same seed, same backend, same machine: same draws.
        backend, device: "auto" is the fit's own for a `Fitted`, else JAX where it is installed.
        log_likelihood: also give each observed value's log density at each draw, nats; of data that
            share a discrete latent, which is summed out, that of each datum given the others.
        chunk_size: draws at a time when they are mapped to values and log likelihoods; None takes
            as many as memory easily holds. It changes no number.
        until: `Until(rhat=1.01, ess=400)` ends chains of one sampler once they are long enough, at
            the first of some twenty looks; the sampler's number of draws is then the most.
        warm_start: the draws of an earlier call, whose chains go on: each from its last position,
            with its step size and mass matrix, which stand in their group `sampling_state`. With
            `num_warmup=0` nothing is learned anew; else the warm-up starts from them. Data may be
            others, such as a few more, where the latents are the same; so may the backend, and the
            engine of NUTS and HMC. The first chains go on where there are more than `num_chains`.
            `Langevin` with adapt_step_size=True takes positions and the step size of another such
            run; other samplers take the positions. The noise is another than that
            of the earlier call, of the same seed too: n and then m draws have the law of n + m,
            and are not the same numbers.
        path: a folder for the chains, or an address (see `evaluate`). Draws are kept beside it as
            they come, and the same call after a kill goes on from there, to the same draws, to the
            bit, where model, data, inputs, method and seed are the same by their content
            (`probgen.language.identity`): from the last of some twenty pieces of warm-up and twenty
            of draws (by Pyro's engine, whose chains run one after another, of its finished chains).
            The chains stand there when the call returns, and a further call of the same reads them.
        executor: whose workers run the chains, each by itself, whole; see `evaluate`. Chains of
            NUTS and HMC have their own noise in any case, so that they are those of the call
            without an executor, to the rounding of sums over one chain in place of many, which a
            long trajectory may turn into another one of the same law. Chains of other samplers
            share noise and step size where they run together, and have their own here: other draws
            of the same law. With a `path` whole chains are kept.
        progress_bar: shows one on a terminal.

    Returns:
        An ArviZ DataTree. `posterior`: latents and deterministic sites, dimensions (chain, draw,
        *plates, *event) with the plates' names ("data" is the data plate) and "<site>_dim_0"...
        for events; a "/" of a submodel's site becomes ".". Discrete latents of finitely many values
        are summed out: the chains run on the others, and "<site>.probs" has the probability of
        each value at each draw, on a last axis. `sample_stats`: see the method.
        `observed_data`, `constant_data`, and `log_likelihood` on request. `sampling_state`: where
        each chain ended on the real line and, for `warm_start`, its learned step size and, of NUTS
        and HMC, its inverse mass matrix (`inv_metric`). Attributes record backend, device,
        versions, seed, method and seconds.

    Raises:
        MissingSeed: there is no seed, or no integer.
        AlgorithmError: no latents, a discrete one that cannot be summed out, nets without
            parameters; by `Guide` of a chain of more than 200 steps; a `warm_start` of other
            latents or shapes, of fewer chains, or with another kind of mass matrix.
        SupportError: data outside the support of their site.
        NonFiniteError: no starting point has a finite log density; a draw is NaN or infinite.
        DataError, UnknownName, ShapeError: data or inputs that do not fit the program; a
            `warm_start` that is no draws of `infer`.
        SaveError: `path` cannot be written, or holds something else, or chains of another call
            (says what differs); another process is writing there.
        WorkerError: of the executor's workers; see `evaluate`.
        KeyboardInterrupt, Terminated: Ctrl-C or SIGTERM; with a `path` after the piece that runs.

    Warns: draws of a chain where the density is 0 or no number: how many, and what to do.
    """
    seed = check_seed(seed, "infer")
    if path is not None:
        path = places.at(path)
        store.check_place(path, "chains")
    warm = None if warm_start is None else warm_starts.from_draws(warm_start)
    b, declared, given, constants = start(model, backend, device)
    if reads_guide := getattr(method, "reads_guide", False):
        require_settled(declared, "infer")
    empty = data is None or (isinstance(data, Mapping) and not data)
    arrays = {} if empty else as_whole(data, names=names)
    shared, per_datum = merge_inputs(declared, arrays, inputs)
    constants = {**constants, **shared}
    rows = {**arrays, **per_datum}
    sampling = Sampling(
        declared, method, given, constants, rows, num_data, seed,
        b.name if isinstance(backend, str) else b, device, warm,
    )  # fmt: skip
    walker = Walker(sampling, b)
    bound, params, posterior = walker.bound, walker.params, walker.posterior
    bound.require_density_of_data("infer")
    if declared.random_sites:
        raise AlgorithmError(
            f"infer: the density of {declared.name!r} is an estimate by the random draws "
            f"{list(declared.random_sites)}, expected one that is the same at every call, since "
            "chains would climb the noise too; of a Subject give fixed_draws=0, its draws' seed."
        )
    if reads_guide:
        mean = "fitted.encode(data) gives the mean of what stands beside the chain, such as z"
        bound.require_short("infer, Guide", mean)
    _check_nets(bound, given, reads_guide)
    check_names(bound)
    posterior.check()
    if until is not None:
        until.require_chains(method.num_chains)
        if executor is not None:
            raise AlgorithmError(
                f"infer: got until={until!r} with an executor, expected one of them: chains that "
                "workers run, each by itself, are not looked at together before they end."
            )
    _ask(posterior, method, log_likelihood)
    walker.place()
    if warm is not None:
        shapes = posterior.free_shapes(params, walker.placed, walker.key, walker.token)
        warm_starts.check(warm, method, shapes)
    began = time.perf_counter()

    def made() -> dict[str, Any]:
        return provenance.of_posterior(
            declared, method, b, seed=seed, rows=rows, constants=constants, params=params,
            num_data=num_data, until=until, warm=warm,
        )  # fmt: skip

    def run(pieces: Pieces) -> Chains:
        return walker.run(pieces, progress_bar)

    if executor is not None:
        spread = partial(each, executor, sampling, walker)
        chains = apart(path, made, method.num_chains, method.num_warmup, spread)
    elif path is None:
        chains = run(Pieces(until=until))
    else:
        chains = kept_chains(path, made(), run, until)
    seconds = time.perf_counter() - began

    def mapped(what: str) -> dict[str, np.ndarray]:
        return posterior.map_draws(what, chains, params, walker.placed, walker.token, chunk_size)

    values = mapped("values")
    drawn = {n: v for n, v in values.items() if n in bound.structure.sites}
    check_draws(f"infer, {type(method).__name__}", drawn, bound.structure.sites, 2, method.cure())
    stats = chains.stats
    if not reads_guide:  # a guide's draw of no density has the weight 0
        warn_outside("infer", ~np.isfinite(stats.get("lp", np.zeros(0))), method.cure())
    groups = {"posterior": values, "sample_stats": stats}
    if log_likelihood:
        groups["log_likelihood"] = mapped("log_likelihood")
    sites = bound.structure.sites
    groups["observed_data"] = {n: v for n, v in rows.items() if n in sites}
    groups["constant_data"] = {
        n: np.asarray(v) for n, v in {**constants, **rows}.items() if n not in sites
    }
    versions = {**b.versions(), "probgen": probgen.__version__}
    attributes = {
        "model": declared.name, "method": repr(method), "note": method.note(_of_chains(stats)),
        "backend": b.name, "device": b.device,
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()), "seed": seed,
        "sums": b.info()["sums"],
        "sampling_time": seconds, "tuning_steps": chains.num_warmup,
        "inference_library": "probgen", "inference_library_version": probgen.__version__,
    }  # fmt: skip
    if until is not None:
        attributes |= {"until": repr(until), "lacks": lacking(until, chains.free)}
        if attributes["lacks"]:
            log.warning(
                "infer: all %d draws of each chain do not suffice: %s; raise the sampler's number "
                "of draws.", method.num_draws, attributes["lacks"],
            )  # fmt: skip
    before = 0 if warm is None else warm.transitions
    if warm is not None:
        attributes["warm_start"] = f"after {before} transitions of each chain"
    tree = to_datatree(posterior, groups, attributes)
    if warm_starts.goes_on(method):
        tree[warm_starts.GROUP] = type(tree)(warm_starts.to_dataset(method, chains, before))
    return tree


def _of_chains(stats: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a sampler's note says of its chains, [chain] by name, of statistics [chain, draw]."""
    means = {n: stats[n].mean(1) for n in ("acceptance_rate", "clipped") if n in stats}
    return means | ({"diverged": stats["diverging"].any(1)} if "diverging" in stats else {})


def _ask(posterior: Posterior, method: Sampler, log_likelihood: bool) -> None:
    """All draws are in memory at the end, on the real line and as values: 8 bytes a number."""
    chains, draws = method.num_chains, method.num_draws
    sites = posterior.bound.structure.sites
    numbers = sum(math.prod(posterior.shape(n)) for n in posterior.latents)
    if log_likelihood:
        numbers += sum(
            math.prod(posterior.shape(n)) for n in posterior.bound.observed if n in sites
        )
    ask(
        f"infer: {chains:,} chains of {draws:,} draws of {numbers:,} numbers",
        8 * chains * draws * numbers, "take fewer draws, or thin them (thinning=)",
        DeclarationError,
    )  # fmt: skip


def _check_nets(bound: Bound, params: Any, with_guide: bool) -> None:
    known = {*bound.model.fitted_params(), *(params or {})}
    nets = set(bound.structure.nets)
    if with_guide and bound.guide_structure is not None:
        nets |= set(bound.guide_structure.nets)
    missing = sorted(nets - known)
    if missing:
        raise AlgorithmError(
            f"infer: the nets {missing} of {bound.model.name!r} have no parameters, expected "
            "fitted ones; give infer what pg.fit returns, or declare the weights as latents."
        )
