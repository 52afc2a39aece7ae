"""The torch backend: Pyro on PyTorch behind `probgen.backends.protocol.Backend`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import pyro
import torch

from probgen.backends import keys
from probgen.backends.lowering import held_integers
from probgen.backends.own_device import own
from probgen.backends.protocol import Loop, Optimizer, Site
from probgen.backends.questions import DistributionQuestions
from probgen.backends.torch import (
    distributions,
    loops,
    mcmc,
    optimizers,
    processes,
    random,
    real_line,
    rows,
)
from probgen.backends.torch import ops as torch_ops
from probgen.backends.torch.calculus import value_and_grad
from probgen.backends.torch.compile import Compiled, Seen
from probgen.backends.torch.distributions import like_multivariate
from probgen.backends.torch.graph import cond
from probgen.backends.torch.lowering import (
    Lowering,
    probe_program,
    read_arguments,
    run_program,
)
from probgen.backends.torch.split import Split, World, spread
from probgen.backends.torch.steps import count_of, stack, steps, take
from probgen.backends.turns import pyro_turn
from probgen.errors import BackendError, NotByRow
from probgen.language import optim
from probgen.progress import log
from probgen.trees import tree_leaves, tree_like, tree_map

_COMPILE = ("auto", "inductor", "graph", "live")


def has_cuda() -> bool:
    """Whether torch sees a CUDA device."""
    return torch.cuda.is_available()


class TorchBackend(DistributionQuestions):
    """Pyro on PyTorch.

    Args:
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1"...
        compile: how hot functions run: "inductor", "graph", "live", or "auto" by the number of
            calls that an algorithm expects. `info()` says what was used.
    """

    name = "torch"
    laws = distributions
    hmc_engines: tuple[str, ...] = ("probgen", "pyro")
    ops = torch_ops

    def __init__(self, device: str = "auto", compile: str = "auto"):
        if compile not in _COMPILE:
            raise BackendError(f"compile: got {compile!r}, expected one of {', '.join(_COMPILE)}.")
        self.policy = compile
        self.device = self._device(device)
        self._seen = Seen()
        self._world, self._is_cut = World(0, 1, "", 0), False

    @staticmethod
    def _device(device: str) -> str:
        if device == "auto":
            return f"cuda:{own.get() or 0}" if has_cuda() else "cpu"
        try:
            found = torch.device(device)
        except RuntimeError as error:
            raise BackendError(f"device: got {device!r}, expected 'cpu' or 'cuda:0'.") from error
        if found.type == "cuda":
            count = torch.cuda.device_count() if has_cuda() else 0
            if (found.index or 0) >= count:
                raise BackendError(
                    f"device {device!r} is not there: torch sees {count} CUDA devices; use "
                    "device='cpu', or install a torch build for your GPU."
                )
            return f"cuda:{(found.index or 0) if own.get() is None else own.get()}"
        if found.type != "cpu":
            raise BackendError(f"device {device!r}: expected 'cpu' or 'cuda:N'.")
        return "cpu"

    def __identity__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple:
        return TorchBackend, (self.device, self.policy)

    def __repr__(self) -> str:
        return f"TorchBackend(device={self.device!r}, compile={self.policy!r})"

    # ---- more than one device

    def over(
        self, devices: int | str, num_rows: int, shard_parameters: bool = False
    ) -> TorchBackend:
        out = copy.copy(self)
        out._is_cut = shard_parameters
        out._world, out.device = processes.world_of(self.device, devices, num_rows)
        return out

    @property
    def num_devices(self) -> int:
        return self._world.size

    @property
    def num_processes(self) -> int:
        return self._world.size

    @property
    def process(self) -> int:
        return self._world.rank

    @property
    def num_local_devices(self) -> int:
        return torch.cuda.device_count() if self.device.startswith("cuda") else 1

    def spread(self, tree: Any) -> Any:
        leaves = tree_leaves(tree)
        return spread(tree, num_rows=leaves[0].shape[0]) if leaves else tree

    def share(self, data: bytes) -> bytes:
        return processes.share(self._world, self.device, data)

    def gather(self, numbers: np.ndarray) -> np.ndarray:
        return processes.gather(self._world, self.device, numbers)

    def is_lost(self, error: Exception) -> bool:
        return processes.is_lost(error)

    # ---- arrays

    def asarray(self, x: Any, dtype: str | None = None) -> torch.Tensor:
        if isinstance(x, torch.Tensor):
            out = x.to(self.device)
        else:
            array = np.array(x, order="C")
            if array.dtype in (np.uint32, np.uint64):  # torch has no arithmetic of these
                array = held_integers(array, np.int64, "torch")
            out = torch.from_numpy(array).to(self.device)
        if dtype is not None:
            return out.to(getattr(torch, dtype))
        is_float = out.dtype in (torch.float32, torch.float64)
        return out.to(torch.get_default_dtype()) if is_float else out

    def to_numpy(self, x: Any) -> np.ndarray:
        if isinstance(x, Split):
            x = x.whole()
        return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)

    def copy(self, tree: Any) -> Any:
        return tree_map(lambda x: x.detach().clone() if isinstance(x, torch.Tensor) else x, tree)

    def tree_map(self, fn: Callable, tree: Any, *rest: Any) -> Any:
        return tree_map(fn, tree, *rest)

    def lerp(self, a: Any, b: Any, weight: float) -> Any:
        """a + weight (b - a), leaf by leaf."""
        leaves = torch._foreach_lerp(tree_leaves(a), tree_leaves(b), weight)
        return tree_like(a, list(leaves))

    # ---- randomness

    def key(self, seed: int) -> keys.Key:
        return keys.Key(keys.mix(0, int(seed)))

    def split(self, key: keys.Key, num: int = 2) -> list[keys.Key]:
        return [keys.fold_in(key, i) for i in range(num)]

    def fold_in(self, key: keys.Key, data: int) -> keys.Key:
        return keys.fold_in(key, int(data))

    def row_keys(self, key: keys.Key, ids: Any) -> keys.Key:
        return keys.rows(key, ids)

    def minimise_rows(
        self, declaration: optim.OptimizerDeclaration, loss: Callable, *, init: Callable,
        finish: Callable, num_steps: int, keep_at: int, rows_at_once: int, num_rows: int,
    ) -> Callable:  # fmt: skip
        return rows.minimise_rows(
            self, declaration, loss, init, finish, num_steps, keep_at, rows_at_once, num_rows
        )

    def rows_at_once(self, num_parameters: int) -> int:
        return rows.rows_at_once(self.device, num_parameters)

    def normal(self, key: keys.Key, shape: tuple[int, ...]) -> torch.Tensor:
        return spread(random.noise("normal", key, shape, self.device))

    def uniform(self, key: keys.Key, shape: tuple[int, ...]) -> torch.Tensor:
        return spread(random.noise("uniform", key, shape, self.device))

    def randint(self, key: keys.Key, shape: tuple[int, ...], low: int, high: int) -> torch.Tensor:
        return spread(random.noise("randint", key, shape, self.device, low, high))

    # ---- calculus

    def value_and_grad(self, fn: Callable, has_aux: bool = False) -> Callable:
        return value_and_grad(fn, has_aux)

    def grad(self, fn: Callable) -> Callable:
        both = self.value_and_grad(fn)
        return lambda params, *args: both(params, *args)[1]

    def vmap(self, fn: Callable, in_axes: Any = 0) -> Callable:
        return torch.func.vmap(fn, in_dims=in_axes, randomness="different")

    def total(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sum(x)

    def compile(
        self, fn: Callable, num_calls: int | None = None, *,
        over: Literal["rows", "leading", "steps"] | None = None, token: Any = None,
    ) -> Callable:  # fmt: skip
        """A graph for each set of shapes where that pays; see `torch.compile`."""
        if over == "rows":
            return self._by_row(fn, num_calls)
        if over == "leading":
            return self._over_leading(fn, num_calls)
        if over == "steps":
            return fn  # its loop is Python's here, and its steps are compiled by themselves
        return self._compiled(fn, num_calls)

    def _compiled(self, fn: Callable, num_calls: int | None) -> Compiled:
        return Compiled(fn, self.device, self.policy, num_calls, self._seen)

    def _by_row(self, fn: Callable, num_calls: int | None) -> Callable:
        """`fn(params, batch, row_keys)`; one datum at a time where it must be."""
        whole, one = self._compiled(fn, num_calls), self._compiled(fn, num_calls)

        def run(params: Any, batch: Any, key: keys.Key) -> Any:
            with torch.no_grad():
                try:
                    return whole(params, batch, key)
                except NotByRow as error:
                    log.info("torch: data one by one (%s)", error)
                one.times = len(key.seed)  # type: ignore[arg-type]
                rows = [
                    one(params, tree_map(lambda x, i=i: x[i : i + 1], batch), keys.row(key, i))
                    for i in range(one.times)
                ]
                return tree_map(lambda *a: torch.cat(a), *rows)

        return run

    def _over_leading(self, fn: Callable, num_calls: int | None) -> Callable:
        """`fn(tree, *rest)` over the leading axis of `tree`; one by one where vmap cannot."""
        one = self._compiled(fn, num_calls)
        batched = self._compiled(
            lambda tree, *rest: torch.func.vmap(lambda item: fn(item, *rest))(tree), num_calls
        )

        def run(tree: Any, *rest: Any) -> Any:
            with torch.no_grad():
                try:
                    return batched(tree, *rest)
                except (RuntimeError, NotImplementedError) as error:
                    log.info("torch: vmap cannot batch this function (%s); one by one", error)
                one.times = count_of(tree)
                return stack([one(take(tree, i), *rest) for i in range(one.times)])

        return run

    # ---- loops

    def scan(self, step: Callable, carry: Any, xs: Any = None, length: int | None = None) -> Any:
        """`jax.lax.scan` as a Python loop: (carry, x) -> (carry, y); the ys are stacked."""
        count = count_of(xs) if xs is not None else length or 0
        ys = []
        for i in range(count):
            carry, y = step(carry, None if xs is None else take(xs, i))
            ys.append(y)
        return carry, stack(ys)

    def each(self, fn: Callable) -> Callable:
        def run(x: Any, *rest: Any) -> Any:
            try:
                return torch.func.vmap(lambda item: fn(item, *rest))(x)
            except (RuntimeError, NotImplementedError) as error:
                log.info("torch: vmap cannot batch this function (%s); one by one", error)
            return stack([fn(take(x, i), *rest) for i in range(count_of(x))])

        return run

    def loop(self, step: Callable, num_calls: int | None = None, token: Any = None) -> Loop:
        return loops.loop(self._compiled, step, num_calls)

    cond = staticmethod(cond)

    def run_steps(self, update: Callable) -> Callable:
        """Runs `update(state, batch, key)` for a chunk of steps; see `probgen.engine.loop`."""

        return steps(update, self._world, self.device, self._is_cut)

    # ---- programs

    def trace(
        self,
        program: Callable,
        params: Mapping,
        *,
        values: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        key: keys.Key | None = None,
        batch_size: int | None = None,
        particles: tuple[int, int] | None = None,
        noise: Mapping[str, Any] | None = None,
    ) -> dict[str, Site]:
        lower = Lowering(self.device, values or {}, key, noise)
        return run_program(program, dict(params), lower, inputs or {}, batch_size, particles)[1]

    def probe(
        self,
        program: Callable,
        params: dict,
        *,
        values: Mapping[str, Any],
        inputs: Mapping[str, Any],
        key: keys.Key,
        batch_size: int | None,
        initialise: Callable | None,
    ) -> Any:
        """One run for its structure; nets without parameters are initialised. (run, sites)."""
        make = None if initialise is None else lambda *a: tree_map(self.asarray, initialise(*a))
        lower = Lowering(self.device, values, key, None)
        return probe_program(program, params, lower, inputs, batch_size, make)

    def arguments(self, program: Callable, params: Mapping, **options: Any) -> Any:
        """One run: (declarations by site, what reads an argument of theirs as numpy, values)."""
        return read_arguments(self.device, program, params, **options)

    def kl_divergence(self, q: Any, p: Any) -> torch.Tensor | None:
        """KL(q || p) where torch has the closed form, [*batch]; None where it has not."""
        closed = self.gaussian_kl(q, p)
        if closed is not None:
            return closed
        try:
            with pyro_turn, pyro.validation_enabled(False):
                return torch.distributions.kl_divergence(q, like_multivariate(p, q))
        except NotImplementedError:
            return None

    def log_prob(self, fn: Any, value: Any) -> torch.Tensor:
        """[*batch] log density of a value, nats; nothing is validated."""
        with pyro_turn, pyro.validation_enabled(False):
            return fn.log_prob(value)

    def event_units(self, fn: Any) -> tuple[Any, int]:
        """The distribution with its last event axis back in the batch, and how many were taken."""
        if isinstance(fn, torch.distributions.Independent):
            inner = fn.base_dist
            left = fn.reinterpreted_batch_ndims - 1
            return (inner.to_event(left) if left else inner), 1
        return fn, 0

    # ---- native samplers

    def unconstrained(self, program: Callable, params: Mapping, **options: Any) -> Any:
        """Runs a program with its latents on the real line; see `real_line.unconstrained`."""
        return real_line.unconstrained(self.device, program, params, **options)

    def fingerprint(self, fn: Callable, *args: Any) -> Any:
        """None: graphs are known by the content of what they were traced from; see `compile`."""
        return None

    def hmc(
        self, posterior: Any, method: Any, params: Any, rows: Any, given: Any, key: Any,
        token: Any, shown: Callable, pieces: Any,
    ) -> Any:  # fmt: skip
        """Pyro's NUTS or HMC over the compiled potential, chain after chain."""
        return mcmc.run(posterior, method, params, rows, given, key, shown, pieces)

    # ---- optimisers and reports

    def optimizer(self, declaration: optim.OptimizerDeclaration) -> Optimizer:
        return optimizers.optimizer(declaration, self.device)

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__, "pyro": pyro.__version__}

    def info(self) -> dict[str, Any]:
        """What ran: device, versions and the routes of compiled functions."""
        return {
            "device": self.device, **self.versions(), "routes": sorted(self._seen.routes),
            "fallbacks": list(self._seen.reasons), "sums": "torch",
        }  # fmt: skip
