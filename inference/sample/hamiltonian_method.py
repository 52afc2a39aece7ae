"""What NUTS and HMC share: their options, starts, warm starts, and which engine runs their chains.

Options have NumPyro's names; those of other libraries are told from them and refused with the right
word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from probgen.backends.chains import Chains, WarmStart
from probgen.backends.layout import Layout
from probgen.backends.protocol import Backend
from probgen.engine.chain_pieces import Pieces
from probgen.engine.posterior import Posterior
from probgen.engine.target import Kernel, Target
from probgen.errors import AlgorithmError, DeclarationError, UnknownName
from probgen.inference.sample.hamiltonian import of_chains
from probgen.inference.sample.hamiltonian_chains import draw_chains
from probgen.inference.sample.machine import Machine
from probgen.inference.sample.starts import starting_values
from probgen.language.declared import declaration, require
from probgen.language.dist import did_you_mean
from probgen.language.kinds import (
    Many,
    OpenShare,
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
        step_size: of the leapfrog integrator, where adaptation starts (a `warm_start` of `infer`
            brings a step size and a mass matrix of each chain in its place); by site only where all
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

    def mass_blocks(self, shapes: Mapping[str, tuple]) -> tuple[tuple[str, ...], ...]:
        """The names of sites in each dense block of the mass matrix."""
        return Layout(shapes, self.dense_mass).blocks

    def check_warm_start(self, warm: WarmStart, shapes: Mapping[str, tuple]) -> None:
        """Refuses one without step sizes, or with another kind of mass matrix.

        Raises:
            AlgorithmError: so, or starting values are given besides.
        """
        if isinstance(self.init_strategy, Mapping):
            raise AlgorithmError(
                f"{self.algorithm}: got init_strategy={{{sorted(self.init_strategy)[0]!r}: ...}} "
                "and a warm_start, expected one of them to say where chains start."
            )
        if "inv_metric" not in warm.learned:
            raise AlgorithmError(
                f"{self.algorithm}: got a warm_start without mass matrices, expected that of NUTS "
                "or HMC; to start at its positions give init_strategy={'site': "
                "draws.posterior['site'].values[:, -1]}."
            )
        theirs = _kind(warm.blocks, warm.rank)
        mine = _kind(self.mass_blocks(shapes), self.mass_rank or 0)
        if theirs != mine:
            raise AlgorithmError(
                f"{self.algorithm}: got a warm_start with {theirs}, expected {mine}; give the "
                "dense_mass= and mass_rank= of the run that it is of, or warm up anew."
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


def _kind(blocks: tuple[tuple[str, ...], ...], rank: int) -> str:
    """A kind of mass matrix, in words."""
    if rank:
        return f"a mass matrix of rank {rank}"
    if not blocks:
        return "a diagonal mass matrix"
    return f"a mass matrix with the dense blocks {', '.join(str(list(b)) for b in blocks)}"
