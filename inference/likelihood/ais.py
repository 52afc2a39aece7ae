"""Log-likelihood of each datum by annealed importance sampling over its latents.

    log p_hat(x) = log (1/C) sum_c w_c,     E[p_hat(x)] = p(x),     so  E[log p_hat(x)] <= log p(x)

The path leads from the prior, f_b(z) = p(z) p(x | z)^b, or from the guide, q(z | x)^(1-b)
p(x, z)^b, to the joint density; latents move on the real line, with the Jacobians of their
bijections. A lower bound in expectation; how far below, only `bracket.bdmc` can tell.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.measure import EvaluationContext, Function, changed_settings
from probgen.engine.target import Target
from probgen.errors import AlgorithmError
from probgen.inference.likelihood.annealing import Annealer, Settings
from probgen.inference.likelihood.interval import lower_limit
from probgen.language.declared import declaration
from probgen.language.kinds import BelowOne, Many, OpenShare, Positive, TwoOrMore, between
from probgen.language.run import DATA_PLATE

Array = Any


@declaration
class AIS:
    """Annealed importance sampling of log p(x), a lower bound in expectation.

    Args:
        num_steps: temperatures T. Too few under-report badly and say so in no way that one chain
            could see: double them until nothing changes, or ask `bdmc`.
        num_chains: C, independent chains a datum.
        num_leapfrog: leapfrog steps of one transition.
        start: "prior", or "guide" where the model has one, which shortens the way.
        target_accept_prob: acceptance that the pilot run aims its step sizes at. The 65 % that is
            best in many dimensions lies at the edge of stability in few: on a linear model with 4
            latents and 100 temperatures it costs 0.5 nats that 90 % does not.
        num_pilot_steps: temperatures of the pilot run, whose step sizes are then frozen.
        initial_step_size: where the pilot starts.
        jitter: step sizes are spread by 1 +- jitter from transition to transition.

    Gives per datum: `estimate`, nats; `lower_bound`, which log p(x) is above in 95 % of cases and
    more (`interval.lower_limit`); `effective_chains`, (sum w)^2 / sum w^2, of C, which shows where
    one chain carries the weight; `acceptance_rate`. There is no standard error: +- 1.96 of them
    over chains covered log p(x) in 60 to 92 % of cases (from the prior and from the guide, 100 and
    400 temperatures), and once were off by seven with 15.5 of 16 chains effective, since chains
    that all miss a region agree. More temperatures raise the estimate towards log p(x); what they
    still add, and the gap of `bdmc`, tell how far it may be. Weights are
    summed in compensated single precision and averaged in double. Each datum has noise and step
    sizes of its own; in float32 a rounding may still turn an acceptance, and with it one chain's
    path, so that other chunks give another draw of the same law; in float64 they give the same.

    On real data only this forward run exists. The gap that `bdmc` finds on data simulated from the
    model may be quoted as its accuracy, and is a proxy: real data may be harder than the model's.

    Cost: (num_steps + num_pilot_steps) (num_leapfrog + 1) gradients of each chain.

    Raises (when bound): AlgorithmError: no latents, global or discrete latents, latents in plates
    of their own, an unnormalised density, or start="guide" without a guide.

    Source: Neal 2001; Wu, Burda, Salakhutdinov & Grosse 2017, arXiv:1611.04273, from whose code the
    schedule, 16 chains and 10 leapfrogs come. There the step size adapts during the weighted run,
    so that the chains do not quite keep their targets; here a pilot run adapts it.
    """

    num_steps: Many = 1000
    num_chains: TwoOrMore = 16  # errors are taken over chains
    num_leapfrog: Many = 10
    start: Literal["prior", "guide"] = "prior"
    target_accept_prob: OpenShare = dataclasses.field(default=0.9, kw_only=True)
    num_pilot_steps: Annotated[int, between(10, 10**7)] = dataclasses.field(
        default=100, kw_only=True
    )
    initial_step_size: Positive = dataclasses.field(default=0.1, kw_only=True)
    jitter: BelowOne = dataclasses.field(default=0.5, kw_only=True)

    unit = "nats"
    larger_is_stranger = False
    direction = "lower, stochastic"

    @property
    def name(self) -> str:
        more = changed_settings(self, shown=("num_steps", "num_chains"))
        said = [str(self.num_steps), f"num_chains={self.num_chains}", *more]
        return f"AIS({', '.join(said)})"

    @property
    def settings(self) -> Settings:
        """What the walks need of these options."""
        names = [f.name for f in dataclasses.fields(Settings)]
        return Settings(**{n: getattr(self, n) for n in names})

    def annealer(self, bound: Bound) -> Annealer:
        """The walks of one model's path."""
        return Annealer(bound.backend, latent_path(bound, self.start, self.name), self.settings)

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> estimates, by a loop whose transitions are compiled."""
        run = context.backend.compile(self.device_function(context.bound), over="steps")
        weights = context.device(run, self.name, is_compiled=True)
        return lambda rows, ids: self.finish(weights(rows, ids))

    def device_function(self, bound: Bound) -> Callable:
        """The weights for one model: (params, batch, key) -> "log_w" [batch, C] and the like."""
        annealer = self.annealer(bound)

        def measure(params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
            k_pilot, k_run = bound.backend.split(key, 2)
            table = annealer.step_sizes(params, batch, k_pilot)
            return annealer.forward(params, batch, k_run, table)._asdict()

        return measure

    def finish(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The mean weight of the chains in double precision, and its lower limit."""
        found = summary(in_double(values["log_w"], values["log_w_rest"]))
        limit = found["estimate"] + lower_limit(found.pop("standard_error"), self.num_chains)
        return {**found, "lower_bound": limit, "acceptance_rate": values["acceptance_rate"]}

    def warnings(self, values: dict[str, np.ndarray]) -> list[str]:
        """Says for how many data one chain carries most of the weight."""
        few = int((values["effective_chains"] < 2.0).sum())
        if not few:
            return []
        return [
            f"fewer than 2 of {self.num_chains} chains carry the weight for {few} of "
            f"{len(values['effective_chains'])} data: their log p(x) is likely too low; use more "
            f"temperatures than {self.num_steps}."
        ]


def in_double(high: Any, low: Any) -> np.ndarray:
    """high + low in float64."""
    return np.asarray(high, np.float64) + np.asarray(low, np.float64)


def summary(log_w: np.ndarray) -> dict[str, np.ndarray]:
    """Log of the mean weight over the last axis, its noise and its effective number, float64.

    The standard error is the delta method's, sd(w) / (mean(w) sqrt(C)): how far another run would
    land, where the chains have seen what carries the mean. Where every weight is zero the estimate
    is -inf, and error and effective number are NaN.
    """
    top = log_w.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        w = np.exp(log_w - np.where(np.isfinite(top), top, 0.0))
        mean = w.mean(axis=-1)
        count = w.shape[-1]
        return {
            "estimate": np.log(mean) + np.where(np.isfinite(top), top, 0.0)[..., 0],
            "standard_error": w.std(axis=-1, ddof=1) / (mean * math.sqrt(count)),
            "effective_chains": count * mean**2 / (w * w).mean(axis=-1),
        }


def latent_path(bound: Bound, start: str, who: str) -> Target:
    """The path over a model's local latents, given a batch of data.

    Raises:
        AlgorithmError: see `AIS`.
    """
    check_latents(bound, who)
    if start == "guide":
        bound.require_guide(f"{who} with start='guide'")
    b = bound.backend
    latents = bound.latents
    program = bound.model.program

    def split_terms(sites: Mapping, q: Mapping | None) -> tuple[Array, Array]:
        prior = _sum([sites[n].log_prob for n in latents])
        seen = _sum(
            [s.log_prob for n, s in sites.items() if n not in latents and s.log_prob is not None]
        )
        if q is None:
            return prior, seen
        base = _sum([q[n].log_prob for n in latents])
        return base, prior + seen - base

    def draw_values(params: Mapping, batch: Mapping, key: Any, num_chains: int) -> dict:
        run = bound.trace_guide if start == "guide" else bound.trace
        sites = run(params, batch, key=key, num_particles=num_chains)
        return {n: sites[n].value for n in latents}

    if all("Real" in bound.structure.sites[n].support for n in latents):

        def terms(u: Mapping, params: Mapping, batch: Mapping) -> tuple[Array, Array]:
            chains = next(iter(u.values())).shape[0]
            sites = bound.trace(params, batch, u, num_particles=chains)
            q = None
            if start == "guide":
                q = bound.trace_guide(params, batch, latents=u, num_particles=chains)
            return split_terms(sites, q)

        return _path(latents, draw_values, terms, lambda values, params, batch: dict(values))

    # Supports are read inside the run: it is one chain's datum, and batched.
    def free_run(free: Any, given: Any, params: Any, row: Any) -> tuple[Any, Any, Any]:
        rows = {n: v[None] for n, v in row.items()}
        out = b.unconstrained(
            program, params, names=latents, free={n: v[None] for n, v in free.items()},
            given={n: v[None] for n, v in given.items()}, strategy="init_to_feasible",
            values={n: rows[n] for n in bound.observed},
            inputs=bound.inputs(program, rows, f"model {bound.model.name!r}"),
            key=None, batch_size=1,
        )  # fmt: skip
        return out

    def one_terms(free: Any, params: Any, row: Any) -> tuple[Array, Array]:
        sites, _, log_det = free_run(free, {}, params, row)
        q = None
        if start == "guide":
            rows = {n: v[None] for n, v in row.items()}
            q = bound.trace_guide(params, rows, latents={n: sites[n].value for n in latents})
        base, delta = split_terms(sites, q)
        return base[0] + _sum(list(log_det.values()))[0], delta[0]

    def one_enter(values: Any, params: Any, row: Any) -> dict:
        _, free, _ = free_run({}, values, params, row)
        return {n: free[n][0] for n in latents}

    def batched(fn: Callable) -> Callable:
        return b.vmap(b.vmap(fn, in_axes=(0, None, 0)), in_axes=(0, None, None))

    terms_of, enter = batched(one_terms), batched(one_enter)

    def draw(params: Mapping, batch: Mapping, key: Any, num_chains: int) -> dict:
        return enter(draw_values(params, batch, key, num_chains), params, dict(batch))

    def one_values(free: Any, params: Any, row: Any) -> dict:
        sites, _, _ = free_run(free, {}, params, row)
        return {n: sites[n].value[0] for n in latents}

    return _path(
        latents, draw, lambda u, params, batch: terms_of(u, params, dict(batch)), enter,
        lambda u, params, batch: batched(one_values)(u, params, dict(batch)),
    )  # fmt: skip


def _path(
    names: tuple[str, ...], draw: Callable, terms: Callable, enter: Callable,
    values: Callable = lambda u, params, batch: dict(u),
) -> Target:  # fmt: skip
    """The target whose `terms` are these; its density is that of the latents with one datum."""
    return Target(names, draw, lambda *at: sum(terms(*at)), None, values, False, enter, terms)


def check_latents(bound: Bound, who: str) -> None:
    """Refuses a model whose log-likelihood is not an integral over one datum's continuous latents.

    Raises:
        AlgorithmError: names what stands in the way, and the cure.
    """
    name, sites = bound.model.name, bound.structure.sites
    bound.require_normalized(who)
    if not bound.observed:
        raise AlgorithmError(
            f"{who}: no site of {name!r} is observed, expected the data's; give data, or "
            "Fitted(..., shapes={'x': (3,)}), for one."
        )
    if not bound.latents:
        raise AlgorithmError(
            f"{who}: {name!r} has no latents given its data, expected at least one to integrate "
            "over; its log density is exact, ELBO() gives it."
        )
    for site, info in sites.items():
        if info.kind == "deterministic":
            continue
        if not info.is_local:
            raise AlgorithmError(
                f"{who}: site {site!r} of {name!r} is global (outside the data plate), expected "
                "local ones, since the estimate is one datum's; use pg.infer for global latents."
            )
    for site in (*bound.latents, *bound.enumerated):
        info = sites[site]
        if info.is_discrete:
            raise AlgorithmError(
                f"{who}: latent {site!r} of {name!r} is discrete ({info.distribution}), expected "
                "continuous ones, since the chains follow gradients; sum it out "
                "(dist.MixtureSameFamily for a mixture)."
            )
        if info.plates != (DATA_PLATE,):
            inner = [p for p in info.plates if p != DATA_PLATE]
            raise AlgorithmError(
                f"{who}: latent {site!r} of {name!r} stands in the plates {inner}, expected the "
                "data plate alone; make those axes events with .expand([...]).to_event(n)."
            )
    bound.require_rows(who)


def _sum(values: list) -> Array:
    return sum(values[1:], values[0])
