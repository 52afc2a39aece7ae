"""Langevin dynamics, plain or with a Metropolis test (MALA), at any temperature, on any target.

    x' = x + h M grad log p(x) + s sqrt(M) xi,     xi ~ N(0, I),     T = s^2 / (2 h)

h is the step, s the noise's size, M a diagonal. What a chain keeps is p^(1/T), so that s = sqrt(2h)
is the density itself: step and noise are two numbers, and what they imply is in the note. Where a
target has a drift of its own, it stands for the gradient. Hamiltonian dynamics are in
`hamiltonian`, the backends' own NUTS and HMC in `mcmc`, steps without noise in `gradient_flow`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.backends.chains import WarmStart
from probgen.backends.protocol import Backend
from probgen.engine.target import (
    Kernel,
    Target,
    acceptance,
    climb,
    require_density,
    step_sizes,
    transitions,
)
from probgen.errors import AlgorithmError
from probgen.inference.sample.adaptation import Learned, learned, unlearned
from probgen.inference.sample.hamiltonian import leading, normals, of_chains
from probgen.inference.sample.preconditioner import check_diagonal, diagonal
from probgen.language.declared import declaration, require
from probgen.language.kinds import (
    CountOrZero,
    Diagonal,
    Many,
    NoiseSize,
    OpenShare,
    Positive,
    StepSize,
)

Array = Any
Tree = Any


class ChainState(NamedTuple):
    """Position, its log density [n] (None under a drift alone), the direction to climb in, of each
    chain whether that was clipped, 1 or 0; where the step is learned the factor on it, and by site
    [n] the step sizes that it is a factor on, in those that the user gave."""

    x: Tree
    log_density: Array | None
    grad: Tree
    clipped: Array | None = None
    size: Learned | None = None
    base: Tree | None = None


@declaration
class Langevin:
    """Langevin dynamics: x' = x + h M grad log p(x) + s sqrt(M) xi, with xi ~ N(0, I).

    Args:
        step_size: h, one number or one of each site that moves, such as {"z": 0.1, "w": 0.01}.
        num_steps: steps of one chain, after `num_warmup`: `infer` keeps them all as draws (or every
            `thinning`-th), `generate` and learners take the chain's end.
        noise_size: s, a number or one of each site. None is sqrt(2 h), the density itself. Others
            have the temperature T = s^2 / (2 h) and the law p^(1/T), as `note` says; 0 climbs.
            Chains of energy-based models are often run far below sqrt(2 h): what is learned so is
            the energy times T.
        metropolis: corrects every step by an accept-reject test (MALA), which removes the bias;
            at a temperature the test is that of p^(1/T).
        preconditioner: M, the diagonal of the step's matrix: a number or array, or one by site,
            such as variances, so that all coordinates move alike. The law stays what it is.
        max_grad_norm: longest drift, of a chain's grad log p over all its sites; longer ones are
            scaled down. Without the correction that changes the law, which the note says, with the
            share of steps; with it the law is kept.
        max_grad_value: the same, element by element.
        adapt_step_size: learns in warm-up one factor on all step sizes, by which the mean
            acceptance is `target_accept_prob`; noise goes with its root, so that T stays. Needs
            `metropolis`, and `num_warmup` or a `warm_start` of `infer`, whose chains' learned step
            sizes then stand for `step_size`.
        target_accept_prob: 0.574 is best for many coordinates.
        num_warmup: first steps, whose draws `infer` leaves out.
        num_chains: of `infer`; `generate` and learners run one chain a sample.
        thinning: every `thinning`-th step of `infer` is kept: num_steps // thinning draws.

    Without the correction the stationary law of x^2 / 2 has variance T / (1 - h / 2). Sites of
    constrained support move on the real line, under the density there (`probgen.engine.spaces`); h
    is a step of theirs, and p in p^(1/T) that density, with its Jacobian; in noise space it is
    N(0, I) times the factors. `infer` starts its chains uniform in (-2, 2) there.

    `sample_stats` of `infer`: `lp`, `acceptance_rate` (without the correction: what a test would
    have accepted), `diverging` (a log ratio below -1000, or none), `clipped` where drifts are. The
    note of `generate` has, without the correction, means of about every hundredth of 200 or more.

    Raises (when it runs): AlgorithmError: a mapping that is not of the sites that move; a step size
    to be learned in no warm-up. ShapeError: a preconditioner that is not of a site's shape.

    Sources: Roberts & Tweedie 1996, Bernoulli 2(4); Roberts & Rosenthal 1998, JRSS B 60 (0.574);
    Nijkamp et al. 2019, arXiv:1904.09770 (short-run chains).
    """

    step_size: StepSize
    num_steps: Many = 20
    noise_size: NoiseSize | None = None
    metropolis: bool = False
    preconditioner: Diagonal | None = dataclasses.field(default=None, kw_only=True)
    max_grad_norm: Positive | None = dataclasses.field(default=None, kw_only=True)
    max_grad_value: Positive | None = dataclasses.field(default=None, kw_only=True)
    adapt_step_size: bool = dataclasses.field(default=False, kw_only=True)
    target_accept_prob: OpenShare = dataclasses.field(default=0.574, kw_only=True)
    num_warmup: CountOrZero = dataclasses.field(default=0, kw_only=True)
    num_chains: Many = dataclasses.field(default=4, kw_only=True)
    thinning: Many = dataclasses.field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        h, s = self.step_size, self.noise_size
        alike = not (isinstance(h, Mapping) and isinstance(s, Mapping)) or set(h) == set(s)
        require(alike, self, "both of the same sites", "step_size", "noise_size")
        tested = not self.metropolis or bool(self.temperature)
        expected = "one temperature above 0, noise_size^2 / (2 step_size), whose power is tested"
        require(tested, self, expected, "metropolis", "step_size", "noise_size")
        can = not self.adapt_step_size or self.metropolis
        expected = "metropolis=True, to learn a step size by its acceptance"
        require(can, self, expected, "adapt_step_size", "metropolis")
        expected = "at most num_steps, to keep a draw"
        require(self.thinning <= self.num_steps, self, expected, "thinning", "num_steps")

    @property
    def num_draws(self) -> int:
        """Draws that `infer` keeps of each chain."""
        return self.num_steps // self.thinning

    @property
    def temperatures(self) -> dict[str, float]:
        """T = noise_size^2 / (2 step_size) by site, under "" where all sites have one."""
        h, s = self.step_size, self.noise_size
        names = list(h if isinstance(h, Mapping) else s if isinstance(s, Mapping) else [""])
        if s is None:
            return dict.fromkeys(names, 1.0)
        heats = {n: _of(s, n) ** 2 / (2.0 * _of(h, n)) for n in names}
        # sqrt(2 h) in figures is the density too.
        return {n: 1.0 if math.isclose(t, 1.0, rel_tol=1e-6) else t for n, t in heats.items()}

    @property
    def temperature(self) -> float | None:
        """T, where all sites have one; else None."""
        first, *rest = self.temperatures.values()
        return first if all(math.isclose(t, first, rel_tol=1e-6) for t in rest) else None

    def note(self, stats: Mapping[str, np.ndarray] | None = None) -> str:
        """What the chain targets and, of the `stats` of its run, how it went.

        Diverged chains are those of which a step was not finite or had a log Metropolis ratio
        below -1000, as when an energy blows up.
        """
        warmup = f"{self.num_warmup} + " if self.num_warmup else ""
        kind = "MALA" if self.metropolis else "short-run Langevin"
        about = "about " if self.adapt_step_size else ""
        steps = f"{kind}, {warmup}{self.num_steps} steps of {about}{_shown(self.step_size)}"
        return f"{steps}, {self._law()}{of_chains(stats, tested=self.metropolis)}"

    def _law(self) -> str:
        """The temperature, and what has it as its law."""
        heat, size = self.temperature, self.noise_size
        noise = "" if size is None else f"noise {_shown(size)}, "
        if heat is None:
            each = ", ".join(f"{t:g} {n}" for n, t in self.temperatures.items())
            return f"{noise}temperatures {each}: no power of the density is its law"
        if heat == 0.0:
            return "no noise: it climbs to modes and has no law"
        law = "the density itself" if heat == 1.0 else f"p^(1/{heat:g}), not the density itself"
        bias = "" if self.metropolis else ", but for a bias of the order of the step"
        if not self.metropolis and (self.max_grad_norm or self.max_grad_value):
            bias += " and the clipped drift, which changes the law"
        return f"{noise}temperature {heat:g}: {law}{bias}"

    def cure(self) -> str:
        """What to do where chains end at NaN or infinity."""
        text = f"lower the sampler's step_size, now {_shown(self.step_size)}"
        return text if self.metropolis else f"{text}, or test every step with metropolis=True"

    def kernel(self, backend: Backend, target: Target, num_calls: int | None = None) -> Kernel:
        """The kernel on a target.

        Raises:
            AlgorithmError: a step size is to be learned in no warm-up.
        """
        if self.adapt_step_size and not self.num_warmup:
            raise AlgorithmError(
                "Langevin: got adapt_step_size=True and num_warmup=0, expected some num_warmup to "
                "learn a step size in, or, of pg.infer, the warm_start of a run that learned one; "
                "else leave adapt_step_size out."
            )
        return self.warm_kernel(backend, target, num_calls)

    def warm_kernel(self, backend: Backend, target: Target, num_calls: int | None = None) -> Kernel:
        """The same, of chains whose step size may have been learned by others."""
        if self.metropolis:
            require_density(target, "Langevin(metropolis=True)")
        starts = None if num_calls is None else max(1, num_calls // transitions(self))
        init, step, move = _functions(self, backend, target, starts)
        return Kernel(
            init, backend.compile(step, num_calls=num_calls),
            None if self.metropolis else backend.compile(move, num_calls=num_calls),
            *(_carrying(self, backend, target) if self.adapt_step_size else ()),
        )  # fmt: skip

    def mass_blocks(self, shapes: Mapping[str, tuple]) -> tuple[tuple[str, ...], ...]:
        """None: no mass matrix is learned."""
        return ()

    def check_warm_start(self, warm: WarmStart, shapes: Mapping[str, tuple]) -> None:
        """Refuses one that brings no step size where none is learned.

        Raises:
            AlgorithmError: so.
        """
        lacks = set(warm.learned) != {"step_size"}
        if self.adapt_step_size and not self.num_warmup and lacks:
            raise AlgorithmError(
                "Langevin: got adapt_step_size=True, num_warmup=0 and a warm_start without a step "
                "size of Langevin, expected that of a run with adapt_step_size=True; give some "
                "num_warmup, or leave adapt_step_size out for step_size as it is."
            )


def _functions(
    given: Langevin, b: Backend, target: Target, starts: int | None
) -> tuple[Callable, Callable, Callable]:
    """`init`, compiled for so many calls, `step` and `move` on a target."""
    ops, names, who = b.ops, sorted(target.names), "Langevin"
    h = step_sizes(given.step_size, target, who)
    noises = {n: math.sqrt(2.0 * v) for n, v in h.items()}
    if given.noise_size is not None:
        noises = step_sizes(given.noise_size, target, who, "noise sizes")
    m = diagonal(b, given.preconditioner, target, who)
    up, heat, is_still = climb(b, target), given.temperature, not any(noises.values())
    is_judged = bool(heat) and target.log_density is not None

    def init(x: Tree, *args: Any) -> ChainState:
        value, grad = up(x, *args)
        grad, clipped = clip(ops, grad, given.max_grad_norm, given.max_grad_value)
        check_diagonal(m, grad, who)
        if not given.adapt_step_size:
            return ChainState(x, value, grad, clipped)
        base = {n: 1.0 + ops.zeros_like(value) for n in names}
        return ChainState(x, value, grad, clipped, unlearned(ops, value), base)

    init = b.compile(init, num_calls=starts)  # at once, so that JAX traces one gradient for all

    def factors(state: ChainState) -> dict[str, Any]:
        """On the step sizes by site, for arrays of its shape."""
        if state.size is None or state.base is None:
            return dict.fromkeys(names, 1.0)
        factor = ops.exp(state.size.log_factor)
        return {n: leading(ops, factor * state.base[n], state.x[n]) for n in names}

    def propose(key: Any, state: ChainState, factor: Tree) -> tuple[Tree, Tree]:
        mean = {n: state.x[n] + factor[n] * h[n] * (m[n] * state.grad[n]) for n in names}
        if is_still:
            return mean, {}
        noise = normals(b, key, {n: tuple(mean[n].shape) for n in names if noises[n]})
        moved = {
            n: mean[n] + factor[n] ** 0.5 * noises[n] * (m[n] ** 0.5 * xi)
            for n, xi in noise.items()
        }
        return {**mean, **moved}, noise

    def log_ratio(state: ChainState, new: ChainState, factor: Tree) -> Array:
        """Of p^(1/T), which the chain would keep were its steps tested. From x to y with drifts g
        and g', T log q(x | y) / q(y | x) = -sum (g + g') ((y - x) / 2 + h M (g' - g) / 4)."""
        out: Any = new.log_density - state.log_density  # type: ignore[operator]
        for n in names:
            g, to = state.grad[n], new.grad[n]
            way = 0.5 * (new.x[n] - state.x[n]) + 0.25 * factor[n] * h[n] * (m[n] * (to - g))
            both = (ops.reshape(v, (g.shape[0], -1)) for v in (g + to, way))
            # A product, as XLA's sums over rows cost a tenth of a step.
            out = out - ops.einsum("nd,nd->n", *both)
        return out / heat

    def told(state: ChainState, noise: Tree) -> dict:
        return {"noise": noise} | ({} if state.clipped is None else {"clipped": state.clipped})

    def plain(key: Any, state: ChainState, *args: Any) -> tuple[ChainState, dict]:
        factor = factors(state)
        x, noise = propose(key, state, factor)
        new = init(x, *args)
        ratio = {"log_ratio": log_ratio(state, new, factor)} if is_judged else {}
        return new, told(state, noise) | ratio

    def corrected(key: Any, state: ChainState, *args: Any) -> tuple[ChainState, dict]:
        key_step, key_accept = b.split(key, 2)
        factor = factors(state)
        x, noise = propose(key_step, state, factor)
        new = init(x, *args)
        ratio = log_ratio(state, new, factor)
        accept = ops.log(b.uniform(key_accept, tuple(ratio.shape))) < ratio

        def kept(a: Array, c: Array) -> Array:
            return ops.where(leading(ops, accept, a), a, c)

        size, goal = state.size, given.target_accept_prob
        where = (s._replace(size=None, base=None) for s in (new, state))
        moved = b.tree_map(kept, *where)
        if size is not None:
            rate = ops.mean(acceptance(ops, ratio))
            size = learned(ops, size, rate, goal=goal, num_warmup=given.num_warmup)
        moved = moved._replace(size=size, base=state.base)
        return moved, told(state, noise) | {"log_ratio": ratio}

    def move(key: Any, x: Tree, *args: Any) -> Tree:
        state = init(x, *args)
        return propose(key, state, factors(state))[0]  # compiled, the log density goes unasked

    return init, corrected if given.metropolis else plain, move


def _carrying(given: Langevin, b: Backend, target: Target) -> tuple[Callable, Callable]:
    """`learned` and `taught` of the kernel: step sizes, one for each coordinate of a chain."""
    ops, h = b.ops, step_sizes(given.step_size, target, "Langevin")

    def told(state: ChainState) -> dict[str, Tree]:
        size, base = state.size, state.base
        assert size is not None and base is not None  # a step is learned
        factor = ops.exp(size.log_factor)
        sizes = {n: factor * v * h[n] for n, v in base.items()}
        return {"step_size": {
            n: leading(ops, sizes[n], x) + ops.zeros_like(x) for n, x in state.x.items()
        }}  # fmt: skip

    def taught(state: ChainState, found: Mapping[str, Tree]) -> ChainState:
        base = {
            n: ops.reshape(v, (v.shape[0], -1))[:, 0] / h[n] for n, v in found["step_size"].items()
        }
        return state._replace(base=base)

    return told, taught


def clip(
    ops: Any, grad: Tree, max_norm: float | None, max_value: float | None
) -> tuple[Tree, Array | None]:
    """(the direction, no longer or larger than that, of each chain whether it was); NaN stays."""
    if max_norm is None and max_value is None:
        return grad, None
    given, out = grad, grad
    if max_value is not None:
        out = {n: ops.clip(g, -max_value, max_value) for n, g in out.items()}
    if max_norm is not None:
        # In units of the largest element, whose square may overflow.
        flat = [ops.reshape(ops.abs(g), (g.shape[0], -1)) for g in out.values()]
        top = ops.max(ops.concatenate(flat, axis=-1), axis=-1)
        top = ops.maximum(top, max_norm + 0.0 * top)
        squares = of_each(ops, {n: (g / leading(ops, top, g)) ** 2 for n, g in out.items()})
        share = max_norm / top
        is_long = squares > share**2
        factor = ops.where(is_long, share * ops.where(is_long, squares, 1.0) ** -0.5, 1.0)
        out = {n: leading(ops, factor, g) * g for n, g in out.items()}
    changed = of_each(ops, {n: ops.abs(out[n] - g) for n, g in given.items()})
    return out, ops.where(changed > 0, 1.0, 0.0)


def of_each(ops: Any, tree: Tree) -> Array:
    """[n] sums over all of a chain."""
    sums = [ops.sum(ops.reshape(v, (v.shape[0], -1)), axis=-1) for v in tree.values()]
    return sum(sums[1:], sums[0])


def _of(given: float | Mapping[str, float], name: str) -> float:
    return given[name] if isinstance(given, Mapping) else given


def _shown(given: float | Mapping[str, float]) -> str:
    each = given.items() if isinstance(given, Mapping) else [("", given)]
    return ", ".join(f"{h:g} {n}".strip() for n, h in each)
