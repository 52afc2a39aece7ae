"""The probability-flow ODE of a denoiser: its right-hand side, and the time along which it runs.

With signal a = sqrt(alpha_bar), noise sigma = sqrt(1 - alpha_bar), score s = -eps / sigma and the
time u = log(sigma / a), minus half the log signal-to-noise ratio, the schedule drops out:

    dx/du = -sigma^2 (x + s) = sigma eps - sigma^2 x = a^2 x - a x0 = a sigma v

for a network that predicts eps, x0 or v. Levels between those of the schedule are interpolated,
log(index + 1) against u, and the network is asked at the fractional index. Below the lowest level,
which no network was trained at, the score is held at that level's: dx/dw = -x - s for w = -log a
from 0 up. In the time w / sigma^2 of the lowest level that is the equation above with u held, so
that one way leads from data to the last level, along which the right-hand side has no jump. A last
level without signal, at u = infinity, is reached in the angle phi = arctan(sigma / a): dx/dphi = v.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.bound import Bound
from probgen.language.model import family_of

Array = Any
FINE = 2**14  # cells of the table that adaptive steps read: its error is of float32's size


class Way:
    """Places from 0, at the data or at the lowest level, to `length`, at the last level.

    Attributes:
        start: of the part between levels: below it the score is held.
        signal_end: of the levels with signal; beyond lies the one without, if there is one.
    """

    def __init__(self, model: Any, down_to: str):
        self.schedule, self.prediction_type = model.schedule, model.prediction_type
        u, total = self.schedule.log_ratios(), self.schedule.num_train_timesteps
        self._first, self._last_step = u[0], total - 1
        below = 0.5 * math.log1p(math.exp(2 * u[0])) * (1.0 + math.exp(-2 * u[0]))
        self.start = below if down_to == "data" else 0.0
        self.signal_end = self.length = self.start + float(u[-1] - u[0])
        # In the angle arctan(sigma / a), dx = v, the level without signal is near.
        self._angle = math.atan(math.exp(u[-1]))
        self._rate = 0.5 * math.sin(2 * self._angle)  # so that the right-hand side has no jump
        if len(u) < total:
            self.length += (math.pi / 2 - self._angle) / self._rate

    def coefficients(self, at: np.ndarray) -> np.ndarray:
        """Places [k] -> [k, 4]: c_x, c_n and the network's time, for dx = c_x x + c_n net(x, time);
        and c_s, by which the score is -dx / c_s - x: sigma^2 between levels."""
        u = self._first + np.maximum(np.minimum(at, self.signal_end) - self.start, 0.0)
        angle, is_beyond = np.arctan(np.exp(u)), at > self.signal_end
        rate = np.where(is_beyond, self._rate, np.sin(angle) * np.cos(angle))
        time = self.schedule.index_at(u)
        beyond = self._rate * np.maximum(at - self.signal_end, 0.0)
        share = beyond / max(math.pi / 2 - self._angle, 1e-30)
        time, angle = np.where(is_beyond, self._last_step - 1.0 + share, time), angle + beyond
        a, sigma = np.maximum(np.cos(angle), 1e-15), np.sin(angle)
        of_x, of_net = {
            "epsilon": (-rate * sigma / a, rate / a),
            "sample": (rate * a / sigma, -rate / sigma),
            "v_prediction": (0.0 * a, rate),
        }[self.prediction_type]
        return np.stack([of_x, of_net, time, rate * sigma / a], axis=-1)

    def edges(self, num_steps: int) -> np.ndarray:
        """Ends of equal steps between the levels, with 1/16 as many below them, and beyond."""
        few = max(2, num_steps // 16) + 1
        parts = [np.linspace(self.start, self.signal_end, num_steps + 1)]
        if self.start > 0.0:
            parts.insert(0, np.linspace(0.0, self.start, few)[:-1])
        if self.length > self.signal_end:
            parts.append(np.linspace(self.signal_end, self.length, few)[1:])
        return np.concatenate(parts)

    def read(self, backend: Backend) -> Callable:
        """(places [n]) -> 4 columns [n], from a fine table."""
        ops, last = backend.ops, FINE - 1.0
        fine = self.coefficients(np.linspace(0.0, self.length, FINE + 1))
        table, scale = backend.asarray(fine.astype(np.float32)), FINE / self.length

        def columns(at: Array) -> tuple[Array, ...]:
            place = at * scale
            cell = ops.clip(ops.floor(place), 0.0, last)
            low = ops.cast(cell, "int32")
            share = (place - cell)[:, None]
            rows = ops.take(table, low) * (1.0 - share) + ops.take(table, low + 1) * share
            return tuple(rows[:, i] for i in range(4))

        return columns


def flow_derivative(bound: Bound, exact: bool, guidance_scale: float) -> Callable:
    """({x, log_volume}, row, params, probes, inputs) -> the derivatives; the divergence is x's.

    A row has the numbers of `Way.coefficients`, or columns [n] of them; `log_volume` is [n, probes]
    with one column where the trace is exact.
    """
    b, ops = bound.backend, bound.backend.ops
    model: Any = family_of(bound.model)
    dim = math.prod(model.shape)

    def derivative(y: dict, row: Any, params: Mapping, probes: Array, inputs: Mapping) -> dict:
        x = y["x"]
        size = x.shape[0]
        zero = ops.zeros_like(ops.reshape(x, (size, dim))[:, 0])
        of_x, of_net, times = (zero + row[i] for i in range(3))
        lead = (size, *[1] * (x.ndim - 1))

        def along(x: Array, v: Array) -> tuple[Array, Array]:
            predicted = model.predict(params, x, times, inputs, guidance_scale)
            return ops.sum(v * predicted), predicted

        def probe(v: Array) -> tuple[Array, Array]:
            (_, predicted), pulled = b.value_and_grad(along, has_aux=True)(x, v)
            return ops.sum(ops.reshape(v * pulled, (size, dim)), axis=1), predicted

        traces, predicted = b.vmap(probe)(probes)  # [probes, n], [probes, n, *event]
        if exact:
            traces = ops.sum(traces, axis=0, keepdims=True)
        return {
            "x": ops.reshape(of_x, lead) * x + ops.reshape(of_net, lead) * predicted[0],
            "log_volume": dim * of_x[:, None] + of_net[:, None] * ops.transpose(traces),
        }

    return derivative


def flow_cost(bound: Bound) -> Callable:
    """What an error of the state costs log p, nats: |d log_volume| + sum |score| |dx|.

    log p at the data is log p at any place of the way and the volume up to there, so that an error
    dx made on the way costs score . dx.
    """
    ops = bound.backend.ops

    def cost(error: dict, y: dict, slope: dict, row: Any) -> Array:
        x, size = y["x"], y["x"].shape[0]
        score = slope["x"] / ops.reshape(row[3], (size, *[1] * (x.ndim - 1))) + x
        of_x = ops.reshape(ops.abs(score * error["x"]), (size, -1))
        return ops.abs(ops.mean(error["log_volume"], axis=1)) + ops.sum(of_x, axis=1)

    return cost


def basis(backend: Backend, shape: tuple[int, ...]) -> Array:
    """[dim, 1, *shape] unit vectors: their quadratic forms sum to the trace."""
    dim = math.prod(shape)
    return backend.asarray(np.eye(dim, dtype=np.float32).reshape(dim, 1, *shape))


def signs(backend: Backend, key: Any, x: Array, count: int) -> Array:
    """[count, batch, *event] of +-1, each datum's from its own key."""
    ops, shape = backend.ops, tuple(x.shape)
    noise = [backend.normal(backend.fold_in(key, i), shape) for i in range(count)]
    return ops.stack([ops.where(n >= 0.0, ops.ones_like(n), -ops.ones_like(n)) for n in noise])
