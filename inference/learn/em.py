"""Expectation maximisation: latents of each datum at the parameters, parameters at the latents.

    E-step    z_n ~ p_theta(z | x_n), by a chain a datum
    M-step    theta up the gradient of (1/N) sum_n log p_theta(x_n, z_n)

For models with local latents and no guide. The gradient of log p(x) is the posterior mean of that
of log p(x, z) (Fisher's identity), so that with one step of the optimiser an E-step this is
stochastic gradient ascent on the likelihood itself, up to what the chains lag behind.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from probgen.engine.bound import Bound
from probgen.engine.dependence import require_fixed_constant
from probgen.engine.gradient import GradientLearner
from probgen.engine.learner import Learner
from probgen.engine.spaces import total
from probgen.engine.target import AnySampler
from probgen.errors import AlgorithmError
from probgen.inference.learn.e_steps import Chains, Expected
from probgen.language.declared import declaration
from probgen.language.kinds import Many
from probgen.language.optim import Adam, AnyOptimizer

Array = Any


@declaration
class EM:
    """Monte Carlo EM: chains for the latents of each datum, gradients for the parameters.

        pg.fit(generator, x, EM(Langevin(0.05, num_steps=20), pg.Adam(1e-3)), num_epochs=50, seed=0)

    Args:
        e_step: a sampler with a kernel: `Langevin` (plain or with metropolis=True),
            `HMC(num_steps=10, num_warmup=0, num_samples=1)`. Each datum has a chain of its own that
            starts from the prior at its first visit and goes on at the next one; it is part of the
            state, of checkpoints and of `Fitted.extras`.
        optimizer: of the M-step, such as `pg.Adam(1e-3)`.
        num_m_steps: steps of the optimiser for each E-step.

    Metrics: `log_joint`, log p(x, z) per datum at the chains' ends before the M-step, nats;
    `loss`, minus that; `acceptance`, what a Metropolis test of the chain's steps accepts (or would
    have accepted); `diverging`, the share of steps that were not finite or fell below -1000 nats;
    `movement`, the root mean square that a latent's number moved in the E-step: chains that do not
    move know nothing. The report says what the chains target and how they went.

    Raises (when bound):
        AlgorithmError: nothing is observed; no latents; latents that all data share, or discrete
            ones; no net to learn; gradient accumulation; a stream (chains belong to numbered data).
        ShapeError: chains of a `Fitted` that belong to more or fewer data.

    Sources: Dempster, Laird & Rubin 1977; Wei & Tanner 1990 (Monte Carlo EM); Han et al. 2017,
    arXiv:1606.08571 (alternating back-propagation: Langevin chains a datum under a generator).
    """

    e_step: AnySampler
    optimizer: AnyOptimizer = dataclasses.field(default_factory=Adam)
    num_m_steps: Many = dataclasses.field(default=1, kw_only=True)

    def bind(self, bound: Bound) -> Learner:
        """A learner of these two steps for `probgen.fit`."""
        _check(bound)
        chains = Chains(bound, self.e_step)

        def report(bound: Bound, params: Any, batch: Any, key: Any, history: Any) -> EMReport:
            return EMReport(chains.note(), _last(history))

        return GradientLearner(
            _m_step, self.optimizer, own=chains.own, before=chains, repeats=self.num_m_steps,
            cures=chains.cures(), extras=lambda bound, state: state["own"], report=report,
            check=_fixed_constant, needs_rows=True,
        ).bind(bound)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EMReport:
    """What `Fitted.report` holds after a fit by EM.

    Attributes:
        e_step: what the E-step is, in words.
        metrics: their means over the last tenth of the steps.
    """

    e_step: str
    metrics: dict[str, float]

    def text(self) -> str:
        """The report as lines of text."""
        lines = [f"EM: {self.e_step}", "  over the last tenth of the steps:"]
        return "\n".join([*lines, *(f"  {n} {v:.4g}" for n, v in self.metrics.items())])


def _last(history: Any) -> dict[str, float]:
    curves = {n: history[n] for n in history if n != "loss" and history[n].ndim == 1}
    return {n: float(v[-max(1, len(v) // 10) :].mean()) for n, v in curves.items()}


def _m_step(bound: Bound, params: Any, batch: Any, key: Any, expected: Expected) -> Any:
    """Minus the expected complete-data log density per datum, and what it is made of."""
    ops = bound.backend.ops

    def log_joint(latents: Any) -> Array:
        return total(bound.trace(params, batch, latents))

    if expected.weights.shape[0] == 1:
        each = log_joint({n: v[0] for n, v in expected.latents.items()})[None]
    else:
        each = bound.backend.vmap(log_joint)(expected.latents)
    value = ops.mean(ops.sum(expected.weights * each, axis=0))
    return -value, {"log_joint": value, "loss": -value}


def _fixed_constant(bound: Bound, params: Any, batch: Any) -> None:
    require_fixed_constant(bound, params, batch, "EM")


def _check(bound: Bound) -> None:
    name = bound.model.name
    if not bound.observed:
        raise AlgorithmError(
            f"EM: the data observe no site of {name!r}, expected data for one of "
            f"{list(bound.latents)}."
        )
    if not bound.latents:
        raise AlgorithmError(
            f"EM: the data observe all sites of {name!r}, {sorted(bound.observed)}, expected "
            "latents, one a datum; without any, SVI(ELBO()) is maximum likelihood."
        )
    sites = bound.structure.sites
    shared = [n for n in bound.latents if not sites[n].is_local]
    if shared:
        raise AlgorithmError(
            f"EM: the latents {shared} of {name!r} stand outside the data plate, expected latents "
            "of single data, whose posteriors are apart; make them parameters, "
            f"pg.net({shared[0]!r}, nets.Parameter(...))(), or use SVI with AutoNormal() or "
            "pg.infer."
        )
    if not [n for n in bound.structure.nets if n not in bound.frozen()]:
        raise AlgorithmError(
            f"EM: {name!r} has no net that may move, expected parameters to learn: pg.net(...) in "
            "the program; posteriors at fixed parameters are pg.infer's."
        )
    if bound.accumulate > 1:
        raise AlgorithmError(
            f"EM: got gradient_accumulation={bound.accumulate}, expected 1: an E-step is made for "
            "a batch as one; lower batch_size instead."
        )
