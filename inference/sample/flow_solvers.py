"""Solvers of second order of a diffusion's probability-flow ODE, from noise to data.

With y = x / a and r = sigma / a the ODE of a net's eps is dy/dr = eps, or, in lambda = -log r, that
of its x_0 by an exponential integrator. From level to level, h the difference in r or lambda:

    Heun              y' = y + h eps(y, r),            then y' = y + h/2 (eps(y, r) + eps(y', r'))
    DPM-Solver++(2M)  x' = (s'/s) x - a' (e^-h - 1) ((1 + 1/(2q)) x_0 - 1/(2q) x_0 before),
                      q = h before / h

Both take the end, from the lowest noise to none, in one step of first order: x = x_0. DDIM is the
first order of both.

Sources: Karras et al. 2022, arXiv:2206.00364, algorithm 1; Lu et al. 2022, arXiv:2211.01095,
algorithm 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from probgen.inference.sample.noise_levels import Levels, between_steps, visited, word
from probgen.inference.sample.reverse import Columns, Reverse, guided
from probgen.language.declared import declaration
from probgen.language.kinds import CountOrZero, Positive, TwoOrMore

SolverSpacing = Literal["karras", "log_snr", "trailing", "leading", "linspace"]


class _Solver(Reverse):
    """What both have."""

    num_steps: int
    spacing: SolverSpacing
    rho: float
    sigma_max: float | None
    steps_offset: int

    def levels(self, model: Any) -> Levels:
        """Those visited, [num_steps], the noisiest first, and the data after them."""
        who = type(self).__name__
        if self.spacing == "karras" or self.spacing == "log_snr":
            grid, rho, top = self.spacing, self.rho, self.sigma_max
            return between_steps(model, self.num_steps, grid, rho, top, who).and_data()
        found = visited(model, self.num_steps, self.spacing, self.steps_offset, who)
        return found.and_data()

    def leaps_first(self, levels: Levels) -> bool:
        """Whether the first step is DDIM's: from no signal, or from beyond `sigma_max`."""
        beyond = self.sigma_max is not None and self.spacing in ("karras", "log_snr")
        return levels.signal[0] == 0 or (beyond and levels.ratio[0] > self.sigma_max)

    def note(self, stats: Mapping[str, np.ndarray] | None = None) -> str:
        """What the draws target."""
        return (
            f"{type(self).__name__}, {self.num_steps} steps: draws of the denoiser's flow, by a "
            "solver of second order, not of the model's chain" + guided(self.guidance_scale)
        )


@declaration
class ProbabilityFlowODE(_Solver):
    """A `Diffusion`'s flow by Heun: `pg.generate(fitted, 100, method=ProbabilityFlowODE(18))`.

    Args:
        num_steps: noise levels; the net is called 2 num_steps - 1 times.
        guidance_scale: w of classifier-free guidance; 1 for none.
        spacing: the levels. "karras", sigma / a to the power of 1 / rho in equal steps, and
            "log_snr", log(sigma / a) in equal steps, ask the net at fractional times, from the
            chain's last step down to its first; "trailing", "leading" and "linspace" at whole ones,
            as of `DDIM`.
        rho: of "karras".
        sigma_max: the largest sigma / a of the solver's steps; a chain that begins with more (EDM's
            80 is enough, cosine schedules have 20,000) goes there by one step of first order.
        steps_offset: of "leading".

    From a last step without signal (zero terminal SNR, flow matching) the first step is DDIM's. The
    error falls as 1 / num_steps^2 between that and the lowest level; that of the steps of first
    order at both ends is the same for all. Draws are those that `ProbabilityFlow` gives the density
    of.

    Raises (by generate): AlgorithmError: the model is no diffusion, or has fewer steps than are
    visited; a schedule and a prediction that do not go together; guidance without an unconditional
    branch.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1, without churn.
    """

    num_steps: TwoOrMore = 18
    guidance_scale: float = 1.0
    spacing: SolverSpacing = "karras"
    rho: Positive = dataclasses.field(default=7.0, kw_only=True)
    sigma_max: Positive | None = dataclasses.field(default=None, kw_only=True)
    steps_offset: CountOrZero = dataclasses.field(default=0, kw_only=True)

    def columns(self, model: Any) -> Columns:
        """Two rows a level, the guess and its correction, but one for the last, and for a first
        one from which the solver does not step."""
        levels = self.levels(model)
        now, then = levels.at(slice(-1)), levels.at(slice(1, None))
        says = word(model, now, "ProbabilityFlowODE")
        # x' = (a'/a) x + h eps, in numbers that are finite where a = 0
        h = then.noise - then.signal * now.noise / np.where(now.signal > 0, now.signal, np.inf)
        of_x, zero = then.signal / np.where(now.signal > 0, now.signal, np.inf), 0.0 * h
        # The guess moves x on by all of h eps, and keeps x moved by half of it.
        guess = (of_x + h * says.eps_x, h * says.eps_net, zero)
        half = (of_x + h / 2 * says.eps_x, h / 2 * says.eps_net)
        # The correction, asked one level below, adds the other half to what was kept.
        below = h[:-1] / 2
        correction = (below * says.eps_x[1:], below * says.eps_net[1:], 1.0 + 0.0 * below)

        def rows(guesses: np.ndarray, corrections: Any) -> np.ndarray:
            out = np.zeros(2 * len(h) - 1)
            out[::2], out[1::2] = guesses, corrections
            return out

        columns = {
            "time": rows(now.time, now.time[1:]),
            **{k: rows(guess[i], correction[i]) for i, k in enumerate(("x", "net", "m"))},
            "m_x": rows(half[0], 0.0),
            "m_net": rows(half[1], 0.0),
        }
        if not self.leaps_first(levels):
            return columns
        columns = {k: np.delete(v, 1) for k, v in columns.items()}
        columns["x"][0] = then.signal[0] * says.clean_x[0] + then.noise[0] * says.eps_x[0]
        columns["net"][0] = then.signal[0] * says.clean_net[0] + then.noise[0] * says.eps_net[0]
        return columns


@declaration
class DPMSolver(_Solver):
    """A `Diffusion`'s flow by DPM-Solver++(2M): `pg.generate(fitted, 100, method=DPMSolver(20))`.

    Args:
        num_steps: noise levels, and calls of the net.
        guidance_scale: w of classifier-free guidance; 1 for none.
        spacing, rho, sigma_max, steps_offset: as of `ProbabilityFlowODE`.

    One call a step, as `DDIM` has, and an error that falls as 1 / num_steps^2 down to the lowest
    level; the first step, and the last one to the datum, are DDIM's.

    Raises (by generate): AlgorithmError: as of `ProbabilityFlowODE`.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """

    num_steps: TwoOrMore = 20
    guidance_scale: float = 1.0
    spacing: SolverSpacing = "log_snr"
    rho: Positive = dataclasses.field(default=7.0, kw_only=True)
    sigma_max: Positive | None = dataclasses.field(default=None, kw_only=True)
    steps_offset: CountOrZero = dataclasses.field(default=0, kw_only=True)

    def columns(self, model: Any) -> Columns:
        """One row a level, which remembers the x_0 before."""
        levels = self.levels(model)
        now, then = levels.at(slice(-1)), levels.at(slice(1, None))
        says = word(model, now, "DPMSolver")
        h = -np.diff(np.log(levels.ratio[:-1]))
        before = np.concatenate([[0.0], h[1:] / (2.0 * h[:-1]), [0.0]])  # 1 / (2 q): 0, first order
        gain = -then.signal * np.expm1(-np.append(h, np.inf))
        of_clean = gain * (1.0 + before)
        return {
            "time": now.time,
            "x": then.noise / now.noise + of_clean * says.clean_x,
            "net": of_clean * says.clean_net,
            "m": -gain * before,
            "m_x": says.clean_x,
            "m_net": says.clean_net,
        }
