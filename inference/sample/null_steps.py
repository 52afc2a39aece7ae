"""Steps on the null text of one leap of a guided sampler, so that the leap ends where it should.

With F_t(x_t, c, phi) the leap by f(phi) + w (f(c) - f(phi)), each datum by itself:

    phi <- Adam on mean_k m_k (target - F_t(x_t, c, phi))_k^2,    m a mask, or 1

Adam starts afresh at each leap, no gradient goes through the trajectory, and f(c) is asked once a
leap. A datum whose loss is below its tolerance moves no more.

Source: Mokady et al. 2022, arXiv:2211.09794, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from probgen.backends.optimizer_steps import pure
from probgen.engine.bound import Bound
from probgen.inference.sample.reverse import recursion
from probgen.language import optim

Array = Any
TOWARDS = "towards"  # among inputs: what the net says with the condition


class NullSteps(NamedTuple):
    """What a leap with a null text of its own needs, compiled.

    Attributes:
        towards: (params, inputs, x, row) -> (what the net says with the condition, its maps of the
            condition by layer where they are asked for, else none).
        leap: (params, inputs with that and "null", x, row) -> x'.
        learn: (params, inputs with that, x, row, null, aim) -> the null text after its steps; aim
            has "target", "rate", "tolerance" and, where there is a mask, "weight" [n or 1, *shape].
    """

    towards: Callable
    leap: Callable
    learn: Callable


def null_steps(bound: Bound, sampler: Any, num_steps: int, with_maps: bool = False) -> NullSteps:
    """The steps of a deterministic sampler's leap.

    Args:
        bound: a diffusion.
        sampler: `DDIM` without noise: its guidance and clipping.
        num_steps: on the null text, at each leap.
        with_maps: of a model that has them (`MapsAttention`).
    """
    b, ops = bound.backend, bound.backend.ops
    model: Any = bound.model
    calls = sampler.num_steps
    w = sampler.guidance_scale

    def towards(params: Mapping, inputs: Mapping, x: Array, row: Mapping) -> tuple[Array, dict]:
        t = ops.broadcast_to(row["time"], (x.shape[0],))
        if with_maps:
            return model.predict_with_maps(params, x, t, inputs)
        return model.predict(params, x, t, inputs, 1.0), {}

    def ask(params: Mapping, x: Array, t: Array, inputs: Mapping) -> Array:
        away = model.predict(params, x, t, inputs, 0.0)
        return away + w * (inputs[TOWARDS] - away)

    one = recursion(bound, w, sampler.clip_sample_range, ask)

    def leap(params: Mapping, inputs: Mapping, x: Array, row: Mapping) -> Array:
        return one(params, inputs, {"x": x}, row, None)["x"]

    adam = pure(optim.Adam(1.0))

    def update(
        params: Mapping, inputs: Mapping, x: Array, row: Mapping, state: Mapping, aim: Mapping
    ) -> dict:
        def total(null: Array) -> tuple[Array, Array]:
            ends = leap(params, {**inputs, "null": null}, x, row)
            losses = each_loss(ops, aim, ends)
            return ops.sum(losses), losses

        null = state["null"]
        (_, losses), grad = b.value_and_grad(total, has_aux=True)(null)
        # From zero an update is the move itself, for a rate that differs from leap to leap.
        move, moments = adam.update(grad, state["adam"], ops.zeros_like(null))
        is_left = losses >= aim["tolerance"]
        each = ops.reshape(is_left, (-1, *[1] * (null.ndim - 1)))
        null = ops.where(each, null + aim["rate"] * move, null)
        return {"null": null, "adam": moments, "left": ops.sum(ops.cast(is_left, "float32"))}

    update = b.compile(update, num_calls=calls * num_steps)

    def learn(
        params: Mapping, inputs: Mapping, x: Array, row: Mapping, null: Array, aim: Mapping
    ) -> Array:
        def step(state: dict, _: Any) -> tuple[dict, None]:
            def on(state: dict) -> dict:
                return update(params, inputs, x, row, state, aim)

            return b.cond(state["left"] > 0, on, lambda state: state, state), None

        left = ops.asarray_like(1.0, x)
        state = {"null": null, "adam": adam.init(null), "left": left}
        return b.scan(step, state, length=num_steps)[0]["null"]

    return NullSteps(b.compile(towards, num_calls=calls), b.compile(leap, num_calls=calls), learn)


def each_loss(ops: Any, aim: Mapping, ends: Array) -> Array:
    """Mean squared distance of each datum to its target, inside its mask where it has one, [n]."""
    axes = tuple(range(1, ends.ndim))
    squares = (aim["target"] - ends) ** 2
    if "weight" not in aim:
        return ops.mean(squares, axis=axes)
    weight = ops.broadcast_to(aim["weight"], tuple(ends.shape))
    return ops.sum(weight * squares, axis=axes) / ops.sum(weight, axis=axes)
