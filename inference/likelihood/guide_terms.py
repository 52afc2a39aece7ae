"""The terms of a bound at K draws of the guide: drawn once for all measures that are made of them.

    log_prob    log p(x | z_k), factors included            z_k ~ q(z | x), k = 1 ... K
    kl          log q(z_k | x) - log p(z_k)
    closed_kl   KL(q(z | x) || p(z)) where a closed form is known, else as kl

Nats, [n, K]. Log weights, bounds, reconstruction and KL are sums and means of these, so that a
measure is a few lines on the host and a chunk goes through encoder and decoder once for each K,
whoever asks. All terms are computed whoever asks, so that no measure changes another's numbers. The
draws are those of the datum, of K and of how many are drawn at a time, for every model alike
(common random numbers).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.bound import Bound
from probgen.engine.guide_draws import draw_guide
from probgen.engine.measure import EvaluationContext, Function, Values
from probgen.errors import DeclarationError
from probgen.inference.objectives.terms import Terms, collect, require_local
from probgen.language.declared import declaration
from probgen.language.kinds import Many
from probgen.language.memory import ask

Array = Any
AT_ONCE = 25  # draws at a time, for memory


def guide_terms(
    context: EvaluationContext, who: str, num_particles: int, at_once: int = AT_ONCE, *,
    up_to_constant: bool = False,
) -> Function:  # fmt: skip
    """(rows, ids) -> "log_prob", "kl" and "closed_kl", each [n, K], float64, nats.

    Args:
        who: the measure that asks, for errors.
        up_to_constant: it says "nats + constant", so that factors may stand among the terms.

    Raises:
        AlgorithmError: the model has no guide, or global latents, or an unnormalised density.
        DeclarationError: more particles than memory holds for a chunk of the data.
    """
    bound, rows = context.bound, context.chunk_size
    require_terms(bound, who, up_to_constant=up_to_constant)
    # Three terms, in single precision and in double; and the sites of those drawn at a time.
    each = 36 * num_particles + 4 * min(num_particles, at_once) * bound.structure.count(1)
    what = f"{who}: {num_particles:,} particles of {rows:,} data at a time"
    ask(what, rows * each, "lower chunk_size, or take fewer particles", DeclarationError)
    return context.function(GuideTerms(num_particles, at_once))


def require_terms(bound: Bound, who: str, *, up_to_constant: bool = False) -> None:
    """Refuses a model whose terms are not one datum's.

    Raises:
        AlgorithmError: no guide, an unnormalised density, latents that all data share, given which
            alone a datum has a density of its own (but for `is_once`, of which all is one datum).
    """
    bound.require_guide(who)
    if not up_to_constant:
        bound.require_normalized(who)
    bound.require_short(who)
    if not bound.is_once:
        bound.require_local_latents(who)


def weights_of(terms: Values) -> np.ndarray:
    """log p(x, z_k) - log q(z_k | x), [n, K], nats."""
    return terms["log_prob"] - terms["kl"]


def mean_of_draws(draws: np.ndarray) -> Values:
    """Mean of [n, K] and its standard error over the draws (none for one draw), in float64."""
    draws = np.asarray(draws, np.float64)
    num = draws.shape[1]
    values = {"estimate": draws.mean(1)}
    if num > 1:
        values["standard_error"] = draws.std(1, ddof=1) / math.sqrt(num)
    return values


@declaration
class GuideTerms:
    """As a measure: the terms of K draws, `at_once` at a time; no estimate."""

    num_particles: Many
    at_once: Many = AT_ONCE

    unit = "nats"
    larger_is_stranger = False

    @property
    def name(self) -> str:
        return f"GuideTerms({self.num_particles})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> the terms, float64."""
        # Keyed by what the draws were first made for, so that IWAE's numbers stay what they were.
        run = context.device(self._of(context.bound), f"IWAE({self.num_particles})")
        return lambda rows, ids: {n: v.astype(np.float64) for n, v in run(rows, ids).items()}

    def _of(self, bound: Bound) -> Callable:
        ops = bound.backend.ops

        def measure(params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
            def draw(key: Any, size: int) -> dict[str, Array]:
                if bound.is_once:
                    return _of_one_value(bound, params, batch, key, size)
                draws = draw_guide(bound, params, batch, key, num_particles=size)
                sites = bound.trace(params, batch, draws.latents, num_particles=size)
                drawn, closed = (
                    collect(bound, draws, sites, analytic_kl=kind) for kind in (False, True)
                )
                require_local(drawn)
                return _summed(ops, drawn, closed, (size, bound.batch_size(batch)))

            found = in_parts(bound.backend, draw, key, self.num_particles, self.at_once)
            return {n: ops.transpose(v) for n, v in found.items()}

        return measure


def _summed(ops: Any, drawn: Terms, closed: Terms, shape: tuple) -> dict[str, Array]:
    """Each term summed over its sites, [K, batch]."""
    log_prob = sum(drawn.log_prob.values(), start=0.0)
    log_prob = ops.broadcast_to(log_prob, shape)
    one = {"kl": drawn.kl, "closed_kl": closed.kl}
    sums = {n: sum(v.values(), start=ops.zeros_like(log_prob)) for n, v in one.items()}
    return {"log_prob": log_prob, **{n: ops.broadcast_to(v, shape) for n, v in sums.items()}}


def _of_one_value(
    bound: Bound, params: Mapping, batch: Mapping, key: Any, size: int
) -> dict[str, Array]:
    """The terms of a program without a data plate, [size, 1]: those of all of it.

    The program is written for one draw of its latents, so that each gets a run of its own.
    """
    b, ops = bound.backend, bound.backend.ops
    sites, known = bound.structure.sites, set(bound.latents)

    def run(latents: Mapping) -> tuple[Array, Array]:
        found = bound.trace(params, batch, latents)
        parts = {n: s.log_prob for n, s in found.items() if s.log_prob is not None}
        of = [sum(v for n, v in parts.items() if (n in known) == kind) for kind in (False, True)]
        return of[0] + ops.zeros_like(next(iter(parts.values()))), of[1]

    if not known:
        log_prob = ops.broadcast_to(ops.reshape(run({})[0], (1, 1)), (size, 1))
        nothing = ops.zeros_like(log_prob)
        return {"log_prob": log_prob, "kl": nothing, "closed_kl": nothing}
    drawn = bound.trace_guide(params, batch, key=key, num_particles=size)
    latents, log_q = {}, 0.0
    for name in bound.latents:
        # Particles stand in front of as many axes of one as plates are deep.
        shape = (size, *bound.structure.plate_shape(name, 1), *sites[name].event_shape)
        latents[name] = ops.reshape(drawn[name].value, shape)
        log_q = log_q + ops.reshape(drawn[name].log_prob, (size,))
    log_prob, log_prior = b.vmap(run)(latents)
    kl = ops.reshape(log_q - log_prior, (size, 1))
    return {"log_prob": ops.reshape(log_prob, (size, 1)), "kl": kl, "closed_kl": kl}


def in_parts(
    b: Backend, draw: Callable[[Any, int], Any], key: Any, num_particles: int, at_once: int
) -> Any:
    """`draw(key, size) -> tree of [size, ...]` of all particles, in equal parts and a rest."""
    whole, rest = divmod(num_particles, at_once)
    k_whole, k_rest = b.split(key, 2)
    parts = []
    if whole:
        _, blocks = b.scan(lambda carry, k: (carry, draw(k, at_once)), 0, b.split(k_whole, whole))
        parts.append(
            b.tree_map(lambda v: b.ops.reshape(v, (whole * at_once, *v.shape[2:])), blocks)
        )
    if rest:
        parts.append(draw(k_rest, rest))
    return parts[0] if len(parts) == 1 else b.tree_map(_joined(b), *parts)


def _joined(b: Backend) -> Callable:
    return lambda *parts: b.ops.concatenate(list(parts), axis=0)
