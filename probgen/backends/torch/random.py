"""Draws from keys on torch, without touching the caller's random state.

Outside a compiled function a draw seeds a private generator with its key. Inside one it becomes an
input of the graph (a `Slot`): the noise is drawn by ATen outside the compiled code, into a fresh
buffer, at every call, so inductor never draws a number and one key gives one draw everywhere.
Distributions without a closed form of noise (Gamma, Poisson...) draw from torch's default generator
inside `seeded`, which puts the caller's state back; one thread at a time, as it is one for all.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from probgen.backends.keys import Key, seed_at
from probgen.backends.torch.record import Recorder
from probgen.backends.turns import pyro_turn
from probgen.errors import NotByRow, ShapeError

_of_thread = threading.local()


class Slot(NamedTuple):
    """One noise input of a graph: how to draw it and where its key comes from."""

    kind: str
    shape: tuple[int, ...]
    device: str
    argument: int
    path: tuple[int, ...]
    low: int
    high: int


class Planner:
    """Draws noise while a function is written down, and makes each draw an input of its graph."""

    def __init__(self, recorder: Recorder) -> None:
        self.slots: list[Slot] = []
        self._recorder = recorder
        self._found: dict[Slot, torch.Tensor] = {}
        self._drawn: dict[Slot, int] = {}  # torch's count of writes, when it was drawn
        self._again: set[Slot] = set()

    def take(self, slot: Slot, key: Key) -> torch.Tensor:
        if slot in self._found:
            self._again.add(slot)
        else:
            self.slots.append(slot)
            with self._recorder.outside():
                value = draw(slot, key.seed)
            self._found[slot], self._drawn[slot] = self._recorder.input(value), _writes(value)
        return self._found[slot]

    def check(self) -> None:
        """Two draws from one key are one input of the graph, into which nothing may be written.

        Raises:
            NotTraced: something was.
        """
        if any(_writes(self._found[s]) != self._drawn[s] for s in self._again):
            self._recorder.refuse("writes into noise that it draws twice from one key")


def _writes(x: torch.Tensor) -> int:
    """How often it was written into; torch does not count in its inference mode."""
    return 0 if x.is_inference() else x._version


planner: contextvars.ContextVar[Planner | None] = contextvars.ContextVar("planner", default=None)


def _generator(device: str) -> torch.Generator:
    """The private generator of this thread, which is seeded for each draw."""
    generators: dict[str, torch.Generator] = _of_thread.__dict__
    if device not in generators:
        generators[device] = torch.Generator(device=device)
    return generators[device]


_DRAWS: dict[str, Callable] = {
    "normal": lambda s, g: torch.empty(s.shape, device=s.device).normal_(generator=g),
    "uniform": lambda s, g: torch.rand(s.shape, device=s.device, generator=g),
    "randint": lambda s, g: torch.randint(s.low, s.high, s.shape, device=s.device, generator=g),
}


def draw(slot: Slot, seed: int | tuple[int, ...]) -> torch.Tensor:
    """The slot's noise for a key of that seed; with row keys each row is its own key's draw.

    Raises:
        ShapeError: row keys and a shape whose leading axis is not theirs.
    """
    if isinstance(seed, tuple):
        if not slot.shape or slot.shape[0] != len(seed):
            raise ShapeError(
                f"draw: got the shape {slot.shape} and one key for each of {len(seed)} data, "
                "expected the data's axis first."
            )
        one = slot._replace(shape=(1, *slot.shape[1:]))
        return torch.cat([draw(one, each) for each in seed])
    return _DRAWS[slot.kind](slot, _generator(slot.device).manual_seed(seed))


# The level of a `vmap` over data that is going on: inside it, a draw is one datum's.
_vmapped: contextvars.ContextVar[int | None] = contextvars.ContextVar("vmapped", default=None)


@contextlib.contextmanager
def rows_of_vmap() -> Iterator[None]:
    """Inside a `vmap` over data: a draw from row keys is one datum's, each row from its own key."""
    token = _vmapped.set(torch._C._functorch.maybe_current_level())
    try:
        yield
    finally:
        _vmapped.reset(token)


def in_vmap() -> bool:
    """Whether data are being mapped over by `rows_of_vmap`."""
    return _vmapped.get() is not None


def noise(
    kind: str, key: Key, shape: tuple[int, ...], device: str, low: int = 0, high: int = 0
) -> torch.Tensor:
    """A draw from a key: an input of the graph while a function is written down.

    In a `vmap` over data the physical draw has their axis in front, each row from its own key, and
    comes back as one datum's: what a loop over the data would see.
    """
    level = _vmapped.get()
    if level is not None:
        if not isinstance(key.seed, tuple):
            raise NotByRow("draw: got one key for a vmap over data, expected one key a datum.")
        token = _vmapped.set(None)
        try:
            with temporarily_clear_interpreter_stack():  # the draw itself is not mapped
                rows = noise(kind, key, (len(key.seed), *shape), device, low, high)
        finally:
            _vmapped.reset(token)
        return torch._C._functorch._add_batch_dim(rows, 0, level)
    plan = planner.get()
    origin = key.origin if plan is not None else None
    argument, path = (origin[0], origin[1:]) if origin is not None else (-1, ())
    slot = Slot(kind, tuple(shape), device, argument, path, low, high)
    if plan is not None and origin is not None:
        return plan.take(slot, key)
    return draw(slot, key.seed)


def redraw(slots: list[Slot], seeds: list[int | tuple[int, ...]]) -> list[torch.Tensor]:
    """The noise inputs of one call, `seeds` being those of the call's key arguments."""
    return [draw(s, seed_at(seeds[s.argument], s.path)) for s in slots]


@contextlib.contextmanager
def seeded(seed: int | None, device: str) -> Iterator[None]:
    """torch's default generators start from `seed` inside, and are as they were after.

    Other threads that want them wait.
    """
    if seed is None:
        yield
        return
    with pyro_turn:
        yield from _seeded(seed, device)


def _seeded(seed: int, device: str) -> Iterator[None]:
    generators = [torch.default_generator]
    if device.startswith("cuda"):
        generators.append(torch.cuda.default_generators[torch.device(device).index or 0])
    states = [g.get_state() for g in generators]
    for g in generators:
        g.manual_seed(seed & 0x7FFFFFFF)
    try:
        yield
    finally:
        for g, state in zip(generators, states, strict=True):
            g.set_state(state)
