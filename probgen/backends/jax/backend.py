"""The JAX backend: NumPyro on JAX behind `probgen.backends.protocol.Backend`."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist

from probgen.backends.jax import distributions, draws, mcmc, probe, real_line, rows
from probgen.backends.jax import ops as jax_ops
from probgen.backends.jax.compile import Compiled, fingerprint
from probgen.backends.jax.devices import OneDevice, is_lost, mesh_of, placing
from probgen.backends.jax.distributions import like_multivariate, unexpanded
from probgen.backends.jax.loops import AT_ONCE, each, looped
from probgen.backends.jax.lowering import Lowering, probe_program, read_arguments, run_program
from probgen.backends.jax.optimizers import optimizer
from probgen.backends.jax.sums import total
from probgen.backends.lowering import held_integers
from probgen.backends.own_device import own
from probgen.backends.protocol import Loop, Optimizer, Site
from probgen.backends.questions import DistributionQuestions
from probgen.errors import BackendError, NotByRow
from probgen.language import optim
from probgen.trees import tree_leaves, tree_map

ROOM = 200  # steps; `engine.loop` asks for no more at once


class JaxBackend(DistributionQuestions):
    """NumPyro on JAX. Whole chunks of steps are one jitted `lax.scan`.

    Args:
        device: "auto" (JAX's default), "cpu", "cuda" or "gpu", "cuda:1"...
    """

    name = "jax"
    laws = distributions
    hmc_engines: tuple[str, ...] = ("numpyro", "probgen")
    ops, total = jax_ops, staticmethod(total)

    def __init__(self, device: str = "auto"):
        self._device = self._find(device)
        platform = "cuda" if self._device.platform == "gpu" else self._device.platform
        self.device = platform if platform == "cpu" else f"{platform}:{self._device.id}"
        self._places = OneDevice(self._device)
        if platform == "cpu":
            probe.warn_of_unsafe_sums()

    @staticmethod
    def _find(device: str) -> Any:
        mine = own.get()
        if device == "auto":
            return jax.local_devices()[mine or 0]
        platform, _, index = device.partition(":")
        platform = {"gpu": "cuda"}.get(platform, platform)
        try:
            devices = jax.local_devices(backend=platform)
            return devices[int(index or 0) if mine is None else mine]
        except (RuntimeError, IndexError, ValueError) as error:
            raise BackendError(
                f"device {device!r} is not there: jax sees {[str(d) for d in jax.devices()]}; use "
                "device='cpu', or install jax with support for your GPU."
            ) from error

    def __identity__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple:
        return JaxBackend, (self.device,)

    def __repr__(self) -> str:
        return f"JaxBackend(device={self.device!r})"

    # ---- more than one device

    def over(self, devices: int | str, num_rows: int, shard_parameters: bool = False) -> JaxBackend:
        out = copy.copy(self)
        out._places = mesh_of(self._device, devices, num_rows, shard_parameters)
        return out

    @property
    def num_devices(self) -> int:
        return self._places.num_devices

    @property
    def num_processes(self) -> int:
        return self._places.num_processes

    @property
    def process(self) -> int:
        return self._places.process

    @property
    def num_local_devices(self) -> int:
        return len(jax.local_devices(backend=self._device.platform))

    def spread(self, tree: Any) -> Any:
        leaves = tree_leaves(tree)
        return self._places.spread(tree, num_rows=leaves[0].shape[0]) if leaves else tree

    def share(self, data: bytes) -> bytes:
        return self._places.share(data)

    def gather(self, numbers: np.ndarray) -> np.ndarray:
        return self._places.gather(numbers)

    def is_lost(self, error: Exception) -> bool:
        return is_lost(error)

    # ---- arrays

    def asarray(self, x: Any, dtype: str | None = None) -> jax.Array:
        out = np.asarray(x) if not isinstance(x, jax.Array) else x
        if dtype is not None:
            out = out.astype(dtype)
        elif out.dtype in (np.float32, np.float64):
            out = out.astype(jax.dtypes.canonicalize_dtype(np.float64))
        elif out.dtype in (np.int64, np.uint64):
            is_host = isinstance(out, np.ndarray)
            out = held_integers(out, np.int32, "JAX") if is_host else out.astype(np.int32)
        if isinstance(out, jax.core.Tracer):
            return out
        return self._places.put(out)

    def to_numpy(self, x: Any) -> np.ndarray:
        return self._places.read(x)

    def copy(self, tree: Any) -> Any:
        return tree  # arrays are immutable and no buffer is donated

    def tree_map(self, fn: Callable, tree: Any, *rest: Any) -> Any:
        return tree_map(fn, tree, *rest)

    def lerp(self, a: Any, b: Any, weight: float) -> Any:
        """a + weight (b - a), leaf by leaf."""
        return tree_map(lambda x, y: x + weight * (y - x), a, b)

    # ---- randomness

    def key(self, seed: int) -> Any:
        return self._places.key(int(seed) & 0xFFFFFFFF)

    def split(self, key: Any, num: int = 2) -> Any:
        if key.ndim:
            return jax.vmap(lambda k: jax.random.split(k, num), out_axes=1)(key)
        return jax.random.split(key, num)

    def fold_in(self, key: Any, data: Any) -> Any:
        return draws.fold_in(key, data)

    def row_keys(self, key: Any, ids: Any) -> Any:
        return draws.row_keys(key, jnp.asarray(ids, jnp.uint32))

    def minimise_rows(
        self, declaration: optim.OptimizerDeclaration, loss: Callable, *, init: Callable,
        finish: Callable, num_steps: int, keep_at: int, rows_at_once: int, num_rows: int,
    ) -> Callable:  # fmt: skip
        run = self.compile(rows.minimise_rows(declaration, loss, init, finish, rows_at_once))
        ends = np.array([keep_at, num_steps], np.int32)
        return lambda shared, xs, keys: run(shared, xs, keys, ends)

    def rows_at_once(self, num_parameters: int) -> int:
        return rows.rows_at_once(self._device.platform, num_parameters)

    def normal(self, key: Any, shape: tuple[int, ...]) -> jax.Array:
        return draws.draw(jax.random.normal, key, shape)

    def uniform(self, key: Any, shape: tuple[int, ...]) -> jax.Array:
        return draws.draw(jax.random.uniform, key, shape)

    def randint(self, key: Any, shape: tuple[int, ...], low: int, high: int) -> jax.Array:
        return draws.draw(lambda k, s: jax.random.randint(k, s, low, high), key, shape)

    # ---- calculus

    def value_and_grad(self, fn: Callable, has_aux: bool = False) -> Callable:
        return jax.value_and_grad(fn, has_aux=has_aux)

    def grad(self, fn: Callable) -> Callable:
        return jax.grad(fn)

    def vmap(self, fn: Callable, in_axes: Any = 0) -> Callable:
        return jax.vmap(fn, in_axes=in_axes)

    def compile(
        self, fn: Callable, num_calls: int | None = None, *,
        over: Literal["rows", "leading", "steps"] | None = None, token: Any = None,
    ) -> Compiled:  # fmt: skip
        """Jitted, and kept for whoever computes the same; see `jax.compile`."""
        if over == "rows":
            fn = _by_row(fn)
        elif over == "leading":
            fn = _over_leading(fn)
        return Compiled(fn, self.device + self._places.mark, token)

    # ---- loops

    def scan(self, step: Callable, carry: Any, xs: Any = None, length: int | None = None) -> Any:
        return jax.lax.scan(step, carry, xs, length=length)

    each = staticmethod(each)

    def loop(self, step: Callable, num_calls: int | None = None, token: Any = None) -> Loop:
        return Loop(Compiled(looped(step), self.device, token), AT_ONCE)

    cond = staticmethod(jax.lax.cond)

    def run_steps(self, update: Callable) -> Callable:
        """A chunk of `update(state, batch, key)` as one jitted loop; see `probgen.engine.loop`.

        The number of steps is an argument, not a shape: one compilation serves chunks of every
        length, and runs of every length (`room_for`), and how a run is cut into chunks cannot
        change its numbers.
        """

        places = self._places

        def whole(state: Any, batches: Any, indices: Any, key: Any, start: Any, count: Any) -> Any:
            items = batches if indices is None else indices

            @functools.partial(jax.jit, inline=True)  # traced once, for its form and for the loop
            def step(i: Any, state: Any) -> Any:
                item = jax.tree.map(lambda x: x[i], items)
                batch = item if indices is None else {k: v[item] for k, v in batches.items()}
                key_i = jax.random.fold_in(key, start + i)
                state, metrics = update(state, places.spread(batch), key_i)
                return places.kept(state), places.everywhere(metrics)

            room = jax.tree.leaves(items)[0].shape[0]
            form = jax.eval_shape(step, jnp.int32(0), state)[1]
            empty = jax.tree.map(lambda m: jnp.zeros((room, *m.shape), m.dtype), form)

            def body(i: Any, carry: Any) -> Any:
                state, kept = carry
                state, metrics = step(i, state)
                return state, jax.tree.map(lambda k, m: k.at[i].set(m), kept, metrics)

            return jax.lax.fori_loop(jnp.int32(0), count, body, (state, empty))

        chunk, longest, placed = self.compile(whole), 0, None

        def run(state: Any, batches: Any, indices: Any, key: Any, start: int) -> Any:
            nonlocal longest, placed
            items = batches if indices is None else indices
            count = len(jax.tree.leaves(items)[0])
            longest = max(longest, count if indices is None else room_for(indices))
            if indices is not None:
                indices = self.asarray(np.pad(indices, ((0, longest - count), (0, 0))))
            elif count < longest:
                batches = {
                    k: jnp.pad(v, [(0, longest - count)] + [(0, 0)] * (v.ndim - 1))
                    for k, v in batches.items()
                }
            # Arrays that were never placed would compile a second time when they come back placed.
            if state is not placed:  # as what a chunk gave is
                state = places.put(state)
            token = placing.set(places)
            try:
                at = np.int32(start), np.int32(count)
                placed, metrics = chunk(state, batches, indices, key, *at)
            finally:
                placing.reset(token)
            return placed, tree_map(lambda m: np.asarray(m)[:count], metrics)

        return run

    # ---- programs

    def trace(
        self,
        program: Callable,
        params: Mapping,
        *,
        values: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        key: Any = None,
        batch_size: int | None = None,
        particles: tuple[int, int] | None = None,
        noise: Mapping[str, Any] | None = None,
    ) -> dict[str, Site]:
        lower = Lowering(values or {}, key, noise)
        return run_program(program, dict(params), lower, inputs or {}, batch_size, particles)[1]

    def probe(
        self,
        program: Callable,
        params: dict,
        *,
        values: Mapping[str, Any],
        inputs: Mapping[str, Any],
        key: Any,
        batch_size: int | None,
        initialise: Callable | None,
    ) -> Any:
        """One abstract run for its structure; nets without parameters are initialised.

        (run, sites): values are shapes and dtypes; nothing is computed or compiled.
        """
        make = None if initialise is None else lambda *a: tree_map(self.asarray, initialise(*a))
        return probe_program(program, params, values, inputs, key, batch_size, make)

    def arguments(self, program: Callable, params: Mapping, **options: Any) -> Any:
        """One run: (declarations by site, what reads an argument of theirs as numpy, values)."""
        return read_arguments(program, params, **options)

    def kl_divergence(self, q: Any, p: Any) -> jax.Array | None:
        """KL(q || p) where NumPyro has the closed form, [*batch]; None where it has not."""
        closed = self.gaussian_kl(q, p)
        if closed is not None:
            return closed
        try:
            q = unexpanded(q)
            return numpyro_dist.kl_divergence(q, like_multivariate(unexpanded(p), q))
        except NotImplementedError:
            return None

    def log_prob(self, fn: Any, value: Any) -> jax.Array:
        """[*batch] log density of a value, nats."""
        return fn.log_prob(value)

    def event_units(self, fn: Any) -> tuple[Any, int]:
        """The distribution with its last event axis back in the batch, and how many were taken."""
        if isinstance(fn, numpyro_dist.ExpandedDistribution):
            inner, taken = self.event_units(fn.base_dist)
            if not taken:
                return fn, 0
            return inner.expand(
                fn.batch_shape + inner.batch_shape[len(fn.base_dist.batch_shape) :]
            ), 1
        if isinstance(fn, numpyro_dist.Independent):
            inner = fn.base_dist
            left = fn.reinterpreted_batch_ndims - 1
            return (inner.to_event(left) if left else inner), 1
        return fn, 0

    # ---- native samplers

    def unconstrained(self, program: Callable, params: Mapping, **options: Any) -> Any:
        """Runs a program with its latents on the real line; see `real_line.unconstrained`."""
        return real_line.unconstrained(program, params, **options)

    def fingerprint(self, fn: Callable, *args: Any) -> Any:
        """What identifies the computation of `fn` at these shapes, on this device."""
        mark = fingerprint(fn, *args)
        return None if mark is None else (mark, self.device)

    def hmc(
        self, posterior: Any, method: Any, params: Any, rows: Any, given: Any, key: Any,
        token: Any, shown: Callable, pieces: Any,
    ) -> Any:  # fmt: skip
        """NumPyro's NUTS or HMC, all chains at once, compiled once per token."""
        return mcmc.run(posterior, method, params, rows, given, key, token, shown, pieces)

    # ---- optimisers and reports

    def optimizer(self, declaration: optim.OptimizerDeclaration) -> Optimizer:
        return optimizer(declaration, self._places.put)

    def versions(self) -> dict[str, str]:
        return {"jax": jax.__version__, "numpyro": numpyro.__version__}

    def info(self) -> dict[str, Any]:
        """What ran: device, versions, who sums; every hot function is jitted."""
        sums = probe.reductions() if self.device == "cpu" else "XLA"
        return {
            "device": self.device, **self.versions(), "routes": ["jit"], "fallbacks": [],
            "sums": f"{sums}: wrong now and then, see UnsafeSums" if sums == "YNNPACK" else sums,
        }  # fmt: skip


def _by_row(fn: Callable) -> Callable:
    """`fn(params, batch, row_keys)`; one datum at a time, by vmap, where it must be."""

    def one(params: Any, row: Any, key: Any) -> Any:
        out = fn(params, jax.tree.map(lambda x: x[None], row), key)
        return jax.tree.map(lambda x: x[0], out)

    def either(params: Any, batch: Any, key: Any) -> Any:
        try:
            return fn(params, batch, key)
        except NotByRow:
            return jax.vmap(one, in_axes=(None, 0, 0))(params, batch, key)

    return either


def _over_leading(fn: Callable) -> Callable:
    return lambda tree, *rest: jax.vmap(lambda item: fn(item, *rest))(tree)


def room_for(indices: np.ndarray) -> int:
    """Steps for which a loop over rows to look up, [steps, batch], is compiled: as many for every
    short run, which then share a program, where the rows that none reads are few."""
    steps, size = len(indices), indices[:1].size
    return max(steps, ROOM) if ROOM * size <= 2**20 else steps
