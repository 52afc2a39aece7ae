"""Noise schedules: how much noise each step of a diffusion adds.

x_t = sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) eps,
alpha_bar_t = prod_{s <= t} (1 - beta_s),  t = 0 ... T-1
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np

from probgen.errors import DeclarationError
from probgen.language.declared import declaration
from probgen.language.kinds import OpenShare, between

LEAST_LEFT = 1e-30  # of a datum's variance, so that its root is a number of single precision


@declaration
class NoiseSchedule:
    """beta_t, t = 0 ... T-1, by diffusers' names and with its numbers, for every T.

        linear               from beta_start to beta_end in equal steps
        scaled_linear        sqrt(beta_t) in equal steps
        sigmoid              beta_start + (beta_end - beta_start) sigmoid(u_t), u_t from -6 to 6
        squaredcos_cap_v2    alpha_bar(s) = cos(pi/2 (s + 0.008) / 1.008)^2 at s = t / T, betas at
                             most 0.999; no beta_start, no beta_end

    Args:
        num_train_timesteps: T.
        beta_schedule: one of these names.
        beta_start, beta_end: noise of the first and of the last step. They are those of T = 1000: a
            shorter chain adds less noise in all, unless `rescaled` makes it.

    Raises:
        DeclarationError: an unknown name; T below 1; a beta outside (0, 1); so much noise that
            nothing is left of a datum in single precision.

    Sources: Ho, Jain & Abbeel 2020, arXiv:2006.11239 (linear); Nichol & Dhariwal 2021,
    arXiv:2102.09672 (cosine); Rombach et al. 2022, arXiv:2112.10752 (scaled linear); Xu et al.
    2022, arXiv:2203.02923 (sigmoid).
    """

    num_train_timesteps: Annotated[int, between(1, 10**6)] = 1000
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    beta_start: OpenShare = 1e-4
    beta_end: OpenShare = 2e-2

    def __post_init__(self) -> None:
        betas = np.asarray(self.betas())
        if betas.shape != (self.num_train_timesteps,) or not ((betas > 0) & (betas < 1)).all():
            raise DeclarationError(
                f"{type(self).__name__}: got betas of shape {betas.shape} from {betas.min():g} to "
                f"{betas.max():g}, expected {self.num_train_timesteps} of them, inside (0, 1)."
            )
        left = float(self.alphas_bar()[-1])
        if not left >= LEAST_LEFT:
            raise DeclarationError(
                f"{type(self).__name__}: got {self!r}, whose alpha_bar ends at {left:.1g}, "
                f"expected at least {LEAST_LEFT:g}, to divide by; take fewer steps or smaller "
                "betas."
            )

    @classmethod
    def rescaled(
        cls,
        num_train_timesteps: int,
        beta_schedule: str = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 2e-2,
    ) -> NoiseSchedule:
        """A shorter (or longer) chain that adds about as much noise in all as T = 1000 would.

        beta_start and beta_end are multiplied by 1000 / T.

        Raises:
            DeclarationError: so short a chain would need a beta of 1 or more.
        """
        scale = 1000.0 / num_train_timesteps
        largest = max(beta_start, beta_end) * scale
        if beta_schedule != "squaredcos_cap_v2" and not largest < 1.0:
            raise DeclarationError(
                f"NoiseSchedule.rescaled: got num_train_timesteps={num_train_timesteps}, for which "
                f"the largest beta would be {largest:.3g}, expected it below 1: more than "
                f"{math.floor(1000.0 * max(beta_start, beta_end))} steps; or take "
                "beta_schedule='squaredcos_cap_v2', which fits any number of steps."
            )
        if beta_schedule == "squaredcos_cap_v2":
            scale = 1.0
        return cls(num_train_timesteps, beta_schedule, beta_start * scale, beta_end * scale)  # type: ignore[arg-type]

    def betas(self) -> np.ndarray:
        """[T] float64."""
        t, start, end = self.num_train_timesteps, self.beta_start, self.beta_end
        if self.beta_schedule == "linear":
            return np.linspace(start, end, t)
        if self.beta_schedule == "scaled_linear":
            return np.linspace(math.sqrt(start), math.sqrt(end), t) ** 2
        if self.beta_schedule == "sigmoid":
            return start + (end - start) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, t)))
        grid = np.arange(t + 1) / t
        bar = np.cos((grid + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1.0 - bar[1:] / bar[:-1], 0.999)

    def alphas_bar(self) -> np.ndarray:
        """[T] float64: the share of the datum's variance that is left at t."""
        return np.cumprod(1.0 - self.betas())
