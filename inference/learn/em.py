"""Expectation maximisation: latents of each datum at the parameters, parameters at the latents.

    E-step    z_n ~ p_theta(z | x_n), by a chain a datum; or p_theta(z | x_n) itself, by enumeration
    M-step    theta = argmax (1/N) sum_n E log p_theta(x_n, z_n), in closed form or up the gradient

For models with local latents and no guide. With exact E-steps and closed M-steps on all data the
likelihood never falls (Dempster, Laird & Rubin 1977). The gradient of log p(x) is the posterior
mean of that of log p(x, z) (Fisher's identity), so that with one step of the optimiser an E-step
this is gradient ascent on the likelihood itself, up to what chains lag behind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from probgen.engine.bound import Bound
from probgen.engine.gradient import GradientLearner
from probgen.engine.learned_constants import require_fixed_constant
from probgen.engine.learner import Learner, all_params
from probgen.engine.messages import in_loops
from probgen.engine.target import AnySampler
from probgen.errors import AlgorithmError
from probgen.inference.learn.e_steps import (
    Chains,
    Enumerate,
    Exact,
    Expected,
    mean_log_prob,
    size_of,
)
from probgen.inference.learn.fit_report import ChainReport
from probgen.inference.learn.gaussian_step import ExactGaussian, GaussianPosterior
from probgen.inference.learn.time_step import ExactInTime, mean_log_joint_in_time
from probgen.language.capabilities import Maximises
from probgen.language.declared import declaration
from probgen.language.kinds import Many
from probgen.language.model import capability
from probgen.language.optim import Adam, AnyOptimizer

Array = Any


@declaration
class EM:
    """EM: the textbook's, by enumeration, or by chains for the latents of each datum.

        pg.fit(GaussianMixture(3, 4), x, EM(Enumerate()), batch_size=None, num_steps=50, seed=0)
        pg.fit(ppca, x, EM(ExactGaussian()), batch_size=None, num_steps=100, seed=0)
        pg.fit(generator, x, EM(Langevin(0.05, num_steps=20), pg.Adam(1e-3)), num_epochs=50, seed=0)

    Args:
        e_step: `Enumerate()`, the exact posterior of discrete latents; `ExactGaussian()`, that of
            the latents of a linear-Gaussian model; or a sampler with a kernel:
            `Langevin` (plain or with metropolis=True), `HMC(num_steps=10, num_warmup=0,
            num_samples=1)`. Each datum has a chain of its own that starts from the prior at its
            first visit and goes on at the next one; it is part of the state, of checkpoints and of
            `Fitted.extras`. Under a sampler discrete latents are summed out.
        optimizer: of the M-step by gradient, such as `pg.Adam(1e-3)`.
        m_step: "closed": in closed form, of a model that knows one (`Maximises`: `GaussianMixture`,
            and `Generator` with an affine decoder and Gaussian noise); "gradient"; "auto": closed
            after an exact E-step where the model knows it, else by gradient, whose steps average
            over what chains find; or a closed form of your own, (params, batch, latents, weights)
            -> params, of latents [C, n, *event] by site with weights [C, n] (along a long loop:
            see `Enumerate`). A closed form sees all data at once: batch_size=None. After one draw
            of chains it is stochastic EM, which moves about the maximum: average it by ema_decay=
            of pg.fit.
        num_m_steps: steps of the optimiser for each E-step.

    Metrics, nats per datum at the parameters before the M-step: `log_joint`, E log p(x, z); of
    exact E-steps also `log_likelihood`, log p(x) = E log p(x, z) + `entropy`, that of p(z | x).
    `loss` is minus log_joint. Of chains: `acceptance`, what a Metropolis test of their steps
    accepts (or would have accepted); `diverging`, the share of steps that were not finite or fell
    below -1000 nats; `movement`, the root mean square that a number of a latent moved in the
    E-step: chains that do not move know nothing. The report says what the E-step targets.

    Raises (when bound):
        AlgorithmError: nothing is observed; no latents, or latents that all data share; continuous
            ones under `Enumerate()`, or discrete ones with too many values; a model that is not
            linear-Gaussian under `ExactGaussian()`; no net to learn; gradient accumulation; a
            stream (chains belong to numbered data); a closed M-step of a model that knows none, on
            batches, or beside frozen nets.
        ShapeError: chains of a `Fitted` that belong to more or fewer data.

    Sources: Dempster, Laird & Rubin 1977; Wei & Tanner 1990 (Monte Carlo EM); Han et al. 2017,
    arXiv:1606.08571 (alternating back-propagation: Langevin chains a datum under a generator);
    Celeux & Diebolt 1985 (stochastic EM).
    """

    e_step: AnySampler | Enumerate | ExactGaussian
    optimizer: AnyOptimizer = dataclasses.field(default_factory=Adam)
    m_step: Literal["auto", "closed", "gradient"] | Callable = dataclasses.field(
        default="auto", kw_only=True
    )
    num_m_steps: Many = dataclasses.field(default=1, kw_only=True)

    def bind(self, bound: Bound) -> Learner:
        """A learner of these two steps for `probgen.fit`."""
        _check(bound)
        e_step = self._expectation(bound)
        maximise = self._maximiser(bound)

        def report(bound: Bound, params: Any, batch: Any, key: Any, history: Any) -> ChainReport:
            return ChainReport.of("EM", e_step.note(), history)

        def check(bound: Bound, params: Any, batch: Any) -> None:
            require_fixed_constant(bound, params, batch, "EM")
            e_step.check(bound, params, batch)

        learner = GradientLearner(
            _m_step, self.optimizer, own=e_step.own, before=e_step, repeats=self.num_m_steps,
            cures=e_step.cures(), extras=lambda bound, state: state["own"], report=report,
            check=check, evaluate=e_step.evaluate, needs_rows=e_step.needs_rows,
        ).bind(bound)  # fmt: skip
        return learner if maximise is None else _closed(bound, learner, e_step, maximise)

    def _expectation(self, bound: Bound) -> Any:
        if isinstance(self.e_step, Enumerate):
            looped = in_loops(bound.structure, bound.enumerated)
            return ExactInTime(bound) if looped else Exact(bound)
        if isinstance(self.e_step, ExactGaussian):
            return GaussianPosterior(bound)
        return Chains(bound, self.e_step)

    def _maximiser(self, bound: Bound) -> Callable | None:
        model, is_exact = bound.model, isinstance(self.e_step, Enumerate | ExactGaussian)
        if self.m_step == "gradient" or (self.m_step == "auto" and not is_exact):
            return None
        found: Any = self.m_step
        if isinstance(found, str):
            knows = capability(model, Maximises)
            found = None if knows is None else knows.maximiser()
        if found is None and self.m_step == "closed":
            raise AlgorithmError(
                f'EM: got m_step="closed" for {model.name!r}, which knows no such M-step, '
                "expected GaussianMixture, or a Generator with an affine decoder, "
                "nets.MLP((), out=D, in_ndim=1), and likelihoods.Normal of one scale; use "
                'm_step="gradient", or give a function (params, batch, latents, weights) -> params.'
            )
        frozen = sorted(bound.frozen() & set(bound.structure.nets))
        if found is not None and frozen:
            raise AlgorithmError(
                f"EM: the nets {frozen} are frozen, expected all free for an M-step in closed "
                'form; use m_step="gradient", which leaves them alone.'
            )
        return found


def _closed(bound: Bound, learner: Learner, e_step: Any, maximise: Callable) -> Learner:
    """The learner whose M-step is `maximise` in place of steps of an optimiser."""
    b = bound.backend
    run = b.compile(maximise, num_calls=bound.num_steps)
    joint = b.compile(
        lambda params, batch, expected: _m_step(bound, params, batch, None, expected)[1],
        num_calls=bound.num_steps,
    )

    def init(params: Any, key: Any, batch: Any, extras: Any) -> dict:
        size = size_of(batch)
        if size != bound.num_data:
            raise AlgorithmError(
                f"EM: got batches of {size} of {bound.num_data} data, expected all of them at "
                'once for an M-step in closed form: batch_size=None; or use m_step="gradient".'
            )
        return learner.init(params, key, batch, extras)

    def update(state: dict, batch: Any, key: Any) -> tuple[dict, dict]:
        expected, own, found = e_step(bound, state, batch, key)
        params = all_params(state)
        metrics = {**joint(params, batch, expected), **found}
        new = run(params, batch, expected.latents, expected.weights)
        params = {n: b.copy(new.get(n, v)) for n, v in state["params"].items()}
        return {**state, "params": params, "own": own}, metrics

    return learner._replace(init=init, update=update)


def _m_step(bound: Bound, params: Any, batch: Any, key: Any, expected: Expected) -> Any:
    """Minus the expected complete-data log density per datum, and what it is made of."""
    latents, weights = expected
    if weights.ndim == 3:
        value = mean_log_joint_in_time(bound, params, batch, expected)
    elif weights.shape[0] == 1:
        value = mean_log_prob(
            bound, bound.trace(params, batch, {n: v[0] for n, v in latents.items()})
        )
    else:
        kinds: dict[str, Any] = {}

        def densities(latents: Any) -> dict:
            sites = bound.trace(params, batch, latents)
            kinds.update({n: s._replace(value=None) for n, s in sites.items()})
            return {n: s.log_prob for n, s in sites.items() if s.log_prob is not None}

        each = bound.backend.vmap(densities)(latents)
        sites = {n: kinds[n]._replace(log_prob=v) for n, v in each.items()}
        value = mean_log_prob(bound, sites, weights)
    return -value, {"log_joint": value, "loss": -value}


def _check(bound: Bound) -> None:
    name, hidden = bound.model.name, [*bound.latents, *bound.enumerated]
    if not bound.observed:
        raise AlgorithmError(
            f"EM: the data observe no site of {name!r}, expected data for one of {hidden}."
        )
    if not hidden:
        raise AlgorithmError(
            f"EM: the data observe all sites of {name!r}, {sorted(bound.observed)}, expected "
            "latents, one a datum; without any, SVI(ELBO()) is maximum likelihood."
        )
    sites = bound.structure.sites
    shared = [n for n in hidden if not sites[n].is_local]
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
