"""Chains of NUTS and HMC of a posterior, in pieces: starts, warm-up, draws.

A piece is some transitions of every chain: blocks of leapfrogs until the slowest chain has made
them. What the next one needs (places, step sizes, mass matrices, draws of the window) is numpy
between pieces, so that a run that was killed goes on to the same bits. A chain's noise hangs on its
own number and its own leapfrogs since the piece began: its neighbours change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from probgen.backends.chains import Chains, Start, WarmStart, find_start
from probgen.backends.layout import Layout
from probgen.engine.chain_pieces import Pieces
from probgen.engine.markov import joined
from probgen.engine.posterior import Posterior
from probgen.engine.target import transitions
from probgen.errors import NonFiniteError, SaveError
from probgen.inference.sample.adaptation import Learned
from probgen.inference.sample.hamiltonian_plan import Piece, plan
from probgen.inference.sample.hamiltonian_steps import (
    Compiled,
    Sizes,
    compiled,
    starting,
    what_is_compiled,
)
from probgen.inference.sample.machine import Noise
from probgen.inference.sample.mass import Mass
from probgen.trees import tree_map

REASONABLE = math.log(0.8)  # the log acceptance that the search for a step size crosses
_ADAPTED = ("log_factor", "averaged", "error", "count")


def draw_chains(
    posterior: Posterior, method: Any, machine: Callable, params: Any, rows: Any, given: Mapping,
    key: Any, token: Any, shown: Callable, pieces: Pieces,
) -> Chains:  # fmt: skip
    """Draws of NUTS or HMC from a posterior.

    Args:
        machine: (ops, climb) -> the state machine.
        given: starting values by site, one for each chain that runs here.
        shown: takes numbers of transitions, for the progress bar.

    Raises:
        SupportError, NonFiniteError: no good start (`Posterior.check_start`), or no step size.
    """
    b = posterior.bound.backend
    numbers, warm = pieces.numbers(method.num_chains), pieces.warm
    name = token and (token, method.algorithm, what_is_compiled(method), len(numbers))
    start = starting(posterior, method, params, rows, given, b.fold_in(key, 0), numbers, name, warm)
    shapes = {n: v.shape[1:] for n, v in start(0)[0].items()}
    layout = Layout(shapes, method.dense_mass)
    mass = Mass(layout.dim, layout.block_sizes, method.mass_rank or 0)
    whole = transitions(method)
    # Chains that go on mostly find compiled what the run before them has compiled; whether they do
    # must not be asked, since the same call gives the same bits whatever ran before.
    calls = whole if warm is None else whole + min(warm.transitions, 2 * whole)
    run = compiled(posterior, layout, mass, method, machine, len(numbers), calls, name)
    chains = _Chains(b, layout, mass, method, run, (params, rows), b.fold_in(key, 1), numbers)
    x = find_start(posterior, partial(chains.attempt, start), warm is not None)
    state = chains.first(layout.pack(x), warm)
    if pieces.state:
        state = _restored(state, pieces.state)
    done = 0
    for i, piece in enumerate(plan(method)):
        done += piece.num
        if i >= len(pieces.parts):
            state, part = chains.piece(i, piece, state)
            pieces.add(part, partial(dict, state))
            pieces.pause(f"{done} of {whole} transitions of each chain")
        shown(piece.num * len(numbers), words=pieces.words)
        if pieces.suffice(i + 1):
            break
    learned = {"step_size": state["base"], **mass.inverse(_scale(state))}
    return joined(pieces, method.num_warmup)._replace(learned=learned)


class _Chains:
    """One run: what it computes, with its data."""

    def __init__(
        self, backend: Any, layout: Layout, mass: Mass, method: Any, run: Compiled, args: tuple,
        key: Any, numbers: range,
    ):  # fmt: skip
        self.b, self.layout, self.mass = backend, layout, mass
        self.method, self.run, self.args = method, run, args
        self.num = len(numbers)
        self.key = backend.row_keys(key, np.asarray(numbers))

    def attempt(self, start: Callable, i: int) -> Start:
        """The i-th try of a start for each chain."""
        free, each, outside = start(i)
        b, x = self.b, self.layout.pack(free)
        _, value, grad, _ = self.begin(x, np.ones(self.num), self.mass.unit(self.num), 0)
        ok = np.isfinite(b.to_numpy(value)) & np.isfinite(b.to_numpy(grad)).all(1)
        for count in outside.values():
            ok = ok & (count == 0)
        return Start(free, ok, each, outside)

    def first(self, x: np.ndarray, warm: WarmStart | None) -> dict[str, np.ndarray]:
        """The state before the first piece; names of the mass matrix have "mass_" before them."""
        size, scale = np.full(self.num, float(self.method.step_size)), self.mass.unit(self.num)
        if warm is not None:
            size, scale = warm.learned["step_size"], self.mass.of_inverse(warm.learned)
        state = {"x": x, "base": size}
        state |= {n: np.zeros(self.num) for n in (*_ADAPTED, "diverged")}
        state |= {f"mass_{n}": v for n, v in scale.items()}
        state["window"] = np.zeros((0, self.num, self.layout.dim))
        like = self.b.to_numpy(self.b.asarray(np.zeros(1))).dtype
        return {n: v.astype(like) for n, v in state.items()}

    def piece(self, i: int, piece: Piece, state: dict) -> tuple[dict, dict]:
        """The state after the i-th piece, and what is kept of it, [draw, chain, ...]."""
        key, method = self.b.fold_in(self.key, i), self.method
        state = dict(state)
        if piece.is_first:
            state["window"] = state["window"][:0]
            if method.adapt_step_size:
                state |= {n: np.zeros_like(state["base"]) for n in _ADAPTED}
                if method.find_heuristic_step_size is not False:
                    state["base"] = self.searched(state, self.b.fold_in(key, 0))
        told = self.transitions(piece, state, key)
        state["x"] = told["x"][-1]
        state |= {n: told.pop(n)[-1] for n in _ADAPTED}
        if piece.is_slow:
            state["window"] = np.concatenate([state["window"], told["x"]])
        if piece.is_last:
            # What was learned is what the next window starts from.
            state["base"] = state["base"] * np.exp(state["log_factor"])
            state |= {n: np.zeros_like(state["base"]) for n in _ADAPTED}
            if piece.is_slow and method.adapt_mass_matrix and piece.window > 1:
                for n, v in self.mass.learned(state["window"]).items():
                    state[f"mass_{n}"] = v.astype(state["x"].dtype)
        if not piece.is_kept:
            return state, {}
        ends = np.flatnonzero((piece.start + np.arange(piece.num) + 1) % method.thinning == 0)
        last, since = {n: v[ends] for n, v in told.items()}, state["diverged"] > 0
        for i, each in enumerate(np.split(told["diverging"], ends + 1)):
            since = since | each.any(0)
            if i < len(ends):
                last["diverging"][i], since = since, np.zeros_like(since)
        state["diverged"] = since.astype(state["diverged"].dtype)
        last["n_steps"] = last["n_steps"].astype(np.int64)
        kept = {"free": self.layout.unpack(last.pop("x"), np.reshape), "stats": last}
        return state, kept if len(ends) else {}

    def transitions(self, piece: Piece, state: dict, key: Any) -> dict[str, np.ndarray]:
        """What `piece.num` transitions of each chain told, [transition, chain, ...]."""
        b, run = self.b, self.run
        scale = tree_map(b.asarray, _scale(state))
        length = b.asarray(np.full(self.num, float(self.length())))
        begun, *_ = self.begin(state["x"], state["base"], _scale(state), b.fold_in(key, 1))
        window = b.asarray(np.full(self.num, float(piece.window)))
        sizes = Sizes(
            b.asarray(state["base"]), Learned(*(b.asarray(state[n]) for n in _ADAPTED)), window
        )
        carry, found, counts = (begun, sizes), [], np.zeros(self.num, int)
        noise, at, step, taken = None, 2, 0, 0
        while counts.min() < piece.num:
            if noise is None or step == len(noise.normal):
                noise, at, step = run.noise(b.fold_in(key, at)), at + 1, 0
            size = self.steps(taken, counts.min(), piece.num)
            rows = Noise(*(v[step : step + size] for v in noise))
            carry, told = run.loop.run(carry, rows, scale, length, *self.args)
            step, taken = step + len(rows.normal), taken + len(rows.normal)
            told = {n: b.to_numpy(v) for n, v in told.items()}
            where = np.nonzero(told["done"])
            counts += np.bincount(where[1], minlength=self.num)
            found.append((where[1], {n: v[where] for n, v in told.items() if n != "done"}))
        return _by_chain(found, self.num, piece.num)

    def steps(self, taken: int, made: int, wanted: int) -> int:
        """How many to take next, of a chain that made so many transitions by those taken: which
        noise a step has does not hang on it."""
        most = self.run.loop.steps
        if not self.run.loop.elastic or not made:
            return most
        return min(most, max(2, math.ceil((wanted - made) * taken / made)))

    def begin(self, x: np.ndarray, size: np.ndarray, scale: Mapping, key: Any) -> tuple:
        """`Compiled.begin` at numpy's arrays, with the noise of a key."""
        b = self.b
        if isinstance(key, int):
            key = b.fold_in(self.key, key)
        noise = tree_map(lambda v: v[0], self.run.noise_of_one(key))
        length = b.asarray(np.full(self.num, float(self.length())))
        return self.run.begin(
            b.asarray(x), noise, b.asarray(size), tree_map(b.asarray, dict(scale)), length,
            *self.args,
        )  # fmt: skip

    def length(self) -> float:
        """Of a trajectory, in time; 0 where there is none."""
        return getattr(self.method, "trajectory_length", None) or 0.0

    def searched(self, state: dict, key: Any) -> np.ndarray:
        """A step size of each chain with which one leapfrog is accepted with probability 0.8 about:
        doubled or halved until it is no more, or is at last (Hoffman & Gelman 2014, algorithm 4).

        Raises:
            NonFiniteError: there is none.
        """
        size, way = state["base"].copy(), np.zeros(self.num)
        going = np.ones(self.num, bool)
        for i in range(64):
            *_, log_rate = self.begin(state["x"], size, _scale(state), self.b.fold_in(key, i))
            better = self.b.to_numpy(log_rate) > REASONABLE
            if i == 0:
                way = np.where(better, 1.0, -1.0)
            going &= better == (way > 0)
            if not going.any():
                return size
            size = np.where(going, size * 2.0**way, size).astype(size.dtype)
        raise NonFiniteError(
            f"{self.method.algorithm}: chain {int(np.argmax(going))} found no step size that "
            f"changes whether a step is accepted, from {state['base'].min():g} by factors of two, "
            "expected a proper density; look at the priors, or give step_size= and "
            "find_heuristic_step_size=False."
        )


def _by_chain(found: list, num_chains: int, count: int) -> dict[str, np.ndarray]:
    """[transition, chain, ...] of what was told in order of steps: each chain's first `count`."""
    chain = np.concatenate([c for c, _ in found])
    order = np.argsort(chain, kind="stable")
    starts = np.searchsorted(chain[order], np.arange(num_chains))
    index = order[starts + np.arange(count)[:, None]]
    return {n: np.concatenate([told[n] for _, told in found])[index] for n in found[0][1]}


def _scale(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n.removeprefix("mass_"): v for n, v in state.items() if n.startswith("mass_")}


def _restored(fresh: Mapping, kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state that was kept.

    Raises:
        SaveError: it is of another sampler.
    """
    forms = [{n: (v.shape, v.dtype) for n, v in s.items() if n != "window"} for s in (fresh, kept)]
    if forms[0] != forms[1] or "window" not in kept:
        raise SaveError(
            "infer: got the state of another sampler beside `path`, expected that of this call; "
            "remove the folder to begin anew."
        )
    return dict(kept)
