"""Exact denoisers of N(0, diag(lam)) at any schedule, and the errors that remain, in closed form.

With v = a^2 lam + s^2 the estimate E[x | x_t] = a lam / v x_t has the error lam s^2 / v in each
dimension, whatever it is expressed by.
"""

from dataclasses import dataclass

import numpy as np

from probgen import ops
from probgen.models import Diffusion, NoiseSchedule


@dataclass(frozen=True)
class Exact:
    """The prediction of `kind`; `lam` = (0, ...) says that data are always 0."""

    schedule: NoiseSchedule
    kind: str
    lam: tuple

    def init(self, key, *shapes):
        return {}

    def apply(self, params, x, t):
        # Between whole steps the level is that of the interpolation, by 16 parts of a step.
        root = np.cos(self.schedule.angles(16)) if len(self.schedule.betas()) > 1 else np.sqrt(
            self.schedule.alphas_bar())  # fmt: skip
        a = ops.take(ops.asarray_like(root, x), ops.cast(16.0 * t + 0.5, "int32"))[..., None]
        lam = ops.asarray_like(np.array(self.lam, np.float32), x)
        s = ops.sqrt(1.0 - a * a)
        x0 = a * lam / (a * a * lam + s * s) * x
        if self.kind == "sample":
            return x0
        return (a * x - x0) / s if self.kind == "v_prediction" else (x - a * x0) / s


def exact(schedule, kind, lam):
    lam = tuple(lam)
    return Diffusion(Exact(schedule, kind, lam), (len(lam),), schedule, kind)


def remaining(schedule, lam, assumed=None):
    """[T, d] E |x - x0^|^2 at each step, of the estimate for data of variances `assumed`."""
    lam = np.asarray(lam)
    assumed = lam if assumed is None else np.asarray(assumed)
    a2 = schedule.alphas_bar()[:, None]
    gain = np.sqrt(a2) * assumed / (a2 * assumed + 1 - a2)
    return (1 - np.sqrt(a2) * gain) ** 2 * lam + gain**2 * (1 - a2)
