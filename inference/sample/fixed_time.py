"""Hamiltonian Monte Carlo, one leapfrog at a time: trajectories of one length in time.

A trajectory takes T / h leapfrogs of step size h, at least one; its end is accepted with
probability min(1, exp(H_0 - H)). Chains have step sizes of their own, so none waits for another.

Source: Neal 2011, "MCMC using Hamiltonian dynamics", arXiv:1206.1901.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from probgen.inference.sample.machine import (
    DIVERGED,
    End,
    Machine,
    Noise,
    Place,
    choose,
    dot,
    leapfrog,
    started,
)

Array = Any


class Path(NamedTuple):
    """Where a chain is: the last draw, the end that grows, H_0, and leapfrogs so far."""

    best: Place
    head: End
    energy: Array
    steps: Array


def fixed_time(ops: Any, climb: Callable, num_steps: int | None = None) -> Machine:
    """HMC as a state machine.

    Args:
        climb: (x [chain, d], *args) -> (log density [chain], its gradient [chain, d]).
        num_steps: leapfrogs of every trajectory, whatever the step size; None goes by `length`.
    """

    def begin(place: Place, noise: Noise, length: Array) -> Path:
        p = noise.normal
        energy = 0.5 * dot(ops, p, p) - place.log_density
        best = place._replace(energy=energy)
        return Path(best, End(place.x, p, place.score), energy, ops.zeros_like(energy))

    def step(s: Path, noise: Noise, size: Array, scale: Any, length: Array, *args: Any) -> tuple:
        end, here = leapfrog(ops, climb, s.head, size, scale, *args)
        gain = started(ops, s.energy, here)
        steps = s.steps + 1.0
        wanted = ops.floor(length / size) if num_steps is None else float(num_steps)
        done = steps >= wanted
        swap = done & (ops.log(noise.uniform[:, 0]) < gain)
        best = choose(ops, swap, here, s.best)
        told = {
            "done": done, "x": best.x, "lp": best.log_density, "energy": best.energy,
            "acceptance_rate": ops.exp(ops.minimum(gain, ops.zeros_like(gain))), "n_steps": steps,
            "diverging": gain < -DIVERGED,
        }  # fmt: skip
        p = noise.normal
        energy = 0.5 * dot(ops, p, p) - best.log_density
        new = Path(
            best._replace(energy=ops.where(done, energy, best.energy)),
            choose(ops, done, End(best.x, p, best.score), end), ops.where(done, energy, s.energy),
            ops.where(done, ops.zeros_like(steps), steps),
        )  # fmt: skip
        return new, told

    return Machine(begin, step)
