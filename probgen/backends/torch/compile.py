"""A pure function on torch as a flat graph: traced once a shape, compiled where that pays.

    inductor   the graph, compiled to C++ or Triton     (needs a working compiler)
    graph      the graph, replayed as Python
    live       the function itself, every time

What could not be traced (`graph.py`) or compiled falls to the next route, with the reason logged
and kept (`Built.reason`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from probgen.backends.compiled_store import programs
from probgen.backends.keys import Key
from probgen.backends.torch.graph import Graph, flatten
from probgen.backends.torch.routes import NotCompiled, tracing
from probgen.backends.torch.split import sharing, together
from probgen.backends.torch.split_sums import summed
from probgen.errors import DeclarationError, NotByRow, ProbgenError
from probgen.language.identity import contents
from probgen.progress import log

INDUCTOR_FROM = (
    4000  # calls below which 4 s (16 s the first time) of compilation are not earned back
)
GRAPH_FROM = 8  # and below which even tracing is not


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
