"""NumPyro's NUTS and HMC inside our own compiled loop, and what they need of a program.

One jitted function runs a chunk of transitions, warm-up or sampling, of all chains at once; data
and parameters are its arguments. Compiled functions are kept under a fingerprint of the posterior,
so a run on other data of the same shapes compiles nothing, nor traces the sampler, and a program
whose closure has changed is never mistaken for what it was.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import HMC, NUTS
from numpyro.infer.hmc import HMCState
from numpyro.infer.hmc_util import HMCAdaptState
from numpyro.infer.util import ParamInfo

from probgen.backends.chains import NUM_STARTS, Chains, LogDensity, Start
from probgen.backends.free import FreeHands
from probgen.backends.jax.compile import Compiled
from probgen.backends.jax.lowering import Lowering, broadcast_plates, run_program
from probgen.backends.protocol import Site
from probgen.errors import SaveError

NUM_CHUNKS = 20  # about how often the progress bar moves in a phase


class FreeLowering(FreeHands, Lowering):
    """Runs a program whose latents are given on the real line, and keeps the log Jacobians."""

    broadcast_plates = staticmethod(broadcast_plates)

    def __init__(
        self, values: Mapping[str, Any], key: Any, names: tuple[str, ...],
        free: Mapping[str, Any], given: Mapping[str, Any], strategy: str,
    ):  # fmt: skip
        super().__init__(values, key, None)
        self.names, self.free, self.given, self.strategy = names, dict(free), given, strategy
        self.log_det: dict[str, Any] = {}

    def _start(self, name: str, fn: Any, transform: Any, lead: tuple = ()) -> Any:
        shape = (*lead, *self.batch_of(fn), *fn.event_shape)
        if name in self.given:
            return transform.inv(jnp.broadcast_to(self.in_time(self.given[name], fn, lead), shape))
        if self.strategy == "init_to_feasible":
            return jnp.zeros(transform.inverse_shape(shape))
        if self.strategy == "init_to_uniform":
            key = jax.random.fold_in(self.key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
            return jax.random.uniform(key, transform.inverse_shape(shape), minval=-2.0, maxval=2.0)
        if self.strategy == "init_to_mean":
            try:
                return transform.inv(jnp.broadcast_to(fn.mean, shape))
            except NotImplementedError:
                pass  # no closed form: the median stands in, as in NumPyro
        outer = self.key

        def draw(i: Any) -> Any:
            self.key = jax.random.fold_in(outer, i)
            return transform.inv(jnp.broadcast_to(self._draw(name, fn), shape))

        draws = jax.vmap(draw)(jnp.arange(1 if self.strategy == "init_to_sample" else 15))
        self.key = outer
        return jnp.median(draws, axis=0)


def unconstrained(
    program: Callable, params: Mapping, *, names: tuple[str, ...], free: Mapping[str, Any],
    given: Mapping[str, Any], strategy: str, values: Mapping[str, Any], inputs: Mapping[str, Any],
    key: Any, batch_size: int | None,
) -> tuple[dict[str, Site], dict[str, Any], dict[str, Any]]:  # fmt: skip
    """(sites, latents on the real line, log |det| of each one's bijection, as a log_prob)."""
    lower = FreeLowering(values, key, names, free, given, strategy)
    _, sites = run_program(program, dict(params), lower, inputs, batch_size, None)
    return sites, lower.free, lower.log_det


# ---- the sampler

# The count of transitions and the adaptation window are the same in all chains. Held outside of
# `vmap` they keep NumPyro's branches branches: a dense mass matrix is factorised once a window,
# not once a transition.
_AXES = HMCState(*[0] * len(HMCState._fields))._replace(
    i=None, adapt_state=HMCAdaptState(*[0] * len(HMCAdaptState._fields))._replace(window_idx=None)
)


class _Sampler:
    """What one posterior and method compute; data and parameters are arguments."""

    def __init__(self, posterior: LogDensity, method: Any):
        self.posterior, self.method = posterior, method
        longest = max(method.num_draws, method.num_warmup)
        self.length = max(1, -(-longest // NUM_CHUNKS))

    def _kernel(self, params: Any, rows: Any) -> Any:
        m = self.method

        def potential(free: Any) -> Any:
            return -self.posterior.point(params, rows, free).log_density

        dense = m.dense_mass if isinstance(m.dense_mass, bool) else list(m.dense_mass)
        options = {
            "potential_fn": potential, "step_size": m.step_size, "dense_mass": dense,
            "adapt_step_size": m.adapt_step_size, "adapt_mass_matrix": m.adapt_mass_matrix,
            "target_accept_prob": m.target_accept_prob,
            "find_heuristic_step_size": bool(m.find_heuristic_step_size),
        }  # fmt: skip
        if m.algorithm == "NUTS":
            return NUTS(**options, max_tree_depth=m.max_tree_depth)
        return HMC(**options, trajectory_length=m.trajectory_length, num_steps=m.num_steps)

    def begin(
        self, strategy: str, key: Any, params: Any, rows: Any, given: Any, chains: Any
    ) -> tuple[Start, Any]:
        """Starting points, tried until each of the chains (by their numbers) has a good one, and
        the kernel's state there."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, chains)

        def one(key: Any, given: Any, attempt: Any) -> tuple[Start, ParamInfo]:
            k = jax.random.fold_in(key, attempt)
            p = self.posterior.point(params, rows, key=k, given=given, strategy=strategy)
            value, grad = jax.value_and_grad(
                lambda free: -self.posterior.point(params, rows, free).log_density
            )(p.free)
            ok = jnp.isfinite(value) & (sum(p.outside.values(), jnp.zeros(())) == 0)
            for leaf in jax.tree.leaves(grad):
                ok &= jnp.isfinite(leaf).all()
            return Start(p.free, ok, p.site_log_prob, p.outside), ParamInfo(p.free, value, grad)

        tried = jax.jit(jax.vmap(one, in_axes=(0, 0, None)))  # for its shapes, and in the loop

        def go_on(carry: Any) -> Any:
            i, (start, _) = carry
            return (i < NUM_STARTS) & ~start.ok.all()

        def attempt(carry: Any) -> Any:
            i, best = carry
            good = best[0].ok
            merged = jax.tree.map(
                lambda a, c: jnp.where(good.reshape(-1, *[1] * (a.ndim - 1)), a, c),
                best,
                tried(keys, given, i),
            )
            return i + 1, merged

        forms = jax.eval_shape(tried, keys, given, jnp.int32(0))
        none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), forms)
        _, (start, info) = jax.lax.while_loop(go_on, attempt, (jnp.int32(0), none))

        def init(key: Any, info: ParamInfo) -> Any:
            kernel = self._kernel(params, rows)
            return kernel.init(jax.random.fold_in(key, NUM_STARTS), self.method.num_warmup, info)

        return start, jax.vmap(init, out_axes=_AXES)(keys, info)

    def chunk(self, state: Any, params: Any, rows: Any, count: Any, thinning: Any) -> Any:
        """`count` draws of at most `self.length`, `thinning` transitions each; [length, chain]."""
        kernel = self._kernel(params, rows)
        # `sample` reads what `init` leaves in the kernel (lengths and schedule of the adaptation);
        # only the shapes of this second `init` are worked out.
        jax.eval_shape(
            lambda key, z: kernel.init(key, self.method.num_warmup, z),
            state.rng_key[0], jax.tree.map(lambda x: x[0], state.z),
        )  # fmt: skip
        sample = functools.partial(kernel.sample, model_args=(), model_kwargs={})
        step = jax.vmap(sample, in_axes=(_AXES,), out_axes=_AXES)

        def transition(_: Any, carry: Any) -> Any:
            state, diverging = carry
            state = step(state)
            # A fixed number of steps is a Python number, whose weaker type would compile again.
            count = jax.lax.convert_element_type(state.num_steps, jnp.result_type(int))
            return state._replace(num_steps=count), diverging | state.diverging

        def draw(state: Any, i: Any) -> Any:
            # Draws past `count` cost nothing, and so one compilation serves chunks of any length.
            steps = jnp.where(i < count, thinning, 0)
            carry = (state, jnp.zeros_like(state.diverging))
            state, diverging = jax.lax.fori_loop(0, steps, transition, carry)
            stats = {
                "lp": -state.potential_energy, "energy": state.energy, "diverging": diverging,
                "acceptance_rate": state.accept_prob, "n_steps": state.num_steps,
                "step_size": state.adapt_state.step_size,
            }  # fmt: skip
            return state, (state.z, stats)

        return jax.lax.scan(draw, state, jnp.arange(self.length))


def run(
    posterior: LogDensity, method: Any, params: Any, rows: Any, given: Any, key: Any, token: Any,
    shown: Callable, pieces: Any,
) -> Chains:  # fmt: skip
    """Draws of `method` (see `probgen.inference.sample.mcmc`) from the posterior."""
    options = {k: v for k, v in vars(method).items() if k != "init_strategy"}
    name = token and (token, method.algorithm, tuple(sorted(options.items())))
    sampler, device = _Sampler(posterior, method), posterior.bound.backend.device
    # How chains start is no part of how they move: only `begin` is compiled for it.
    strategy = method.init_strategy if isinstance(method.init_strategy, str) else "init_to_uniform"
    begin = Compiled(
        functools.partial(sampler.begin, strategy), device, name and (name, "begin", strategy)
    )
    chunk = Compiled(sampler.chunk, device, name and (name, "chunk"))
    numbers = pieces.numbers(method.num_chains)
    start, state = begin(key, params, rows, given, jnp.asarray(numbers))
    posterior.check_start(jax.tree.map(np.asarray, start))
    if pieces.state:
        state = _restored(state, pieces.state)
    whole, done = method.num_warmup + method.num_draws * method.thinning, 0
    for i, (count, thinning, keep) in enumerate(_plan(method, sampler.length)):
        done += count * thinning
        if i >= len(pieces.parts):
            state, out = chunk(state, params, rows, jnp.int32(count), jnp.int32(thinning))
            jax.block_until_ready(state)
            free, stats = jax.tree.map(
                lambda x, n=count: np.asarray(x)[:n], out if keep else ({}, {})
            )
            part = {"free": free, "stats": stats} if keep else {}
            pieces.add(part, functools.partial(_arrays, state))
            pieces.pause(f"{done} of {whole} transitions of each chain")
        shown(count * thinning * len(numbers), words=pieces.words)
        if pieces.suffice(i + 1):
            break
    found = jax.tree.map(
        lambda *x: np.ascontiguousarray(np.concatenate(x).swapaxes(0, 1)),
        *(part for part in pieces.parts if part),
    )
    return Chains(found["free"], found["stats"], method.num_warmup)


def _plan(method: Any, length: int) -> list[tuple[int, int, bool]]:
    """(draws, transitions a draw, whether they are kept) of each compiled chunk."""
    phases = ((method.num_warmup, 1, False), (method.num_draws, method.thinning, True))
    return [
        (min(length, total - start), thinning, keep)
        for total, thinning, keep in phases
        for start in range(0, total, length)
    ]


def _arrays(state: Any) -> dict[str, np.ndarray]:
    """The kernel's state as numpy arrays, by the leaf's number; a key is its words."""
    leaves = [jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(state)]
    return {str(i): np.asarray(x) for i, x in enumerate(leaves)}


def _restored(state: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The state that `_arrays` kept, in the form and types of a fresh one.

    Raises:
        SaveError: it is of another sampler.
    """
    leaves, form = jax.tree.flatten(state)
    want = {n: (x.shape, x.dtype) for n, x in _arrays(state).items()}
    if want != {n: (x.shape, x.dtype) for n, x in arrays.items()}:
        raise SaveError(
            "infer: got the state of another sampler beside `path`, expected one of this version "
            "of JAX and NumPyro; remove the folder to begin anew."
        )
    there = [jax.device_put(arrays[str(i)], x.sharding) for i, x in enumerate(leaves)]
    keyed = [
        jax.random.wrap_key_data(a, impl=jax.random.key_impl(x)) if _is_key(x) else a
        for a, x in zip(there, leaves, strict=True)
    ]
    return jax.tree.unflatten(form, keyed)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
