"""Which noise levels a sampler of a diffusion visits, and what the network's word means there.

At a level x_t = a x_0 + sigma eps, and the net says n = c x_0 + d eps (`Denoises.target`: c = 0,
d = 1 for epsilon). Two equations, so x_0 and eps are linear in x_t and n, by known numbers:

    x_0 = (d x_t - sigma n) / (a d - sigma c),      eps = (a n - c x_t) / (a d - sigma c)

All here is numpy, float64, noisiest first. Where a d = sigma c the word tells nothing of x_0: an
epsilon at a = 0 (zero terminal signal), an x_0 at sigma = 0.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from probgen.errors import AlgorithmError

Spacing = Literal["trailing", "leading", "linspace"]
Grid = Literal["karras", "log_snr"]


class Levels(NamedTuple):
    """Noise levels, [n] each.

    Attributes:
        time: the index at which the network is asked, whole or between two.
        signal, noise: a and sigma.
    """

    time: np.ndarray
    signal: np.ndarray
    noise: np.ndarray

    def at(self, index: Any) -> Levels:
        """Some of them, by a slice."""
        return Levels(*(v[index] for v in self))

    @property
    def ratio(self) -> np.ndarray:
        """sigma / a, EDM's noise level; infinite without signal."""
        with np.errstate(divide="ignore"):
            return self.noise / self.signal

    def and_data(self, signal: float = 1.0) -> Levels:
        """These and after them the data: a = 1, or what is taken for it, and no time."""
        noise = np.sqrt(1.0 - signal**2)
        ends = (np.nan, signal, noise)
        return Levels(*(np.append(v, e) for v, e in zip(self, ends, strict=True)))


class Word(NamedTuple):
    """x_0 = clean_x x + clean_net n and eps = eps_x x + eps_net n, [n] each."""

    clean_x: np.ndarray
    clean_net: np.ndarray
    eps_x: np.ndarray
    eps_net: np.ndarray


def word(model: Any, at: Levels, who: str) -> Word:
    """What the network's prediction says of x_0 and of eps, for noise as at these levels.

    Raises:
        AlgorithmError: it says nothing of them at one of these levels.
    """
    row = {"signal": at.signal, "noise": at.noise}
    c = model.target(1.0, 0.0, row) + 0.0 * at.signal
    d = model.target(0.0, 1.0, row) + 0.0 * at.signal
    det = at.signal * d - at.noise * c
    if not (det != 0.0).all():
        i = int(np.argmin(np.abs(det)))
        where = f"sqrt(alpha_bar)={at.signal[i]:g} and noise {at.noise[i]:g}"
        raise AlgorithmError(
            f"{who}: got prediction_type={model.prediction_type!r} for {model.name!r} at a step "
            f"with {where}, where that prediction tells nothing of the datum, expected "
            "'v_prediction', which tells it at every level, or a schedule without that level."
        )
    return Word(d / det, -at.noise / det, -c / det, at.signal / det)


def visited(model: Any, num_steps: int, spacing: Spacing, steps_offset: int, who: str) -> Levels:
    """`num_steps` of the T steps, whole indices, by diffusers' names and with its numbers.

        trailing    T - 1 and down from there in equal leaps, rounded
        leading     from `steps_offset` up in leaps of T // num_steps
        linspace    from 0 to T - 1 in equal leaps, rounded

    Raises:
        AlgorithmError: the chain has fewer steps, or the offset leads beyond the last one.
    """
    table = model.table()
    total = len(table["signal"])
    if num_steps > total:
        raise AlgorithmError(
            f"{who}: got num_steps={num_steps} for {model.name!r}, whose chain has {total} steps, "
            "expected no more than those; lower num_steps."
        )
    count = np.arange(num_steps)
    times = {
        "trailing": np.round(total - count * (total / num_steps)) - 1,
        "leading": (count * (total // num_steps))[::-1] + steps_offset,
        "linspace": np.round(np.linspace(0, total - 1, num_steps))[::-1],
    }[spacing].astype(int)
    if times[0] >= total:
        raise AlgorithmError(
            f"{who}: got steps_offset={steps_offset}, with which the first step visited is "
            f"{times[0]} of {model.name!r}, expected at most {total - 1}, its last; lower it."
        )
    return Levels(times.astype(float), table["signal"][times], table["noise"][times])


def between_steps(
    model: Any, num_levels: int, grid: Grid, rho: float, sigma_max: float | None, who: str
) -> Levels:
    """`num_levels` from the last step's noise down to the first's, at fractional times.

        karras     (sigma / a)^(1 / rho) in equal steps
        log_snr    log(sigma / a) in equal steps

    Where the last step has no signal, or more noise than `sigma_max`, it is the first level all
    the same, and the others begin at the next one that has, or at `sigma_max`. Times between steps
    are those of `NoiseSchedule.index_at`.

    Raises:
        AlgorithmError: fewer than two steps have some signal; `sigma_max` is not above the first.
    """
    u = model.schedule.log_ratios()
    top = u[-1] if sigma_max is None else min(u[-1], np.log(sigma_max))
    if len(u) < 2 or top <= u[0]:
        raise AlgorithmError(
            f"{who}: got sigma_max={sigma_max} for {model.name!r}, of whose steps {len(u)} have "
            f"some signal, with sigma / a from {np.exp(u[0]):.3g}, expected two steps or more and "
            "a sigma_max above that; use DDIM or Ancestral, which need no levels between steps."
        )
    total = model.schedule.num_train_timesteps
    is_beyond = len(u) < total or top < u[-1]
    count = num_levels - is_beyond
    if grid == "log_snr":
        wanted = np.linspace(top, u[0], count)
    else:
        wanted = rho * np.log(np.linspace(np.exp(top / rho), np.exp(u[0] / rho), count))
        wanted[[0, -1]] = top, u[0]  # to the bit, so that nothing is extrapolated
    noise = 1.0 / np.sqrt(1.0 + np.exp(-2 * wanted))
    found = Levels(model.schedule.index_at(wanted), 1.0 / np.sqrt(1.0 + np.exp(2 * wanted)), noise)
    if not is_beyond:
        return found
    bar = float(model.schedule.alphas_bar()[-1])
    last = (total - 1.0, np.sqrt(bar), np.sqrt(1.0 - bar))
    return Levels(*(np.append(v, w) for v, w in zip(last, found, strict=True)))
