"""Optimiser declarations on JAX: optax's transformations as pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from probgen.backends.optimizer_steps import moment_bounds
from probgen.backends.protocol import Optimizer
from probgen.language import optim
from probgen.trees import tree_leaves, tree_like


def optimizer(declaration: optim.OptimizerDeclaration, put: Callable) -> Optimizer:
    """A declaration as optax's update; `put` places what it starts from."""
    parts = []
    if declaration.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(declaration.clip_norm))
    if isinstance(declaration, optim.Adam):
        if declaration.weight_decay and not declaration.decoupled:
            parts.append(optax.add_decayed_weights(declaration.weight_decay))
        parts.append(optax.scale_by_adam(b1=declaration.b1, b2=declaration.b2, eps=declaration.eps))
        if declaration.weight_decay and declaration.decoupled:
            parts.append(optax.add_decayed_weights(declaration.weight_decay))
    elif isinstance(declaration, optim.SGD):
        if declaration.weight_decay:
            parts.append(optax.add_decayed_weights(declaration.weight_decay))
        if declaration.momentum:
            parts.append(optax.trace(declaration.momentum, declaration.nesterov))
    chain = optax.chain(*parts) if parts else optax.identity()

    def init(params: Any) -> dict:
        return {
            "count": jnp.zeros(()),
            "step_scale": jnp.ones(()),
            "moments": _at_zero(chain.init, params, put),
        }

    def update(grads: Any, state: dict, params: Any) -> tuple[Any, dict]:
        if getattr(declaration, "clip_by_moment", None) is not None:
            grads = _clip_by_moment(declaration, grads, state["moments"])
        direction, moments = chain.update(grads, state["moments"], params)
        rate = declaration.learning_rate_at(state["count"]) * state["step_scale"]
        new = jax.tree.map(lambda p, d: p - rate * d, params, direction)
        return new, {
            "count": state["count"] + 1.0,
            "step_scale": state["step_scale"],
            "moments": moments,
        }

    return Optimizer(init, update)


def _clip_by_moment(declaration: Any, grads: Any, moments: Any) -> Any:
    """The gradient within the bounds of the Adam moments in a chain's state."""
    is_adam = lambda s: isinstance(s, optax.ScaleByAdamState)  # noqa: E731
    adam = next(filter(is_adam, jax.tree.leaves(moments, is_leaf=is_adam)))
    high = moment_bounds(declaration, adam.count * 1.0, tree_leaves(adam.nu))
    return jax.tree.map(lambda g, c: jnp.clip(g, -c, c), grads, tree_like(grads, high))


def _at_zero(init: Callable, params: Any, put: Callable) -> Any:
    """`init(params)`, all zeros: numpy's, since JAX compiles a program for zeros of each shape."""
    leaves, traced = jax.tree.leaves(params), jax.core.Tracer
    if not leaves or any(isinstance(x, traced) or not isinstance(x, jax.Array) for x in leaves):
        return init(params)
    form = jax.eval_shape(init, params)
    return jax.tree.map(lambda f: put(np.zeros(f.shape, f.dtype)), form)
