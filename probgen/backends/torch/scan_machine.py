"""A compiled loop over time: one step's kernels, played over the rows of all moments.

    probgen::scan(carry, xs, constants; key) -> last carry, ys, all carries

is an operator of torch's, so that a graph holds a loop as one node whatever its length. What it
runs is a `Machine`: the step as a flat graph, compiled once by inductor, and the table of its
launches, in which the rows of `xs`, `ys` and carries move on from moment to moment (`player.py`). A
step that calls more than kernels (a Cholesky factor) runs on buffers of its own, moment by moment.
"""

from __future__ import annotations

import contextvars
import hashlib
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from probgen.backends.torch.inductor import Called, NotReplayed, compiled, launches_of
from probgen.backends.torch.player import Launch, NoPlayer, Place, Player, Table, address
from probgen.backends.torch.record import Recorder
from probgen.backends.torch.routes import NotCompiled, NotTraced
from probgen.backends.torch.simplify import simplify, small_products

Tensors = list[torch.Tensor]

machines: weakref.WeakValueDictionary[int, Machine] = weakref.WeakValueDictionary()
# Of the graph that is being made, which keeps its machines alive.
kept: contextvars.ContextVar[list | None] = contextvars.ContextVar("kept", default=None)


class Program(NamedTuple):
    """A loop as a function of explicit tensors.

    Attributes:
        fn: (carry, row of xs, constants) -> (carry, row of ys), lists of tensors.
        num_carry, num_xs: how many there are.
        length: T.
        keeps: whether all carries are a result, [T + 1, ...]; a derivative needs them.
        backwards: from the last moment to the first, xs and ys alike.
    """

    fn: Callable[[Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]
    num_carry: int
    num_xs: int
    length: int
    keeps: bool = True
    backwards: bool = False

    def parts(self, tensors: Any) -> tuple[Tensors, Tensors, Tensors]:
        n, m = self.num_carry, self.num_carry + self.num_xs
        return list(tensors[:n]), list(tensors[n:m]), list(tensors[m:])

    def run(self, tensors: Any) -> Tensors:
        """The loop, on plain tensors; the operator is a node of whatever is being recorded."""
        machine = Machine.of(self, tensors)
        # Rows are read where they lie: what is not contiguous is made so by the graph.
        whole = [t if t.is_contiguous() else t.contiguous() for t in tensors]
        return torch.ops.probgen.scan(whole, machine.key)


class Machine:
    """See the head of this file.

    Attributes:
        key: of its content; the operator's argument.
    """

    @classmethod
    def of(cls, program: Program, tensors: Any) -> Machine:
        """That of a program at tensors of these shapes, kept as long as it is used."""
        made = cls(program, [t.detach() for t in tensors])
        machine = machines.setdefault(made.key, made)
        keeping = kept.get()
        if keeping is None:
            raise NotTraced("a compiled loop outside of a graph")
        keeping.append(machine)
        return machine

    def __init__(self, program: Program, tensors: Tensors):
        self.num_carry, self.num_xs = program.num_carry, program.num_xs
        self.length, self.keeps = program.length, program.keeps
        self.backwards = program.backwards
        carry, xs, constants = program.parts(tensors)
        first = -1 if self.backwards else 0
        fresh = lambda t: t.clone(memory_format=torch.contiguous_format)  # noqa: E731
        recorder = Recorder()
        with torch.no_grad(), recorder.outside():
            self.example = [fresh(t) for t in (*carry, *(x[first] for x in xs), *constants)]
            inputs = [recorder.input(fresh(t)) for t in self.example]
            with recorder:
                new, ys = program.fn(*program.parts(inputs))
                outs = [fresh(t) for t in (*new, *ys)]
            self.graph, self.root = recorder.finish(outs), recorder.root
        for old, made in zip(carry, new, strict=True):
            if old.shape != made.shape or old.dtype != made.dtype:
                raise NotTraced(
                    f"a loop whose carry becomes {tuple(made.shape)} {made.dtype} from "
                    f"{tuple(old.shape)} {old.dtype}"
                )
        self.outs = [(tuple(t.shape), t.dtype) for t in outs]
        self.program = program[1:]
        _in_a_thread(self._known_by_content)
        self._lock = threading.Lock()
        self._ready = False

    def _known_by_content(self) -> None:
        simplify(self.root, self.graph)
        small_products(self.graph)
        text = self.graph.python_code("self").src
        names = [str(n.target) for n in self.graph.nodes if n.op == "get_attr"]
        own = [(n, getattr(self.root, n).tolist()) for n in names]
        forms = [(tuple(t.shape), t.dtype) for t in self.example]
        content = repr((text, own, forms, self.outs, self.program, torch.get_num_threads()))
        self.key = int.from_bytes(hashlib.sha256(content.encode()).digest()[:7])

    def results(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shapes and types of the operator's results."""
        carry, ys = self.outs[: self.num_carry], self.outs[self.num_carry :]
        rows = [((self.length, *shape), dtype) for shape, dtype in ys]
        stacks = [((self.length + 1, *shape), dtype) for shape, dtype in carry]
        return [*carry, *rows, *(stacks if self.keeps else [])]

    def __call__(self, tensors: Tensors) -> Tensors:
        given = [t if t.is_contiguous() else t.contiguous() for t in tensors]
        results = [torch.empty(shape, dtype=dtype) for shape, dtype in self.results()]
        with self._lock:
            if not self._ready:
                try:
                    _in_a_thread(self._prepare)
                except Exception as error:
                    raise NotCompiled(f"a loop over time: {str(error).strip()[:300]}") from error
            if self.keeps:
                stacks = results[len(self.outs) :]
            else:
                stacks = self._pairs
            for stack, start in zip(stacks, given, strict=False):
                stack[0].copy_(start)
            where = [*stacks, *given[self.num_carry :], *results[self.num_carry : len(self.outs)]]
            self._play([t.data_ptr() for t in where], given)
            last = self.length if self.keeps else self.length & 1
            for out, stack in zip(results, stacks, strict=False):
                out.copy_(stack[last])
        return results

    # ---- made once

    def _prepare(self) -> None:
        with torch.no_grad():
            module = torch.fx.GraphModule(self.root, self.graph)
            run, code = compiled(module, [t.clone() for t in self.example])
            self._inputs = [t.clone() for t in self.example]
            self._launches, outs = launches_of(code, run, self._inputs)
        self._outs = list(outs)
        self._pairs = (
            []
            if self.keeps
            else [torch.empty((2, *s), dtype=d) for s, d in self.outs[: self.num_carry]]
        )
        self._is_moving = not any(isinstance(f, Called) for f, _ in self._launches)
        self._lay_out()
        self._ready = True
        del self.graph, self.root

    def _lay_out(self) -> None:
        """Tables of launches: one that moves, or several with calls between them."""
        copies = self._copies()
        self._segments: list[Player | tuple[Callable, tuple]] = []
        self._tables: list[Table] = []
        self._at: list[tuple[np.ndarray, np.ndarray]] = []
        begun: list[tuple[int, list, int]] = []

        def close() -> None:
            if begun:
                table = self._table(begun)
                self._at.append(self._sources(begun, table))
                self._tables.append(table)
                self._whole = Player([table])
                self._segments.append(self._whole)
                begun.clear()

        if not self._is_moving:
            for i in range(self.num_carry + self.num_xs):
                t = self._inputs[i]
                begun.append((0, [self._fixed(t), self._row("in", i)], t.nbytes))
        for f, args in self._launches:
            if isinstance(f, Called):
                close()
                self._segments.append((f, args))
            else:
                begun.append((address(f), [self._place(a) for a in args], 0))
        for i in copies:
            t = self._outs[i]
            if not t.is_contiguous():
                raise NotReplayed("a result that is not contiguous")
            source = self._place(t) if self._is_moving else self._fixed(t)
            begun.append((0, [self._row("out", i), source], t.nbytes))
        close()

    def _table(self, begun: list) -> Table:
        launches: list[Launch] = [(f, [p for p, _ in args], n) for f, args, n in begun]
        return Table(launches, 0, self.length)

    def _sources(self, begun: list, table: Table) -> tuple[np.ndarray, np.ndarray]:
        sources = [-1 if s is None else s for _, args, _ in begun for _, s in args]
        return np.array(sources), table.base.copy()

    def _copies(self) -> list[int]:
        """Results that do not lie where the loop wants them, and are copied there."""
        if not self._is_moving:
            self._exclusive = set()
            return list(range(len(self._outs)))
        inputs = [_extent(t) for t in self._inputs]
        taken: list[tuple[int, int]] = list(inputs)
        exclusive = set()
        for i, t in enumerate(self._outs):
            low, high = _extent(t)
            whole = t.untyped_storage().nbytes() == t.nbytes and t.is_contiguous()
            if whole and not any(low < b and a < high for a, b in taken):
                exclusive.add(i)
            taken.append((low, high))
        self._exclusive = exclusive
        return [i for i in range(len(self._outs)) if i not in exclusive]

    def _place(self, tensor: Any) -> tuple[Place, int | None]:
        """(place, its source among the tensors of a call; None of memory of our own)."""
        if not isinstance(tensor, torch.Tensor):
            raise NoPlayer(f"a kernel of {type(tensor).__name__}")
        low, high = _extent(tensor)
        if self._is_moving:
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
        n, length = self.num_carry, self.length
        if i < n:
            nbytes = self._inputs[i].nbytes
            shift = 0 if kind == "in" else 1
            return Place(0, nbytes, shift, -1 if self.keeps else 1), i
        if kind == "in" and i >= n + self.num_xs:  # a constant
            return Place(0), i
        nbytes = (self._inputs if kind == "in" else self._outs)[i].nbytes
        source = i if kind == "in" else len(self._inputs) + i - n
        return (
            Place((length - 1) * nbytes, -nbytes) if self.backwards else Place(0, nbytes)
        ), source

    # ---- at every call

    def _play(self, addresses: list[int], given: Tensors) -> None:
        where = np.array([*addresses, 0], np.int64)  # the last for memory of our own
        for table, (source, offset) in zip(self._tables, self._at, strict=True):
            np.add(where[source], offset, out=table.base)
        if self._is_moving:
            self._whole.play()
            return
        n = self.num_carry + self.num_xs
        for mine, theirs in zip(self._inputs[n:], given[n:], strict=True):
            mine.copy_(theirs)
        for t in range(self.length):
            for table in self._tables:
                table.at(t, t + 1)
            for segment in self._segments:
                if isinstance(segment, Player):
                    segment.play()
                else:
                    segment[0](*segment[1])

    def bound(self, given: Tensors, results: Tensors) -> tuple[list[Table], Any] | None:
        """(tables of the loop on these very tensors, what they need alive); None of a step that
        calls more than kernels."""
        tensors = [*given, *results]
        if not self._is_moving or not all(t.is_contiguous() for t in tensors):
            return None
        n, num = self.num_carry, len(self.outs)
        stacks = (
            results[num:] if self.keeps
            else [torch.empty((2, *s), dtype=d) for s, d in self.outs[:n]]
        )  # fmt: skip
        where = [t.data_ptr() for t in (*stacks, *given[n:], *results[n:num])]
        source, offset = self._at[0]
        table = Table(self._tables[0].launches, 0, self.length)
        np.add(np.array([*where, 0], np.int64)[source], offset, out=table.base)
        last = self.length if self.keeps else self.length & 1

        def copied(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Table:
            return Table(
                [(0, [Place(a.data_ptr()), Place(b.data_ptr())], a.nbytes) for a, b in pairs]
            )

        begin = copied([(s[0], g) for s, g in zip(stacks, given, strict=False)])
        end = copied([(r, s[last]) for r, s in zip(results, stacks, strict=False)])
        return [begin, table, end], (self, stacks)


def _extent(t: torch.Tensor) -> tuple[int, int]:
    """Addresses that a tensor covers, from, to."""
    low = t.data_ptr()
    if not t.numel():
        return low, low
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return low, low + (last + 1) * t.element_size()


def _in_a_thread(work: Callable[[], None]) -> None:
    """Past all modes, levels and settings of this thread: a graph is being made in it."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


_library = torch.library.Library("probgen", "DEF")
_library.define("scan(Tensor[] tensors, int key) -> Tensor[]")


def _scan(tensors: Tensors, key: int) -> Tensors:
    return machines[key](tensors)


def _shapes(tensors: Tensors, key: int) -> Tensors:
    like = tensors[0]
    return [like.new_empty(shape, dtype=dtype) for shape, dtype in machines[key].results()]


_library.impl("scan", _scan, "CPU")
torch.library.register_fake("probgen::scan", _shapes, lib=_library)
