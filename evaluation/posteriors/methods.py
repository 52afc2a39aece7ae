"""What can be compared, and how one method is run: a sampler, a guide, or a fit and then draws."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.engine.auto_guide import AutoGuide
from probgen.engine.fitted import Fitted
from probgen.engine.learner import AnyAlgorithm
from probgen.engine.target import AnySampler
from probgen.errors import DeclarationError
from probgen.inference.learn.svi import SVI
from probgen.inference.objectives.elbo import ELBO
from probgen.inference.sample.guide import Guide
from probgen.language.declared import declaration
from probgen.language.kinds import REFUSED, Count, Many, kind
from probgen.language.optim import Adam, CosineDecay
from probgen.language.run import ROW
from probgen.verbs.fit import fit
from probgen.verbs.infer import infer

GUIDE_STEPS = 2000  # of the fit that a guide alone stands for
GUIDE_RATE = 0.02  # of its Adam, which falls to nothing by half a cosine
GUIDE_PARTICLES = 8


@declaration
class FitThenDraw:
    """A method for `pg.compare`: learns parameters, then draws latents with them held.

        FitThenDraw(SVI(ELBO(num_particles=10), pg.Adam(0.01)), guide=AutoNormal(), num_steps=5000)
        FitThenDraw(EM(Langevin(0.05, num_steps=20), pg.Adam(1e-3)), then=NUTS(), num_steps=500)

    Args:
        algorithm: of `pg.fit`.
        then: sampler of the draws.
        guide: an automatic one in place of the model's own; of a `Fitted` it alone is learned.
        num_steps, batch_size: of the fit; None is all data.
    """

    algorithm: AnyAlgorithm
    then: AnySampler = dataclasses.field(default_factory=lambda: Guide(2000))
    guide: AutoGuide | None = dataclasses.field(default=None, kw_only=True)
    num_steps: Many = dataclasses.field(default=GUIDE_STEPS, kw_only=True)
    batch_size: Count | None = dataclasses.field(default=None, kw_only=True)


class Ran(NamedTuple):
    """One method's run: its DataTree, what it fitted or None, wall seconds of all of it."""

    draws: Any
    fitted: Fitted | None
    seconds: float


def of_guide(guide: AutoGuide) -> FitThenDraw:
    """What a guide alone stands for: SVI by all data, the step size falling to nothing."""
    optimizer = Adam(CosineDecay(GUIDE_RATE, GUIDE_STEPS))
    return FitThenDraw(SVI(ELBO(num_particles=GUIDE_PARTICLES), optimizer), guide=guide)


def named(methods: Any) -> dict[str, Any]:
    """The methods by name, guides as the fits that they stand for.

    Raises:
        DeclarationError: none, or something that is no method.
    """
    given = dict(methods) if isinstance(methods, Mapping) else _by_class(methods)
    if not given:
        raise DeclarationError("compare: got no method, expected such as {'NUTS': NUTS()}.")
    out = {}
    for name, method in given.items():
        method = of_guide(method) if isinstance(method, AutoGuide) else method
        if not (isinstance(method, FitThenDraw) or _is(AnySampler, method)):
            cure = "; give FitThenDraw(it, num_steps=...)" if _is(AnyAlgorithm, method) else ""
            raise DeclarationError(
                f"compare: got the method {name!r}, {method!r}, expected a sampler such as NUTS(), "
                f"an automatic guide such as AutoNormal(), or FitThenDraw(...){cure}."
            )
        out[str(name)] = method
    return out


def _is(hint: Any, value: Any) -> bool:
    return kind(hint).take(value) is not REFUSED


def _by_class(methods: Any) -> dict[str, Any]:
    """A list's methods under the names of their classes, numbered where one comes again."""
    out: dict[str, Any] = {}
    for method in methods:
        name = type(method).__name__
        count = sum(n.split(" ")[0] == name for n in out)
        out[f"{name} {count + 1}" if count else name] = method
    return out


def run(method: Any, model: Any, data: Any, *, inputs: Any, **options: Any) -> Ran:
    """Draws by one method; `options` are of both verbs: seed, backend, device, progress_bar."""
    began = time.perf_counter()
    if not isinstance(method, FitThenDraw):
        draws = infer(model, data, method, inputs=inputs, **options)
        return Ran(draws, None, time.perf_counter() - began)
    held: dict[str, Any] = {}
    if method.guide is not None and isinstance(model, Fitted):
        held = {"init": model.params, "freeze": sorted(model.params)}
        model = model.model
    declared = model if method.guide is None else model.with_guide(method.guide)
    fitted = fit(
        declared, data, method.algorithm, num_steps=method.num_steps, inputs=inputs,
        batch_size=method.batch_size, **held, **options,
    )  # fmt: skip
    if method.guide is not None and fitted.info.get("num_data"):
        # The data of the draws are those of the fit, row by row.
        inputs = {**(inputs or {}), ROW: np.arange(fitted.info["num_data"])}
    draws = infer(fitted, data, method.then, inputs=inputs, **options)
    return Ran(draws, fitted, time.perf_counter() - began)


def log_weights(ran: Ran) -> np.ndarray | None:
    """[draws] log p(z, x) - log q(z | x) of a guide's draws, nats of all data; else None."""
    stats = ran.draws["sample_stats"] if "sample_stats" in ran.draws.children else {}
    return np.asarray(stats["log_weight"], float).ravel() if "log_weight" in stats else None
