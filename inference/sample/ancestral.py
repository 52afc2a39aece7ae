"""Ways of `pg.generate` that follow a model's own order, and no chain that climbs its density.

    Ancestral    site by site as the program says; of a diffusion its T steps by one loop, or fewer
    DDIM         a diffusion's steps in leaps, with its noise scaled by eta, none at eta = 0

At a level x_t = a x_0 + s xi. From t to the next level visited, a' and s' (1 and 0 at the end),
with x_0 and eps what the net says at (x_t, t), rho = a / a' and v = s^2 - rho^2 s'^2 between them:

    Ancestral    q(x' | x_t, x_0):  a' x_0 + (rho s'^2 / s^2) (x_t - a x_0) + sqrt(v) s'/s xi,
                 or + sqrt(v) xi where the model's variance_type is "fixed_large"
    DDIM         a' x_0 + sqrt(s'^2 - sigma^2) eps + sigma xi,    sigma = eta sqrt(v) s' / s

so that the first is DDIM with eta = 1, and Ancestral of all steps the model's own chain.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from probgen.inference.sample.noise_levels import Levels, Spacing, visited, word
from probgen.inference.sample.reverse import Columns, Reverse, guided
from probgen.language.declared import declaration
from probgen.language.kinds import CountOrZero, Many, Positive, Share


@declaration
class Ancestral(Reverse):
    """What `pg.generate` does without a method; and, of a `Diffusion`, guided and in fewer steps.

    Args:
        num_steps: of a diffusion, how many of its T steps are visited, in leaps as equal as they
            can be ("trailing"), each by its posterior, which is the law of the T steps where the
            net knows x_0 and an approximation elsewhere; None, all of them.
        guidance_scale: w of classifier-free guidance; 1 for none.
        clip_sample_range: c, the net's x_0 is clipped to [-c, c]; None, it is not.

    The last step draws what the model's own last step does.

    Raises (by generate): AlgorithmError: any of these for a model that is no diffusion; more steps
    than it has; guidance without an unconditional branch; a schedule and a prediction that do not
    go together.

    Sources: Ho, Jain & Abbeel 2020, arXiv:2006.11239; Nichol & Dhariwal 2021, arXiv:2102.09672,
    section 4, for fewer steps.
    """

    num_steps: Many | None = None
    guidance_scale: float = 1.0
    clip_sample_range: Positive | None = None

    @property
    def is_ancestral(self) -> bool:
        """Whether it is what is done without a method."""
        return self == Ancestral()

    def note(self, stats: Mapping[str, np.ndarray] | None = None) -> str:
        """What the draws target."""
        if self.num_steps is None:
            return "ancestral" + guided(self.guidance_scale)
        leaps = f"ancestral in {self.num_steps} leaps, not the model's own chain"
        return leaps + guided(self.guidance_scale)

    def leaps(self, model: Any) -> tuple[Levels, Levels]:
        """The levels visited and, of each, the next."""
        total = len(model.table()["signal"])
        levels = visited(model, self.num_steps or total, "trailing", 0, "Ancestral")
        return levels, levels.and_data().at(slice(1, None))

    def columns(self, model: Any) -> Columns:
        """The table."""
        now, then = self.leaps(model)
        share = (now.signal / then.signal) * (then.noise / now.noise) ** 2
        std = step_noise(now, then)
        if getattr(model, "variance_type", "fixed_small") == "fixed_large":
            std[:-1] *= now.noise[:-1] / then.noise[:-1]
        std[-1] = model.table()["std"][0]
        return leap_columns(
            self, model, now, then.signal - share * now.signal, 0.0 * share, share, std
        )


@declaration
class DDIM(Reverse):
    """A `Diffusion`'s draws in fewer steps: `pg.generate(fitted, 100, method=DDIM(50))`.

    Args:
        num_steps: how many of the T steps are visited.
        eta: how much of the chain's noise is drawn on the way: 0, a deterministic map of x_T, a
            solver of the network's ODE of first order; 1, `Ancestral`, but for the last step, which
            draws none.
        guidance_scale: w of classifier-free guidance; 1 for none.
        spacing: which steps: "trailing", T - 1 and down in equal leaps, so that the first is at the
            noise that the draws start from; "leading", up from `steps_offset` in leaps of
            T // num_steps; "linspace", 0 to T - 1 in equal leaps.
        steps_offset: of "leading".
        set_alpha_to_one: the last step leads to the datum; else to the noise of the chain's first
            step, alpha_bar_0.
        clip_sample_range: c, the net's x_0 is clipped to [-c, c], its eps is not; None, neither.
        lands: where a leap ends: "next", on the next step visited; "stride", T // num_steps below,
            which is another level where leaps are unequal ("linspace", or num_steps that do not
            divide T).

    The names but `lands` are those of diffusers' `DDIMScheduler`, whose numbers these are with
    lands="stride" and its defaults spacing="leading", clip_sample_range=1.0.

    Raises (by generate): AlgorithmError: the model is no diffusion, or has fewer steps; guidance
    without an unconditional branch; a schedule and a prediction that do not go together.

    Sources: Song, Meng & Ermon 2021, arXiv:2010.02502, equations 12 and 16; Lin et al. 2024,
    arXiv:2305.08891, for which steps are visited.
    """

    num_steps: Many = 50
    eta: Share = 0.0
    guidance_scale: float = 1.0
    spacing: Spacing = "trailing"
    steps_offset: CountOrZero = dataclasses.field(default=0, kw_only=True)
    set_alpha_to_one: bool = dataclasses.field(default=True, kw_only=True)
    clip_sample_range: Positive | None = dataclasses.field(default=None, kw_only=True)
    lands: Literal["next", "stride"] = dataclasses.field(default="next", kw_only=True)

    def note(self, stats: Mapping[str, np.ndarray] | None = None) -> str:
        """What the draws target."""
        return (
            f"DDIM, {self.num_steps} steps, eta={self.eta:g}: draws of the denoiser's flow in "
            "leaps, not of the model's chain" + guided(self.guidance_scale)
        )

    def leaps(self, model: Any) -> tuple[Levels, Levels]:
        """The levels visited and, of each, the one where its leap ends."""
        now = visited(model, self.num_steps, self.spacing, self.steps_offset, "DDIM")
        signal = model.table()["signal"]
        final = 1.0 if self.set_alpha_to_one else float(signal[0])
        if self.lands == "next":
            return now, now.and_data(final).at(slice(1, None))
        time = now.time - len(signal) // self.num_steps
        reached = np.where(time < 0, final, signal[np.maximum(time, 0).astype(int)])
        return now, Levels(time, reached, np.sqrt(1.0 - reached**2))

    def columns(self, model: Any) -> Columns:
        """The table."""
        now, then = self.leaps(model)
        std = self.eta * step_noise(now, then)
        of_eps = np.sqrt(np.maximum(then.noise**2 - std**2, 0.0))
        return leap_columns(self, model, now, then.signal, of_eps, 0.0 * std, std)


def step_noise(now: Levels, then: Levels) -> np.ndarray:
    """The standard deviation of q(x' | x_t, x_0)."""
    between = now.noise**2 - (now.signal / then.signal * then.noise) ** 2
    return np.sqrt(np.maximum(between, 0.0)) * then.noise / now.noise


def leap_columns(
    sampler: Any, model: Any, now: Levels, of_clean: np.ndarray, of_eps: np.ndarray,
    of_x: np.ndarray, std: np.ndarray,
) -> Columns:  # fmt: skip
    """The table of x' = of_clean x_0 + of_eps eps + of_x x + std xi."""
    says = word(model, now, type(sampler).__name__)
    columns = {
        "time": now.time,
        "x": of_clean * says.clean_x + of_eps * says.eps_x + of_x,
        "net": of_clean * says.clean_net + of_eps * says.eps_net,
    }
    if (std > 0).any():
        columns["std"] = std
    if sampler.clip_sample_range is not None:
        columns |= {"clipped": of_clean, "clean_x": says.clean_x, "clean_net": says.clean_net}
    return columns
