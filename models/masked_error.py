"""The error of a diffusion's noise where a mask is, at given draws of picture, step and noise.

    x_t = signal_t x_i + noise_t eps;      mean_k | M_i (eps_k - eps_theta(x_t, t, [c_i, c_s])) |^2

A sum over elements and a mean over the K draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from probgen import ops
from probgen.nets.subject import with_rows

Array = Any


def masked_error(
    model: Any, steps: np.ndarray, ask: Callable, c_s: Array, context: Array, x: Array,
    mask: Array | None, picture: Array, index: Array, noise: Array,
) -> Array:  # fmt: skip
    """The error, a number.

    Args:
        model: the `Diffusion`. steps: indices of its steps, which `index` counts into.
        ask: (x_t, t, context) -> the network's prediction.
        c_s: [n, d], or [K, n, d], in place of the context's last n rows.
        context: [N, m, d] of the captions; x: [N, *shape]; mask: [N, *shape or with 1s], None.
        picture, index: [K] whole numbers; noise: [K, *shape].
    """
    table, lead = model.table(), (-1, *(1 for _ in model.shape))
    row = {
        k: ops.reshape(ops.take(ops.asarray_like(table[k][steps], x), index), lead)
        for k in ("signal", "noise")
    }
    t = ops.take(ops.asarray_like(steps.astype(np.float32), x), index)
    x_t = row["signal"] * ops.take(x, picture) + row["noise"] * noise
    predicted = ask(x_t, t, with_rows(ops.take(context, picture), c_s))
    error = noise - model.noise_of(x_t, predicted, row)
    if mask is not None:
        error = error * ops.take(ops.cast(mask, "float32"), picture)
    return ops.sum(error * error) / noise.shape[0]


def place_of(u: Array, n: int) -> Array:
    """Which of n an u in [0, 1) means."""
    return ops.cast(ops.clip(ops.floor(u * n), 0, n - 1), "int32")


def strata(k: int, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """k places of pictures and of steps, each one in a stratum of its own, in two orders, and
    noise: few draws cover both evenly."""
    rng = np.random.default_rng(seed)
    place = (np.arange(k) + rng.random((2, k))) / k
    place[0] = rng.permutation(place[0])
    drawn = (place[0], place[1], rng.standard_normal((k, *shape)))
    which, time, noise = (v.astype(np.float32) for v in drawn)
    return which, time, noise
