"""Noise schedules: how much noise each step of a diffusion adds.

x_t = sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) eps,
alpha_bar_t = prod_{s <= t} (1 - beta_s),  t = 0 ... T-1
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from scipy.interpolate import PchipInterpolator

from probgen.errors import DeclarationError
from probgen.language.declared import declaration, require
from probgen.language.kinds import OpenShare, Positive, between

LEAST_LEFT = 1e-30  # of a datum's variance, so that its root is a number of single precision


@declaration
class NoiseSchedule:
    """beta_t, t = 0 ... T-1, by diffusers' names and with its numbers, for every T.

        linear               from beta_start to beta_end in equal steps
        scaled_linear        sqrt(beta_t) in equal steps
        sigmoid              beta_start + (beta_end - beta_start) sigmoid(u_t), u_t from -6 to 6
        squaredcos_cap_v2    alpha_bar(s) = cos(pi/2 (s + 0.008) / 1.008)^2 at s = t / T, betas at
                             most 0.999

    and four that go by the noise level and not by a step's noise, so that they fit any T:

        vp_sde    alpha_bar(s) = exp(-s^2 (beta_max - beta_min) / 2 - s beta_min), the SDE of
                  beta(s) = beta_min + s (beta_max - beta_min); beta_t is that from s_t to s_{t+1},
                  s_t = 0.001 + 0.999 t / T, the noise of s_0 left out
        edm       sigma_t^(1/rho) in equal steps from sigma_min to sigma_max,
                  alpha_bar_t = 1 / (1 + sigma_t^2): x_t / sqrt(alpha_bar_t) is x + sigma_t eps
        clipped_cosine
                  sqrt(alpha_bar_t) = cos(u_t), u_t in equal steps from where alpha_bar is
                  alpha_bar_max to where it is alpha_bar_min: a cosine without its two ends, where
                  a step tells nothing of the noise or of the datum
        rectified_flow
                  sigma_t / a_t = s / (1 - s), s = (t + 1) / T: x_t is (1 - s) x + s eps, the
                  straight line of flow matching, over sqrt((1 - s)^2 + s^2), down to pure noise

    Args:
        num_train_timesteps: T.
        beta_schedule: one of these names.
        beta_start, beta_end: noise of the first and of the last step of the first three. They are
            those of T = 1000: a shorter chain adds less noise in all, unless `rescaled` makes it.
        rescale_betas_zero_snr: shifts and scales sqrt(alpha_bar) so that the last is 0 and the
            first stays: a chain that ends in pure noise. Its last beta is 1.
        beta_min, beta_max: of "vp_sde".
        sigma_min, sigma_max, rho: of "edm"; a single step has sigma_max.
        alpha_bar_min, alpha_bar_max: of "clipped_cosine", alpha_bar of the last and of the first
            step; a single step has alpha_bar_min.

    Raises:
        DeclarationError: an unknown name; T below 1; a beta outside (0, 1); so much noise that
            nothing is left of a datum in single precision; one step to be rescaled.

    Sources: Ho, Jain & Abbeel 2020, arXiv:2006.11239 (linear); Nichol & Dhariwal 2021,
    arXiv:2102.09672 (cosine); Salimans & Ho 2022, arXiv:2202.00512, section 3 (clipped); Rombach et
    al. 2022, arXiv:2112.10752 (scaled linear); Xu et al. 2022, arXiv:2203.02923 (sigmoid); Song et
    al. 2021, arXiv:2011.13456, appendix C, in steps as Xiao, Kreis & Vahdat 2022, arXiv:2112.07804
    take them (vp_sde); Karras et al. 2022, arXiv:2206.00364, equation 5 (edm); Lipman et al. 2023,
    arXiv:2210.02747, and Liu, Gong & Liu 2023, arXiv:2209.03003 (rectified_flow); Lin et al. 2024,
    arXiv:2305.08891, algorithm 1 (rescaling).
    """

    num_train_timesteps: Annotated[int, between(1, 10**6)] = 1000
    beta_schedule: Literal[
        "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "vp_sde", "edm",
        "clipped_cosine", "rectified_flow",
    ] = "linear"  # fmt: skip
    beta_start: OpenShare = 1e-4
    beta_end: OpenShare = 2e-2
    rescale_betas_zero_snr: bool = False
    beta_min: Positive = 0.1
    beta_max: Positive = 20.0
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0
    rho: Positive = 7.0
    alpha_bar_min: OpenShare = 1e-3
    alpha_bar_max: OpenShare = 0.995

    def __post_init__(self) -> None:
        require(self.beta_min <= self.beta_max, self, "no more than beta_max", "beta_min")
        require(self.sigma_min < self.sigma_max, self, "less than sigma_max", "sigma_min")
        falls = self.alpha_bar_min < self.alpha_bar_max
        require(falls, self, "less than alpha_bar_max", "alpha_bar_min")
        several = self.num_train_timesteps > 1 or not self.ends_in_noise
        require(
            several, self, "two steps or more for a chain that ends in pure noise",
            "num_train_timesteps", "rescale_betas_zero_snr", "beta_schedule",
        )  # fmt: skip
        betas = np.asarray(self.betas())
        ends = betas[:-1] if self.ends_in_noise else betas
        if betas.shape != (self.num_train_timesteps,) or not ((ends > 0) & (ends < 1)).all():
            raise DeclarationError(
                f"{type(self).__name__}: got betas of shape {betas.shape} from {betas.min():g} to "
                f"{betas.max():g}, expected {self.num_train_timesteps} of them, inside (0, 1)."
            )
        left = float(np.cumprod(1.0 - ends)[-1])
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
        fits = beta_schedule not in ("linear", "scaled_linear", "sigmoid")
        if not (fits or largest < 1.0):
            raise DeclarationError(
                f"NoiseSchedule.rescaled: got num_train_timesteps={num_train_timesteps}, for which "
                f"the largest beta would be {largest:.3g}, expected it below 1: more than "
                f"{math.floor(1000.0 * max(beta_start, beta_end))} steps; or take "
                "beta_schedule='squaredcos_cap_v2', which fits any number of steps."
            )
        scale = 1.0 if fits else scale
        return cls(num_train_timesteps, beta_schedule, beta_start * scale, beta_end * scale)  # type: ignore[arg-type]

    @property
    def ends_in_noise(self) -> bool:
        """Whether nothing is left of a datum at the last step, whose alpha_bar is 0."""
        return self.rescale_betas_zero_snr or self.beta_schedule == "rectified_flow"

    def betas(self) -> np.ndarray:
        """[T] float64."""
        if not self.rescale_betas_zero_snr:
            return self._named()
        root = np.sqrt(np.cumprod(1.0 - self._named()))
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        return 1.0 - (root / np.concatenate([[1.0], root[:-1]])) ** 2

    def _named(self) -> np.ndarray:
        t, start, end = self.num_train_timesteps, self.beta_start, self.beta_end
        if self.beta_schedule == "linear":
            return np.linspace(start, end, t)
        if self.beta_schedule == "scaled_linear":
            return np.linspace(math.sqrt(start), math.sqrt(end), t) ** 2
        if self.beta_schedule == "sigmoid":
            return start + (end - start) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, t)))
        grid = np.arange(t + 1) / t
        if self.beta_schedule == "vp_sde":
            s = 1e-3 + (1.0 - 1e-3) * grid
            log_bar = -0.5 * s**2 * (self.beta_max - self.beta_min) - s * self.beta_min
            return -np.expm1(np.diff(log_bar))
        if self.beta_schedule == "edm":
            low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
            sigma = (np.linspace(low, high, t) if t > 1 else np.array([high])) ** self.rho
            return -np.expm1(-np.diff(np.log1p(np.concatenate([[0.0], sigma**2]))))
        if self.beta_schedule == "clipped_cosine":
            first, last = np.arccos(np.sqrt([self.alpha_bar_max, self.alpha_bar_min]))
            bar = np.cos(np.linspace(first, last, t) if t > 1 else np.array([last])) ** 2
            return 1.0 - bar / np.concatenate([[1.0], bar[:-1]])
        if self.beta_schedule == "rectified_flow":
            bar = (1.0 - grid) ** 2 / ((1.0 - grid) ** 2 + grid**2)
            return 1.0 - bar[1:] / bar[:-1]
        bar = np.cos((grid + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1.0 - bar[1:] / bar[:-1], 0.999)

    def alphas_bar(self) -> np.ndarray:
        """[T] float64: the share of the datum's variance that is left at t."""
        return np.cumprod(1.0 - self.betas())

    def log_ratios(self) -> np.ndarray:
        """[T] log(sigma / a), a^2 = alpha_bar, sigma^2 = 1 - alpha_bar; less by one where the last
        step has no signal."""
        bar = self.alphas_bar()
        bar = bar[bar > 0]
        return 0.5 * np.log((1.0 - bar) / bar)

    def index_at(self, log_ratio: np.ndarray) -> np.ndarray:
        """The step, a fraction between two, at which log(sigma / a) = `log_ratio`.

        Between steps log(1 + index) is interpolated, monotonically, against it.
        """
        u = self.log_ratios()
        if len(u) == 1:
            return np.zeros_like(log_ratio)
        return np.expm1(PchipInterpolator(u, np.log1p(np.arange(len(u))))(log_ratio))

    def angles(self, parts: int) -> np.ndarray:
        """[(T - 1) parts + 1] arctan(sigma / a) at the times 0, 1/parts, ..., T - 1.

        The inverse of `index_at`; from the last step but one to one without signal it is linear.
        """
        u, total = self.log_ratios(), self.num_train_timesteps
        times = np.arange((total - 1) * parts + 1) / parts
        fine = np.interp(np.arange((len(u) - 1) * 64 + 1) / 64, np.arange(len(u)), u)
        at = np.interp(times, self.index_at(fine), fine) if len(u) > 1 else u[0] + 0.0 * times
        found = np.arctan(np.exp(at))
        if len(u) < total:
            beyond = np.clip(times - (total - 2), 0.0, 1.0)
            found = found + beyond * (np.pi / 2 - found[-1])
        return found
