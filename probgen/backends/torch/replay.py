"""What inductor's compiled code launches, written down once and launched again.

Inductor's code for a graph is Python that makes each buffer, then calls a few C++ kernels on them;
of a small graph the buffers cost ten times the kernels. Where a graph writes its results into its
own inputs, the same launches on the same buffers are its next call: they are kept as a list, those
in a row that C can make as one (`player.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from probgen.backends.torch.inductor import Called, NotReplayed, launches_of
from probgen.backends.torch.player import NoPlayer, Place, Player, Table, address
from probgen.backends.torch.scan_machine import machines


class Replay:
    """The launches of one compiled graph on one set of inputs, which are alive as long as this.

    Args:
        code: what inductor made of the graph (`CompiledFxGraph`), in which the kernels are found.
        call: the graph, with what is put around that code.
        inputs: tensors; the graph runs on them.
        written: those of them that it writes into.

    Raises:
        NotReplayed: the code is no module of kernels, or its launches are not all that it does.
    """

    def __init__(
        self, code: Any, call: Callable, inputs: list[torch.Tensor], written: list[torch.Tensor]
    ):
        before = [v.clone() for v in written]
        launches, _ = launches_of(code, call, inputs)
        self._segments, self._alive = _segments(launches)
        after = [v.clone() for v in written]
        for v, old in zip(written, before, strict=True):
            v.copy_(old)
        self.run(1)
        if not all(map(_same, written, after)):
            raise NotReplayed("its kernels are not all that inductor's code does")

    def run(self, times: int) -> None:
        """The graph, so many times, in place."""
        if len(self._segments) == 1:
            self._segments[0].play(times)
            return
        for _ in range(times):
            for segment in self._segments:
                segment.play()


class _Call:
    """One launch by Python."""

    def __init__(self, function: Callable, args: tuple):
        self.function, self.args = function, args

    def play(self, times: int = 1) -> None:
        for _ in range(times):
            self.function(*self.args)


def _segments(launches: list) -> tuple[list[Player | _Call], list]:
    """(launches in their order, those in a row that C can make as one; what they need alive)."""
    out: list[Player | _Call] = []
    tables: list[Table] = []
    alive: list = []

    def close() -> None:
        if tables:
            out.append(Player(list(tables)))
            tables.clear()

    for function, args in launches:
        try:
            more, keep = _tables(function, args)
        except NoPlayer:
            close()
            out.append(_Call(function, args))
            continue
        alive.append((args, keep))
        tables += more
    close()
    return out, alive


def _tables(function: Callable, args: tuple) -> tuple[list[Table], Any]:
    if isinstance(function, Called):
        if function.op is not torch.ops.probgen.scan.default:
            raise NoPlayer("an operator")
        found = machines[args[1]].bound(args[0], function.outs or [])
        if found is None:
            raise NoPlayer("a loop that calls operators")
        return found[0], (found[1], function.outs)
    if not all(isinstance(a, torch.Tensor) for a in args):
        raise NoPlayer("a kernel of numbers")
    places = [Place(a.data_ptr()) for a in args]
    return [Table([(address(function), places, 0)])], None


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """To the bit, NaN where NaN is."""
    return bool(((a == b) | ((a != a) & (b != b))).all())
