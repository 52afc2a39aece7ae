"""Gradient flow: steps uphill without noise, a map of where chains start.

    dx/dt = grad log p(x),     x' = x + h grad log p(x)   (Euler),   or Runge and Kutta's of order 4

Its ends are no draws of p: they are what the map makes of the starts, and in time all of them are
modes. As the sampler of an energy it is a generator whose noise is where the chains start; that map
as a density of its own is `models.GradientFlowGenerator`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.target import Kernel, Target, climb, step_sizes, transitions
from probgen.errors import AlgorithmError
from probgen.inference.sample.hamiltonian import of_chains
from probgen.language.declared import declaration
from probgen.language.kinds import Many, StepSize

Array = Any
Tree = Any


class Flowing(NamedTuple):
    """Position, its log density [n] (None under a drift alone) and the direction there."""

    x: Tree
    log_density: Array | None
    grad: Tree


@declaration
class GradientFlow:
    """x' = x + h grad log p(x), the same from the same start: for `generate` and learners.

    Args:
        step_size: h, one number or one of each site that moves; time is num_steps h.
        num_steps: of one chain.
        solver: "euler", one gradient a step, whose map is the generator of the self-adversarial
            view; "rk4", four of them, close to the flow in continuous time.

    Raises (by infer): AlgorithmError: there is no law to draw from.

    Source: Xiao, Yan & Amit 2021, arXiv:2102.11757.
    """

    step_size: StepSize
    num_steps: Many = 20
    solver: Literal["euler", "rk4"] = "euler"

    num_chains = 1
    num_warmup = 0
    thinning = 1
    temperature = 0.0

    @property
    def num_draws(self) -> int:
        """Steps of a chain, of which its end is taken."""
        return self.num_steps

    def note(self, stats: Mapping[str, np.ndarray] | None = None) -> str:
        """What the ends are, and whether some left the numbers."""
        h = self.step_size
        size = ", ".join(f"{v:g} {n}" for n, v in h.items()) if isinstance(h, Mapping) else f"{h:g}"
        name = "Euler" if self.solver == "euler" else "Runge-Kutta"
        return (
            f"gradient flow, {self.num_steps} {name} steps of {size}, no noise: a map of where the "
            f"chains start, whose law is not the density's{of_chains(stats, tested=False)}"
        )

    def cure(self) -> str:
        """What to do where chains end at NaN or infinity."""
        return f"lower the sampler's step_size, now {self.step_size}"

    def draws(self, *args: Any) -> Any:
        """Refused, for `pg.infer`: in time all chains stand at modes.

        Raises:
            AlgorithmError: always.
        """
        raise AlgorithmError(
            "GradientFlow: got a posterior to draw from (pg.infer), expected a sampler with a law, "
            "since a flow without noise ends at modes; use Langevin(h, metropolis=True), HMC or "
            "NUTS, or AutoLaplaceApproximation() for the mode itself."
        )

    def kernel(self, backend: Backend, target: Target, num_calls: int | None = None) -> Kernel:
        """The kernel on a target; its steps read no key."""
        h, up = step_sizes(self.step_size, target, "GradientFlow"), climb(backend, target)

        def ahead(x: Tree, grad: Tree, share: float) -> Tree:
            return {n: v + share * h[n] * grad[n] for n, v in x.items()}

        def init(x: Tree, *args: Any) -> Flowing:
            return Flowing(x, *up(x, *args))

        def direction(state: Flowing, *args: Any) -> Tree:
            if self.solver == "euler":
                return state.grad
            return runge_kutta(lambda x: up(x, *args)[1], ahead, state.x, state.grad)

        def step(key: Any, state: Flowing, *args: Any) -> tuple[Flowing, dict]:
            return init(ahead(state.x, direction(state, *args), 1.0), *args), {"noise": {}}

        starts = None if num_calls is None else max(1, num_calls // transitions(self))
        compiled = backend.compile(init, num_calls=starts)
        return Kernel(compiled, backend.compile(step, num_calls=num_calls))


def runge_kutta(field: Callable, ahead: Callable, x: Tree, first: Tree) -> Tree:
    """The mean direction of a step of order 4; `first` is field(x)."""
    second = field(ahead(x, first, 0.5))
    third = field(ahead(x, second, 0.5))
    last = field(ahead(x, third, 1.0))
    return {n: (first[n] + 2.0 * (second[n] + third[n]) + last[n]) / 6.0 for n in x}
