"""A compiled loop over time: one step's kernels, played over the rows of all moments.

    probgen::scan(carry, xs, constants; key) -> last carry, ys, all carries

is an operator of torch's, so that a graph holds a loop as one node whatever its length. What it
runs is a `Machine`: the step as a flat graph, compiled once by inductor, and its launches laid out
over the rows of all moments (`scan_layout.py`).
"""

from __future__ import annotations

import contextvars
import hashlib
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from probgen.backends.torch.inductor import compiled, launches_of
from probgen.backends.torch.player import Place, Table
from probgen.backends.torch.record import Recorder
from probgen.backends.torch.routes import NotCompiled, NotTraced
from probgen.backends.torch.scan_layout import Form, Layout, Tensors
from probgen.backends.torch.simplify import simplify, small_products

machines: weakref.WeakValueDictionary[int, Machine] = weakref.WeakValueDictionary()
# Of the graph that is being made, which keeps its machines alive.
kept: contextvars.ContextVar[list | None] = contextvars.ContextVar("kept", default=None)


class Program(NamedTuple):
    """A loop as a function of explicit tensors.

    Attributes:
        fn: (carry, row of xs, constants) -> (carry, row of ys), lists of tensors.
    """

    fn: Callable[[Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]
    form: Form

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
        self.form = program.form
        carry, xs, constants = self.form.parts(tensors)
        first = -1 if self.form.backwards else 0
        fresh = lambda t: t.clone(memory_format=torch.contiguous_format)  # noqa: E731
        recorder = Recorder()
        with torch.no_grad(), recorder.outside():
            self.example = [fresh(t) for t in (*carry, *(x[first] for x in xs), *constants)]
            inputs = [recorder.input(fresh(t)) for t in self.example]
            with recorder:
                new, ys = program.fn(*self.form.parts(inputs))
                outs = [fresh(t) for t in (*new, *ys)]
            self.graph, self.root = recorder.finish(outs), recorder.root
        for old, made in zip(carry, new, strict=True):
            if old.shape != made.shape or old.dtype != made.dtype:
                raise NotTraced(
                    f"a loop whose carry becomes {tuple(made.shape)} {made.dtype} from "
                    f"{tuple(old.shape)} {old.dtype}"
                )
        self.outs = [(tuple(t.shape), t.dtype) for t in outs]
        _in_a_thread(self._known_by_content)
        self._lock = threading.Lock()
        self._layout: Layout | None = None

    def _known_by_content(self) -> None:
        simplify(self.root, self.graph)
        small_products(self.graph)
        text = self.graph.python_code("self").src
        names = [str(n.target) for n in self.graph.nodes if n.op == "get_attr"]
        own = [(n, getattr(self.root, n).tolist()) for n in names]
        forms = [(tuple(t.shape), t.dtype) for t in self.example]
        content = repr((text, own, forms, self.outs, self.form, torch.get_num_threads()))
        self.key = int.from_bytes(hashlib.sha256(content.encode()).digest()[:7])

    def results(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shapes and types of the operator's results."""
        n, length = self.form.num_carry, self.form.length
        rows = [((length, *shape), dtype) for shape, dtype in self.outs[n:]]
        stacks = [((length + 1, *shape), dtype) for shape, dtype in self.outs[:n]]
        return [*self.outs[:n], *rows, *(stacks if self.form.keeps else [])]

    def __call__(self, tensors: Tensors) -> Tensors:
        given = [t if t.is_contiguous() else t.contiguous() for t in tensors]
        results = [torch.empty(shape, dtype=dtype) for shape, dtype in self.results()]
        with self._lock:
            layout = self._prepared()
            stacks = results[len(self.outs) :] if self.form.keeps else self._pairs
            for stack, start in zip(stacks, given, strict=False):
                stack[0].copy_(start)
            layout.play(self._where(stacks, given, results), given)
            for out, stack in zip(results, stacks, strict=False):
                out.copy_(stack[self._last])
        return results

    def bound(self, given: Tensors, results: Tensors) -> tuple[list[Table], Any] | None:
        """(tables of the loop on these very tensors, what they need alive); None of a step that
        calls more than kernels."""
        layout, tensors = self._layout, [*given, *results]
        if layout is None or not layout.is_moving or not all(t.is_contiguous() for t in tensors):
            return None
        stacks = results[len(self.outs) :] if self.form.keeps else self._new_pairs()
        table = layout.table(self._where(stacks, given, results))

        def copied(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Table:
            return Table(
                [(0, [Place(a.data_ptr()), Place(b.data_ptr())], a.nbytes) for a, b in pairs]
            )

        begin = copied([(s[0], g) for s, g in zip(stacks, given, strict=False)])
        end = copied([(r, s[self._last]) for r, s in zip(results, stacks, strict=False)])
        return [begin, table, end], (self, stacks)

    def _where(self, stacks: Tensors, given: Tensors, results: Tensors) -> Tensors:
        n = self.form.num_carry
        return [*stacks, *given[n:], *results[n : len(self.outs)]]

    @property
    def _last(self) -> int:
        """The row in which the last carry lies."""
        return self.form.length if self.form.keeps else self.form.length & 1

    def _new_pairs(self) -> Tensors:
        """Carries of two moments, where all of them are not kept."""
        return [torch.empty((2, *s), dtype=d) for s, d in self.outs[: self.form.num_carry]]

    def _prepared(self) -> Layout:
        if self._layout is None:
            try:
                _in_a_thread(self._prepare)
            except Exception as error:
                raise NotCompiled(f"a loop over time: {str(error).strip()[:300]}") from error
        assert self._layout is not None
        return self._layout

    def _prepare(self) -> None:
        with torch.no_grad():
            module = torch.fx.GraphModule(self.root, self.graph)
            run, code = compiled(module, [t.clone() for t in self.example])
            inputs = [t.clone() for t in self.example]
            launches, outs = launches_of(code, run, inputs)
        self._pairs = [] if self.form.keeps else self._new_pairs()
        self._layout = Layout(self.form, launches, inputs, list(outs))
        del self.graph, self.root


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
