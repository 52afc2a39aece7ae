"""Maximum likelihood of unnormalised models, with samples from a chain.

For p_theta = p~_theta / Z_theta the gradient of the log-likelihood is

    E_data[grad log p~(x)] - E_theta[grad log p~(x)]

and the second mean is taken over the ends of chains that target the model. Energies are nats; a
lower energy is more probable.

Source: Hinton 2002; Tieleman 2008 (persistent chains); Nijkamp et al. 2019, arXiv:1904.09770.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from probgen.engine.bound import Bound
from probgen.engine.dependence import require_contrast
from probgen.engine.gradient import GradientLearner
from probgen.engine.learner import Learner, all_params
from probgen.engine.spaces import model_target, total
from probgen.engine.target import AnySampler, run_chain, transitions
from probgen.errors import AlgorithmError
from probgen.language.declared import declaration
from probgen.language.kinds import NonNegative, Share
from probgen.language.optim import Adam, AnyOptimizer
from probgen.trees import tree_leaves

Array = Any


@declaration
class MaximumLikelihood:
    """Learns the energy of an unnormalised model by maximum likelihood.

    Args:
        sampler: the chain that draws from the model, such as `Langevin(step_size, num_steps)` or
            `HMC(num_steps=5, num_warmup=0, num_samples=1)`.
        space: where it lives: "data", or "noise" for a tilted generative model.
        optimizer: such as `pg.Adam(1e-4)`.
        persistent: chains go on where the last update left them (they are part of the state and of
            checkpoints, and go on with a `Fitted`); otherwise each update starts new ones, from the
            base or from fresh noise.
        restart: with persistent chains, the share that starts anew at each update.
        energy_penalty: adds lambda (mean E(x)^2 + mean E(x')^2), which keeps energies near zero.

    Where every site is observed the whole unnormalised density is contrasted; where latents are
    left (a tilted VAE), only its factors are, which is exact when the base is frozen.

    Metrics: `energy_data`, `energy_samples` (minus the contrasted log density), their difference
    `loss`, and the chain's mean `log_density` at its end.

    Raises (when bound):
        AlgorithmError: the model has no factor (its density is normalised: `SVI(ELBO())` learns
            it without chains) or no free parameter to learn; the base is not
            frozen though it has latents, or the end of a support is learned
            (`engine.dependence.require_contrast`); a factor reads a latent that data do not give;
            gradient accumulation; persistent chains under inputs that differ from datum to datum.
        ShapeError: persistent chains of a `Fitted` that are more or fewer than a batch has data.
    """

    sampler: AnySampler
    space: Literal["data", "noise", "latent"] = "data"
    optimizer: AnyOptimizer = dataclasses.field(default_factory=lambda: Adam(1e-4))
    persistent: bool = dataclasses.field(default=False, kw_only=True)
    restart: Share = dataclasses.field(default=0.05, kw_only=True)
    energy_penalty: NonNegative = dataclasses.field(default=0.0, kw_only=True)

    def bind(self, bound: Bound) -> Learner:
        """A learner of this contrast for `probgen.fit`."""
        b, ops = bound.backend, bound.backend.ops
        self._check(bound)
        target = model_target(bound, self.space)
        factors_only = bool(bound.latents) or self.space == "noise"
        sites = bound.structure.sites
        variables = [n for n, s in sites.items() if s.kind == "sample" and not s.is_fixed]
        left = variables if factors_only else []
        if bound.accumulate > 1:
            raise AlgorithmError(
                f"MaximumLikelihood: got gradient_accumulation={bound.accumulate}, expected 1: "
                "chains and data are contrasted as one batch; lower batch_size instead."
            )
        calls = None if bound.num_steps is None else bound.num_steps * transitions(self.sampler)
        kernel = self.sampler.kernel(b, target, num_calls=calls)

        def values_of(x: Mapping, params: Mapping, batch: Mapping) -> dict:
            values = target.values(x, params, batch)
            return {n: values[n] for n in target.names}

        def contrast(params: Mapping, values: Mapping, batch: Mapping, key: Any) -> Array:
            size = next(iter(values.values())).shape[0]
            sites = bound.trace(params, batch, values, key=key, batch_size=size, condition=False)
            return total(sites, leave=left)

        def loss(bound: Bound, params: Any, batch: Any, key: Any, samples: Any) -> Any:
            k_data, k_samples = b.split(b.split(key, 3)[2], 2)
            data = {n: batch[n] for n in bound.observed}
            inputs = {n: v for n, v in batch.items() if n not in bound.observed}
            on_data = contrast(params, data, inputs, k_data)
            on_samples = contrast(params, samples, inputs, k_samples)
            difference = ops.mean(on_samples) - ops.mean(on_data)
            penalty = self.energy_penalty * (
                ops.mean(on_data * on_data) + ops.mean(on_samples * on_samples)
            )
            metrics = {
                "energy_data": -ops.mean(on_data),
                "energy_samples": -ops.mean(on_samples),
                "loss": difference,
            }
            return difference + penalty, metrics

        def own(bound: Bound, params: Any, batch: Any, key: Any, extras: Any) -> dict:
            require_contrast(bound, params, batch, left, "MaximumLikelihood")
            x = target.init(params, batch, key, next(iter(batch.values())).shape[0])
            if factors_only:
                check_contrast(params, x, batch, key)
            if not self.persistent:
                return {}
            inputs = sorted(n for n in batch if n not in bound.observed)
            if inputs:
                raise AlgorithmError(
                    f"MaximumLikelihood: got persistent=True and the inputs {inputs} with one row "
                    "a datum, expected chains that belong to no datum: they would go on under the "
                    "inputs of other data; leave persistent out."
                )
            return {"chains": bound.kept("chains", x, extras)}

        def check_contrast(params: Any, x: Any, batch: Any, key: Any) -> None:
            """Refuses what the factors alone cannot teach, on the first batch."""
            data = {n: batch[n] for n in bound.observed}
            inputs = {n: v for n, v in batch.items() if n not in bound.observed}
            one, other = (contrast(params, data, inputs, k) for k in b.split(key, 2))
            if (b.to_numpy(one) != b.to_numpy(other)).any():
                raise AlgorithmError(
                    f"MaximumLikelihood: a factor of {bound.model.name!r} reads the latents "
                    f"{list(bound.latents)}, which the data do not give, expected an energy of "
                    f"{list(bound.observed)} alone; tilt on='{bound.observed[0]}'."
                )
            samples = values_of(x, params, batch)
            trainable, frozen = bound.split_params(params)

            def at(trainable: Any, *args: Any) -> Any:
                return loss(bound, {**trainable, **frozen}, *args)[0]

            grads = b.compile(b.grad(at), num_calls=1)(trainable, batch, key, samples)
            leaves = {n: [b.to_numpy(g) for g in tree_leaves(t)] for n, t in grads.items()}
            still = [n for n, gs in leaves.items() if not any(g.any() for g in gs)]
            if still:
                raise AlgorithmError(
                    f"MaximumLikelihood: the nets {still} are not frozen and the factors teach "
                    "them nothing, expected a fitted base; fit it first and tilt the Fitted: "
                    "Tilted(fitted, energy=...)."
                )

        def start(state: dict, params: Any, batch: Any, key: Any) -> Any:
            size = next(iter(batch.values())).shape[0]
            k_new, k_which = b.split(key, 2)
            fresh = target.init(params, batch, k_new, size)
            if not self.persistent:
                return fresh
            anew = b.uniform(k_which, (size,)) < self.restart

            def choose(new: Array, old: Array) -> Array:
                return ops.where(ops.reshape(anew, (size, *([1] * (new.ndim - 1)))), new, old)

            return b.tree_map(choose, fresh, state["own"]["chains"])

        def before(bound: Bound, state: dict, batch: Any, key: Any) -> tuple:
            params = all_params(state)
            k_start, k_chain, _ = b.split(key, 3)
            x = start(state, params, batch, k_start)
            n = transitions(self.sampler)
            end, _ = run_chain(b, kernel, x, k_chain, n, params, batch)
            samples = values_of(end.x, params, batch)
            found = {"log_density": ops.mean(end.log_density)}
            return samples, {"chains": end.x} if self.persistent else {}, found

        ends = f"of the ends of the chains: {self.sampler.cure()}"
        return GradientLearner(
            loss, self.optimizer, own=own, before=before, cures={"log_density": ends},
            extras=(lambda bound, state: state["own"]) if self.persistent else None,
        ).bind(bound)  # fmt: skip

    def _check(self, bound: Bound) -> None:
        sites = bound.structure.sites
        factors = [n for n, s in sites.items() if s.kind == "factor"]
        frozen = bound.frozen()
        trainable = [n for n in bound.structure.nets if n not in frozen]
        if not bound.observed:
            raise AlgorithmError(
                f"MaximumLikelihood: the data observe no site of {bound.model.name!r}, expected "
                f"data for one of {list(bound.latents)}."
            )
        if not factors and not bound.structure.improper:
            guide = "" if bound.model.guide or not bound.latents else " with a guide (AutoNormal())"
            raise AlgorithmError(
                f"MaximumLikelihood: the density of {bound.model.name!r} has its constant (no "
                "pg.factor), expected one that is known up to a constant, whose gradient takes "
                "chains that draw from the model; a normalised one needs no chains: use "
                f"SVI(ELBO()){guide}, which maximises log p(x) itself where there are no latents, "
                "and a bound on it where there are."
            )
        if not trainable or not factors:
            raise AlgorithmError(
                f"MaximumLikelihood: the model {bound.model.name!r} has the factors {factors} and "
                f"the trainable nets {trainable}, expected an energy to learn: declare an EBM or a "
                "Tilted, or use pg.factor in a program."
            )
