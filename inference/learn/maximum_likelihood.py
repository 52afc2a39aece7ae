"""Maximum likelihood of unnormalised models: an energy is lowered at data, raised at draws.

For p_theta = p~_theta / Z_theta the gradient of the log-likelihood is

    E_data[grad log p~(x)] - E_theta[grad log p~(x)]

and the second mean is taken over the ends of chains that target the model, or over weighted draws
of its base. Energies are nats; a lower energy is more probable. What is contrasted is in
`contrast`, where chains start in `chain_starts`, the draws in `negative`.

With latents and a guide, and a `bound`, what is ascended is a bound on log p(x), where p_0 is the
model without its factors E:

    E_q[log p(x | z) - E] - KL(q(z | x) || p_0) - log Z

encoder, decoder and energy at once, the gradient of log Z again over draws of the model.

Source: Hinton 2002; Tieleman 2008 (persistent chains); Nijkamp et al. 2019, arXiv:1904.09770.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from probgen.engine.bound import Bound
from probgen.engine.gradient import GradientLearner
from probgen.engine.learner import Learner, all_params
from probgen.engine.spaces import OwnSpace, space_name
from probgen.engine.target import AnySampler
from probgen.errors import AlgorithmError
from probgen.inference.learn.chain_starts import AnyStart, size_of
from probgen.inference.learn.contrast import WHO, Contrast, require_energy, require_joint
from probgen.inference.learn.energy_guard import EnergyGuard, advice
from probgen.inference.learn.fit_report import ChainReport
from probgen.inference.learn.negative import ImportanceSampling, Negative, chains
from probgen.inference.learn.regularizers import Regularizer, Seen
from probgen.inference.objectives.collapse import unit_note
from probgen.inference.objectives.elbo import ELBO
from probgen.language.declared import declaration, require
from probgen.language.optim import Adam, AnyOptimizer

Array = Any
OWN = "regularizers"  # among what the algorithm keeps: no chain, and found anew when a fit goes on


@declaration
class MaximumLikelihood:
    """Learns the energy of an unnormalised model by maximum likelihood.

    Args:
        sampler: the chain that draws from the model, such as `Langevin(step_size, num_steps)` or
            `HMC(num_steps=5, num_warmup=0, num_samples=1)`; or `ImportanceSampling(num_draws)`,
            which weights draws of the base and needs no chain.
        space: where chains live: "data", or "noise" for a tilted generative model; `Noise(...)` has
            the variant of VAEBM's released sampler.
        optimizer: such as `pg.Adam(1e-4)`.
        init: where chains start: "base" (draws of the model without its energy, or fresh noise),
            "data", `ChainStart(data=0.2)` for a share of each, `PersistentChains(refresh)` or
            `ReplayBuffer(size, refresh, anneal)`. Chains that are kept are part of the state and of
            checkpoints, and go on with a `Fitted`.
        regularizers: such as `(EnergyMagnitude(0.02), GradientPenalty(0.1), SpectralPenalty(0.2))`.
        bound: for a model with latents and a guide (a VAE whose prior is an EBM): `ELBO(...)`, and
            all nets that are not frozen are learned together: those of the bound by it, those that
            log Z depends on by the draws too. None: factors alone are contrasted.
        guard: what watches over the fit, says what goes wrong, and goes back to the best state by
            the gain on held-out data, where `fit` is given some; None: nothing does.

    Where every site is observed the whole unnormalised density is contrasted; where latents are
    left (a tilted VAE), only its factors are, which is exact when the base is frozen. An energy
    that reads latents is taken at the guide's draws where data stand. With `bound` nothing needs to
    be frozen.

    Metrics: `energy_data`, `energy_samples` (minus the factors), `loss`, what of the log-likelihood
    is maximised, negated: with chains the gap of log p~ between draws and data, near 0 in
    equilibrium; with importance sampling minus the mean log-likelihood, or minus its gain over a
    base that is fixed. Of chains: `acceptance` of their first step (without a Metropolis test what
    one would have accepted), `clipped`, the share of chains whose drift was clipped there, and
    `movement`, from start to end in standard deviations of the ends.
    Of importance sampling: `importance_share`. What is added to the loss is `regularizers`. On
    held-out data: `gain`, `log_likelihood`, `importance_share` (see `EnergyGuard`).
    With `bound`: those of `ELBO`, of which `elbo` is the bound plus log Z, in nats + constant; with
    importance sampling `loss` is minus the bound itself, by the estimate of log Z, in nats. On
    held-out data `bound`, nats.

    `Fitted.report` says what the draws target: the temperature that step and noise imply, and
    whether that is the stated density; and the metrics at the end of the fit.

    Raises (when bound):
        AlgorithmError: the model has no factor (its density is normalised: `SVI(ELBO())` learns
            it without chains) or no free parameter to learn; the base is not
            frozen though it has latents and no `bound` is given, or the end of a support is learned
            (`engine.dependence.require_contrast`); a factor reads a latent that neither data nor a
            guide give; a `bound` without latents, without a guide, or with latents that all data
            share; gradient accumulation; chains that start at data in noise space; kept
            chains under inputs that differ from datum to datum.
        ShapeError: kept chains of a `Fitted` that are more or fewer than here.
    """

    sampler: AnySampler | ImportanceSampling
    space: Literal["data", "noise"] | OwnSpace = "data"
    optimizer: AnyOptimizer = dataclasses.field(default_factory=lambda: Adam(1e-4))
    init: AnyStart = dataclasses.field(default="base", kw_only=True)
    regularizers: tuple[Regularizer, ...] = dataclasses.field(default=(), kw_only=True)
    bound: ELBO | None = dataclasses.field(default=None, kw_only=True)
    guard: EnergyGuard | None = dataclasses.field(default_factory=EnergyGuard, kw_only=True)

    def __post_init__(self) -> None:
        has_chains = not isinstance(self.sampler, ImportanceSampling)
        expected = "init='base': importance sampling draws from the base and has no chains"
        require(has_chains or self.init == "base", self, expected, "init")
        plain = self.bound is None or type(self.bound) is ELBO
        require(plain, self, "ELBO(...) itself, which keeps no state between updates", "bound")

    def bind(self, bound: Bound) -> Learner:
        """A learner of this contrast for `probgen.fit`."""
        b = bound.backend
        require_energy(bound)
        if bound.accumulate > 1:
            raise AlgorithmError(
                f"{WHO}: got gradient_accumulation={bound.accumulate}, expected 1: "
                "chains and data are contrasted as one batch; lower batch_size instead."
            )
        if self.bound is not None:
            require_joint(bound)
        contrast = Contrast(bound, space_name(self.space), is_joint=self.bound is not None)
        negative = self._negative(bound, contrast)
        data = b.compile(contrast.data, num_calls=bound.num_steps)

        def loss(bound: Bound, params: Any, batch: Any, key: Any, given: Mapping) -> Any:
            return self._loss(contrast, negative, params, batch, key, given)

        def tried(params: Any, batch: Any, key: Any) -> tuple:
            values = contrast.base_draws(params, key, size_of(batch), batch)
            return values, contrast.data(params, batch, key)

        def own(bound: Bound, params: Any, batch: Any, key: Any, extras: Any) -> dict:
            k_look, k_own, k_try = b.split(key, 3)
            contrast.settle(params, batch, k_look)
            kept = negative.own(params, batch, k_own, extras)
            found = {**kept, OWN: self._kept("own", bound, params)}
            if contrast.left or contrast.is_joint:
                values, seen = b.compile(tried, num_calls=1)(params, batch, k_try)
                draws = {"values": values, "log_base": None}
                given = {"data": seen, "draws": draws, OWN: found[OWN], "count": 0.0}
                contrast.require_taught(
                    lambda *args: loss(bound, *args)[0], params, batch, k_try, given
                )
            return found

        def before(bound: Bound, state: dict, batch: Any, key: Any) -> tuple:
            params, kept = all_params(state), state["own"]
            k_data, k_draw, _ = b.split(key, 3)
            moves = {n: v for n, v in kept.items() if n != OWN}
            draws, moves, found = negative.draw(params, moves, batch, k_draw)
            regular = self._kept("refresh", bound, kept[OWN], params)
            seen = data if contrast.reads_latents else contrast.data
            given = {"data": seen(params, batch, k_data), "draws": draws, OWN: regular}
            given["count"] = state["opt"]["count"]
            return given, {**moves, OWN: regular}, found

        def extras(bound: Bound, state: dict) -> dict:
            return {n: v for n, v in state["own"].items() if n != OWN}

        def report(bound: Bound, params: Any, batch: Any, key: Any, history: Any) -> ChainReport:
            return ChainReport.of(WHO, negative.note, history)

        guard = EnergyGuard() if self.guard is None else self.guard
        learner = GradientLearner(
            loss, self.optimizer, own=own, before=before,
            evaluate=guard.held_out(contrast, self.bound), cures=negative.cures, extras=extras,
            report=report, note=None if self.bound is None else unit_note(bound),
        ).bind(bound)  # fmt: skip

        def renew(state: dict) -> dict:
            moves = {n: v for n, v in state["own"].items() if n != OWN}
            return {**state, "own": {**negative.renew(moves), OWN: state["own"][OWN]}}

        return learner if self.guard is None else self._guarded(learner, renew, contrast)

    def _guarded(self, learner: Learner, renew: Any, contrast: Contrast) -> Learner:
        guard, sampler = self.guard, self.sampler
        assert guard is not None
        said = advice(self.regularizers, contrast.bound)
        cure = "" if isinstance(sampler, ImportanceSampling) else sampler.cure()
        return learner._replace(
            judge=guard.judge(contrast, said), watch=lambda metrics: guard.watch(metrics, said),
            renew=renew, remarks=lambda metrics: guard.remarks(metrics, cure),
        )  # fmt: skip

    def _negative(self, bound: Bound, contrast: Contrast) -> Negative:
        if isinstance(self.sampler, ImportanceSampling):
            return self.sampler.phase(bound, contrast)
        return chains(bound, contrast, self.sampler, self.space, self.init)

    def _loss(
        self, contrast: Contrast, negative: Negative, params: Any, batch: Any, key: Any,
        given: Mapping,
    ) -> Any:  # fmt: skip
        bound = contrast.bound
        ops = bound.backend.ops
        k_data, k_samples = bound.backend.split(bound.backend.split(key, 3)[2], 2)
        data, draws = given["data"], given["draws"]
        on_data, energy_data, _ = contrast.sums(params, data, batch, k_data)
        on_draws, energy, _ = contrast.sums(params, draws["values"], batch, k_samples)
        log_z, metrics = negative.value(on_draws, energy, draws["log_base"])
        value, found = self._on_data(bound, params, batch, given["count"], k_samples, on_data)
        value = log_z + value
        metrics = {**found, "energy_data": ops.mean(energy_data), "loss": value, **metrics}

        def energy_of(values: Mapping) -> Array:
            return contrast.sums(params, values, batch, k_data)[1]

        added: Any = 0.0
        for i, regularizer in enumerate(self.regularizers):
            seen = Seen(
                energy_of, params, data, draws["values"], energy_data, energy, given[OWN][str(i)]
            )
            added = added + regularizer.term(bound, seen)
        if self.regularizers:
            metrics["regularizers"] = added
        return value + added, metrics

    def _on_data(
        self, bound: Bound, params: Any, batch: Any, count: Any, key: Any, log_f: Array
    ) -> tuple[Array, dict]:
        """(what of the loss is the data's, metrics): minus the mean log f, or the bound's loss."""
        if self.bound is None:
            return -bound.backend.ops.mean(log_f), {}
        key = bound.backend.split(key, 2)[1]
        loss, (_, metrics) = self.bound.loss(bound, params, {}, count, batch, key)
        return loss, metrics

    def _kept(self, what: str, bound: Bound, *args: Any) -> dict:
        """What the regularisers keep, by their place: `own(params)` or `refresh(kept, params)`."""
        if what == "own":
            return {str(i): r.own(bound, *args) for i, r in enumerate(self.regularizers)}
        kept, params = args
        return {
            str(i): r.refresh(bound, kept[str(i)], params) for i, r in enumerate(self.regularizers)
        }
