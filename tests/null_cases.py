"""An exact conditional denoiser that bends with x: data of two modes around what the context says.

Given a context c its data are, number by number, 1/2 N(m + 1, v) + 1/2 N(m - 1, v) around m = c W.
With u = a^2 v + s^2 and r = tanh(a (x - a m) / u) the estimate is

    E[x_0 | x] = m + r + (a v / u) (x - a (m + r))
"""

from dataclasses import dataclass

import numpy as np

import probgen as pg
from probgen import nets, ops
from probgen.models import Diffusion, NoiseSchedule

SHAPE, DIM, VARIANCE = (2, 3), 6, 0.1
SCHEDULE = NoiseSchedule(60)
INTO = np.random.default_rng(7).normal(0.0, 0.6, (DIM, 6)).astype("float32")


@dataclass(frozen=True)
class TwoModes:
    """The noise that such data have; t whole."""

    def init(self, key, *shapes):
        return {}

    def apply(self, params, x, t, context):
        a = ops.take(ops.asarray_like(np.sqrt(SCHEDULE.alphas_bar()), x), ops.cast(t, "int32"))
        a = a[:, None, None]
        s2 = 1.0 - a * a
        u = a * a * VARIANCE + s2
        m = ops.reshape(ops.sum(context, axis=1) @ ops.asarray_like(INTO, x), (-1, *SHAPE))
        m = m + ops.tanh(a * (x - a * m) / u)
        clean = m + a * VARIANCE / u * (x - a * m)
        return (x - a * clean) / ops.sqrt(s2)


TABLE = np.random.default_rng(0).normal(0.0, 0.25, (4, 2 * DIM)).astype("float32")


def two_modes(b):
    """Fitted on a backend, of three classes with two tokens each and a null."""
    model = Diffusion(TwoModes(), SHAPE, SCHEDULE, condition=nets.ClassEmbedding(3, DIM, 2))
    params = {"denoiser": {}, "condition": {"table": TABLE}}
    return pg.Fitted(model, params, info={"backend": b.name})


def data(n, seed=1):
    """Data and their classes, of the model's own law."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    m = (TABLE[y].reshape(n, 2, DIM).sum(1) @ INTO).reshape(n, *SHAPE)
    x = m + rng.choice([-1.0, 1.0], m.shape) + VARIANCE**0.5 * rng.normal(size=m.shape)
    return x.astype("float32"), y
