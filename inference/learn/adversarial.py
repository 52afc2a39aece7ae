"""Adversarial learning: a generator against a discriminator that tells its draws from data.

    real: (x, *given, *labels)      fake: (x', *given, *labels),  x' of the generator

A model says what is judged by `pairs` (`language.capabilities.MakesPairs`); of any other model a
datum is judged against a draw, and a conditional model's inputs are labels to both. An update is
some steps of the discriminator on draws that are constants to it, then one of the generator.

Sources: Goodfellow et al. 2014, arXiv:1406.2661; Mescheder, Geiger & Nowozin 2018,
arXiv:1801.04406 (R1); Xiao, Kreis & Vahdat 2022, arXiv:2112.07804 (pairs of a diffusion); Xu et al.
2023, arXiv:2306.12511 (the marginal and the strain).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from probgen.engine.bound import Bound
from probgen.engine.learner import Learner
from probgen.errors import AlgorithmError, ShapeError
from probgen.inference.learn.adversarial_losses import (
    LOSSES,
    LossName,
    off_unit_slope,
    squared_slope,
)
from probgen.language.capabilities import MakesPairs, Pairs
from probgen.language.declared import declaration, require
from probgen.language.kinds import AnyNet, Many, NonNegative, Positive
from probgen.language.model import arguments, capability
from probgen.language.optim import Adam, AnyOptimizer
from probgen.nets.base import out_shape

Array = Any
Tree = Any
NET = "discriminator"


def _adam() -> Adam:
    return Adam(1.5e-4, b1=0.5, b2=0.9)


@declaration
class Adversarial:
    """Learns a model's draws against a discriminator of its own.

    Args:
        discriminator: a net (x, *given, *labels) -> one logit a datum, larger where more real. It
            is the algorithm's own: kept in `fitted.extras["discriminator"]`, and found there again
            by a fit that goes on.
        optimizer, discriminator_optimizer: of the model's nets and of the discriminator.
        loss: see `adversarial_losses`: "non_saturating", "wasserstein", "hinge" or "least_squares".
        r1: gamma of (gamma / 2) mean |d logit / dx|^2 on real data, in x alone: what x is
            conditioned on is held.
        r1_every: R1 joins every so many steps of the discriminator, from its first on, and is *not*
            multiplied by that number: its mean strength is gamma / (2 r1_every).
        gradient_penalty: weight of mean (|d logit / dx| - 1)^2 between real and fake (WGAN-GP: 10).
        discriminator_steps: its steps in an update, on the same data with fresh draws.
        consistency: None, or the weight of the strain, nats, in the generator's loss: the
            discriminator then sees the marginal of x alone, without what it is conditioned on. Of
            an `ImplicitDiffusion` that is -log q(x_t | x'_{t-1}), the forward step back from the
            fake; the entropy of p(x_t | x'_{t-1}), the other part of SIDDM's divergence, is left
            out, so that of all couplings with the right marginals a tight one is found.

    Metrics, means over the batch: `loss` and `loss_discriminator`, penalties included; `logit_real`
    and `logit_fake`; `r1`, |d logit / dx|^2 as last computed; `gradient_penalty`; `strain`, nats.
    None of them says how good the draws are. With `ema_decay` of `fit` the model alone is averaged.

    Raises (when bound):
        AlgorithmError: data at more than one site; a factor in the density, which draws do not
            know; a discrete site, through which no gradient comes; `consistency` of a model whose
            fakes are held to nothing.
    Raises (at the first step):
        ShapeError: a discriminator that does not give one logit a datum.
    """

    discriminator: AnyNet
    optimizer: AnyOptimizer = dataclasses.field(default_factory=_adam)
    discriminator_optimizer: AnyOptimizer = dataclasses.field(default_factory=_adam)
    loss: LossName = dataclasses.field(default="non_saturating", kw_only=True)
    r1: NonNegative = dataclasses.field(default=0.0, kw_only=True)
    r1_every: Many = dataclasses.field(default=1, kw_only=True)
    gradient_penalty: NonNegative = dataclasses.field(default=0.0, kw_only=True)
    discriminator_steps: Many = dataclasses.field(default=1, kw_only=True)
    consistency: Positive | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        fits = self.r1 > 0 or self.r1_every == 1
        require(fits, self, "a weight r1 above 0 with r1_every above 1", "r1", "r1_every")

    def bind(self, bound: Bound) -> Learner:
        """A learner of both players for `probgen.fit`."""
        b, net = bound.backend, self.discriminator
        own = bound.optimizer(self.optimizer)
        theirs = bound.optimizer(self.discriminator_optimizer)
        pairs = _pairs(bound)
        draw = b.compile(lambda params, batch, key: self._judged(pairs(params, batch, key)))
        judging = bound.value_and_grad(self._judge(bound, with_r1=self.r1 > 0))
        plainly = bound.value_and_grad(self._judge(bound, with_r1=False))
        fooling = bound.value_and_grad(self._fool(bound, pairs))

        def init(params: Tree, key: Any, batch: Tree, extras: Tree = None) -> dict:
            first = draw(params, batch, key)
            inputs = (first["real"], *first["others"])
            shapes = [tuple(v.shape[1:]) for v in inputs]
            made = bound.new_net(NET, net, *shapes, kept=extras, data=inputs)
            logit = out_shape(net, made, *shapes)
            if logit != ():
                raise ShapeError(
                    f"Adversarial: the discriminator gives an array of shape {logit} for inputs of "
                    f"{shapes}, expected (), one logit a datum; take out=() for an MLP."
                )
            zero = b.asarray(0.0)
            start = b.copy(b.tree_map(b.asarray, made))
            return {**bound.start(own, params), NET: bound.start(theirs, {NET: start}), "r1": zero}

        def step(state: dict, batch: Tree, key: Any) -> tuple[dict, dict]:
            """One of the discriminator."""
            k_draw, k_own = b.split(key, 2)
            judge = state[NET]
            both = draw({**state["params"], **state["frozen"]}, batch, k_draw)
            given = (judge["params"], judge["frozen"], {"r1": state["r1"]}, both, k_own)
            if self.r1_every == 1:
                (_, metrics), grads = judging(*given)
            else:
                due = judge["opt"]["count"] % self.r1_every == 0
                (_, metrics), grads = b.cond(due, judging, plainly, *given)
            last = metrics.get("r1", state["r1"])
            return {**state, NET: bound.step(theirs, grads, judge), "r1": b.copy(last)}, metrics

        def update(state: dict, batch: Tree, key: Any) -> tuple[dict, dict]:
            k_judge, last = b.split(key, 2)
            if self.discriminator_steps == 1:
                state, seen = step(state, batch, k_judge)
            else:
                keys = b.split(k_judge, self.discriminator_steps)
                state, all_seen = b.scan(lambda s, k: step(s, batch, k), state, keys)
                seen = b.tree_map(lambda v: b.copy(v[-1]), all_seen)
            judge = state[NET]
            fixed = {**judge["params"], **judge["frozen"]}
            (_, metrics), grads = fooling(state["params"], state["frozen"], fixed, batch, last)
            return bound.step(own, grads, state), {**seen, **metrics}

        return Learner(
            init, update, cures=_cures(self), note=None, remarks=self._remarks,
            extras=lambda state: {**state[NET]["params"], **state[NET]["frozen"]},
        )  # fmt: skip

    def _judged(self, pairs: Pairs) -> dict:
        """What the discriminator gets."""
        if self.consistency is not None and pairs.strain is None:
            raise AlgorithmError(
                f"Adversarial: got consistency={self.consistency:g} for a model whose fakes are "
                "held to nothing, expected one whose pairs have a strain, such as "
                "ImplicitDiffusion; leave consistency out."
            )
        given = pairs.given if self.consistency is None else ()
        return {"real": pairs.real, "fake": pairs.fake, "others": (*given, *pairs.labels)}

    def _judge(self, bound: Bound, *, with_r1: bool) -> Callable:
        """The discriminator's (params, frozen, last, pairs, key) -> (loss, metrics)."""
        b, net, losses = bound.backend, self.discriminator, LOSSES[self.loss]
        ops = b.ops

        def judge(trainable: Any, frozen: Any, last: Any, both: Any, key: Any) -> Any:
            params, others = {**trainable, **frozen}[NET], both["others"]

            def logits(x: Array) -> Array:
                return net.apply(params, x, *others)

            real, fake = logits(both["real"]), logits(both["fake"])
            loss = losses.discriminator(real, fake)
            found = {"logit_real": ops.mean(real), "logit_fake": ops.mean(fake)}
            if with_r1:
                found["r1"] = ops.mean(squared_slope(b.grad, logits, both["real"]))
                loss = loss + 0.5 * self.r1 * found["r1"]
            elif self.r1:
                found["r1"] = last["r1"]
            if self.gradient_penalty:
                share = b.uniform(key, (real.shape[0],))
                off = off_unit_slope(b.grad, logits, both["real"], both["fake"], share)
                loss, found["gradient_penalty"] = loss + self.gradient_penalty * off, off
            asked = bound.penalty(trainable)
            loss = loss if asked is None else loss + asked
            return loss, b.copy({"loss_discriminator": loss, **found})

        return judge

    def _fool(self, bound: Bound, pairs: Callable) -> Callable:
        """The generator's (params, frozen, the discriminator's, batch, key) -> (loss, metrics)."""
        net, losses, ops = self.discriminator, LOSSES[self.loss], bound.backend.ops

        def fool(trainable: Any, frozen: Any, judge: Any, batch: Any, key: Any) -> Any:
            made = pairs({**trainable, **frozen}, batch, key)
            both = self._judged(made)
            loss = losses.generator(net.apply(judge[NET], both["fake"], *both["others"]))
            found = {}
            if self.consistency is not None:
                found["strain"] = ops.mean(made.strain)
                loss = loss + self.consistency * found["strain"]
            asked = bound.penalty(trainable)
            loss = loss if asked is None else loss + asked
            return loss, bound.backend.copy({"loss": loss, **found})

        return fool

    def _remarks(self, metrics: Mapping) -> dict[str, str]:
        """Said where a chunk's mean loss leaves the discriminator nothing to learn."""
        won, found = LOSSES[self.loss].won, metrics.get("loss_discriminator")
        if won is None or found is None or not float(found.mean()) < won:
            return {}
        return {
            "the discriminator wins": (
                "the discriminator tells data from draws all but always (mean loss "
                f"{float(found.mean()):.2g}), so that the generator learns little or nothing; "
                f"raise r1, now {self.r1:g}, lower the discriminator's learning rate, or give "
                "data and draws the same range"
            )
        }


def _pairs(bound: Bound) -> Callable[[Mapping, Mapping, Any], Pairs]:
    """What is judged: the model's own pairs, or a datum against a draw.

    Raises:
        AlgorithmError: see `Adversarial`.
    """
    model, sites = bound.model, bound.structure.sites
    if len(bound.observed) != 1 or bound.is_once:
        raise AlgorithmError(
            f"Adversarial: got data for the sites {sorted(bound.observed)} of {model.name!r}, "
            "expected data for one, inside the data plate; put together what is judged together."
        )
    if bound.structure.factors:
        raise AlgorithmError(
            f"Adversarial: the density of {model.name!r} has the factors "
            f"{bound.structure.factors}, which its draws do not know, expected a model that is "
            "drawn from; take MaximumLikelihood."
        )
    discrete = [n for n, s in sites.items() if s.kind == "sample" and s.is_discrete]
    if discrete:
        raise AlgorithmError(
            f"Adversarial: the sites {discrete} of {model.name!r} are discrete, expected draws "
            "that carry the gradient of the generator's parameters; take a continuous likelihood, "
            "such as likelihoods.Implicit(), on data of that range."
        )
    if (own := capability(model, MakesPairs)) is not None:
        return own.pairs(bound)
    (name,) = bound.observed
    inputs = tuple(arguments(model.program))

    def pairs(params: Mapping, batch: Mapping, key: Any) -> Pairs:
        rows = batch[name].shape[0]
        drawn = bound.trace(params, batch, key=key, batch_size=rows, condition=False)
        labels = tuple(batch[n] for n in inputs if n in batch)
        return Pairs(batch[name], drawn[name].value, labels=labels)

    return pairs


def _cures(learner: Adversarial) -> dict[str, str]:
    calmer = f"raise r1, now {learner.r1:g}"
    return {"loss_discriminator": calmer, "logit_real": calmer, "logit_fake": calmer}
