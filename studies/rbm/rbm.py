"""Log Z of a restricted Boltzmann machine: exact where it is small, by annealed Gibbs elsewhere.

    p(v, h) = exp(a'v + c'h + v'W h) / Z,     v in {0, 1}^D, h in {0, 1}^H
    p~(v) = exp(a'v) prod_j (1 + exp(c_j + v'W_j))          hidden units summed out

Gradients cannot move binary units, so the path of `annealing` is walked by Gibbs sweeps: machines
with visible biases (1 - b) a_0 + b a, hidden biases b c and weights b W, from independent units at
b = 0 to the machine at b = 1.

Source: Salakhutdinov & Murray 2008, ICML, "On the quantitative analysis of deep belief networks".
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import logsumexp

from probgen.backends import resolve
from probgen.backends.protocol import Backend
from probgen.errors import AlgorithmError, ShapeError
from probgen.inference.likelihood.ais import AIS, in_double, summary
from probgen.inference.likelihood.annealing import add_exactly, schedule
from probgen.inference.likelihood.partition import LogPartition, annealed
from probgen.language.declared import checked, declaration
from probgen.language.seeds import check_seed

Array = Any
MAX_STATES = 20  # of the smaller layer: 2^20 states are summed in a second or so


@declaration(eq=False)
class RBM:
    """A restricted Boltzmann machine of binary units.

    Args:
        weight: [D, H]. visible_bias: [D]. hidden_bias: [H].

    Raises:
        ShapeError: sizes that do not fit.
    """

    weight: np.ndarray
    visible_bias: np.ndarray
    hidden_bias: np.ndarray

    def __post_init__(self) -> None:
        for name in ("weight", "visible_bias", "hidden_bias"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        w, a, c = self.weight, self.visible_bias, self.hidden_bias
        if w.ndim != 2 or w.size == 0 or a.shape != w.shape[:1] or c.shape != w.shape[1:]:
            raise ShapeError(
                f"RBM: got weight {w.shape}, visible_bias {a.shape}, hidden_bias {c.shape}, "
                "expected [D, H], [D] and [H]."
            )

    def unnormalized_log_prob(self, v: Any) -> np.ndarray:
        """log p~(v), nats, [...]; v is [..., D]. Minus the free energy."""
        v = np.asarray(v, np.float64)
        return v @ self.visible_bias + np.logaddexp(0.0, self.hidden_bias + v @ self.weight).sum(-1)

    def exact_log_partition(self) -> float:
        """log Z by summing over all states of the smaller layer.

        Raises:
            AlgorithmError: that layer has more than 20 units.
        """
        by_visible = self.weight.shape[0] <= self.weight.shape[1]
        flipped = RBM(self.weight.T, self.hidden_bias, self.visible_bias)
        machine = self if by_visible else flipped
        size = machine.weight.shape[0]
        if size > MAX_STATES:
            raise AlgorithmError(
                f"RBM: got {self.weight.shape} units, expected at most {MAX_STATES} in one layer "
                "for an exact sum; use rbm_log_partition."
            )
        parts = []
        for start in range(0, 2**size, 2**14):
            states = np.arange(start, min(start + 2**14, 2**size))
            bits = (states[:, None] >> np.arange(size)) & 1
            parts.append(logsumexp(machine.unnormalized_log_prob(bits)))
        return float(logsumexp(parts))


@checked
def rbm_log_partition(
    machine: RBM,
    method: AIS | None = None,
    *,
    base_bias: Any = 0.0,
    seed: int | None = None,
    backend: str | Backend = "auto",
    device: str = "auto",
) -> LogPartition:
    """Estimates log Z of a restricted Boltzmann machine by annealed Gibbs sweeps.

    Args:
        machine: its parameters.
        method: `num_steps` and `num_chains` are used; a transition is one sweep.
        base_bias: [D] visible biases a_0 of the start; log(m / (1 - m)) of the data's means m makes
            the path shorter than 0 does.
        seed: an integer.

    Returns:
        `LogPartition`, a lower bound in expectation.
    """
    method = AIS(num_chains=100) if method is None else method
    seed = check_seed(seed, "rbm_log_partition")
    start = np.asarray(base_bias, np.float64)
    if start.shape not in ((), machine.visible_bias.shape) or not np.isfinite(start).all():
        raise ShapeError(
            f"rbm_log_partition: got base_bias of shape {start.shape}, expected a finite number or "
            f"{machine.visible_bias.shape}."
        )
    start = np.broadcast_to(start, machine.visible_bias.shape)
    b = resolve(backend, device)
    out = in_double(
        *b.compile(_walk(b, method), over="steps")(*_arrays(b, machine, start), b.key(seed))
    )
    hidden = machine.weight.shape[1]
    log_z0 = float(np.logaddexp(0.0, start).sum()) + hidden * math.log(2.0)
    found = {k: float(v) for k, v in summary(out).items()}
    found["estimate"] += log_z0
    return LogPartition(
        **annealed(found, method.num_chains), acceptance_rate=1.0, method=method,
        start="independent units", info={"backend": b.name, "seed": seed, **b.info()},
    )  # fmt: skip


def _arrays(b: Backend, machine: RBM, start: np.ndarray) -> tuple[Array, ...]:
    parts = (machine.weight, machine.visible_bias, machine.hidden_bias, start)
    return tuple(b.asarray(np.array(v)) for v in parts)


def _walk(b: Backend, method: AIS) -> Any:
    """(weight, visible, hidden, start, key) -> log weights of the chains, (high, low)."""
    ops = b.ops
    betas = schedule(method.num_steps)

    def log_f(v: Array, beta: Array, weight: Array, a: Array, c: Array, a0: Array) -> Array:
        linear = v @ ((1.0 - beta) * a0 + beta * a)
        return linear + ops.sum(ops.softplus(beta * (c + v @ weight)), axis=-1)

    def flip(key: Any, log_odds: Array) -> Array:
        is_on = b.uniform(key, tuple(log_odds.shape)) < ops.sigmoid(log_odds)
        return ops.where(is_on, ops.ones_like(log_odds), ops.zeros_like(log_odds))

    def sweep(
        key: Any, v: Array, total: tuple, before: Array, beta: Array, weight: Array, a: Array,
        c: Array, a0: Array,
    ) -> tuple:  # fmt: skip
        step = log_f(v, beta, weight, a, c, a0) - log_f(v, before, weight, a, c, a0)
        k_h, k_v = b.split(key, 2)
        h = flip(k_h, beta * (c + v @ weight))
        v = flip(k_v, (1.0 - beta) * a0 + beta * a + beta * (h @ ops.transpose(weight)))
        return v, add_exactly(ops, total, step)

    move = b.compile(sweep, num_calls=method.num_steps)

    def run(weight: Array, a: Array, c: Array, a0: Array, key: Any) -> tuple:
        k_start, k_run = b.split(key, 2)
        shape = (method.num_chains, a.shape[0])
        v = flip(k_start, ops.broadcast_to(a0, shape))
        zero = ops.sum(v, axis=-1) * 0.0

        def step(carry: tuple, x: tuple) -> tuple[tuple, None]:
            v, total = carry
            key, before, beta = x
            return move(key, v, total, before, beta, weight, a, c, a0), None

        rows = (b.split(k_run, method.num_steps), b.asarray(betas[:-1]), b.asarray(betas[1:]))
        (_, total), _ = b.scan(step, (v, (zero, zero)), rows)
        return total

    return run
