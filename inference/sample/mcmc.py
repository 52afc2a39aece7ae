"""NUTS and HMC: probgen's own on torch, NumPyro's on JAX, or by name; NumPyro's argument names.

Both simulate Hamiltonian dynamics on the unconstrained latents u with momentum r ~ N(0, M),

    H(u, r) = -log p(u | data) + r' M^-1 r / 2,

and accept so that p(u | data) is kept exactly. Step size and mass matrix M are learned during
warm-up only. Declarations live here, what they share in `hamiltonian_method`; our own chains run in
`hamiltonian_chains`, the libraries' kernels in `probgen/backends`.

Sources: Neal 2011, "MCMC using Hamiltonian dynamics"; Hoffman & Gelman 2014, arXiv:1111.4246;
Betancourt 2017, arXiv:1701.02434 (multinomial NUTS).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import numpy as np

from probgen.backends.chains import Chains
from probgen.backends.protocol import Backend
from probgen.engine.chain_pieces import Pieces
from probgen.engine.posterior import Posterior
from probgen.engine.target import Kernel, Target
from probgen.errors import AlgorithmError
from probgen.inference.sample.fixed_time import fixed_time
from probgen.inference.sample.hamiltonian import fixed_length, hamiltonian
from probgen.inference.sample.hamiltonian_method import HamiltonianMethod
from probgen.inference.sample.machine import Machine
from probgen.inference.sample.no_u_turn import no_u_turn
from probgen.language.declared import declaration, require
from probgen.language.kinds import BelowOne, Diagonal, Many, Positive, between


@declaration(kw_only=True)
class NUTS(HamiltonianMethod):
    """The No-U-Turn Sampler: Hamiltonian Monte Carlo that chooses its own trajectory length.

        draws = pg.infer(model, data, NUTS(num_warmup=500, num_samples=1000, num_chains=4), seed=0)

    Further args:
        max_tree_depth: a trajectory has at most 2^max_tree_depth - 1 leapfrog steps.

    `sample_stats`, of both backends: `lp`, `energy`, `diverging`, `acceptance_rate` (mean over the
    trajectory), `n_steps`, `tree_depth`, `reached_max_treedepth`, `step_size`. With thinning they
    belong to the kept transition, except `diverging`, which is true when any since the last kept
    one diverged. `energy` is H at the accepted point (by engine="pyro", which does not keep that,
    at the start of the trajectory).

    Source: Hoffman & Gelman 2014, arXiv:1111.4246; Betancourt 2017, arXiv:1701.02434.
    """

    __doc__ = f"{__doc__}\n{HamiltonianMethod.__doc__}"
    algorithm: ClassVar[str] = "NUTS"

    max_tree_depth: Annotated[int, between(1, 20)] = 10

    def _machine(self, ops: Any, climb: Callable) -> Machine:
        return no_u_turn(ops, climb, self.max_tree_depth)

    def draws(
        self, posterior: Posterior, params: Any, rows: Any, key: Any, token: Any,
        progress_bar: bool, pieces: Pieces,
    ) -> Chains:  # fmt: skip
        """Runs the engine's chains, and adds what the number of leapfrogs says of the tree."""
        out = super().draws(posterior, params, rows, key, token, progress_bar, pieces)
        # A tree of depth d that was not cut short has 2^d - 1 new nodes.
        depth = np.floor(np.log2(np.maximum(out.stats["n_steps"], 1))).astype(np.int64) + 1
        reached = depth >= self.max_tree_depth
        stats = {**out.stats, "tree_depth": depth, "reached_max_treedepth": reached}
        return out._replace(stats=stats)


@declaration(kw_only=True)
class HMC(HamiltonianMethod):
    """Hamiltonian Monte Carlo with trajectories of one length.

    Further args:
        trajectory_length: step size times number of steps; 2 pi by default.
        num_steps: a fixed number of leapfrog steps instead, whatever the step size.
        jitter: where all chains move at once (`generate`, learners): each transition of a chain has
            a step size of its own, uniform within this share around the common one, so that no
            trajectory is a period of the target's; 0 is none. `infer` has none.
        preconditioner: there, M, the diagonal of the inverse mass matrix: a number or array, or one
            by site, such as variances, so that all coordinates move alike. `infer` learns its own.

    `sample_stats`: as for `NUTS`, without the two that speak of a tree.

    Source: Neal 2011, "MCMC using Hamiltonian dynamics", arXiv:1206.1901.
    """

    __doc__ = f"{__doc__}\n{HamiltonianMethod.__doc__}"
    algorithm: ClassVar[str] = "HMC"

    trajectory_length: Positive | None = None
    num_steps: Many | None = None
    jitter: BelowOne = 0.0
    preconditioner: Diagonal | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        both = self.trajectory_length is not None and self.num_steps is not None
        require(not both, self, "one of them", "trajectory_length", "num_steps")
        if self.num_steps is None and self.trajectory_length is None:
            object.__setattr__(self, "trajectory_length", 2 * math.pi)

    def _machine(self, ops: Any, climb: Callable) -> Machine:
        return fixed_time(ops, climb, self.num_steps)

    def kernel(self, backend: Backend, target: Target, num_calls: int | None = None) -> Kernel:
        """All chains at once, with one step size, which the first `num_warmup`
        transitions learn: for `pg.generate` and learners, where each chain gives one draw.

        Raises:
            AlgorithmError: `num_steps` is not fixed, or a dense mass matrix is asked for.
        """
        if self.dense_mass is not False:
            raise AlgorithmError(
                f"HMC: got dense_mass={self.dense_mass!r}, expected False where many chains move "
                "at once (pg.generate and learners), whose mass matrix is a diagonal; give "
                "preconditioner=, such as variances, instead."
            )
        return hamiltonian(
            backend, target, step_size=self.step_size, num_leapfrog=fixed_length(self.num_steps),
            num_warmup=self.num_warmup if self.adapt_step_size else 0,
            target_accept_prob=self.target_accept_prob, jitter=self.jitter,
            preconditioner=self.preconditioner, num_calls=num_calls,
        )  # fmt: skip

    def draws(
        self, posterior: Posterior, params: Any, rows: Any, key: Any, token: Any,
        progress_bar: bool, pieces: Pieces,
    ) -> Chains:  # fmt: skip
        """Runs the engine's chains, whose trajectories all have one length."""
        if self.jitter:
            raise AlgorithmError(
                f"HMC: got jitter={self.jitter:g} for pg.infer, expected 0, since the backends' "
                "kernels have trajectories of one length; use NUTS, which chooses its own."
            )
        if self.preconditioner is not None:
            raise AlgorithmError(
                "HMC: got a preconditioner for pg.infer, expected none, since the backends' "
                "kernels learn their mass matrix: adapt_mass_matrix=True, or dense_mass=True."
            )
        return super().draws(posterior, params, rows, key, token, progress_bar, pieces)
