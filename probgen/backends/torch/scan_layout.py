"""Where the kernels of a loop's step read and write at each moment.

The launches of one step become tables (`player.py`) in which the rows of `xs`, `ys` and carries
move on from moment to moment:

    carry t        row t of a stack of all carries, or, where none is kept, of two in turn
    carry t + 1    the row after it
    x_t, y_t       row t, from the last to the first in a loop that runs back
    constants      the same memory at every moment

so that a loop is one play. A step that calls more than kernels runs on buffers of its own, moment
by moment, its rows copied in and out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from probgen.backends.torch.inductor import Called, NotReplayed
from probgen.backends.torch.player import Launch, NoPlayer, Place, Player, Table, address

Tensors = list[torch.Tensor]


class Form(NamedTuple):
    """What the tensors of a loop are: carry, then xs, then constants.

    Attributes:
        num_carry, num_xs: how many there are.
        length: T.
        keeps: whether all carries are a result, [T + 1, ...]; a derivative needs them.
        backwards: from the last moment to the first, xs and ys alike.
    """

    num_carry: int
    num_xs: int
    length: int
    keeps: bool = True
    backwards: bool = False

    def parts(self, tensors: Any) -> tuple[Tensors, Tensors, Tensors]:
        n, m = self.num_carry, self.num_carry + self.num_xs
        return list(tensors[:n]), list(tensors[n:m]), list(tensors[m:])


class Layout:
    """The launches of one step, to be played over the rows of a loop.

    Args:
        launches: functions with their arguments, as `inductor.launches_of` found them.
        inputs, outs: the tensors that this step read and left: carry, row, constants; carry, row.

    Attributes:
        is_moving: whether the step is kernels alone, so that one table is the loop.

    Raises:
        NoPlayer: a kernel that C cannot call, or no compiler for the player.
        NotReplayed: a result that does not lie in one piece.
    """

    def __init__(self, form: Form, launches: list, inputs: Tensors, outs: Tensors):
        self.form, self._inputs, self._outs = form, inputs, outs
        self._alive = launches  # their arguments are read by address
        self.is_moving = not any(isinstance(f, Called) for f, _ in launches)
        self._exclusive = self._alone() if self.is_moving else set()
        self._segments: list[Player | tuple[Callable, tuple]] = []
        self._players: list[Player] = []
        self._at: list[tuple[np.ndarray, np.ndarray]] = []  # source and offset of each argument
        begun: list[tuple[int, list, int]] = []
        if not self.is_moving:
            for i in range(form.num_carry + form.num_xs):
                t = inputs[i]
                begun.append((0, [self._fixed(t), self._row("in", i)], t.nbytes))
        for f, args in launches:
            if isinstance(f, Called):
                self._close(begun)
                self._segments.append((f, args))
            else:
                begun.append((address(f), [self._place(a) for a in args], 0))
        for i, t in enumerate(outs):
            if i in self._exclusive:
                continue
            if not t.is_contiguous():
                raise NotReplayed("a result that is not contiguous")
            source = self._place(t) if self.is_moving else self._fixed(t)
            begun.append((0, [self._row("out", i), source], t.nbytes))
        self._close(begun)

    def _close(self, begun: list[tuple[int, list, int]]) -> None:
        """What was begun is one table."""
        if begun:
            launches: list[Launch] = [(f, [p for p, _ in args], n) for f, args, n in begun]
            table = Table(launches, 0, self.form.length)
            sources = [-1 if s is None else s for _, args, _ in begun for _, s in args]
            self._at.append((np.array(sources), table.base.copy()))
            self._players.append(Player([table]))
            self._segments.append(self._players[-1])
            begun.clear()

    def _alone(self) -> set[int]:
        """Results that may be written where the loop wants them, since nothing else lies with them
        in their memory; the others are copied there."""
        taken, alone = [_extent(t) for t in self._inputs], set()
        for i, t in enumerate(self._outs):
            low, high = _extent(t)
            whole = t.untyped_storage().nbytes() == t.nbytes and t.is_contiguous()
            if whole and not any(low < b and a < high for a, b in taken):
                alone.add(i)
            taken.append((low, high))
        return alone

    def _place(self, tensor: Any) -> tuple[Place, int | None]:
        """(place, its source among the tensors of a call; None of memory of our own)."""
        if not isinstance(tensor, torch.Tensor):
            raise NoPlayer(f"a kernel of {type(tensor).__name__}")
        low, high = _extent(tensor)
        if self.is_moving:
            for kind, tensors in (("in", self._inputs), ("out", self._outs)):
                for i, t in enumerate(tensors):
                    a, b = _extent(t)
                    if a <= low and high <= b and (kind == "in" or i in self._exclusive):
                        place, source = self._row(kind, i)
                        return place._replace(base=place.base + low - a), source
        return self._fixed(tensor)

    def _fixed(self, tensor: torch.Tensor) -> tuple[Place, None]:
        return Place(tensor.data_ptr()), None

    def _row(self, kind: str, i: int) -> tuple[Place, int | None]:
        """Of input or result i at moment t; `base` is from the beginning of its source."""
        n, length = self.form.num_carry, self.form.length
        if i < n:
            nbytes = self._inputs[i].nbytes
            shift = 0 if kind == "in" else 1
            return Place(0, nbytes, shift, -1 if self.form.keeps else 1), i
        if kind == "in" and i >= n + self.form.num_xs:  # a constant
            return Place(0), i
        nbytes = (self._inputs if kind == "in" else self._outs)[i].nbytes
        source = i if kind == "in" else len(self._inputs) + i - n
        return (
            Place((length - 1) * nbytes, -nbytes) if self.form.backwards else Place(0, nbytes)
        ), source

    def play(self, where: Tensors, given: Tensors) -> None:
        """The loop.

        Args:
            where: carries as rows, then xs, constants, ys.
            given: carry, xs, constants.
        """
        tables = [table for player in self._players for table in player.tables]
        for table, at in zip(tables, self._at, strict=True):
            _put(table, at, where)
        if self.is_moving:
            self._players[0].play()
            return
        n = self.form.num_carry + self.form.num_xs
        for mine, theirs in zip(self._inputs[n:], given[n:], strict=True):
            mine.copy_(theirs)
        for t in range(self.form.length):
            for table in tables:
                table.at(t, t + 1)
            for segment in self._segments:
                if isinstance(segment, Player):
                    segment.play()
                else:
                    segment[0](*segment[1])

    def table(self, where: Tensors) -> Table:
        """The loop on these very tensors, of a step of kernels alone."""
        table = Table(self._players[0].tables[0].launches, 0, self.form.length)
        _put(table, self._at[0], where)
        return table


def _put(table: Table, at: tuple[np.ndarray, np.ndarray], where: Tensors) -> None:
    """Addresses of those tensors into a table."""
    source, offset = at
    starts = np.array([*(t.data_ptr() for t in where), 0], np.int64)  # the last: our own memory
    np.add(starts[source], offset, out=table.base)


def _extent(t: torch.Tensor) -> tuple[int, int]:
    """Addresses that a tensor covers, from, to."""
    low = t.data_ptr()
    if not t.numel():
        return low, low
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return low, low + (last + 1) * t.element_size()
