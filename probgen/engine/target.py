"""What a chain climbs, what moves it, and what draws: one contract each.

    Target    a density, or a drift alone, over named positions x
    Kernel    init(x, *args) -> state;  step(key, state, *args) -> (state, info)
    Sampler   kernel(backend, target, num_calls) -> Kernel

`args` are (params, batch): parameters and the inputs or data, so that what was compiled serves
every update of a fit. Targets of models are made by `probgen.engine.spaces` and
`probgen.engine.posterior`; samplers live in `probgen.inference.sample`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from probgen.backends.protocol import Backend
from probgen.errors import AlgorithmError
from probgen.language.kinds import having

Array = Any
Tree = Any
OF_SAMPLER = "sampler/"  # in a batch: before the names of what a `DrawsModel` has a row each of
START = OF_SAMPLER + "start"  # where its draws start
START_NULLS = OF_SAMPLER + "null"  # with which null text at each step
START_MAPS = OF_SAMPLER + "maps/"  # and with which maps of the condition, before a layer's name


def _no_way_in(values: Tree, params: Any, batch: Any) -> Tree:
    raise AlgorithmError(
        f"target: got values of {sorted(values)}, expected positions, which cannot be read off "
        "them; use space='data' or 'latent'."
    )


def _no_path(x: Tree, params: Any, batch: Any) -> Tree:
    raise AlgorithmError(
        f"target: got {sorted(x)} to anneal, expected a target that starts at a density which can "
        "be drawn from."
    )


class Target(NamedTuple):
    """What a chain climbs: a model's density in data, latent, noise or free space, or a drift.

    A position is a dict of arrays with the chains on the leading axis, [n, *event], or on two,
    [n, data, *event], where each datum has chains of its own.

    Attributes:
        names: of the arrays of a position.
        init: (params, batch, key, n) -> positions where chains start.
        log_density: (x, params, batch) -> one number a chain, nats; None where only a drift is
            known.
        drift: (x, params, batch) -> the direction to climb in, with the form of x; None: the
            gradient of `log_density`.
        values: (x, params, batch) -> values of the model's sites there, in their supports.
        is_normalized: whether `log_density` has its constant.
        enter: (values in their supports, params, batch) -> positions, the inverse of `values`;
            refused where they cannot be read off, as noise cannot.
        terms: (x, params, batch) -> (log f_0, log f_1 - log f_0), whose sum is `log_density`, where
            `init` draws exactly from f_0 and so a path leads from there; refused elsewhere.
    """

    names: tuple[str, ...]
    init: Callable
    log_density: Callable | None
    drift: Callable | None
    values: Callable
    is_normalized: bool
    enter: Callable = _no_way_in
    terms: Callable = _no_path


class Kernel(NamedTuple):
    """init(x, *args) -> state;  step(key, state, *args) -> (state, info).

    A state has the position `x` and its `log_density` (None where there is none). `info` is not fed
    back: `noise`, with the form of x, is what the step drew; `log_ratio`, one number a chain, is
    the log of its Metropolis-Hastings ratio (tested or not; absent where there is none); whatever
    else it holds are statistics, one a chain.

    `move(key, x, *args) -> x'` is the position after a step alone, for those who ask for no more,
    where it needs no more than x and costs less: without the log density, and without a gradient
    that is kept from step to step. None: the kernel has none.

    `learned(state)` is what its chains learned, by name a number for each coordinate, with the form
    of x; `taught(state, learned)` a fresh state of chains that go on with it. None: nothing is.
    """

    init: Callable
    step: Callable
    move: Callable | None = None
    learned: Callable | None = None
    taught: Callable | None = None


class Sampler(Protocol):
    """A way of drawing, such as `Langevin(step_size=0.1)`: for `infer`, `generate` and learners.

    `infer` runs `num_chains` chains, leaves out `num_warmup` transitions and keeps `num_draws`, one
    after each `thinning`. For `generate` and learners a draw is the end of a chain of its own after
    all of these transitions.
    """

    @property
    def num_chains(self) -> int: ...
    @property
    def num_warmup(self) -> int: ...
    @property
    def num_draws(self) -> int: ...
    @property
    def thinning(self) -> int: ...

    def kernel(self, backend: Backend, target: Target, num_calls: int | None = None) -> Kernel:
        """The kernel on a target; `num_calls` says how many steps there will be, for `compile`."""

    def note(self, stats: Mapping[str, np.ndarray] | None = None) -> str:
        """What the draws target, and how chains with these statistics went."""

    def cure(self) -> str:
        """What to do where chains end at NaN or infinity."""


@runtime_checkable
class GoesOnLearned(Protocol):
    """A `Sampler` whose kernel learns in its warm-up, and needs none where `Kernel.taught` is given
    what others learned: its kernel then."""

    def warm_kernel(
        self, backend: Backend, target: Target, num_calls: int | None = None
    ) -> Kernel: ...


@runtime_checkable
class DrawsModel(Protocol):
    """A sampler that draws from a model in a way of its own, and climbs nothing, such as `DDIM`.

    `draws_of(bound)` gives (params, batch, key, num_samples) -> values of sites by name,
    [num_samples, *event].
    """

    def draws_of(self, bound: Any) -> Callable: ...


@runtime_checkable
class Starts(Protocol):
    """A `DrawsModel` whose draws may start where the user says: it finds rows of it in its batch.

    `start_rows(model, start, num_samples)` are these rows by name, `START` among them, or a
    refusal.
    """

    def start_rows(self, model: Any, start: Any, num_samples: int) -> dict[str, np.ndarray]: ...


@runtime_checkable
class HasRows(Protocol):
    """A `DrawsModel` with arrays of its own that have a row for each sample, such as masks.

    `sample_rows(model, num_samples)` gives them by name, [num_samples, ...], the names with
    `OF_SAMPLER` before them; it finds the rows of a chunk in its batch.
    """

    def sample_rows(self, model: Any, num_samples: int) -> dict[str, np.ndarray]: ...


@runtime_checkable
class ShowsPath(Protocol):
    """A `DrawsModel` that can say where its draws went on the way.

    `path_of(bound)` gives what `draws_of` does with, beside the values, those of each step, [steps,
    num_samples, *event] by name; `num_calls(model)` says how many steps there are.
    """

    def path_of(self, bound: Any) -> Callable: ...
    def num_calls(self, model: Any) -> int: ...


@runtime_checkable
class EncodesModel(Protocol):
    """A way from data to codes that is not the guide's, such as `DDIMInverse`.

    `codes_of(bound)` gives (params, batch) -> codes by name, [n, *event], of a batch with data.
    """

    def codes_of(self, bound: Any) -> Callable: ...


AnyEncoder = Annotated[
    EncodesModel, having("a way to encode such as DDIMInverse(num_steps=50)", "codes_of")
]
AnySampler = Annotated[
    Sampler,
    having("a sampler such as Langevin(step_size=1e-2, num_steps=100)", "kernel", "note", "cure"),
]


def transitions(sampler: Sampler) -> int:
    """How many steps one chain takes."""
    return sampler.num_warmup + sampler.num_draws * sampler.thinning


def climb(backend: Backend, target: Target) -> Callable:
    """(x, *args) -> (log density or None, the direction to climb in), for kernels and learners."""
    ops = backend.ops
    if target.drift is not None:
        drift, density = target.drift, target.log_density
        return lambda x, *args: (None if density is None else density(x, *args), drift(x, *args))
    log_density = require_density(target, "a chain")

    def summed(x: Tree, *args: Any) -> tuple[Array, Array]:
        value = log_density(x, *args)
        return ops.sum(value), value

    gradient = backend.value_and_grad(summed, has_aux=True)

    def both(x: Tree, *args: Any) -> tuple[Array, Tree]:
        (_, value), grad = gradient(x, *args)
        return value, grad

    return both


def require_density(target: Target, who: str) -> Callable:
    """The target's log density.

    Raises:
        AlgorithmError: only a drift is known.
    """
    if target.log_density is None:
        raise AlgorithmError(
            f"{who}: got a target of which only a drift is known, expected a log density; use "
            "Langevin without metropolis, or give Target(log_density=...)."
        )
    return target.log_density


def step_sizes(
    given: float | Mapping[str, Any], target: Target, who: str, what: str = "step sizes"
) -> dict[str, Any]:
    """A step size for each name of the target, or whatever else is given by site.

    Raises:
        AlgorithmError: a mapping that leaves out a name, or has an unknown one.
    """
    if not isinstance(given, Mapping):
        return dict.fromkeys(target.names, given)
    if set(given) != set(target.names):
        raise AlgorithmError(
            f"{who}: got {what} of {sorted(given)}, expected one of each of "
            f"{sorted(target.names)}, the sites that move, or one number for all."
        )
    return dict(given)


def run_chain(
    backend: Backend, kernel: Kernel, x: Tree, key: Any, num_steps: int, *args: Any,
    keep: Callable | None = None,
) -> tuple[Any, Tree]:  # fmt: skip
    """`walk` from a position."""
    return walk(backend, kernel, kernel.init(x, *args), key, num_steps, *args, keep=keep)


def walk(
    backend: Backend, kernel: Kernel, state: Tree, key: Any, num_steps: int, *args: Any,
    keep: Callable | None = None,
) -> tuple[Any, Tree]:  # fmt: skip
    """`num_steps` steps on: the last state, and keep(state, info) of each step, stacked."""

    def step(state: Any, k: Any) -> tuple[Any, Tree]:
        state, info = kernel.step(k, state, *args)
        return state, None if keep is None else keep(state, info)

    return backend.scan(step, state, backend.split(key, num_steps))


def onward(
    backend: Backend, kernel: Kernel, state: Any, key: Any, num_steps: int, *args: Any
) -> Tree:
    """The position after so many steps on, at least one: that of `walk`."""
    move = kernel.move
    if move is None:
        return walk(backend, kernel, state, key, num_steps, *args)[0].x
    keys = backend.split(key, num_steps)
    x = kernel.step(keys[0], state, *args)[0].x  # by the gradient that the state has
    if num_steps == 1:
        return x

    def step(x: Tree, k: Any) -> tuple[Tree, None]:
        return move(k, x, *args), None

    return backend.scan(step, x, keys[1:])[0]


def acceptance(ops: Any, log_ratio: Array) -> Array:
    """min(1, exp(log ratio)), and 0 where the ratio is NaN."""
    nothing = ops.zeros_like(log_ratio)
    rate = ops.exp(ops.minimum(log_ratio, nothing))
    return ops.where(ops.isnan(rate), nothing, rate)
