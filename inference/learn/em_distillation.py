"""EM distillation: a generator that draws in one call, from a diffusion's score and without data.

    J = E_t w(t) E_{q_t(x)} log p_t(x)          q_t the teacher's law at level t, p_t the student's
    grad J = E w(t) grad log p_t(x | z)         over q_t(x) p_t(z | x)                   (Fisher)

An update: a step of the student's own score phi on its draws; a chain of K steps over (eps, z) from
these draws (`em_distillation_chain`); a step of the student towards its ends
(`em_distillation_step`). One step with z still is the gradient of KL(p_t || q_t), which seeks modes
(Diff-Instruct, variational score distillation); many with z moving, that of KL(q_t || p_t), which
covers them; many with z still, that of E_z log E_{p(x | z)} q_t / p_t, between the two.

Source: Xie et al. 2024, arXiv:2405.16852.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.learner import Learner, all_params
from probgen.errors import AlgorithmError
from probgen.inference.learn.em_distillation_chain import Generator, chain_of
from probgen.inference.learn.em_distillation_scores import WHO, Scores, cosine, scores_of
from probgen.inference.learn.em_distillation_step import (
    LITTLE,
    checks,
    norm,
    objective,
    shortened,
    weight_of,
)
from probgen.language.declared import declaration, require
from probgen.language.kinds import Count, Many, Positive, Share, within
from probgen.language.optim import Adam, AnyOptimizer

Array = Any
STILL = (
    "z stays where it is (gamma_z=0): {steps}; give gamma_z > 0, 1e-4 to 1e-2 times gamma_eps, for "
    "the gradient of the likelihood"
)
HARDLY = (
    "z hardly moves (mobility {:.1e}, below {:.0e}): this is the tightened mode-seeking objective, "
    "not maximum likelihood; raise gamma_z or num_steps while samples stay good"
)


@declaration
class EMDistillation:
    """Distils a teacher into a student x = g(z), for `pg.fit(student, None, ..., batch_size=n)`.

        student = OneStep(teacher)
        pg.fit(student, None, EMDistillation(teacher), num_steps=20_000, batch_size=128, seed=0)

    The student is any model whose "x" is a `pg.deterministic` of latents that are functions of
    normal noise (z below is that noise), a `Generator` (of which the mean is taken: the noise is
    the teacher's; `likelihoods.Implicit()` has none), or `models.OneStep`. Where both are
    conditional, the data are rows of the condition: `pg.fit(student, {"condition": labels}, ...)`.
    The teacher stays as it is, to the bit.

    Args:
        teacher: a `Fitted` of a `Diffusion`; or, where the law is known, (x, t) -> grad log q_t(x)
            in `ops`, x [n, *shape] and t [n, 1, ...].
        optimizer: of the student; the paper's is Adam with b1 = 0.
        score_optimizer: of the student's score phi; its rate is customarily 1 to 5 times larger.
        student_score: phi's net; None is the teacher's denoiser, from its weights. Of a teacher
            that is a function: (params, x, t) -> grad log p_t(x), params the student's.
        num_steps: K.
        gamma_eps, gamma_z: ge and gz, step sizes of eps and z, the same at all levels; a chain is
            stable below 2. gz well below ge, else noise cancellation is biased (`bias` in the
            history).
        noise_cancellation: "full", the paper's; "last" and "none", its ablations; "anchored", ours,
            without the bias, at one more call of the generator.
        weighting: w(t): "sigma2_over_alpha2", plain regression of x_0; "uniform", 1; "l1", the
            first over mean |g(z) - xhat_teacher|; or (alpha, sigma) -> w.
        times: levels are uniform between these two parts of the schedule, or `times(u)` of uniform
            u in [0, 1). Ends are left out, where scores or targets explode, and so is a last step
            without signal, for which the one before it is taken.
        schedule: of a teacher that is a function, t -> (alpha, sigma).
        guidance_scale: of the teacher's score, and never of the student's own.
        score_steps: of phi for each of the student; 5 where phi lags behind.
        max_push: longest ||eps_c||, of each datum; longer ones are scaled down.
        check_every: how often `bias`, `z_mobility` and `z_drift` are taken anew.

    Metrics: `loss`, the M-step's, w / 2 |eps_c|^2 (it falls with K and rises with the distance of
    the laws; no bound); `loss_score`, of phi, as in `Denoising`; `eps_c`, mean length of the drift
    that a chain gathered, and `log_eps_c`, mean of its log: growing with training it says that phi
    lags behind; `mean_x`, over all values drawn, which drifts where colours do. Where z moves:
    `bias`, |full - anchored| / |full|, mean gradients of one batch, without the noise's share;
    `z_mobility`, K gz alpha^2 |J|^2 per number of z; `z_drift`, root mean square of K gz alpha J^T
    D, in units of z's standard deviation 1.

    `Fitted.extras` has phi, with which a fit goes on.

    Raises (when bound):
        AlgorithmError: a teacher that is no diffusion; a student that is no function of latents, or
            takes no condition where the teacher does; data for x; guidance of a teacher without an
            unconditional branch; gradient accumulation.
        ShapeError: teacher and student of different data.
        SaveError: a checkpoint of a fit with another teacher (its weights count).

    Sources: Xie et al. 2024, arXiv:2405.16852; Luo et al. 2023, arXiv:2305.18455 (Diff-Instruct);
    Yin et al. 2024, arXiv:2405.14867, and Zhou et al. 2024, arXiv:2404.04057 ("l1").
    """

    teacher: Any
    optimizer: AnyOptimizer = dataclasses.field(default_factory=lambda: Adam(1e-4, b1=0.0, b2=0.99))
    score_optimizer: AnyOptimizer = dataclasses.field(
        default_factory=lambda: Adam(3e-4, b1=0.0, b2=0.99)
    )
    student_score: Any = dataclasses.field(default=None, kw_only=True)
    num_steps: Many = dataclasses.field(default=16, kw_only=True)
    gamma_eps: Annotated[float, within(0, 2, "()")] = dataclasses.field(default=0.16, kw_only=True)
    gamma_z: Annotated[float, within(0, 2, "[)")] = dataclasses.field(default=1.6e-5, kw_only=True)
    noise_cancellation: Literal["full", "last", "none", "anchored"] = dataclasses.field(
        default="full", kw_only=True
    )
    weighting: Literal["sigma2_over_alpha2", "uniform", "l1"] | Callable = dataclasses.field(
        default="sigma2_over_alpha2", kw_only=True
    )
    times: tuple[Share, Share] | Callable = dataclasses.field(default=(0.02, 0.98), kw_only=True)
    schedule: Callable = dataclasses.field(default=cosine, kw_only=True)
    guidance_scale: Positive = dataclasses.field(default=1.0, kw_only=True)
    score_steps: Many = dataclasses.field(default=1, kw_only=True)
    max_push: Positive | None = dataclasses.field(default=None, kw_only=True)
    check_every: Count = dataclasses.field(default=50, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.times, tuple):
            require(self.times[0] <= self.times[1], self, "two ends in order", "times")

    def bind(self, bound: Bound) -> Learner:
        """A learner of student and score for `probgen.fit`."""
        if bound.accumulate > 1:
            raise AlgorithmError(
                f"{WHO}: got gradient_accumulation={bound.accumulate}, expected 1: a chain is made "
                "for a batch as one; lower batch_size instead."
            )
        g = Generator(bound)
        return _learner(bound, self, g, scores_of(bound, self, g.shape))

    def note(self) -> str | None:
        """What is optimised where z stays."""
        if self.gamma_z > 0:
            return None
        one = "one step of eps, the gradient of KL(student || teacher), which seeks modes"
        many = "the objective is E_z log E_{p(x | z)} q_t / p_t, between the two KL divergences"
        return f"{WHO}: {STILL.format(steps=one if self.num_steps == 1 else many)}"


def _learner(bound: Bound, given: EMDistillation, g: Generator, scores: Scores) -> Learner:
    b, ops, moves = bound.backend, bound.backend.ops, given.gamma_z > 0
    own = bound.optimizer(given.optimizer), bound.optimizer(given.score_optimizer)
    chain, check = chain_of(bound, given, g, scores), checks(bound, given, g, scores)
    gradient = bound.value_and_grad(objective(bound, given, g))

    def start(params: Mapping, batch: Mapping, key: Any) -> tuple:
        num: Any = bound.batch_size(batch) or bound.num_draws
        k_noise, k_level = b.split(key, 2)
        z, eps = g.draw(k_noise, num)
        return z, eps, scores.level(k_level, num), g(params, batch, z)

    def finish(given_ends: Any, weights: Any, fixed: Any, eps: Array) -> tuple:
        level, x = fixed["level"], fixed["x"]
        x_t = level["signal"] * x + level["noise"] * eps
        weight = weight_of(
            ops, given, level, x, lambda: scores.clean(x_t, level, weights, fixed["seen"])
        )
        ends = shortened(ops, given_ends, given.max_push)
        size = norm(ops, ends.push)
        found = {
            "eps_c": ops.mean(size),
            "log_eps_c": ops.mean(ops.log(size)),
            "mean_x": ops.mean(x),
        }
        return ends, weight, found

    start = b.compile(start, num_calls=given.score_steps * (bound.num_steps or 1))
    finish = b.compile(finish, num_calls=bound.num_steps)
    see = b.compile(scores.seen, num_calls=bound.num_steps)
    learn_score = _score_learner(bound, given, scores, own[1], start)

    def init(params: Mapping, key: Any, batch: Mapping, extras: Mapping | None) -> dict:
        _check_size(bound, batch, moves)
        score = b.copy(scores.own(extras, batch))  # an update may work in place; the teacher stays
        state = {**bound.start(own[0], params), "score": bound.start(own[1], score)}
        nothing = b.asarray(np.zeros((), np.float32))
        names = ("bias", "z_mobility", "z_drift") if moves else ()
        return {**state, "checked": {n: b.copy(nothing) for n in names}}

    def update(state: dict, batch: Mapping, key: Any) -> tuple[dict, dict]:
        params, frozen = all_params(state), state["frozen"]
        k_start, k_score, k_chain, k_check = b.split(key, 4)
        z, eps, level, x = start(params, batch, k_start)
        score, found = learn_score(state["score"], params, batch, k_score, (x, eps, level))
        weights = {"student": params, "score": all_params(score), "teacher": scores.teacher}
        fixed = {"level": level, "batch": batch, "x": x, "seen": see(weights, batch, x)}
        ends = chain({"eps": eps, "z": z}, k_chain, weights, fixed)
        ends, weight, of_ends = finish(ends, weights, fixed, eps)
        held, checked = (ends, level, weight), state["checked"]
        if moves:
            due = state["opt"]["count"] % given.check_every == 0
            players = {"params": state["params"], "frozen": frozen}
            looked = (players, weights, batch, held, k_check)
            checked = b.cond(due, check, lambda *_: checked, *looked)
        (_, metrics), grads = gradient(state["params"], frozen, held, batch, None)
        state = {**bound.step(own[0], grads, state), "score": score, "checked": checked}
        return state, {**metrics, **found, **of_ends, **checked}

    def extras(state: Mapping) -> dict:
        return all_params(state["score"])

    return Learner(
        init, update, note=given.note(), extras=extras, needs_data=False, remarks=_remarks,
        cures={"eps_c": f"lower gamma_eps, now {given.gamma_eps:g}, or num_steps; give max_push"},
    )  # fmt: skip


def _score_learner(
    bound: Bound, given: EMDistillation, scores: Any, optimizer: Any, start: Callable
) -> Callable:
    """(phi's state, the student, batch, key, draws) -> (phi's state, metrics): the first step on
    the draws that the chain starts from, others on fresh ones."""
    b = bound.backend
    if not scores.is_learned:
        return lambda score, *_: (score, {})

    def loss(trainable: Any, frozen: Any, drawn: Any, batch: Any) -> Array:
        x, eps, level = drawn
        return scores.loss({**trainable, **frozen}, x, eps, level, batch)

    total = given.score_steps * (bound.num_steps or 1)
    gradient = b.compile(b.value_and_grad(loss), num_calls=total)

    def learn(score: dict, params: Any, batch: Any, key: Any, drawn: Any) -> tuple[dict, dict]:
        value, grads = gradient(score["params"], score["frozen"], drawn, batch)
        score = bound.step(optimizer, grads, score)
        keys = b.split(key, given.score_steps)
        for i in range(1, given.score_steps):
            _, eps, level, x = start(params, batch, keys[i])
            _, grads = gradient(score["params"], score["frozen"], (x, eps, level), batch)
            score = bound.step(optimizer, grads, score)
        return score, {"loss_score": value}

    return learn


def _check_size(bound: Bound, batch: Mapping, moves: bool) -> None:
    num = bound.batch_size(batch) or bound.num_draws
    if moves and (num is None or num < 2):
        raise AlgorithmError(
            f"{WHO}: got batches of {num}, expected at least 2, whose halves tell a "
            "bias from noise."
        )


def _remarks(metrics: Mapping) -> dict[str, str]:
    mobility = metrics.get("z_mobility")
    if mobility is None or not np.size(mobility):
        return {}
    last = float(np.ravel(mobility)[-1])
    return {"z": f"{WHO}: {HARDLY.format(last, LITTLE)}"} if last < LITTLE else {}
