"""What an algorithm may ask of a backend. Algorithms are written once against this page.

Arrays are the backend's own; trees are nested dicts, tuples, lists and NamedTuples of them. A `key`
is a value that stands for randomness: the same key gives the same draw, and `split` or `fold_in`
make new ones. `compile` never changes a result, only its cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

Array = Any
Key = Any
Tree = Any


class Site(NamedTuple):
    """One site of a trace.

    Attributes:
        value: the site's value; [*particles, *plates, *event].
        log_prob: its log density, nats, not scaled: [*particles, batch] for a local site (one
            inside the data plate; inner plates are summed), [*particles] for a global one; None
            for a deterministic site.
        is_local: stands inside the data plate.
        fn: the backend's own distribution, for `kl_divergence` and `support`; None for a
            deterministic site or a factor.
        kind: "sample", "factor" or "deterministic".
    """

    value: Array
    log_prob: Array | None
    is_local: bool
    fn: Any
    kind: str


class Optimizer(NamedTuple):
    """init(params) -> state;  update(grads, state, params) -> (params, state).

    The state holds `count` (steps taken) and `step_scale` (a factor on the step size, lowered by
    the non-finite guard). `update` may overwrite `state` and `params`: use only what it returns.
    """

    init: Callable[[Tree], Tree]
    update: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]


class Backend(Protocol):
    """One framework behind the words that algorithms use."""

    name: str
    device: str
    ops: Any

    # arrays
    def asarray(self, x: Any, dtype: str | None = None) -> Array: ...
    def to_numpy(self, x: Array) -> Any: ...
    def copy(self, tree: Tree) -> Tree: ...

    # randomness
    def key(self, seed: int) -> Key: ...
    def split(self, key: Key, num: int = 2) -> Any: ...
    def fold_in(self, key: Key, data: int) -> Key: ...
    def normal(self, key: Key, shape: tuple[int, ...]) -> Array: ...
    def uniform(self, key: Key, shape: tuple[int, ...]) -> Array: ...
    def randint(self, key: Key, shape: tuple[int, ...], low: int, high: int) -> Array: ...

    # calculus and loops
    def value_and_grad(self, fn: Callable, has_aux: bool = False) -> Callable: ...
    def grad(self, fn: Callable) -> Callable: ...
    def vmap(self, fn: Callable, in_axes: Any = 0) -> Callable: ...
    def compile(self, fn: Callable, num_calls: int | None = None) -> Callable: ...
    def scan(self, step: Callable, carry: Tree, xs: Tree, length: int | None = None) -> Any: ...
    def loop(self, fn: Callable) -> Callable: ...
    def run_steps(self, update: Callable) -> Callable: ...

    # programs
    def trace(
        self,
        program: Callable,
        params: Mapping,
        *,
        values: Mapping[str, Array] = ...,
        inputs: Mapping[str, Any] = ...,
        key: Key | None = None,
        batch_size: int | None = None,
        particles: tuple[int, int] | None = None,
        noise: Mapping[str, Array] | None = None,
    ) -> dict[str, Site]: ...
    def probe(self, program: Callable, params: dict, **options: Any) -> Any: ...
    def kl_divergence(self, q: Any, p: Any) -> Array | None: ...

    # native samplers
    def unconstrained(self, program: Callable, params: Mapping, **options: Any) -> Any: ...
    def has_moving_support(self, fn: Any) -> bool: ...
    def map_leading(self, fn: Callable, num_calls: int | None = None) -> Callable: ...
    def fingerprint(self, fn: Callable, *args: Any) -> Any: ...
    def kept(self, token: Any, make: Callable[[], Any]) -> Any: ...
    def hmc(self, posterior: Any, method: Any, *args: Any) -> Any: ...

    # optimisers
    def optimizer(self, declaration: Any) -> Optimizer: ...
    def versions(self) -> dict[str, str]: ...
