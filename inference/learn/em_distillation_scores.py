"""The two scores of EM distillation, at every noise level: the teacher's, and the student's own.

    D(x, t) = grad log q_t(x) - grad log p_t(x)             at x = alpha_t x_0 + sigma_t eps
    sigma D = (alpha / sigma) (xhat_teacher - xhat_student) of denoisers, by their estimates of x_0

A teacher is a fitted `Diffusion`, with its own table of levels and a copy of its denoiser for the
student's score, or, where the law is known, a function (x, t) -> score. Neither is differentiated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.fitted import Fitted
from probgen.errors import AlgorithmError, ShapeError
from probgen.language import ops
from probgen.language.capabilities import Denoises, embedded
from probgen.language.model import arguments, capability, family_of
from probgen.nets.base import out_shape
from probgen.trees import tree_map

Array = Any
Tree = Any
WHO = "EMDistillation"
NET = "student_score"


def cosine(t: Array) -> tuple[Array, Array]:
    """(alpha, sigma) = (cos(pi t / 2), sin(pi t / 2)), of t in (0, 1)."""
    return ops.cos(0.5 * math.pi * t), ops.sin(0.5 * math.pi * t)


class Scores(Protocol):
    """What the chain asks for. A level is {"t": [n], "signal" and "noise": [n, 1, ...]}; weights
    are {"student": the generator's, "score": phi or {}, "teacher": or {}}.

    `teacher` has the teacher's weights by net; `own` gives phi at the start, a dict with one net,
    or with none where it is not learned; `level` draws n levels; `seen` is what the two make of the
    inputs, once for a chain; `push` is sigma D at x_t, `clean` the teacher's estimate of x_0.
    """

    is_learned: bool
    teacher: Tree

    def own(self, extras: Mapping | None, batch: Mapping) -> dict: ...

    def level(self, key: Any, num: int) -> dict: ...

    def seen(self, weights: Mapping, batch: Mapping, x: Array) -> dict: ...

    def push(self, x_t: Array, level: Mapping, weights: Mapping, seen: Mapping) -> Array: ...

    def clean(self, x_t: Array, level: Mapping, weights: Mapping, seen: Mapping) -> Array: ...


def uniform(times: Any, u: Array) -> Array:
    """Times in [0, 1] of uniform numbers: between two ends, or by a function of one's own."""
    if callable(times):
        return times(u)
    low, high = times
    return low + (high - low) * u


class KnownScores:
    """Scores that are functions: (x, t) -> score and (params, x, t) -> score, t [n, 1, ...]."""

    is_learned = False

    def __init__(self, bound: Bound, given: Any, shape: tuple[int, ...]):
        self.given, self.backend, self.ndim = given, bound.backend, len(shape)
        self.teacher: Tree = {}
        if not callable(given.student_score) or hasattr(given.student_score, "apply"):
            raise AlgorithmError(
                f"{WHO}: got a function as teacher and student_score={given.student_score!r}, "
                "expected a function (params, x, t) -> score too, since there is no denoiser to "
                "copy; or give a fitted Diffusion as the teacher."
            )
        if given.guidance_scale != 1.0:
            raise AlgorithmError(
                f"{WHO}: got guidance_scale={given.guidance_scale} and a function as teacher, "
                "expected 1: a function has no unconditional branch; guide inside it."
            )

    def own(self, extras: Mapping | None, batch: Mapping) -> dict:
        return {}

    def level(self, key: Any, num: int) -> dict:
        t = uniform(self.given.times, self.backend.uniform(key, (num,)))
        t = ops.reshape(t, (num, *[1] * self.ndim))
        signal, noise = self.given.schedule(t)
        return {"t": t, "signal": signal, "noise": noise}

    def seen(self, weights: Mapping, batch: Mapping, x: Array) -> dict:
        return {}

    def push(self, x_t: Array, level: Mapping, weights: Mapping, seen: Mapping) -> Array:
        at, given = level["t"], self.given
        own = given.student_score(weights["student"], x_t, at)
        return level["noise"] * (given.teacher(x_t, at) - own)

    def clean(self, x_t: Array, level: Mapping, weights: Mapping, seen: Mapping) -> Array:
        score = self.given.teacher(x_t, level["t"])
        return (x_t + level["noise"] ** 2 * score) / level["signal"]


class DiffusionScores:
    """A fitted `Diffusion` and, for the student's score, its denoiser from its weights, or another
    net of the same inputs, by the loss of `Denoising` on draws of the student."""

    is_learned = True

    def __init__(self, bound: Bound, given: Any, shape: tuple[int, ...]):
        model: Any = family_of(given.teacher.model)
        self.given, self.bound, self.model = given, bound, model
        _check_teacher(bound, given, shape)
        b = self.backend = bound.backend
        self.teacher = tree_map(b.asarray, dict(given.teacher.params))
        net = model.denoiser if given.student_score is None else given.student_score
        self.student = dataclasses.replace(model, denoiser=net)
        self.nets = {n: getattr(self.student, n) for n in self.teacher}
        self.table = {k: b.asarray(v) for k, v in model.table().items()}
        signal = model.table()["signal"]
        self.total, self.last = len(signal), np.float32((signal > 0).sum() - 1)

    def own(self, extras: Mapping | None, batch: Mapping) -> dict:
        """The teacher's weights at the start, or fresh ones of another net, or those kept."""
        found, shapes = {}, [self.model.shape, ()]
        for name, net in self.nets.items():
            is_copy = net == getattr(self.model, name)
            start = self.teacher[name] if is_copy else None
            if name == "denoiser" and not is_copy and self.model.condition is not None:
                rows = self.bound.program_inputs(batch)["condition"]
                event = tuple(rows.shape[1:])
                shapes.append(out_shape(self.model.condition, self.teacher["condition"], event))
            key = f"{NET}/{name}"
            found[key] = self.bound.new_net(key, net, *shapes, kept=extras, start=start)
        return found

    def level(self, key: Any, num: int) -> dict:
        t = uniform(self.given.times, self.backend.uniform(key, (num,)))
        last = self.backend.asarray(self.last)  # a step without signal is left out
        step = ops.cast(ops.clip(ops.floor(t * self.total), 0.0, last), "int32")
        lead = (num, *[1] * len(self.model.shape))
        row = {k: ops.reshape(ops.take(v, step), lead) for k, v in self.table.items()}
        return {"t": 1.0 * step, **row}

    def seen(self, weights: Mapping, batch: Mapping, x: Array) -> dict:
        inputs = self.bound.program_inputs(batch)
        return {
            "teacher": embedded(self.model, weights["teacher"], inputs, x),
            "own": embedded(self.student, _bare(weights["score"]), inputs, x),
        }

    def push(self, x_t: Array, level: Mapping, weights: Mapping, seen: Mapping) -> Array:
        found = self.student.predict(_bare(weights["score"]), x_t, level["t"], seen["own"])
        own = self.student.clean(x_t, found, level)
        ratio = level["signal"] / level["noise"]
        return ratio * (self.clean(x_t, level, weights, seen) - own)

    def clean(self, x_t: Array, level: Mapping, weights: Mapping, seen: Mapping) -> Array:
        found = self.model.predict(
            weights["teacher"], x_t, level["t"], seen["teacher"],
            guidance_scale=self.given.guidance_scale,
        )  # fmt: skip
        return self.model.clean(x_t, found, level)

    def loss(self, phi: Mapping, x: Array, eps: Array, level: Mapping, batch: Mapping) -> Array:
        """Mean squared error of the prediction, per value, as `Denoising` has it."""
        x_t, model = level["signal"] * x + level["noise"] * eps, self.student
        seen = self.bound.program_inputs(batch)
        found = model.predict(_bare(phi), x_t, level["t"], seen)
        error = found - model.target(x, eps, level)
        return ops.mean(error * error)


def _bare(phi: Mapping) -> dict:
    """Parameters by the names that the model has for its nets."""
    return {n.removeprefix(f"{NET}/"): v for n, v in phi.items()}


def scores_of(bound: Bound, given: Any, shape: tuple[int, ...]) -> Scores:
    """The scores of a teacher of either kind.

    Raises:
        AlgorithmError, ShapeError: see `EMDistillation`.
    """
    if isinstance(given.teacher, Fitted):
        return DiffusionScores(bound, given, shape)
    if callable(given.teacher):
        return KnownScores(bound, given, shape)
    raise AlgorithmError(
        f"{WHO}: got {type(given.teacher).__name__} as teacher, expected a Fitted of a Diffusion, "
        "or a function (x, t) -> score."
    )


def _check_teacher(bound: Bound, given: Any, shape: tuple[int, ...]) -> None:
    model = capability(given.teacher.model, Denoises)
    if model is None:
        raise AlgorithmError(
            f"{WHO}: got a fitted {given.teacher.model.name!r} as teacher, which is no diffusion, "
            "expected a Fitted of a Diffusion: its score is what the student learns from."
        )
    if tuple(model.shape) != tuple(shape):
        raise ShapeError(
            f"{WHO}: the student {bound.model.name!r} draws data of shape {tuple(shape)}, expected "
            f"{tuple(model.shape)}, the teacher's."
        )
    if callable(given.student_score) and not hasattr(given.student_score, "apply"):
        raise AlgorithmError(
            f"{WHO}: got a function as student_score beside a fitted teacher, expected None (a "
            "copy of its denoiser) or a net of the same inputs."
        )
    wanted = set(arguments(given.teacher.model.program))
    known = set(arguments(bound.model.program))
    if missing := sorted(wanted - known):
        raise AlgorithmError(
            f"{WHO}: the teacher is conditional on {missing}, which the student "
            f"{bound.model.name!r} does not take, expected inputs of the same names, such as "
            "models.OneStep(teacher) has."
        )
    has_null = hasattr(getattr(model, "condition", None), "null")
    if given.guidance_scale != 1.0 and not has_null:
        raise AlgorithmError(
            f"{WHO}: got guidance_scale={given.guidance_scale:g} for a teacher without an "
            "unconditional branch to guide away from, expected 1, or a Diffusion whose condition "
            "has a null, such as nets.ClassEmbedding."
        )
