"""Chains of a sampler: their ends, a sample each, and whole chains of a posterior.

`generate` and learners want the end of a chain for each sample, `infer` few chains and all that
they pass through: in pieces that are kept as they come, from which a run that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np

from probgen.backends.chains import Chains, Start, find_start
from probgen.backends.layout import Layout
from probgen.backends.protocol import Backend
from probgen.engine.chain_pieces import Pieces
from probgen.engine.posterior import Posterior
from probgen.engine.target import (
    GoesOnLearned,
    Kernel,
    Sampler,
    Target,
    acceptance,
    transitions,
    walk,
)
from probgen.errors import DeclarationError, SaveError
from probgen.language.identity import identity
from probgen.progress import bar
from probgen.records import store
from probgen.trees import tree_map

Tree = Any
DIVERGED = 1000.0  # nats, the energy error at which NUTS and HMC call a transition divergent
NUM_PIECES = 20  # about how many pieces a run comes in
OF_KERNEL = {"step_size"}  # what kernels learn; NUTS and HMC learn a mass matrix besides
BLOCK = 100  # steps of which one has statistics, where a kernel can do without


def judged(ops: Any, info: Mapping[str, Any], x: Tree) -> dict[str, Any]:
    """Statistics of one step to x, [n] by name: `diverging`, `acceptance_rate` where the step has a
    Metropolis ratio, and whatever else its kernel tells."""
    more = {n: v for n, v in info.items() if n not in ("noise", "log_ratio")}
    ratio = info.get("log_ratio")
    if ratio is None:
        sums = [ops.sum(ops.reshape(v, (v.shape[0], -1)), axis=-1) for v in x.values()]
        return {**more, "diverging": ~ops.isfinite(sum(sums[1:], sums[0]))}
    # NaN compares as False: a step that is not a number diverged, and is not accepted.
    return {**more, "acceptance_rate": acceptance(ops, ratio), "diverging": ~(ratio > -DIVERGED)}


def judging(backend: Backend, kernel: Kernel, num_calls: int | None) -> Kernel:
    """The kernel with what `judged` says of a step for its info, compiled with the step."""

    def step(key: Any, state: Any, *args: Any) -> tuple[Any, dict[str, Any]]:
        state, info = kernel.step(key, state, *args)
        return state, judged(backend.ops, info, state.x)

    return kernel._replace(step=backend.compile(step, num_calls=num_calls))


def chain_ends(
    backend: Backend, sampler: Sampler, target: Target, *, num_calls: int | None = None,
    keep: Callable | None = None,
) -> Callable:  # fmt: skip
    """(params, batch, key, n) -> (sites' values at the ends, what was kept, statistics [n] past
    the warm-up, with whether a chain `diverged`, and ends `outside` the density's support).

    Of 200 steps or more of a kernel that can move without its statistics they are taken of about
    every hundredth step, the last one among them: of every step they cost a twentieth of it.

    Args:
        num_calls: how many steps there will be in all, for `compile`.
        keep: (x, params, batch) -> what of each step is kept, [steps, n, ...]; None keeps nothing.
    """
    b, ops = backend, backend.ops
    kernel = sampler.kernel(b, target, num_calls)
    if keep is None and kernel.move is not None and transitions(sampler) >= 2 * BLOCK:
        go = _lightly(b, sampler, kernel, num_calls)
    else:
        go = _fully(b, sampler, kernel, num_calls, keep)

    def run(params: Any, batch: Any, key: Any, n: int) -> tuple[dict, Tree, dict]:
        k_start, k_chain = b.split(key, 2)
        start = target.init(params, batch, k_start, n)
        end, density, stats, chain = go(start, k_chain, params, batch)
        of_chain = {m: ops.mean(v, axis=0) for m, v in stats.items() if m != "diverging"}
        of_chain["diverged"] = ops.sum(ops.where(stats["diverging"], 1.0, 0.0), axis=0) > 0
        if density is not None:
            of_chain["outside"] = ~ops.isfinite(density)
        return target.values(end, params, batch), chain, of_chain

    loops: dict[int, Callable] = {}

    def ends(params: Any, batch: Any, key: Any, n: int) -> tuple[dict, Tree, dict]:
        if n not in loops:
            loops[n] = b.compile(
                lambda params, batch, key: run(params, batch, key, n), over="steps"
            )
        return loops[n](params, batch, key)

    return ends


def _fully(
    b: Backend, sampler: Sampler, kernel: Kernel, num_calls: int | None, keep: Callable | None
) -> Callable:
    """(x, key, params, batch) -> (the end, its log density or None, statistics of each step past
    the warm-up, while a step size may be far too long, and what is kept of each)."""
    kernel = judging(b, kernel, num_calls)

    def go(x: Tree, key: Any, params: Any, batch: Any) -> tuple[Tree, Any, dict, Tree]:
        def step(carry: tuple, _: None) -> tuple[tuple, tuple]:
            state, i = carry
            state, stats = kernel.step(b.fold_in(key, i), state, params, batch)
            return (state, i + 1), (stats, None if keep is None else keep(state.x, params, batch))

        first = kernel.init(x, params, batch), 0
        (end, _), (stats, kept) = b.scan(step, first, length=transitions(sampler))
        stats = {n: v[sampler.num_warmup :] for n, v in stats.items()}
        return end.x, end.log_density, stats, kept

    return go


def _lightly(b: Backend, sampler: Sampler, kernel: Kernel, num_calls: int | None) -> Callable:
    """The same, to the same end, with statistics of the last step of each block alone."""
    num_steps = transitions(sampler)
    count = max(1, num_steps // BLOCK)
    size, rest = num_steps // count, num_steps % count

    def last(key: Any, x: Tree, *args: Any) -> tuple[Tree, tuple]:
        state, info = kernel.step(key, kernel.init(x, *args), *args)
        return state.x, (state.log_density, judged(b.ops, info, state.x))

    last = b.compile(last, num_calls=num_calls and -(-num_calls // size))

    def go(x: Tree, key: Any, params: Any, batch: Any) -> tuple[Tree, Any, dict, None]:
        def move(carry: tuple, _: None) -> tuple[tuple, None]:
            x, i = carry
            return (kernel.move(b.fold_in(key, i), x, params, batch), i + 1), None  # type: ignore[misc]

        def block(carry: tuple, _: None) -> tuple[tuple, tuple]:
            (x, i), _ = b.scan(move, carry, length=size - 1)
            x, told = last(b.fold_in(key, i), x, params, batch)
            return (x, i + 1), told

        first = b.scan(move, (x, 0), length=rest)[0] if rest else (x, 0)
        (end, _), (density, stats) = b.scan(block, first, length=count)
        warm = max(0, (sampler.num_warmup - rest) // size)  # blocks that end in the warm-up
        stats = {n: v[warm:] for n, v in stats.items()}
        return end, None if density is None else density[-1], stats, None

    return go


@runtime_checkable
class RunsPosterior(Protocol):
    """A sampler that draws from a posterior in a way of its own: the backends' NUTS and HMC, and
    the model's guide. `token` is the posterior's, for `compile`."""

    def draws(
        self, posterior: Posterior, params: Any, rows: Any, key: Any, token: Any,
        progress_bar: bool, pieces: Pieces,
    ) -> Chains: ...  # fmt: skip


def draw_posterior(
    sampler: Sampler, posterior: Posterior, params: Any, rows: Any, key: Any, token: Any,
    progress_bar: bool, pieces: Pieces,
) -> Chains:  # fmt: skip
    """Draws of any sampler from a posterior.

    Raises:
        SupportError, NonFiniteError: no good start (`Posterior.check_start`).
    """
    b, warm = posterior.bound.backend, pieces.warm
    if isinstance(sampler, RunsPosterior):
        return sampler.draws(posterior, params, rows, key, token, progress_bar, pieces)
    n, total = sampler.num_chains, transitions(sampler)
    if pieces.only is not None:  # chains that move together share noise, so that one has its own
        n, key = 1, b.fold_in(key, pieces.only)
    length = -(-total // NUM_PIECES)
    made = _Compiled(posterior, sampler, n, length, token, warm is not None)
    begin = b.fold_in(key, 0)

    def attempt(i: int) -> Start:
        if warm is None:
            found = made.attempt(params, rows, b.fold_in(begin, i))
        else:
            found = made.judge(b.tree_map(b.asarray, warm.free), params, rows)
        return b.tree_map(b.to_numpy, found)

    start = find_start(posterior, attempt, warm is not None)
    state = made.begin(tree_map(b.asarray, start), params, rows)
    layout = Layout({name: v.shape[1:] for name, v in start.items()}, False)
    taught, learned = made.kernel.taught, made.kernel.learned
    if taught and warm is not None and set(warm.learned) == OF_KERNEL:
        given = {k: layout.unpack(v, np.reshape) for k, v in warm.learned.items()}
        state = taught(state, tree_map(b.asarray, given))
    if pieces.state:
        state = _restored(b, state, pieces.state)
    with bar(total * n, wanted=progress_bar, unit="step") as shown:
        for i in range(-(-total // length)):
            done = min((i + 1) * length, total)
            if i >= len(pieces.parts):
                state, out = made.piece(state, params, rows, b.fold_in(key, i + 1))
                # Steps past the last draw are run, so that all pieces have one shape, and dropped.
                at = np.arange(i * length, done) - sampler.num_warmup
                index = np.flatnonzero((at >= 0) & ((at + 1) % sampler.thinning == 0))
                free, stats = tree_map(lambda v, rows=index: b.to_numpy(v)[rows], out)
                part = {"free": free, "stats": stats} if len(index) else {}
                pieces.add(part, partial(_arrays, b, state))
                pieces.pause(f"{done} of {total} transitions of each chain")
            shown((done - i * length) * n, words=pieces.words)
            if pieces.suffice(i + 1):
                break
    out = joined(pieces, sampler.num_warmup)
    if learned is None:
        return out
    found = tree_map(b.to_numpy, learned(state))
    return out._replace(learned={k: layout.pack(v) for k, v in found.items()})


def joined(pieces: Pieces, num_warmup: int) -> Chains:
    """Chains [chain, draw, ...] of pieces [draw, chain, ...]."""
    found = tree_map(
        lambda *x: np.ascontiguousarray(np.concatenate(x).swapaxes(0, 1)),
        *(part for part in pieces.parts if part),
    )
    return Chains(found["free"], found["stats"], num_warmup)


class _Compiled:
    """The compiled functions of one posterior and sampler; holds no data. Where posterior and
    sampler can be told by their content, what was compiled before is not even traced again."""

    def __init__(
        self, posterior: Posterior, sampler: Sampler, n: int, length: int, token: Any, warm: bool
    ):
        b = posterior.bound.backend
        self.posterior, self.target = posterior, posterior.target()
        self.num_chains, self.length = n, length
        calls = transitions(sampler)
        if warm and isinstance(sampler, GoesOnLearned):
            kernel = sampler.warm_kernel(b, self.target, calls)
        else:
            kernel = sampler.kernel(b, self.target, calls)
        self.kernel = judging(b, kernel, calls)
        name = token and (token, _content(sampler), n, length)
        self.attempt, self.judge, self.begin, self.piece = (
            b.compile(fn, over="steps", token=name and name[1] and (*name, fn.__name__))
            for fn in (self._attempt, self._judge, self._begin, self._piece)
        )

    def _begin(self, x: Tree, params: Any, rows: Any) -> Any:
        """The kernel's state at the starting points."""
        return self.kernel.init(x, params, rows)

    def _attempt(self, params: Any, rows: Any, key: Any) -> Start:
        """Starting points, and whether they are good."""
        return self._judge(self.target.init(params, rows, key, self.num_chains), params, rows)

    def _judge(self, x: Tree, params: Any, rows: Any) -> Start:
        b, posterior = self.posterior.bound.backend, self.posterior
        ops = b.ops

        def summed(x: Tree, params: Any, rows: Any) -> tuple[Any, tuple]:
            at = posterior.points(x, params, rows)
            return ops.sum(at.log_density), (at.log_density, at.site_log_prob, at.outside)

        (_, (value, each, outside)), grad = b.value_and_grad(summed, has_aux=True)(x, params, rows)
        ok = ops.isfinite(value)
        for g in grad.values():
            flat = ops.reshape(g, (g.shape[0], -1))
            ok = ok & (ops.sum(ops.where(ops.isfinite(flat), 0.0, 1.0), axis=-1) == 0)
        for count in outside.values():
            ok = ok & (count == 0)
        return Start(x, ok, each, outside)

    def _piece(self, state: Any, params: Any, rows: Any, key: Any) -> tuple[Any, tuple]:
        """The next `length` steps: (state, (positions, statistics)), [step, chain, ...]."""
        b = self.posterior.bound.backend

        def told(state: Any, info: Any) -> tuple[dict, dict]:
            density = {} if state.log_density is None else {"lp": state.log_density}
            return state.x, {**density, **info}

        return walk(b, self.kernel, state, key, self.length, params, rows, keep=told)


def _content(sampler: Sampler) -> str | None:
    """What a sampler is; None where that cannot be told."""
    try:
        return identity(sampler, "sampler")
    except DeclarationError:
        return None


def _restored(backend: Backend, state: Tree, arrays: Mapping[str, np.ndarray]) -> Tree:
    """The state that was kept, in the form of a fresh one.

    Raises:
        SaveError: it is of another sampler.
    """
    new = store.fill(state, arrays, "infer: the state beside `path`")
    fresh = _arrays(backend, state)
    if any(fresh[n].shape != a.shape for n, a in arrays.items()):
        raise SaveError(
            "infer: got the state of another sampler beside `path`, expected that of this call; "
            "remove the folder to begin anew."
        )
    return tree_map(backend.asarray, new)


def _arrays(backend: Backend, state: Tree) -> dict[str, np.ndarray]:
    return store.flatten(tree_map(backend.to_numpy, state))
