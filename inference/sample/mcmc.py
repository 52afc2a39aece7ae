"""NUTS and HMC: probgen's own on torch, NumPyro's on JAX, or by name; NumPyro's argument names.

Both simulate Hamiltonian dynamics on the unconstrained latents u with momentum r ~ N(0, M),

    H(u, r) = -log p(u | data) + r' M^-1 r / 2,

and accept so that p(u | data) is kept exactly. Step size and mass matrix M are learned during
warm-up only. Declarations live here; our own chains run in `hamiltonian_chains`, the libraries'
kernels in `probgen/backends`.

Sources: Neal 2011, "MCMC using Hamiltonian dynamics"; Hoffman & Gelman 2014, arXiv:1111.4246;
Betancourt 2017, arXiv:1701.02434 (multinomial NUTS).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from probgen.backends.chains import Chains
from probgen.backends.protocol import Backend
from probgen.engine.chain_pieces import Pieces
from probgen.engine.posterior import Posterior
from probgen.engine.target import Kernel, Target
from probgen.errors import AlgorithmError, DeclarationError, UnknownName
from probgen.inference.sample.fixed_time import fixed_time
from probgen.inference.sample.hamiltonian import fixed_length, hamiltonian, of_chains
from probgen.inference.sample.hamiltonian_chains import draw_chains
from probgen.inference.sample.machine import Machine
from probgen.inference.sample.no_u_turn import no_u_turn
from probgen.inference.sample.starts import starting_values
from probgen.language.declared import declaration, require
from probgen.language.dist import did_you_mean
from probgen.language.kinds import (
    BelowOne,
    Diagonal,
    Many,
    OpenShare,
    Positive,
    StepSize,
    Text,
    between,
    not_empty,
    one_of,
)
from probgen.progress import bar

STRATEGIES = (
    "init_to_uniform", "init_to_median", "init_to_mean", "init_to_sample", "init_to_feasible",
)  # fmt: skip

# Words of Pyro, PyMC, Stan and of `numpyro.infer.MCMC`: the right one, or where it belongs.
_OTHER_WORDS = {
    "warmup_steps": "num_warmup",
    "warmup": "num_warmup",
    "burn_in": "num_warmup",
    "tune": "num_warmup",
    "iter_warmup": "num_warmup",
    "draws": "num_samples",
    "iter_sampling": "num_samples",
    "chains": "num_chains",
    "full_mass": "dense_mass",
    "target_accept": "target_accept_prob",
    "adapt_delta": "target_accept_prob",
    "max_treedepth": "max_tree_depth",
    "thin": "thinning",
    "num_leapfrog_steps": "num_steps",
    "initial_params": "init_strategy={'site': value}",
    "init_params": "init_strategy={'site': value}",
    "jit_compile": "nothing: every potential is compiled; on torch "
    "probgen.backends.load('torch', compile='live') turns it off",
    "jit_options": "nothing: every potential is compiled",
    "ignore_jit_warnings": "nothing: every potential is compiled",
    "disable_progbar": "progress_bar, an argument of pg.infer",
    "progress_bar": "progress_bar as an argument of pg.infer",
    "seed": "seed as an argument of pg.infer",
    "rng_key": "seed, an argument of pg.infer",
    "model": "the model as the first argument of pg.infer",
    "potential_fn": "a model as the first argument of pg.infer; pg.factor adds any log density",
    "kernel": "nothing: NUTS(...) and HMC(...) are the kernel",
    "transforms": "nothing: every support has its bijection",
    "chain_method": "nothing: chains are vectorised where the backend can",
    "mp_context": "nothing: chains are vectorised where the backend can",
}


@declaration(kw_only=True)
class HamiltonianMethod:
    """What NUTS and HMC share.

    Args:
        num_warmup: transitions that adapt step size and mass matrix, and are thrown away.
        num_samples: transitions after that, per chain.
        num_chains: independent chains, side by side (by engine="pyro" one after another).
        thinning: every `thinning`-th transition is kept: num_samples // thinning draws.
        step_size: of the leapfrog integrator, where adaptation starts; by site only where all
            chains move at once (HMC in `generate` and learners): `infer` learns scales by the mass
            matrix.
        adapt_step_size: learn it during warm-up (dual averaging).
        adapt_mass_matrix: learn the mass matrix during warm-up (Welford's variances).
        dense_mass: False, a diagonal mass matrix; True, a full one; or blocks of sites that have a
            full one each, such as [("loc", "scale")].
        target_accept_prob: mean acceptance that the step size aims at.
        init_strategy: "init_to_uniform" (in (-2, 2) on the real line), "init_to_median" (of 15
            prior draws), "init_to_mean", "init_to_sample", "init_to_feasible" (zero on the real
            line), or starting values by site, the rest uniform: one for all chains, or
            [num_chains, ...], one for each.
        find_heuristic_step_size: search for a step size at the start of each adaptation window;
            None is the engine's default: ours and Pyro search, NumPyro does not.
        mass_rank: a mass matrix of low rank: the variances, and this many directions along which
            coordinates are correlated; by engine="probgen" alone.
        engine: whose chains run: "probgen" (the default on torch), or those of the library that
            are the reference, "pyro" on torch, "numpyro" (the default) on JAX.

    Raises:
        UnknownName: an option of another library (names the right one).
        DeclarationError: a value of another type or out of range.
    """

    algorithm: ClassVar[str] = ""

    num_warmup: Annotated[int, between(0, 10**7)] = 1000
    num_samples: Many = 1000
    num_chains: Annotated[int, between(1, 10**6)] = 4
    thinning: Many = 1
    step_size: StepSize = 1.0
    adapt_step_size: bool = True
    adapt_mass_matrix: bool = True
    dense_mass: bool | tuple[Annotated[tuple[Text, ...], not_empty], ...] = False
    target_accept_prob: OpenShare = 0.8
    init_strategy: Annotated[str, one_of(STRATEGIES)] | Mapping = "init_to_uniform"
    find_heuristic_step_size: bool | None = None
    mass_rank: Many | None = None
    engine: Literal["probgen", "pyro", "numpyro"] | None = None

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Refuses what is not an option of ours, before the dataclass would with a TypeError."""
        if args:
            raise DeclarationError(
                f"{cls.__name__}: got {args[0]!r} without a name, expected options by name, such "
                f"as {cls.__name__}(num_warmup=500, num_samples=1000); the model goes to pg.infer."
            )
        known = [f.name for f in dataclasses.fields(cls)]
        for word in options:
            if word in known:
                continue
            if word in _OTHER_WORDS:
                right = _OTHER_WORDS[word]
                raise UnknownName(f"{cls.__name__}: got {word}, expected {right}.")
            raise UnknownName(
                f"{cls.__name__}: got {word}, expected one of {', '.join(known)}"
                f"{did_you_mean(word, known)}."
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        expected = "at most num_samples, to keep a draw"
        require(self.thinning <= self.num_samples, self, expected, "thinning", "num_samples")
        either = self.mass_rank is None or self.dense_mass is False
        require(either, self, "one form of the mass matrix", "mass_rank", "dense_mass")

    @property
    def num_draws(self) -> int:
        """Draws kept of each chain."""
        return self.num_samples // self.thinning

    def kernel(self, backend: Backend, target: Target, num_calls: int | None = None) -> Kernel:
        """Refused where no kernel moves many chains at once: `infer` runs its own chains.

        Raises:
            AlgorithmError: for NUTS, whose trajectories end each at another time.
        """
        raise AlgorithmError(
            f"{self.algorithm}: got a target of many chains at once (pg.generate and learners), "
            "expected a sampler whose steps all take as long, such as Langevin(1e-2) or "
            f"HMC(num_steps=10); {self.algorithm} is for pg.infer."
        )

    def note(self, stats: Mapping[str, np.ndarray] | None = None) -> str:
        """What the chains target and, of the `stats` of their run, how they went."""
        text = f"{self.algorithm}, {self.num_warmup} + {self.num_samples} transitions"
        return text + of_chains(stats, tested=True)

    def cure(self) -> str:
        """What to do where chains end at NaN or infinity."""
        return (
            "look at the scale of its prior, or lower the step size (a higher target_accept_prob)"
        )

    def _given(
        self, posterior: Posterior, params: Any, rows: Any, key: Any, chains: range
    ) -> dict[str, Any]:
        """Starting values by site, one for each of the chains."""
        given = self.init_strategy if isinstance(self.init_strategy, Mapping) else {}
        self._check_sites("init_strategy", list(given), posterior)
        who = type(self).__name__
        starts = starting_values(posterior, given, self.num_chains, params, rows, key, who)
        return {n: v[chains.start : chains.stop] for n, v in starts.items()}

    def _check_sites(self, option: str, names: list[str], posterior: Posterior) -> None:
        for name in names:
            if name not in posterior.latents:
                raise UnknownName(
                    f"{type(self).__name__}: {option} names {name!r}, expected latents of "
                    f"{posterior.bound.model.name!r}, {sorted(posterior.latents)}"
                    f"{did_you_mean(name, posterior.latents)}."
                )
        twice = [n for n in names if names.count(n) > 1]
        if twice:
            raise AlgorithmError(
                f"{type(self).__name__}: {option} names {twice[0]!r} twice, expected each once."
            )

    def draws(
        self, posterior: Posterior, params: Any, rows: Any, key: Any, token: Any,
        progress_bar: bool, pieces: Pieces,
    ) -> Chains:  # fmt: skip
        """Runs the engine's chains; for `pg.infer`.

        Raises:
            AlgorithmError: the backend has no such engine, or the engine no such option.
        """
        if isinstance(self.step_size, Mapping):
            raise AlgorithmError(
                f"{self.algorithm}: got step sizes by site, expected one number for pg.infer, "
                "which learns the sites' scales as its mass matrix."
            )
        chains = pieces.numbers(self.num_chains)
        given = self._given(posterior, params, rows, key, chains)
        if not isinstance(self.dense_mass, bool):
            names = [n for block in self.dense_mass for n in block]
            self._check_sites("dense_mass", names, posterior)
        b = posterior.bound.backend
        engine = self.engine or b.hmc_engines[0]
        self._check_engine(engine, b)
        total = len(chains) * (self.num_warmup + self.num_draws * self.thinning)
        with bar(total, wanted=progress_bar, unit="transition") as shown:
            run = partial(draw_chains, machine=self._machine) if engine == "probgen" else b.hmc
            return run(
                posterior, self, params=params, rows=rows, given=given, key=key, token=token,
                shown=shown, pieces=pieces,
            )  # fmt: skip

    def _machine(self, ops: Any, climb: Callable) -> Machine:
        raise NotImplementedError  # abstract: NUTS and HMC define it

    def _check_engine(self, engine: str, b: Backend) -> None:
        if engine not in b.hmc_engines:
            raise AlgorithmError(
                f"{self.algorithm}: got engine={engine!r} on {b.name}, expected one of "
                f"{', '.join(map(repr, b.hmc_engines))} there."
            )
        if self.mass_rank is not None and engine != "probgen":
            raise AlgorithmError(
                f"{self.algorithm}: got mass_rank={self.mass_rank} with the engine {engine!r}, "
                "which has no mass matrix of low rank, expected engine='probgen', or dense_mass=."
            )


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
