"""The negative phase of maximum likelihood: draws of the model, and what they give the loss.

    chains                 mean f(x') at the ends x' of chains that target the model
    importance sampling    log (1/N) sum_j exp(-E(x_j)),  x_j ~ base: an estimate of log Z, whose
                           gradient is E's mean under self-normalised weights, and needs no chain

Nothing is differentiated through how the draws came about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from probgen.engine.bound import Bound
from probgen.engine.spaces import model_target, space_name
from probgen.engine.target import Sampler, acceptance, onward, transitions
from probgen.errors import AlgorithmError
from probgen.inference.learn.chain_starts import as_start
from probgen.inference.learn.contrast import WHO, Contrast
from probgen.language.declared import declaration
from probgen.language.kinds import Many

Array = Any
Tree = Any


class Negative(NamedTuple):
    """A negative phase bound to a model.

    Attributes:
        own: (params, batch, key, extras) -> what it keeps at first.
        draw: (params, kept, batch, key) -> (draws, kept, metrics); draws are {"values": by site,
            "log_base": log p_0 there or None}.
        value: (log f, E, log_base at the draws) -> (what the loss gets, metrics).
        renew: kept -> the same with chains to start anew.
        cures: what to do where a metric is not finite.
        note: what the draws are, and what of the model a fit brings to the data by them.
    """

    own: Callable
    draw: Callable
    value: Callable
    renew: Callable
    cures: dict[str, str]
    note: str


@declaration
class ImportanceSampling:
    """In place of chains: draws of the base, weighted by exp(-E).

    For `MaximumLikelihood` and, with more draws, for `log_partition`.

    The loss is -(mean log f at data) + log (1/N) sum_j exp(-E(x_j)), x_j ~ base: consistent as N
    grows, with no chain to trust. The share of draws that carry the weight is the metric
    `importance_share`, (sum w)^2 / (N sum w^2); below 0.05 take chains.

    Args:
        num_draws: N, drawn anew at each update; `log_partition` wants some 100,000.
    """

    num_draws: Many = 2048

    direction = "lower, stochastic"  # of its estimate of log Z

    @property
    def name(self) -> str:
        return f"ImportanceSampling({self.num_draws})"

    def phase(self, bound: Bound, contrast: Contrast) -> Negative:
        """The negative phase of a model."""
        ops = bound.backend.ops
        require_base(contrast, type(self).__name__)

        def own(params: Mapping, batch: Mapping, key: Any, extras: Any) -> dict:
            if inputs := sorted(contrast.inputs(batch)):
                raise AlgorithmError(
                    f"{WHO}: got ImportanceSampling and the inputs {inputs} with one row a datum, "
                    "expected one log Z for all data; use a sampler such as Langevin(...)."
                )
            return {}

        def drawn(params: Mapping, key: Any) -> dict:
            k_draw, k_at = bound.backend.split(key, 2)
            values = contrast.base_draws(params, k_draw, self.num_draws)
            return {"values": values, "log_base": contrast.log_base(params, values, k_at)}

        drawn = bound.backend.compile(drawn, num_calls=bound.num_steps)

        def draw(params: Mapping, kept: Mapping, batch: Mapping, key: Any) -> tuple:
            return drawn(params, key), kept, {}

        def value(log_f: Array, energy: Array, log_base: Array | None) -> tuple:
            log_w = log_f if log_base is None else log_f - log_base
            log_z, share, weights = weighed(ops, log_w)
            more = {"energy_samples": ops.sum(weights * energy), "importance_share": share}
            return log_z, more

        note = (
            f"{self.num_draws} weighted draws of the base for each update: the density itself, but "
            "for a log Z that is too low where few draws carry it"
        )
        return Negative(own, draw, value, lambda kept: kept, {}, note)


def chains(bound: Bound, contrast: Contrast, sampler: Sampler, space: Any, init: Any) -> Negative:
    """The negative phase by a sampler's chains, one for each datum of a batch."""
    b, ops = bound.backend, bound.backend.ops
    target = model_target(bound, space)
    n = transitions(sampler)
    calls = None if bound.num_steps is None else bound.num_steps * n
    kernel = sampler.kernel(b, target, num_calls=calls)
    starts = as_start(init).bind(bound, target, contrast, space_name(space))

    def begin(params: Mapping, kept: Mapping, batch: Mapping, key: Any) -> Tree:
        return starts.start(params, kept, batch, key, next(iter(batch.values())).shape[0])

    def finish(params: Mapping, kept: Mapping, batch: Mapping, x: Tree, ends: Tree) -> tuple:
        values = target.values(ends, params, batch)
        draws = {m: values[m] for m in contrast.variables}
        return draws, starts.push(kept, ends), movement(ops, x, ends)

    begin = b.compile(begin, num_calls=bound.num_steps)
    finish = b.compile(finish, num_calls=bound.num_steps)

    def moved(params: Mapping, batch: Mapping, key: Any, x: Tree) -> tuple[Tree, dict]:
        """The ends, and acceptance and clipping of the first step: of all a tenth more."""
        k_first, k_chain = b.split(key, 2)
        state, info = kernel.step(k_first, kernel.init(x, params, batch), params, batch)
        end = state.x
        if n > 1:
            end = onward(b, kernel, state, k_chain, n - 1, params, batch)
        found = {"clipped": ops.mean(info["clipped"])} if "clipped" in info else {}
        ratio = info.get("log_ratio")
        if ratio is not None:
            found["acceptance"] = ops.mean(acceptance(ops, ratio))
        return end, found

    def draw(params: Mapping, kept: Mapping, batch: Mapping, key: Any) -> tuple:
        k_start, k_chain = b.split(key, 2)
        x = begin(params, kept, batch, k_start)
        end, first = moved(params, batch, k_chain, x)
        values, kept, far = finish(params, kept, batch, x, end)
        return {"values": values, "log_base": None}, kept, {"movement": far, **first}

    def value(log_f: Array, energy: Array, log_base: Any) -> tuple:
        return ops.mean(log_f), {"energy_samples": ops.mean(energy)}

    ends = f"of the ends of the chains: {sampler.cure()}"
    note = f"{sampler.note()}{_place(space)}, started by init={init!r}{learned_of(sampler, space)}"
    return Negative(starts.own, draw, value, starts.renew, {"energy_samples": ends}, note)


def _place(space: Any) -> str:
    if isinstance(space, str):
        return "" if space == "data" else f", in {space} space"
    return f"; {space.note()}"


def learned_of(sampler: Any, space: Any) -> str:
    """What a fit then learns, where the ends of chains are not draws of the stated density."""
    heat = getattr(sampler, "temperature", 1.0)
    if heat == 1.0:
        return ""
    times = ""
    if heat and space == "data":
        times = f": on the whole real line minus its log is {heat:g} times that of the data"
    return (
        ". A fit brings the law of these chains to the data, not the stated density"
        f"{times}; log Z and likelihoods are of the stated one"
    )


def movement(ops: Any, x: Tree, ends: Tree) -> Array:
    """How far chains went from start to end, root mean square, in standard deviations of the ends
    (over the chains, each coordinate about its own mean)."""
    squares, spread = 0.0, 0.0
    for n, end in ends.items():
        flat = ops.reshape(end, (end.shape[0], -1))
        moved = flat - ops.reshape(x[n], (end.shape[0], -1))
        centred = flat - ops.mean(flat, axis=0, keepdims=True)
        squares, spread = squares + ops.sum(moved * moved), spread + ops.sum(centred * centred)
    return ops.sqrt(squares / (spread + 1e-30))


def weighed(ops: Any, log_w: Array) -> tuple[Array, Array, Array]:
    """(log mean w, (sum w)^2 / (N sum w^2), normalised weights) of log weights [N]."""
    log_sum = ops.logsumexp(log_w, axis=0)
    size = log_w.shape[0]
    share = ops.exp(2.0 * log_sum - ops.logsumexp(2.0 * log_w, axis=0)) / size
    return log_sum - math.log(size), share, ops.exp(log_w - log_sum)


def require_base(contrast: Contrast, who: str) -> None:
    """Refuses a base that draws nothing.

    Raises:
        AlgorithmError: a site has no draws.
    """
    if not contrast.has_draws:
        raise AlgorithmError(
            f"{WHO}: got {who} for {contrast.bound.model.name!r}, whose base has a site without "
            "draws (a flat or improper density), expected a base to draw from; give "
            "dist.Density(..., draw=...), or use a sampler such as Langevin(...)."
        )
