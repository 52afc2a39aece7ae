"""Variational bounds as losses: ELBO, importance-weighted ELBO, and weights on the KL.

    ELBO    E_q[log p(x | z)] - KL(q(z | x) || p(z))                      <= log p(x)
    IWAE_K  E[log (1/K) sum_k p(x, z_k) / q(z_k | x)]                     nondecreasing in K

All numbers are nats per datum. The loss may weight the KL; what is reported as `elbo` never does.
A loss is a declaration; `svi.SVI` runs it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.measure import EvaluationContext, Function, Values
from probgen.errors import AlgorithmError
from probgen.inference.likelihood import guide_terms
from probgen.inference.objectives.kl_weights import KLWeight
from probgen.inference.objectives.side_by_side import terms_side_by_side
from probgen.inference.objectives.terms import (
    Terms,
    compute,
    log_weights,
    mean_of_units,
    per_datum,
)
from probgen.language.declared import declaration
from probgen.language.kinds import Many, NonNegative

Array = Any


@declaration
class ELBO:
    """The evidence lower bound, with an optional weight on its KL.

    Args:
        num_particles: draws of the latents per datum and step; of latents that all data share, runs
            of the program side by side.
        analytic_kl: closed form of each KL where one is known; False estimates all by the draw.
        kl_weight: beta: a number, or a schedule of `probgen.inference`
            (`LinearWarmup`, `CyclicalWarmup`, `SigmoidWarmup`). The loss is
            R + beta K, the reported `elbo` is R + K with the sign turned.
        free_bits: lambda, nats: a latent unit whose mean KL over the batch lies below it is not
            pushed further down, max(K_j, lambda). Source: Kingma et al. 2016, arXiv:1606.04934.

    Latents without a reparametrised draw (Bernoulli, Categorical...) get the score-function
    gradient with the datum's own bound as its weight: unbiased, and noisy. Several particles serve
    as each other's baseline there.

    Sources: Kingma & Welling 2014, arXiv:1312.6114; for discrete latents Mnih & Rezende 2016,
    arXiv:1602.06725.
    """

    num_particles: Many = 1
    analytic_kl: bool = True
    kl_weight: NonNegative | KLWeight = 1.0
    free_bits: NonNegative = 0.0

    def init(self, bound: Bound) -> dict:
        """State of the loss beside the parameters: none."""
        return {}

    def weight_at(self, count: Array) -> Array:
        """beta at the update that follows `count` finished ones."""
        weight = self.kl_weight
        return weight.at(count) if isinstance(weight, KLWeight) else count * 0.0 + weight

    def final_weight(self, num_steps: int) -> tuple[float | None, float | None]:
        """(beta at the end of a fit, the beta that its schedule is heading for)."""
        weight = self.kl_weight
        if isinstance(weight, KLWeight):
            return float(weight.at(float(num_steps - 1))), weight.target
        return float(weight), float(weight)

    def loss(
        self, bound: Bound, params: Mapping, state: dict, count: Array, batch: Mapping, key: Any
    ) -> tuple[Array, tuple[dict, dict]]:
        """(loss, (state, metrics)), nats per datum."""
        terms = draw_terms(self, bound, params, batch, key)
        beta = self.weight_at(count)
        loss, metrics = weighted_loss(bound, terms, beta, self.free_bits)
        return loss, (state, {**metrics, "kl_weight": beta})

    # As a measure of `pg.evaluate`: the bound of each datum by `num_particles` draws.
    unit = "nats"
    larger_is_stranger = False
    takes_one_value = True

    @property
    def name(self) -> str:
        return f"ELBO({self.num_particles})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """The bound of each datum, (rows, ids) -> estimates; always with beta = 1."""
        context = context.by_steps(self.name)
        terms = guide_terms.guide_terms(context, self.name, self.num_particles)
        return lambda rows, ids: self.of_weights(guide_terms.weights_of(terms(rows, ids)))

    def of_weights(self, log_w: np.ndarray) -> Values:
        """From log weights [n, K]: their mean and its standard error (none at K = 1)."""
        return guide_terms.mean_of_draws(log_w)

    def evaluate(self, bound: Bound, params: Mapping, batch: Mapping, key: Any) -> dict:
        """The bound itself on held-out data: beta = 1, no free bits."""
        return report_terms(bound, draw_terms(self, bound, params, batch, key))


def draw_terms(loss: ELBO, bound: Bound, params: Mapping, batch: Mapping, key: Any) -> Terms:
    """The terms of a bound by the loss's own number of draws and kind of KL."""
    k = loss.num_particles if loss.num_particles > 1 else None
    options: dict[str, Any] = {"num_particles": k, "analytic_kl": loss.analytic_kl}
    if k is not None and bound.has_global_latents:
        return terms_side_by_side(bound, params, batch, key, **options)
    return compute(bound, params, batch, key, **options)


def weighted_loss(
    bound: Bound, terms: Terms, beta: Array, free_bits: float = 0.0
) -> tuple[Array, dict]:
    """R + beta K per datum with its metrics; beta is a constant for differentiation."""
    ops = bound.backend.ops
    kl = _with_free_bits(bound, terms, free_bits) if free_bits else terms.kl
    weight = ops.stop_gradient(ops.asarray_like(beta, next(iter(kl.values())))) if kl else beta
    loss = weight * per_datum(bound, terms, kl) - per_datum(bound, terms, terms.log_prob)
    loss = loss + _score_term(bound, terms, weight)
    return loss, report_terms(bound, terms) | {"loss": loss}


def _with_free_bits(bound: Bound, terms: Terms, free_bits: float) -> dict[str, Array]:
    """The KL of each latent as sum_j max(K_j, lambda), K_j the mean over the batch."""
    ops = bound.backend.ops
    whole = sorted({*terms.kl} - {*terms.kl_units})
    if whole or terms.log_q:
        raise AlgorithmError(
            f"free_bits: the KL of {whole or sorted(terms.log_q)} "
            + ("does not split into latent units" if whole else "has no reparametrised draw")
            + ", expected independent, reparametrised units on a last axis, such as those of a "
            "diagonal Gaussian; use ControlledELBO(set_point=...) to hold the total KL instead."
        )
    kl = {}
    for name, units in terms.kl_units.items():
        mean = mean_of_units(ops, units)
        kl[name] = terms.kl[name] * 0.0 + ops.sum(ops.maximum(mean, free_bits))
    return kl


def _score_term(bound: Bound, terms: Terms, beta: Array) -> Array | float:
    """Zero in value; its gradient is -E[(log p - beta KL) grad log q] for draws without one.

    With several particles each one's signal is taken relative to the mean of the others, which are
    independent of it given x: the expectation stays, the variance falls.
    """
    ops = bound.backend.ops
    total: Any = 0.0
    for name, log_q in terms.log_q.items():
        if not terms.is_local[name]:
            raise AlgorithmError(
                f"site {name!r}: is global and its draw has no gradient, expected a continuous "
                "global latent; move it inside the data plate, or sum it out."
            )
        signal: Any = 0.0
        for values, factor in ((terms.log_prob, 1.0), (terms.kl, -beta)):
            for site, value in values.items():
                if terms.is_local[site]:
                    signal = signal + factor * ops.stop_gradient(value)
        if log_q.ndim == 2 and log_q.shape[0] > 1:  # [particles, batch]
            num = log_q.shape[0]
            signal = (num * signal - ops.sum(signal, axis=0)) / (num - 1.0)
        total = total - ops.mean(signal * (log_q - ops.stop_gradient(log_q)))
    return total


def report_terms(bound: Bound, terms: Terms) -> dict[str, Array]:
    """Metrics, nats per datum: elbo, kl, log_prob, each per site, and KL per latent unit; and what
    the program computes that is one number for all data."""
    ops = bound.backend.ops
    one = {n: per_datum(bound, terms, {n: v}) for n, v in {**terms.log_prob, **terms.kl}.items()}
    log_prob = sum((one[n] for n in terms.log_prob), start=0.0)
    kl = sum((one[n] for n in terms.kl), start=0.0)
    metrics = {f"log_prob/{n}": one[n] for n in terms.log_prob}
    metrics |= {f"kl/{n}": one[n] for n in terms.kl}
    for name, units in terms.kl_units.items():
        metrics[f"kl_units/{name}"] = mean_of_units(ops, units)
    if terms.kl:
        metrics["kl"] = kl
    metrics |= {f"value/{n}": v for n, v in terms.values.items()}
    return metrics | {"elbo": log_prob - kl, "log_prob": log_prob}


@declaration
class ImportanceWeightedELBO:
    """The importance-weighted bound, E log (1/K) sum_k w_k with w = p(x, z) / q(z | x).

    Args:
        num_particles: K; 1 is the ELBO.
        doubly_reparametrized: the gradient of the guide with weights w~_k^2 on the path through
            z_k and none through log q's parameters (DReG), whose signal-to-noise ratio grows with
            K where the plain gradient's falls.

    Sources: Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519; Tucker et al. 2019,
    arXiv:1810.04152, equation 8.

    Raises (when bound to a model):
        AlgorithmError: a latent is global, so that weights do not factorise over data, or its draw
            has no gradient.
    """

    num_particles: Many = 16
    doubly_reparametrized: bool = False

    def init(self, bound: Bound) -> dict:
        if bound.has_global_latents:
            raise AlgorithmError(
                f"ImportanceWeightedELBO: the model {bound.model.name!r} has latents outside the "
                "data plate, expected local ones only (weights are per datum); use ELBO."
            )
        return {}

    def final_weight(self, num_steps: int) -> tuple[float, float]:
        return 1.0, 1.0

    def loss(
        self, bound: Bound, params: Mapping, state: dict, count: Array, batch: Mapping, key: Any
    ) -> tuple[Array, tuple[dict, dict]]:
        ops = bound.backend.ops
        terms = self._sampled(bound, params, batch, key)
        if terms.log_q:
            raise AlgorithmError(
                f"ImportanceWeightedELBO: the draws of {sorted(terms.log_q)} have no gradient, "
                "expected reparametrised latents; use ELBO."
            )
        log_w = log_weights(terms)
        value = ops.mean(iwae(ops, log_w))
        loss = self._doubly(bound, params, batch, terms) if self.doubly_reparametrized else -value
        return loss, (state, self._metrics(bound, terms, log_w) | {"loss": -value})

    def evaluate(self, bound: Bound, params: Mapping, batch: Mapping, key: Any) -> dict:
        terms = self._sampled(bound, params, batch, key)
        return self._metrics(bound, terms, log_weights(terms))

    def _sampled(self, bound: Bound, params: Mapping, batch: Mapping, key: Any) -> Terms:
        k = self.num_particles
        return compute(bound, params, batch, key, num_particles=k, analytic_kl=False)

    def _metrics(self, bound: Bound, terms: Terms, log_w: Array) -> dict[str, Array]:
        ops = bound.backend.ops
        relative = ops.softmax(log_w, axis=0)
        effective = 1.0 / ops.sum(relative * relative, axis=0)
        return report_terms(bound, terms) | {
            "iwae": ops.mean(iwae(ops, log_w)),
            "effective_particles": ops.mean(effective),
        }

    def _doubly(self, bound: Bound, params: Mapping, batch: Mapping, terms: Terms) -> Array:
        """A surrogate whose gradient is DReG's for the guide and the plain one for the model."""
        b, ops = bound.backend, bound.backend.ops
        fixed = b.tree_map(ops.stop_gradient, dict(params))
        k = self.num_particles
        still = {n: ops.stop_gradient(z) for n, z in terms.latents.items()}
        log_p = _joint(bound.trace(params, batch, still, num_particles=k))
        log_p_path = _joint(bound.trace(fixed, batch, terms.latents, num_particles=k))
        guide = bound.trace_guide(fixed, batch, latents=terms.latents, num_particles=k)
        log_q_path = sum(s.log_prob for n, s in guide.items() if n in terms.latents)
        relative = ops.stop_gradient(ops.softmax(log_weights(terms), axis=0))
        surrogate = relative * log_p + relative * relative * (log_p_path - log_q_path)
        return -ops.mean(ops.sum(surrogate, axis=0))


def _joint(sites: Mapping[str, Any]) -> Array:
    return sum(s.log_prob for s in sites.values() if s.log_prob is not None)


def iwae(ops: Any, log_w: Array) -> Array:
    """log (1/K) sum_k w_k over the leading axis, nats."""
    return ops.logsumexp(log_w, axis=0) - math.log(log_w.shape[0])
