"""Likelihood regret: how much the bound of a datum gains when its posterior is re-fitted to it.

    LR_K(x) = L_K(x; theta, tau_hat(x)) - L_K(x; theta, tau(x)),   tau_hat = argmax over tau of L_1

L_K is log (1/K) sum_k w_k with w = p_theta(x, z) / q_tau(z), averaged over several groups of K; tau
is the guide of this datum, theta stays. Larger is stranger: the amortised posterior suits what the
guide was trained on. How tau is searched is in `refit`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from scipy.special import logsumexp

from probgen.engine.bound import Bound
from probgen.engine.measure import EvaluationContext, Function
from probgen.inference.likelihood.importance import particles
from probgen.inference.regret.refit import bind_search, negative_bound, num_parameters, rows_of
from probgen.language.declared import declaration, require
from probgen.language.kinds import Count, Many
from probgen.language.optim import Adam, OptimizerDeclaration
from probgen.trees import tree_leaves

Array = Any
CHECKED = 32  # draws by which the achieved optimisation is judged
# What the noise of scoring is keyed by: beyond any step, so that no draw depends on their number.
BEFORE, AFTER, JUDGE = 2**30, 2**30 + 1, 2**30 + 2
AGAIN = 2**30 + 16  # a stream of keys for each further search
_DEFAULTS = {"guide": Adam(2e-4, weight_decay=5e-5), "posterior": Adam(3e-2)}


@declaration
class LikelihoodRegret:
    """LR_K(x) = L_K(x; theta, tau_hat(x)) - L_K(x; theta, tau(x)), nats; larger is stranger.

    What K means: log p(x) does not depend on tau. At K = 1 the regret is the amortisation gap that
    the search closes, KL(q_tau || posterior) - KL(q_tau_hat || posterior). As K grows both bounds
    tend to log p(x) and the regret to zero, for every x: K is a choice of score and no precision.
    The paper's code has K = 1000 at 100 latent units (`LikelihoodRegret.as_published()`); with few
    latent units a larger K weakens the score. The precision is `num_draws`.

    Args:
        search: "guide": a copy of all the guide's networks is re-fitted to the datum (the official
            code); "posterior": only the datum's own location and log scale of each latent are, for
            a guide of independent Gaussians (near the same ranking; a step leaves the encoder out,
            but there are three times as many by default: cheaper where the encoder is large, about
            as long where it is small).
        num_steps: updates; default 100 ("guide") or 300 ("posterior"). Each draws one z.
        optimizer: default `Adam(2e-4, weight_decay=5e-5)` (classic L2, the official code's) for
            "guide", `Adam(3e-2)` for "posterior".
        num_particles: K of the bound after, and before unless that is given.
        num_particles_before: K of the bound before.
        num_draws: importance samples on each side, a multiple of K; default: the smallest of both
            K's multiples from 100 on. L_K is the mean over the num_draws / K groups.
        num_searches: independent searches of each datum, whose regrets are averaged. A search is
            itself random, and only the spread between several tells by how much.
        noise: "common": the same draws before and after, which cancel in the difference;
            "independent": as in the official code.
        start_from: "guide", or "prior": "posterior" then starts at location 0 and scale 1.
        rank_1: the first linear layer by its output (see `refit`): the same ranking, several times
            as fast, for a VAE with an MLP as encoder.
        rows_at_once: data that are optimised side by side; default: the backend's choice, one or a
            few on a CPU (a copy must stay in the cache), many on a GPU. It changes no number.
        particles_at_once: importance samples at a time, for memory; another number draws others.

    Gives per datum: `estimate`; `scoring_error`, its standard error if the tau_hat that was found
    is taken as given, from the draws of both bounds; with R = `num_searches` of 2 or more the
    `standard_error` of the estimate, the noise of scoring and of the search, s / sqrt(R) with s the
    standard deviation between searches (an interval is Student's with R - 1 degrees of freedom);
    `elbo_before`, `elbo_after` and `regret_elbo`, their difference (K = 1 by the same draws);
    and how far the search came: `gradient_norm`, of the bound at tau_hat over 32 draws, and
    `late_gain`, what the last tenth of the steps added to the bound. With one search there is no
    `standard_error`: over seeds the spread was 1.7 times the scoring error by default, 3.6 times as
    published (search="guide"), 1.1 times for search="posterior".

    The maximum is only approached, so a regret may be slightly negative: it is not clipped. Each
    datum has its own noise, so neither chunk size nor `rows_at_once` changes a result.

    Assumes that the guide was fitted on what is called ordinary, without per-datum refinement.
    Where it fails: collapsed or very small latent spaces leave no gap; it is no better than the
    likelihood where that works already; with simple pairs of data sets plain compression does
    better; hundreds of steps fit any x (all in the literature that followed, arXiv:2401.04933).

    Raises (when bound): AlgorithmError: no guide, global latents, an unnormalised density, a search
    that the guide does not allow.

    Source: Xiao, Yan & Amit 2020, arXiv:2003.02977, and their published code.
    """

    search: Literal["guide", "posterior"] = "guide"
    num_steps: Count | None = None
    optimizer: OptimizerDeclaration | None = None
    num_particles: Many = 1
    num_particles_before: Many | None = None
    num_draws: Many | None = None
    num_searches: Many = 1
    noise: Literal["common", "independent"] = "common"
    start_from: Literal["guide", "prior"] = "guide"
    rank_1: bool = False
    rows_at_once: Many | None = None
    particles_at_once: Many = 100

    unit = "nats"
    larger_is_stranger = True

    def __post_init__(self) -> None:
        require(
            self.search != "guide" or self.start_from != "prior", self,
            'search="posterior": networks start from their own weights', "search", "start_from",
        )  # fmt: skip
        require(
            self.search != "posterior" or not self.rank_1, self,
            'no rank_1, since no layer is re-fitted; leave it out, or use search="guide"',
            "search", "rank_1",
        )  # fmt: skip
        before, after, draws = self._counts
        for k, name in ((before, "num_particles_before"), (after, "num_particles")):
            require(draws % k == 0, self, f"a multiple of K={k}, whole groups", "num_draws", name)

    @classmethod
    def as_published(cls, **changes: Any) -> LikelihoodRegret:
        """The official code's settings: 100 steps on the whole encoder, K = 1000, new noise.

        Its encoder gives the log of the *variance*, heads=("loc", "log_variance"); with the heads
        "loc" and "log_scale" equal steps move the scale twice as far on the log scale, and the
        regret of strange data comes out larger.
        """
        return cls(**{"num_particles": 1000, "noise": "independent", **changes})

    @property
    def steps(self) -> int:
        """Number of updates."""
        default = 100 if self.search == "guide" else 300
        return default if self.num_steps is None else self.num_steps

    @property
    def _counts(self) -> tuple[int, int, int]:
        """(K before, K after, draws on each side)."""
        after, before, draws = self.num_particles, self.num_particles_before, self.num_draws
        before = after if before is None else before
        if draws is None and min(before, after) > 0:
            together = math.lcm(before, after)
            draws = -(-100 // together) * together
        return before, after, draws or 0

    @property
    def noise_name(self) -> str:
        """What the noise is keyed by: searches of other lengths and steps see the same draws."""
        before, after, _ = self._counts
        k = f"K={after}" if before == after else f"K={before}, {after}"
        said = [self.search, *(["rank 1"] if self.rank_1 else []), k]
        return f"LikelihoodRegret({', '.join(said)})"

    @property
    def name(self) -> str:
        said = [self.noise_name.removeprefix("LikelihoodRegret(").removesuffix(")")]
        if self.steps != dataclasses.replace(self, num_steps=None).steps:
            said.append(f"{self.steps} steps")
        said += ["from the prior"] if self.start_from == "prior" else []
        if self._counts[2] != dataclasses.replace(self, num_draws=None)._counts[2]:
            said.append(f"{self._counts[2]} draws")
        said += [f"{self.num_searches} searches"] if self.num_searches > 1 else []
        said += ["independent noise"] if self.noise == "independent" else []
        said += [repr(self.optimizer)] if self.optimizer is not None else []
        return f"LikelihoodRegret({', '.join(said)})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """(rows, ids) -> the regret, its error and bounds, and diagnostics."""
        fn = self.device_function(context.bound, context.num_data)
        weights = context.device(fn, self.noise_name, is_compiled=True)
        return lambda rows, ids: self.finish(weights(rows, ids))

    def device_function(self, bound: Bound, num_data: int) -> Callable:
        """(params, batch, row keys) -> log weights before and after, and diagnostics."""
        who = f"LikelihoodRegret(search={self.search!r})"
        b, ops = bound.backend, bound.backend.ops
        draws, at_once, steps = self._counts[2], self.particles_at_once, self.steps
        before = particles(bound, who, draws, at_once)
        found = bind_search(bound, who, self.search, self.rank_1, self.start_from)
        after = particles(found.bound, who, draws, at_once)

        def loss(tau: Any, params: Mapping, x: Mapping, key: Any) -> Array:
            return negative_bound(found, tau, params, x, key, None)

        def judged(tau: Any, params: Mapping, x: Mapping, key: Any) -> Array:
            return negative_bound(found, tau, params, x, key, CHECKED)

        slope = b.value_and_grad(judged)

        def finish(tau: Any, kept: Any, params: Mapping, x: Mapping, key: Any) -> dict[str, Array]:
            rows, is_common = rows_of(x), self.noise == "common"
            k_before, k_judge = b.fold_in(key, BEFORE), b.fold_in(key, JUDGE)
            k_after = k_before if is_common else b.fold_in(key, AFTER)
            guide = found.guide_params(tau, params, x)
            end, grads = slope(tau, params, x, k_judge)
            squares: Any = sum(ops.sum(g * g) for g in tree_leaves(grads))
            return {
                "log_w_before": before(params, rows, k_before)[:, 0],
                "log_w_after": after(params, rows, k_after, guide)[:, 0],
                "gradient_norm": ops.sqrt(squares),
                "late_gain": judged(kept, params, x, k_judge) - end,
            }

        declared = self.optimizer or _DEFAULTS[self.search]
        search: list[Callable] = []  # made with the first data

        def of_first(params: Mapping, batch: Mapping) -> Any:
            return found.init(params, {k: v[0] for k, v in batch.items()})

        def made(params: Mapping, batch: Mapping) -> Callable:
            at_once = self.rows_at_once
            if at_once is None:
                # On JAX one program, not one for each operation.
                begun = b.compile(of_first, num_calls=1)(params, batch)
                at_once = b.rows_at_once(num_parameters(begun))
            return b.minimise_rows(
                declared, loss, init=found.init, finish=finish, num_steps=steps,
                keep_at=steps - max(1, steps // 10), rows_at_once=at_once, num_rows=num_data,
            )  # fmt: skip

        def run(params: Mapping, batch: Mapping, keys: Any) -> dict[str, Array]:
            if not search:
                search.append(made(params, batch))
            (once,) = search
            if self.num_searches == 1:
                return once(params, batch, keys)
            # The first is the search that is made alone.
            each = [keys, *(b.fold_in(keys, AGAIN + i) for i in range(1, self.num_searches))]
            several = [once(params, batch, k) for k in each]
            return {n: ops.stack([v[n] for v in several], axis=1) for n in several[0]}

        return run

    def finish(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The regret, its error and the bounds from the log weights, in float64."""
        if self.num_searches == 1:
            return self._finish_one(values)
        each = [
            self._finish_one({n: v[:, i] for n, v in values.items()})
            for i in range(self.num_searches)
        ]
        out = {n: np.mean([v[n] for v in each], axis=0) for n in each[0]}
        root = math.sqrt(self.num_searches)
        out["standard_error"] = np.std([v["estimate"] for v in each], axis=0, ddof=1) / root
        if "scoring_error" in out:
            squares = np.mean([v["scoring_error"] ** 2 for v in each], axis=0)
            out["scoring_error"] = np.sqrt(squares) / root
        return out

    def _finish_one(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        k_before, k_after, _ = self._counts
        before, after = (np.asarray(values[f"log_w_{w}"], np.float64) for w in ("before", "after"))
        estimate, error = regret(before, after, k_before, k_after, self.noise == "common")
        out = {"estimate": estimate} if error is None else {
            "estimate": estimate, "scoring_error": error,
        }  # fmt: skip
        elbo = {"elbo_before": before.mean(1), "elbo_after": after.mean(1)}
        gain = {"regret_elbo": elbo["elbo_after"] - elbo["elbo_before"]}
        rest = {n: v for n, v in values.items() if not n.startswith("log_w_")}
        return {**out, **elbo, **gain, **rest}

    def warnings(self, values: dict[str, np.ndarray]) -> list[str]:
        """Says where the search was still under way."""
        said = []
        if self.num_searches == 1:
            said.append(
                "one search a datum: the noise of the search is in no error (scoring_error leaves "
                "it out); num_searches=4 gives a standard_error that holds it."
            )
        gain, found = values["late_gain"], values["regret_elbo"]
        late = (gain > 0.1 * np.abs(found)) & (gain > 0.1)
        if not late.any():
            return said
        return [
            *said,
            f"the last tenth of the steps still gained more than a tenth of the regret for "
            f"{int(late.sum())} of {len(late)} data: their maximum is not reached, as the published"
            " score has it too; more steps raise it.",
        ]


def bound_estimate(log_w: np.ndarray, num_particles: int) -> np.ndarray:
    """[n, G] L_K of each group of K among [n, G K] log weights, nats."""
    groups = log_w.reshape(len(log_w), -1, num_particles)
    return logsumexp(groups, axis=2) - math.log(num_particles)


def regret(
    before: np.ndarray, after: np.ndarray, k_before: int, k_after: int, is_common: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """L_K(after) - L_K(before) and its Monte Carlo standard error, from [n, draws] log weights.

    With several groups of K the error is that of the mean over groups (of paired differences, if
    the noise is common); with one group it is the delta method's; None where one draw is all.
    """
    first, second = bound_estimate(before, k_before), bound_estimate(after, k_after)
    value = second.mean(1) - first.mean(1)
    if is_common and k_before == k_after and first.shape[1] > 1:
        each = second - first
        return value, each.std(1, ddof=1) / math.sqrt(each.shape[1])
    if is_common and first.shape[1] == second.shape[1] == 1 and before.shape[1] > 1:
        relative = _relative(after) - _relative(before)
        return value, relative.std(1, ddof=1) / math.sqrt(relative.shape[1])
    parts = [_variance(before, first), _variance(after, second)]
    known = [p for p in parts if p is not None]
    return value, np.sqrt(sum(known)) if len(known) == 2 else None


def _relative(log_w: np.ndarray) -> np.ndarray:
    """w / mean(w), [n, draws]."""
    return np.exp(log_w - logsumexp(log_w, axis=1, keepdims=True) + math.log(log_w.shape[1]))


def _variance(log_w: np.ndarray, groups: np.ndarray) -> np.ndarray | None:
    if groups.shape[1] > 1:
        return groups.var(1, ddof=1) / groups.shape[1]
    if log_w.shape[1] == 1:
        return None
    return _relative(log_w).var(1, ddof=1) / log_w.shape[1]
