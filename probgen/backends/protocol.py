"""What an algorithm may ask of a backend. Algorithms are written once against this page.

Arrays are the backend's own; trees are nested dicts, tuples, lists and NamedTuples of them. A `key`
is a value that stands for randomness: the same key gives the same draw, and `split` or `fold_in`
make new ones. `compile` never changes a result, only its cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

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
    log_prob: Array
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


class Loop(NamedTuple):
    """run(carry, xs, *args) -> (carry, ys), best for so many steps at a time; fewer cost less only
    where it is `elastic`, and not a further compilation."""

    run: Callable
    steps: int
    elastic: bool = False


class Backend(Protocol):
    """One framework behind the words that algorithms use."""

    name: str
    device: str

    @property
    def ops(self) -> Any:
        """The array functions of `probgen.ops` for this framework."""

    # ---- more than one device

    @property
    def num_devices(self) -> int:
        """Over how many devices a batch is spread."""

    @property
    def num_processes(self) -> int:
        """In how many processes."""

    @property
    def process(self) -> int:
        """Which of them this is; 0, the first one, writes files."""

    def over(self, devices: int | str, num_rows: int, shard_parameters: bool = False) -> Backend:
        """The same backend over so many devices, "all" that there are, for batches of `num_rows`.

        Algorithms see the whole batch on it: shapes, keys and numbers are those of one device, up
        to the order of sums. Every process makes the same calls.

        Raises:
            BackendError: there are not so many, or the processes are not that many.
        """

    def spread(self, tree: Tree) -> Tree:
        """A tree with one row a datum of the batch, its rows on the devices that they belong to:
        what that saves is time."""

    @property
    def num_local_devices(self) -> int:
        """How many devices of its kind this process has."""

    def share(self, data: bytes) -> bytes:
        """What the first process gives, in all of them."""

    def gather(self, numbers: Any) -> Any:
        """[processes, ...] int32 what each process gives, all of one shape."""

    def is_lost(self, error: Exception) -> bool:
        """Whether an error says that another process does not answer, as one that was killed."""

    # ---- arrays and trees

    def asarray(self, x: Any, dtype: str | None = None) -> Array:
        """On this device; float32 and float64 become the framework's own default (float32, unless
        its user set torch's default dtype or JAX's x64 mode), unless a dtype is named."""

    def to_numpy(self, x: Array) -> Any:
        """As a numpy array."""

    def copy(self, tree: Tree) -> Tree:
        """A tree that in-place updates of the first one do not change."""

    def tree_map(self, fn: Callable, tree: Tree, *rest: Tree) -> Tree:
        """`fn` over corresponding leaves."""

    def lerp(self, a: Tree, b: Tree, weight: float) -> Tree:
        """a + weight (b - a), leaf by leaf."""

    # ---- randomness: a key is a value, used once

    def key(self, seed: int) -> Key:
        """The key of a seed."""

    def split(self, key: Key, num: int = 2) -> Any:
        """`num` new keys, to be indexed or given to `scan`."""

    def fold_in(self, key: Key, data: int) -> Key:
        """A new key from a key and a number."""

    def row_keys(self, key: Key, ids: Any) -> Key:
        """One key for each datum, fold_in(key, id): its draws do not depend on its neighbours.

        `split` and `fold_in` work row by row; a draw's leading axis must be the data's; `keys[i]`
        is the key of the i-th datum.
        """

    def minimise_rows(
        self, declaration: Any, loss: Callable, *, init: Callable, finish: Callable,
        num_steps: int, keep_at: int, rows_at_once: int, num_rows: int,
    ) -> Callable:  # fmt: skip
        """One optimisation for each datum: `(shared, xs, row_keys) -> out`, stacked over the data.

        For each datum x (no batch axis) with its key: params = init(shared, x); `num_steps`
        updates by the gradient of loss(params, shared, x, key_t), key_t = fold_in(key, t); then
        finish(params, kept, shared, x, key), `kept` the parameters after `keep_at` updates. The
        numbers do not depend on `rows_at_once`, how many are optimised side by side; `num_rows`
        says how many there will be in all.
        """

    def rows_at_once(self, num_parameters: int) -> int:
        """How many copies of so many parameters are best optimised side by side on this device."""

    def normal(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Standard normal draws; with row keys shape[0] is the number of data."""

    def uniform(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Draws on [0, 1)."""

    def randint(self, key: Key, shape: tuple[int, ...], low: int, high: int) -> Array:
        """Integers in low ... high - 1."""

    # ---- calculus and loops

    def value_and_grad(self, fn: Callable, has_aux: bool = False) -> Callable:
        """(tree, *args) -> (value, gradient tree); ((value, aux), gradient) with aux."""

    def grad(self, fn: Callable) -> Callable:
        """(tree, *args) -> gradient tree."""

    def vmap(self, fn: Callable, in_axes: Any = 0) -> Callable:
        """`fn` over a further leading axis."""

    def total(self, x: Array) -> Array:
        """The sum of all of a float array, such as a site's log densities at many data, mapped over
        chains: by what is fastest there."""

    def compile(
        self, fn: Callable, num_calls: int | None = None, *,
        over: Literal["rows", "leading", "steps"] | None = None, token: Any = None,
    ) -> Callable:  # fmt: skip
        """The same pure function, faster when called often; `num_calls` says how often.

        What was compiled is kept, and found again by whoever compiles the same for the same shapes.

        Args:
            over: "rows": `fn(params, batch, row_keys)`, whose outputs' leading axis is the data's;
                where a draw is no function of noise (`NotByRow`) the data are taken one by one,
                each with its own key, so that the numbers do not depend on how the data are cut.
                "leading": `fn(tree, *rest)` over the leading axis of `tree`.
                "steps": `fn` holds a `scan`, and is compiled whole where the framework can; else
                it runs as it is, and its steps are what is compiled.
            token: what `fn` is, where the caller knows (see `fingerprint`).
        """

    def scan(
        self, step: Callable, carry: Tree, xs: Tree = None, length: int | None = None
    ) -> tuple[Tree, Tree]:
        """(carry, x) -> (carry, y) over the leading axis of xs; the ys are stacked."""

    def each(self, fn: Callable) -> Callable:
        """`fn(x, *rest)` at each x along a leading axis: side by side where that can be, else one
        after another."""

    def loop(self, step: Callable, num_calls: int | None = None, token: Any = None) -> Loop:
        """`scan` of step(carry, x, *args), compiled, for steps so small that the way to them costs
        more than they do; `num_calls` says how many. The carry given is not to be used again."""

    def cond(self, pred: Array, if_true: Callable, if_false: Callable, *args: Any) -> Tree:
        """if_true(*args) where the scalar `pred` holds, else if_false(*args), of one form.

        Only that one is computed, but for torch inside a compiled function or a `vmap`, and JAX
        inside a `vmap`: there both are, and a derivative that is not finite in either poisons both.
        """

    def run_steps(self, update: Callable) -> Callable:
        """(state, batches, indices | None, key, start) -> (state, metrics [steps, ...] in numpy).

        With `indices` [steps, batch] the batches are rows of resident arrays, else the arrays'
        leading axis is the steps'. Step i gets the key fold_in(key, start + i).
        """

    # ---- programs

    def trace(
        self,
        program: Callable,
        params: Mapping,
        *,
        values: Mapping[str, Array] | None = None,
        inputs: Mapping[str, Any] | None = None,
        key: Key | None = None,
        batch_size: int | None = None,
        particles: tuple[int, int] | None = None,
        noise: Mapping[str, Array] | None = None,
    ) -> dict[str, Site]:
        """Runs a program: sites have the given values or noise, or are drawn from the key."""

    def probe(
        self,
        program: Callable,
        params: dict,
        *,
        values: Mapping[str, Any],
        inputs: Mapping[str, Any],
        key: Key,
        batch_size: int | None,
        initialise: Callable | None,
    ) -> Any:
        """One run for its structure, (run, sites); nets without parameters get some."""

    def arguments(
        self,
        program: Callable,
        params: Mapping,
        *,
        values: Mapping[str, Any],
        inputs: Mapping[str, Any],
        key: Key,
        batch_size: int | None,
    ) -> tuple[dict[str, Any], Callable[[Any], Any], dict[str, Array]]:
        """One run: (declarations by site, what reads an argument of theirs as numpy, values)."""

    # ---- distributions, as they stand in `Site.fn`

    def log_prob(self, fn: Any, value: Array) -> Array:
        """[*batch] log density, nats."""

    def mean(self, fn: Any) -> Array:
        """[*batch, *event] expectation."""

    def kl_divergence(self, q: Any, p: Any) -> Array | None:
        """KL(q || p) in closed form, [*batch]; None where there is none."""

    def gaussian(self, fn: Any) -> tuple[Array, Array] | None:
        """(loc, scale), [*batch, *event], of independent Gaussians; None for anything else."""

    def event_units(self, fn: Any) -> tuple[Any, int]:
        """(the distribution with its last event axis in the batch, 1), or (itself, 0)."""

    def in_support(self, fn: Any, value: Array) -> Array | None:
        """[*batch] whether the value lies in the support; None when it cannot be told."""

    def edges(self, fn: Any) -> tuple[float, ...]:
        """Values where the density may be infinite or zero, as the arguments have it."""

    def support_name(self, fn: Any) -> str:
        """The support in words."""

    def is_discrete(self, fn: Any) -> bool:
        """Whether its values are."""

    def is_reparametrised(self, fn: Any) -> bool:
        """Whether a draw carries the gradient of its parameters."""

    def noise_shape(self, fn: Any) -> tuple[int, ...] | None:
        """Shape of the normal noise that one event is a function of; None where it is not one."""

    def has_moving_support(self, fn: Any) -> bool:
        """Whether the support's bounds are computed in this run, perhaps from latents."""

    # ---- native samplers

    hmc_engines: tuple[str, ...]  # who runs NUTS and HMC of `infer`, the default first

    def unconstrained(self, program: Callable, params: Mapping, **options: Any) -> Any:
        """Runs a program with its latents on the real line; see the backends' `mcmc` files."""

    def hmc(
        self, posterior: Any, method: Any, params: Any, rows: Any, given: Any, key: Any,
        token: Any, shown: Callable, pieces: Any,
    ) -> Any:  # fmt: skip
        """The library's NUTS or HMC, the reference of ours."""

    def fingerprint(self, fn: Callable, *args: Any) -> Any:
        """A token of what `fn` computes at these shapes, for `compile`; None where none helps."""

    # ---- optimisers and reports

    def optimizer(self, declaration: Any) -> Optimizer:
        """A declaration of `probgen.optim` as pure functions."""

    def versions(self) -> dict[str, str]:
        """Versions of the framework and its probabilistic language."""

    def info(self) -> dict[str, Any]:
        """What ran: device, versions, `routes` of compiled functions, `fallbacks`, and `sums`: who
        adds up, with a word where that cannot be trusted (JAX on a CPU, see `xla_flags`)."""
