"""A diffusion's denoiser as a generator: pure noise in, the estimate of x_0 out, in one call.

    z ~ N(0, I),   x = xhat_theta(z, t*),   log(alpha^2 / sigma^2) = lambda* at t*

At lambda* = 0 the net takes z for half signal and gives noise back; towards -6 and -10 its
output is smooth and structured from the start. What it draws has no density here.

Source: Xie et al. 2024, arXiv:2405.16852 (as the start of EM distillation).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

import probgen as pg
from probgen import dist
from probgen.engine.fitted import Fitted
from probgen.language.declared import declaration, require
from probgen.language.kinds import within
from probgen.language.model import Model, family_of
from probgen.models.diffusion import Diffusion, times_like


@declaration
class OneStep(Model):
    """x = xhat(z, t*): draws in one call, from the weights of a teacher or from fresh ones.

        student = OneStep(teacher, log_snr=-6.0)
        fitted = pg.fit(student, None, EMDistillation(teacher), batch_size=128, ...)
        pg.generate(fitted, 1000, seed=0)

    Args:
        teacher: a `Fitted` of a `Diffusion`, whose weights are the start, all of them trained; or a
            `Diffusion`, for fresh weights.
        log_snr: lambda*, log(alpha^2 / sigma^2) of the level at which the net is asked: that of
            the nearest step of the schedule.

    Sites: "z", [*shape], and "x", a function of it. Nets and inputs are the teacher's: "denoiser"
    and, with a condition, "condition".

    Raises: DeclarationError: another model, or a log_snr beyond the schedule's ends.
    """

    teacher: Diffusion | Fitted
    log_snr: Annotated[float, within(-100, 100)] = -6.0

    def __post_init__(self) -> None:
        require(
            isinstance(self.diffusion, Diffusion), self, "a Diffusion, fitted or not", "teacher"
        )
        ratios = self._log_snrs()
        low, high = float(ratios.min()), float(ratios.max())
        fits = low - 0.5 <= self.log_snr <= high + 0.5
        require(fits, self, f"within the schedule's, {low:.2f} to {high:.2f}", "log_snr")

    @property
    def diffusion(self) -> Diffusion:
        """The teacher's declaration."""
        given = self.teacher.model if isinstance(self.teacher, Fitted) else self.teacher
        return family_of(given)

    @property
    def step(self) -> int:
        """t*, the step of the schedule at which the net is asked."""
        return int(np.argmin(np.abs(self._log_snrs() - self.log_snr)))

    def _log_snrs(self) -> np.ndarray:
        table = self.diffusion.table()
        with np.errstate(divide="ignore"):  # a last step without signal
            return 2.0 * (np.log(table["signal"]) - np.log(table["noise"]))

    def fitted_params(self) -> dict:
        if not isinstance(self.teacher, Fitted):
            return {}
        return {**self.diffusion.fitted_params(), **self.teacher.params}

    @property
    def program(self) -> Any:
        if self.diffusion.condition is None:
            return lambda: self._draw(None)
        return lambda condition: self._draw(condition)

    def _draw(self, condition: Any) -> None:
        model, step = self.diffusion, self.step
        row = {k: float(v[step]) for k, v in model.table().items()}
        with pg.data_plate():
            z = pg.sample("z", dist.Normal(0.0, 1.0).expand(model.shape).to_event(len(model.shape)))
            context = model.context_of(condition, z)
            t = times_like(z, step, model.shape)
            predicted = pg.net("denoiser", model.denoiser)(z, t, *context)
            pg.deterministic("x", model.clean(z, predicted, row))

    def check_rows(self, rows: Mapping[str, Any]) -> None:
        """As the teacher does."""
        self.diffusion.check_rows({k: v for k, v in rows.items() if k != "x"})

    def formula(self) -> str:
        return r"x = \hat{x}_\theta(z, t^*),\qquad z \sim \mathcal{N}(0, I)"
