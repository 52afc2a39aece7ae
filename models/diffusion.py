"""Diffusion models: a Markov chain from noise to data whose steps are learned by denoising.

With alpha_bar_t = prod_{s <= t} (1 - beta_s), t = 0 ... T-1,

    x_t = sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) eps                       (forward)
    x_{t-1} ~ N(mu_theta(x_t, t), beta~_t I),  x_T ~ N(0, I)                    (the program)

Source: Ho, Jain & Abbeel 2020, arXiv:2006.11239.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

import numpy as np

import probgen as pg
from probgen import dist, ops
from probgen.errors import DeclarationError
from probgen.language.declared import declaration
from probgen.language.kinds import AnyNet, OpenShare, Width, between
from probgen.language.model import Model, Sketch

Array = Any
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


@declaration
class Diffusion(Model):
    """A diffusion prior over data of shape `shape`.

    Args:
        denoiser: a net (x_t, t) -> array like x_t; t is [batch], in 0 ... T-1.
        shape: of one datum.
        schedule: the noise.
        prediction_type: what the net predicts: "epsilon" (the noise), "sample" (x_0) or
            "v_prediction" (sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0).

    Sites: "x_T", "x_{T-1}", ..., "x_1", "x". Nets: "denoiser". The forward process, which has no
    parameters, is its guide, so that it can be the prior of a latent. By itself learn it with
    `Denoising`, which draws one step a datum; a variational bound runs all T.
    """

    denoiser: AnyNet
    shape: tuple[Width, ...]
    schedule: NoiseSchedule = dataclasses.field(default_factory=NoiseSchedule)
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"

    @property
    def program(self) -> Any:
        def program() -> None:
            total = self.schedule.num_train_timesteps
            table = self.table()
            with pg.data_plate():
                unit = dist.Normal(0.0, 1.0).expand(self.shape).to_event(len(self.shape))
                x = pg.sample(f"x_{total}", unit)
                for t in reversed(range(total)):
                    predicted = pg.net("denoiser", self.denoiser)(x, self._times(x, t))
                    row = {k: float(v[t]) for k, v in table.items()}
                    loc = self.posterior_mean(x, predicted, row)
                    step = dist.Normal(loc, row["std"]).to_event(len(self.shape))
                    x = pg.sample(f"x_{t}" if t else "x", step)

        return program

    @property
    def guide(self) -> Any:  # type: ignore[override]
        def guide(x: Array) -> None:
            with pg.data_plate():
                for t, beta in enumerate(self.schedule.betas()):
                    step = dist.Normal(math.sqrt(1.0 - beta) * x, math.sqrt(beta))
                    x = pg.sample(f"x_{t + 1}", step.to_event(len(self.shape)))

        return guide

    def _times(self, x: Array, t: Any) -> Array:
        lead = x.shape[: x.ndim - len(self.shape)]
        flat = ops.reshape(x, (*lead, -1))[..., 0]
        return flat * 0.0 + t

    def table(self) -> dict[str, np.ndarray]:
        """Per-step constants, [T] each: alpha_bar, signal, noise, the posterior's mean and std."""
        beta, bar = self.schedule.betas(), self.schedule.alphas_bar()
        before = np.concatenate([[1.0], bar[:-1]])
        variance = beta * (1.0 - before) / (1.0 - bar)
        # At t = 0 the posterior variance is zero; the next one keeps the last step a density.
        variance[0] = variance[1] if len(variance) > 1 else beta[0]
        return {
            "signal": np.sqrt(bar),
            "noise": np.sqrt(1.0 - bar),
            "of_x0": np.sqrt(before) * beta / (1.0 - bar),
            "of_xt": np.sqrt(1.0 - beta) * (1.0 - before) / (1.0 - bar),
            "std": np.sqrt(variance),
        }

    def clean(self, x_t: Array, predicted: Array, row: dict[str, Any]) -> Array:
        """The estimate of x_0 from the net's prediction at one step."""
        if self.prediction_type == "sample":
            return predicted
        if self.prediction_type == "v_prediction":
            return row["signal"] * x_t - row["noise"] * predicted
        return (x_t - row["noise"] * predicted) / row["signal"]

    def posterior_mean(self, x_t: Array, predicted: Array, row: dict[str, Any]) -> Array:
        """mu_theta(x_t, t): the mean of q(x_{t-1} | x_t, x_0) at the estimated x_0."""
        return row["of_x0"] * self.clean(x_t, predicted, row) + row["of_xt"] * x_t

    def target(self, x: Array, eps: Array, row: dict[str, Any]) -> Array:
        """What the net should predict for datum x and noise eps."""
        if self.prediction_type == "sample":
            return x
        if self.prediction_type == "v_prediction":
            return row["signal"] * eps - row["noise"] * x
        return eps

    def generate(
        self, bound: Any, params: Any, key: Any, num_samples: int, batch: Any
    ) -> dict[str, Array]:
        """Ancestral sampling by one loop over the steps; the same chain as the program's.

        `batch` holds a program's inputs, which this one does not have.
        """
        b = bound.backend
        total = self.schedule.num_train_timesteps
        table = {k: b.asarray(v[::-1].copy()) for k, v in self.table().items()}
        keys = b.split(key, total + 1)
        x = b.normal(keys[0], (num_samples, *self.shape))
        net: Any = self.denoiser

        def step(x: Array, item: Any) -> tuple[Array, None]:
            row, t, k = item
            predicted = net.apply(params["denoiser"], x, self._times(x, t))
            loc = self.posterior_mean(x, predicted, row)
            return loc + row["std"] * b.normal(k, tuple(x.shape)), None

        times = b.asarray(np.arange(total)[::-1].astype(np.float32))
        x, _ = b.scan(step, x, (table, times, keys[1:]))
        return {"x": x}

    def sketch(self) -> Sketch:
        total = self.schedule.num_train_timesteps
        if total <= 4:
            return Sketch(self)
        few = dataclasses.replace(self.schedule, num_train_timesteps=3)
        small = dataclasses.replace(self, schedule=few)
        sites = {f"x_{t}": "x_3" if t == total else "x_2" for t in range(total, 1, -1)}
        return Sketch(small, f"3 of its {total} steps", {**sites, "x_1": "x_1"})

    def formula(self) -> str:
        return (
            r"p_\theta(x_{0:T}) = \mathcal{N}(x_T; 0, I) \prod_{t=1}^{T} "
            r"\mathcal{N}(x_{t-1};\ \mu_\theta(x_t, t),\ \tilde\beta_t I)"
        )
