"""`pg.compare`: one model and its data by several methods, in one table and on one page."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.fitted import AnyModel
from probgen.errors import DataError, ProbgenError, UnknownName
from probgen.evaluation.posteriors.comparison import (
    MethodResult,
    PosteriorComparison,
    PosteriorDifference,
)
from probgen.evaluation.posteriors.methods import FitThenDraw, Ran, log_weights, named, run
from probgen.evaluation.posteriors.moments import Moments, moments
from probgen.inference.likelihood.importance import importance_estimate
from probgen.inference.likelihood.psis import khat_limit
from probgen.language.declared import checked
from probgen.language.dist import did_you_mean
from probgen.language.kinds import Inputs, Names
from probgen.language.seeds import check_seed
from probgen.verbs.sampling import start

log = logging.getLogger("probgen")
GIVEN = "given numbers"  # the reference's name where it is no method


@checked
def compare(
    model: AnyModel,
    data: Any,
    methods: Any,
    *,
    reference: Any = None,
    sites: Names = None,
    inputs: Inputs = None,
    seed: int | None = None,
    backend: str | Backend = "auto",
    device: str = "auto",
    progress_bar: bool = True,
) -> PosteriorComparison:
    """Posteriors by several methods: means and sds against a reference, evidence, cost.

        found = pg.compare(
            eight_schools, {"y": y}, {"NUTS": NUTS(), "mean field": AutoNormal(),
            "full rank": AutoMultivariateNormal()}, inputs={"scale": scale}, seed=0,
        )
        print(found); found.save("runs/schools.html")

    Args:
        model, data, inputs, seed, backend, device: as of `pg.infer`; all methods share them.
        methods: by name, or a list: samplers of `pg.infer` (`NUTS()`, `HMC()`, `Langevin(...)`);
            automatic guides, each fitted by 2,000 steps of SVI with 8 particles; or
            `FitThenDraw(...)` for any algorithm of `pg.fit`, such as `EM`, and a sampler after it.
        reference: name of the method that the others are held against; or draws of another run, a
            DataTree or arrays [chain, draw, ...] by site; or exact pairs (mean, sd) by site. None:
            of the chains those of the largest effective sample size.
        sites: which sites to compare; None: all that every method draws.
        progress_bar: shows each method's own on a terminal.

    Returns:
        A `PosteriorComparison`. A method that fails keeps its sentence there, and the others go on.

    Raises:
        DeclarationError: no method, or something that is no method.
        UnknownName: `reference` or `sites` names nothing that is there.
        DataError: the reference and the methods share no site; the reference itself failed.
        ProbgenError: all methods failed: the first one's error.
    """
    seed = check_seed(seed, "compare")
    chosen = named(methods)
    if isinstance(reference, str) and reference not in chosen:
        raise UnknownName(
            f"compare: got reference={reference!r}, expected one of {list(chosen)}"
            f"{did_you_mean(reference, chosen)}, draws, or pairs (mean, sd) by site."
        )
    given = None if reference is None or isinstance(reference, str) else moments(reference)
    b, declared, _, _ = start(model, backend, device)
    options = {"seed": seed, "backend": b, "progress_bar": progress_bar}
    runs = _run_all(chosen, model, data, inputs, options)
    found = {n: moments(r.draws) for n, r in runs.items() if isinstance(r, Ran)}
    if isinstance(reference, str) and reference not in found:
        raise DataError(f"compare: the reference {reference!r} failed: {runs[reference][0]}")
    name = reference if isinstance(reference, str) else GIVEN if given else _best(chosen, found)
    truth = given or found[name]
    names = _shared(truth, found, sites)
    truth = truth.of(names)
    results = {
        n: _result(n, chosen[n], runs[n], found.get(n), None if n == name else truth, names)
        for n in chosen
    }
    return PosteriorComparison(names, results, name, truth, declared.name, b.name, b.device, seed)


def _run_all(chosen: Mapping, model: Any, data: Any, inputs: Any, options: dict) -> dict[str, Any]:
    """By method what it gave, or (its error, its seconds)."""
    runs: dict[str, Any] = {}
    for name, method in chosen.items():
        began = time.perf_counter()
        try:
            runs[name] = run(method, model, data, inputs=inputs, **options)
        except ProbgenError as error:
            log.warning("compare: %s failed: %s", name, error)
            runs[name] = (error, time.perf_counter() - began)
    if not any(isinstance(r, Ran) for r in runs.values()):
        raise next(iter(runs.values()))[0]
    return runs


def _best(chosen: Mapping, found: Mapping[str, Moments]) -> str:
    """The chains of the largest effective sample size; without chains the first method."""
    chains = [n for n in found if not isinstance(chosen[n], FitThenDraw)] or list(found)[:1]
    return max(chains, key=lambda n: found[n].ess.min())


def _shared(truth: Moments, found: Mapping[str, Moments], sites: Any) -> tuple[str, ...]:
    """Scalars that the reference and every method have, of the sites that are asked for."""
    names = [n for n in truth.names if all(n in m.names for m in found.values())]
    if not names:
        raise DataError(
            f"compare: the reference has {list(truth.names)[:8]} and the methods draw "
            f"{list(next(iter(found.values())).names)[:8]}, expected names that they share."
        )
    if sites is None:
        return tuple(names)
    wanted = [sites] if isinstance(sites, str) else list(sites)
    known = {n.split("[")[0] for n in names}
    for site in wanted:
        if site not in known:
            raise UnknownName(
                f"compare: got the site {site!r}, expected some of {sorted(known)}"
                f"{did_you_mean(site, known)}."
            )
    return tuple(n for n in names if n.split("[")[0] in wanted)


def _result(
    name: str, method: Any, ran: Any, own: Moments | None, truth: Moments | None, names: tuple
) -> MethodResult:
    if not isinstance(ran, Ran) or own is None:
        return MethodResult(name, repr(method), None, None, ran[1], failure=str(ran[0]))
    own = own.of(names)
    difference = None if truth is None else PosteriorDifference.between(own, truth)
    log_w = log_weights(ran)
    # A guide's draws are independent: their number is their effective number.
    ess = float(own.ess.min()) if log_w is None else float(len(log_w))
    return MethodResult(
        name, repr(method), own, difference, ran.seconds, ess, _divergences(ran.draws),
        draws=ran.draws, fitted=ran.fitted, **_evidence(log_w),
    )  # fmt: skip


def _divergences(draws: Any) -> int | None:
    stats = draws["sample_stats"] if "sample_stats" in draws.children else {}
    return int(np.asarray(stats["diverging"]).sum()) if "diverging" in stats else None


def _evidence(log_w: np.ndarray | None) -> dict[str, Any]:
    """The bound, and log evidence where the weights' tail allows one."""
    if log_w is None or len(log_w) < 2 or not np.isfinite(log_w).all():
        return {}
    error = float(log_w.std(ddof=1) / np.sqrt(len(log_w)))
    out: dict[str, Any] = {"elbo": float(log_w.mean()), "elbo_error": error}
    found = {k: float(v[0]) for k, v in importance_estimate(log_w[None]).items()}
    out["khat"] = found["khat"]
    if found["khat"] <= khat_limit(len(log_w)):
        out |= {"log_evidence": found["estimate"], "log_evidence_error": found["standard_error"]}
    return out
