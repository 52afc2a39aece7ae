"""A pure function on torch as a flat graph: traced once a shape, compiled where that pays.

    inductor   the graph, compiled to C++ or Triton     (needs a working compiler)
    graph      the graph, replayed as Python
    live       the function itself, every time

Tensors, keys and noise are the graph's inputs; everything else is a constant of it. What could not
be traced or compiled falls to the next route, with the reason logged and kept (`Built.reason`).
A function is written down as it runs once on copies of its arguments (`record.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from probgen.backends.compiled_store import programs
from probgen.backends.keys import Key, mix
from probgen.backends.torch import random
from probgen.backends.torch.aliases import op_of
from probgen.backends.torch.direct import directly
from probgen.backends.torch.inductor import compiled
from probgen.backends.torch.record import Recorder
from probgen.backends.torch.routes import NotCompiled, calls, tracing
from probgen.backends.torch.scan_machine import kept
from probgen.backends.torch.simplify import fold, lift, simplify, small_products
from probgen.backends.torch.split import Piece, Split, sharing, together
from probgen.backends.torch.split_sums import Place, placed, summed
from probgen.errors import DeclarationError, NotByRow, ProbgenError
from probgen.language.identity import contents
from probgen.progress import log
from probgen.trees import tree_leaves, tree_map

INDUCTOR_FROM = (
    4000  # calls below which 4 s (16 s the first time) of compilation are not earned back
)
GRAPH_FROM = 8  # and below which even tracing is not


def flatten(value: Any, tensors: list, keys: list, spec: list) -> None:
    """Appends tensors and keys found in `value`; `spec` gets everything that a graph depends on."""
    kind = type(value)
    if kind is Split:
        tensors.append(value.local)
        spec.append((value.axis, value.world.outer, value.shape, value.dtype))
    elif kind is torch.Tensor or isinstance(value, torch.Tensor):
        tensors.append(value.whole() if kind is Piece else value)
        spec.append((value.shape, value.dtype))
    elif kind is dict:
        spec.append(tuple(value))
        for k in value:
            flatten(value[k], tensors, keys, spec)
    elif kind is Key:
        keys.append(value)
        spec.append(("rows", len(value.seed)) if isinstance(value.seed, tuple) else "key")
    elif isinstance(value, tuple | list):
        spec.append((kind, len(value)))
        for v in value:
            flatten(v, tensors, keys, spec)
    else:  # 1, 1.0 and True are equal, and so are 0.0 and -0.0
        spec.append((kind, repr(value) if kind is float else value))


def _rebuild(value: Any, tensors: Any, keys: Any) -> Any:
    if type(value) is Split:
        return Split(next(tensors), value.axis, value.world)
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if isinstance(value, Key):
        return next(keys)
    if isinstance(value, dict):
        return {k: _rebuild(v, tensors, keys) for k, v in value.items()}
    if isinstance(value, tuple | list):
        items = [_rebuild(v, tensors, keys) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _builder(tree: Any) -> Callable:
    """`tree_like` for the containers of `tree`, walked once: iterator of leaves -> tree."""
    if tree is None:
        return lambda _: None
    if isinstance(tree, dict):
        parts = [(k, _builder(tree[k])) for k in sorted(tree)]
        return lambda feed: {k: part(feed) for k, part in parts}
    if isinstance(tree, tuple | list):
        inner, kind = [_builder(v) for v in tree], type(tree)
        if hasattr(tree, "_fields"):
            return lambda feed: kind(*[part(feed) for part in inner])
        return lambda feed: kind([part(feed) for part in inner])
    return next


def cond(pred: Any, if_true: Callable, if_false: Callable, *args: Any) -> Any:
    """One of two functions, by a scalar; both, where a graph or a vmap cannot ask it."""
    if tracing.get() or torch._C._functorch.peek_interpreter_stack() is not None:
        chosen = torch.as_tensor(pred)
        return tree_map(lambda a, c: torch.where(chosen, a, c), if_true(*args), if_false(*args))
    return if_true(*args) if bool(pred) else if_false(*args)


class Graph:
    """One function at one set of shapes: `call(tensors, seeds, constants) -> output`.

    Attributes:
        constants: the tensors that the function closes over, which are inputs of the graph too;
            whoever makes a graph takes them out of it (`take_constants`).
        loops: over time, which the graph has as one operator each, kept alive.
        code: by inductor, what it made: inputs -> outputs, for `replay.py`.
    """

    code: Any = None

    def __init__(
        self, fn: Callable, args: tuple, route: str, device: str, num_calls: int = 0,
        is_looped: bool = False,
    ):  # fmt: skip
        # Draws while planning and tracing are thrown away; the caller's random state stays.
        self.loops: list = []
        token, other = kept.set(self.loops), calls.set(num_calls)
        try:
            with random.seeded(0, device):
                self._build(fn, args, route, is_looped)
        finally:
            kept.reset(token)
            calls.reset(other)

    def _build(self, fn: Callable, args: tuple, route: str, is_looped: bool) -> None:
        tensors: list = []
        keys: list = []
        flatten(args, tensors, keys, [])
        self.route, recorder = route, Recorder()
        plan = random.Planner(recorder)
        marked = [Key(k.seed, (i,)) for i, k in enumerate(keys)]
        # On copies, each an input of its own: a function that writes into its arguments must do so
        # once a call, and one tensor may be given twice.
        example = [t.detach().clone(memory_format=torch.contiguous_format) for t in tensors]
        copies = [recorder.input(t) for t in example]
        with torch.no_grad(), recorder:
            output = self._run(fn, _rebuild(args, iter(copies), iter(marked)), plan)
            leaves = [torch.as_tensor(leaf) for leaf in tree_leaves(output)]
        self.places, self.world = [Place.of(leaf) for leaf in leaves], sharing.get()
        leaves = [leaf.local if isinstance(leaf, Split) else leaf for leaf in leaves]
        self.build_output = _builder(output)
        self.slots = plan.slots
        plan.check()
        graph, root = recorder.finish(leaves), recorder.root
        self.constants = lift(root, graph)
        simplify(root, graph)
        self.draws_inside = any(
            torch.Tag.nondeterministic_seeded in op.tags for op in map(op_of, graph.nodes) if op
        )
        if route == "inductor":
            example += random.redraw(plan.slots, [k.seed for k in keys])
            if is_looped:
                small_products(graph)
            module = torch.fx.GraphModule(root, graph)
            self.run, self.code = compiled(module, [*example, *self.constants])
        else:
            fold(root, graph)
            directly(graph)
            self.run = torch.fx.GraphModule(root, graph).forward

    def _run(self, fn: Callable, args: tuple, plan: random.Planner) -> Any:
        plan_token, token = random.planner.set(plan), tracing.set(self.route)
        try:
            return fn(*args)
        finally:
            tracing.reset(token)
            random.planner.reset(plan_token)

    def take_constants(self) -> list[torch.Tensor]:
        """The constants, which the graph no longer holds."""
        constants, self.constants = self.constants, []
        return constants

    def __call__(self, tensors: list, keys: list, device: str, constants: list) -> Any:
        # Compiled code reads memory by the strides that it was made for, the contiguous ones.
        inputs = [t if t.is_contiguous() else t.contiguous() for t in tensors]
        seeds = [k.seed for k in keys]
        if self.slots:
            inputs += random.redraw(self.slots, seeds)
        if constants:
            inputs += [t if t.is_contiguous() else t.contiguous() for t in constants]
        had_grad = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # torch.no_grad() without its cost per call
        try:
            if self.draws_inside and seeds:
                # Never row keys: what draws inside refuses them.
                with random.seeded(mix(seeds[0], 0x5EED), device):
                    out = self.run(*inputs)
            else:
                out = self.run(*inputs)
        finally:
            torch._C._set_grad_enabled(had_grad)
        if self.world is not None:
            out = placed(out, self.places, self.world)
        return self.build_output(iter(out))


class Built(NamedTuple):
    """What came of compiling one function at one set of shapes.

    graph: None where the function runs live; constants: the tensors that the function closes over;
    reason: why a better route was not taken; refusal: what `NotByRow` said, where the function
    cannot run on row keys.
    """

    graph: Graph | None
    constants: list[torch.Tensor]
    reason: str = ""
    refusal: str = ""

    @property
    def route(self) -> str:
        return "live" if self.graph is None else self.graph.route


class Kept(NamedTuple):
    """A `Built` for all functions of one content: `constants` are places among the tensors of that
    content, and copies of those that are not among them, which the function makes itself."""

    built: Built
    constants: list[int | torch.Tensor]

    def nbytes(self) -> int:
        return sum(c.nbytes for c in self.constants if isinstance(c, torch.Tensor))


class Seen:
    """Routes that functions took, and reasons of those that fell back."""

    def __init__(self) -> None:
        self.routes: set[str] = set()
        self.reasons: dict[str, None] = {}


class Compiled:
    """A function with a graph for each set of shapes that it meets.

    A graph is kept under the content of its function (`probgen.language.identity`) and its shapes,
    and is traced once by all who compile that. A function whose content cannot be told has graphs
    of its own.

    Attributes:
        is_looped: whether its launches are played again and again (`loops.py`).
    """

    is_looped = False

    def __init__(
        self, fn: Callable, device: str, policy: str, num_calls: int | None,
        seen: Seen | None = None,
    ):  # fmt: skip
        self.fn, self.device, self.policy, self.num_calls = fn, device, policy, num_calls
        self._kind = device.partition(":")[0]
        self.times = 1  # calls of this for each of `num_calls`, where items are taken one by one
        self.seen = Seen() if seen is None else seen
        self.graphs: dict[tuple, Built] = {}

    def __identity__(self) -> Callable:
        return self.fn

    @property
    def route(self) -> str:
        """The route of the latest graph: inductor, graph or live."""
        return getattr(next(reversed(self.graphs.values()), None), "route", "live")

    @property
    def reason(self) -> str:
        """Why the latest graph took no better route."""
        return getattr(next(reversed(self.graphs.values()), None), "reason", "")

    def _wanted(self) -> str:
        if self.policy != "auto":
            return self.policy
        calls = None if self.num_calls is None else self.num_calls * self.times
        if calls is None or calls >= INDUCTOR_FROM:
            return "inductor"
        return "graph" if calls >= GRAPH_FROM else "live"

    def __call__(self, *args: Any) -> Any:
        if tracing.get() or torch._C._functorch.peek_interpreter_stack() is not None:
            return self.fn(*args)
        built, tensors, keys = self.built(*args)
        if built.graph is not None:
            return built.graph(tensors, keys, self.device, built.constants)
        if built.refusal:
            raise NotByRow(built.refusal)
        return self.fn(*args) if sharing.get() is None else summed(self.fn(*args))

    def wants_inductor(self) -> bool:
        """Whether its graphs are to be compiled."""
        return self._wanted() == "inductor"

    def built(self, *args: Any) -> tuple[Built, list[torch.Tensor], list[Key]]:
        """What the function is at such arguments, and their tensors and keys in its order."""
        tensors: list = []
        keys: list = []
        world = sharing.get()
        if world is not None:  # once, also for a function that runs live
            args = together(args)
        spec: list = [torch.is_autocast_enabled(self._kind), torch.get_default_dtype(), world]
        flatten(args, tensors, keys, spec)
        signature = tuple(spec)
        built = self.graphs.get(signature)
        if built is None:
            built = self.graphs[signature] = self._find(args, signature)
        return built, tensors, keys

    def _find(self, args: tuple, signature: tuple) -> Built:
        wanted = self._wanted()
        built = Built(None, []) if wanted == "live" else self._shared(args, wanted, signature)
        self.seen.routes.add(built.route)
        if built.reason:
            self.seen.reasons[built.reason] = None
        return built

    def _shared(self, args: tuple, wanted: str, signature: tuple) -> Built:
        """What is kept for the content of the function, or is built and then kept."""
        try:
            content = contents(self.fn, "function")
        except DeclarationError as error:
            log.debug("torch: a graph is not shared: %s", error)
            return self._build(args, wanted)
        mine: list[Built] = []

        def make() -> Kept | None:
            built = self._build(args, wanted)
            mine.append(built)
            if {id(c) for c in built.constants} & {id(t) for t in content.forms}:
                return None  # it computes with numbers that its content leaves out
            at = {id(t): i for i, t in enumerate(content.tensors)}
            places = [at[id(c)] if id(c) in at else c.detach().clone() for c in built.constants]
            return Kept(built._replace(constants=[]), places)

        token = (
            "torch", self.device, wanted, self.is_looped, _settings(self.device), content.identity,
            signature,
        )  # fmt: skip
        kept = programs.get(token, make, Kept.nbytes)
        if mine:
            return mine[0]
        constants = [content.tensors[c] if isinstance(c, int) else c for c in kept.constants]
        return kept.built._replace(constants=constants)

    def _build(self, args: tuple, wanted: str) -> Built:
        reason = ""
        compiles = self.policy == "auto" and wanted == "graph"  # loops over time, by themselves
        runs = (self.num_calls or 0) * self.times if compiles else 0
        tries = [("inductor", 0), ("graph", 0)] if wanted == "inductor" else [("graph", runs)]
        for route, num_calls in tries:
            try:
                graph = Graph(self.fn, args, route, self.device, num_calls, self.is_looped)
                return Built(graph, graph.take_constants(), reason)
            except NotByRow as error:
                return Built(None, [], reason, str(error))
            except ProbgenError:
                raise
            except Exception as error:  # any failure to trace means the next route
                reason = f"{route}: {type(error).__name__}: {str(error).strip()[:300]}"
                log.warning("torch: a function falls back from %s", reason)
                if num_calls and isinstance(error, NotCompiled):
                    tries.append(("graph", 0))
        return Built(None, [], reason)


def _settings(device: str) -> tuple:
    """Those of torch that change what is traced or compiled."""
    kind = device.partition(":")[0]
    return (
        torch.get_default_dtype(), torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
    )  # fmt: skip
