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
from probgen.engine.learner import Learner
from probgen.errors import AlgorithmError
from probgen.inference.sample.kernels import Langevin, run_chain
from probgen.inference.sample.spaces import bind_space, total
from probgen.language.declared import declaration
from probgen.language.kinds import NonNegative, Share
from probgen.language.optim import Adam, OptimizerDeclaration
from probgen.trees import tree_leaves

Array = Any


@declaration
class MaximumLikelihood:
    """Learns the energy of an unnormalised model by maximum likelihood.

    Args:
        sampler: the chain that draws from the model, such as `Langevin(step_size, num_steps)`.
        space: where it lives: "data", or "noise" for a tilted generative model.
        optimizer: such as `pg.Adam(1e-4)`.
        persistent: chains go on where the last update left them (they are part of the state and of
            checkpoints); otherwise each update starts new ones, from the base or from fresh noise.
        restart: with persistent chains, the share that starts anew at each update.
        energy_penalty: adds lambda (mean E(x)^2 + mean E(x')^2), which keeps energies near zero.

    Where every site is observed the whole unnormalised density is contrasted; where latents are
    left (a tilted VAE), only its factors are, which is exact when the base is frozen.

    Metrics: `energy_data`, `energy_samples` (minus the contrasted log density), their difference
    `loss`, and the chain's mean `log_density` at its end.

    Raises (when bound):
        AlgorithmError: the model has no factor or no free parameter to learn; the base is not
            frozen though it has latents, or the end of a support is learned
            (`engine.dependence.require_contrast`); a factor reads a latent that data do not give;
            gradient accumulation; persistent chains under inputs that differ from datum to datum.
    """

    sampler: Langevin
    space: Literal["data", "noise", "latent"] = "data"
    optimizer: OptimizerDeclaration = dataclasses.field(default_factory=lambda: Adam(1e-4))
    persistent: bool = dataclasses.field(default=False, kw_only=True)
    restart: Share = dataclasses.field(default=0.05, kw_only=True)
    energy_penalty: NonNegative = dataclasses.field(default=0.0, kw_only=True)

    def bind(self, bound: Bound) -> Learner:
        """A learner of this contrast for `probgen.fit`."""
        b, ops = bound.backend, bound.backend.ops
        space = bind_space(bound, self.space)
        factors_only = bool(bound.latents) or self.space == "noise"
        sites = bound.structure.sites
        variables = [n for n, s in sites.items() if s.kind == "sample" and not s.is_fixed]
        left = variables if factors_only else []
        self._check(bound)
        if bound.accumulate > 1:
            raise AlgorithmError(
                f"MaximumLikelihood: got gradient_accumulation={bound.accumulate}, expected 1: "
                "chains and data are contrasted as one batch; lower batch_size instead."
            )
        calls = None if bound.num_steps is None else bound.num_steps * self.sampler.num_steps
        kernel = self.sampler.kernel(b, space.log_density, num_calls=calls)
        optimizer = bound.optimizer(self.optimizer)

        def contrast(params: Mapping, values: Mapping, batch: Mapping, key: Any) -> Array:
            size = next(iter(values.values())).shape[0]
            sites = bound.trace(params, batch, values, key=key, batch_size=size, condition=False)
            return total(sites, leave=left)

        def objective(trainable: Any, frozen: Any, samples: Any, batch: Any, key: Any) -> Any:
            params = {**trainable, **frozen}
            k_data, k_samples = b.split(key, 2)
            data = {n: batch[n] for n in bound.observed}
            inputs = {n: v for n, v in batch.items() if n not in bound.observed}
            on_data = contrast(params, data, inputs, k_data)
            on_samples = contrast(params, samples, inputs, k_samples)
            loss = ops.mean(on_samples) - ops.mean(on_data)
            penalty = self.energy_penalty * (
                ops.mean(on_data * on_data) + ops.mean(on_samples * on_samples)
            )
            metrics = {
                "energy_data": -ops.mean(on_data),
                "energy_samples": -ops.mean(on_samples),
                "loss": loss,
            }
            return loss + penalty, metrics

        once = b.value_and_grad(objective, has_aux=True)
        gradient = b.compile(once, num_calls=bound.num_steps)

        def init(params: Any, key: Any, batch: Any) -> dict:
            require_contrast(bound, params, batch, left, "MaximumLikelihood")
            trainable, frozen = bound.split_params(params)
            state = {"params": trainable, "frozen": frozen, "opt": optimizer.init(trainable)}
            x = space.init({**trainable, **frozen}, batch, key, next(iter(batch.values())).shape[0])
            if factors_only:
                check_contrast(trainable, frozen, x, batch, key)
            if self.persistent:
                inputs = sorted(n for n in batch if n not in bound.observed)
                if inputs:
                    raise AlgorithmError(
                        f"MaximumLikelihood: got persistent=True and the inputs {inputs} with one "
                        "row a datum, expected chains that belong to no datum: they would go on "
                        "under the inputs of other data; leave persistent out."
                    )
                state["chains"] = x
            return state

        def check_contrast(trainable: Any, frozen: Any, x: Any, batch: Any, key: Any) -> None:
            """Refuses what the factors alone cannot teach, on the first batch."""
            params = {**trainable, **frozen}
            data = {n: batch[n] for n in bound.observed}
            inputs = {n: v for n, v in batch.items() if n not in bound.observed}
            one, other = (contrast(params, data, inputs, k) for k in b.split(key, 2))
            if (b.to_numpy(one) != b.to_numpy(other)).any():
                raise AlgorithmError(
                    f"MaximumLikelihood: a factor of {bound.model.name!r} reads the latents "
                    f"{list(bound.latents)}, which the data do not give, expected an energy of "
                    f"{list(bound.observed)} alone; tilt on='{bound.observed[0]}'."
                )
            samples = space.values(x, params, batch)
            _, grads = gradient(trainable, frozen, samples, batch, key)
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
            fresh = space.init(params, batch, k_new, size)
            if not self.persistent:
                return fresh
            anew = b.uniform(k_which, (size,)) < self.restart

            def choose(new: Array, old: Array) -> Array:
                return ops.where(ops.reshape(anew, (size, *([1] * (new.ndim - 1)))), new, old)

            return b.tree_map(choose, fresh, state["chains"])

        def update(state: dict, batch: Any, key: Any) -> tuple[dict, dict]:
            params = {**state["params"], **state["frozen"]}
            k_start, k_chain, k_loss = b.split(key, 3)
            x = start(state, params, batch, k_start)
            n = self.sampler.num_steps
            end, _ = run_chain(b, kernel, x, k_chain, n, params, batch)
            samples = space.values(end.x, params, batch)
            (_, metrics), grads = gradient(state["params"], state["frozen"], samples, batch, k_loss)
            trained, opt = optimizer.update(grads, state["opt"], state["params"])
            new = {"params": trained, "frozen": state["frozen"], "opt": opt}
            if self.persistent:
                new["chains"] = end.x
            return new, metrics | {"log_density": ops.mean(end.log_density)}

        ends = f"of the ends of the chains: {self.sampler.cure()}"
        return Learner(init, update, cures={"log_density": ends})

    def _check(self, bound: Bound) -> None:
        sites = bound.structure.sites
        factors = [n for n, s in sites.items() if s.kind == "factor"]
        frozen = bound.model.frozen()
        trainable = [n for n in bound.structure.nets if n not in frozen]
        if not bound.observed:
            raise AlgorithmError(
                f"MaximumLikelihood: the data observe no site of {bound.model.name!r}, expected "
                f"data for one of {list(bound.latents)}."
            )
        if not trainable or not factors:
            raise AlgorithmError(
                f"MaximumLikelihood: the model {bound.model.name!r} has the factors {factors} and "
                f"the trainable nets {trainable}, expected an energy to learn: declare an EBM or a "
                "Tilted, or use pg.factor in a program."
            )
