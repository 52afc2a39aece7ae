"""NumPyro's NUTS and HMC inside our own compiled loop.

One jitted function runs a chunk of transitions, warm-up or sampling, of all chains at once; data
and parameters are its arguments. Compiled functions are kept under a fingerprint of the posterior,
so a run on other data of the same shapes compiles nothing, nor traces the sampler, and a program
whose closure has changed is never mistaken for what it was.
"""

from __future__ import annotations

import functools
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
from probgen.backends.jax.compile import Compiled
from probgen.backends.layout import Layout
from probgen.errors import SaveError

NUM_CHUNKS = 20  # about how often the progress bar moves in a phase


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

    def _kernel(self, params: Any, rows: Any, learned: Any = None) -> Any:
        """NumPyro's; `learned` is what one chain goes on from (`WarmStart`)."""
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
        if learned is not None:
            layout, told = learned
            options["step_size"] = told["step_size"]
            options["inverse_mass_matrix"] = _theirs(layout, told, m.dense_mass)
            options["find_heuristic_step_size"] &= m.num_warmup > 0
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
            return self._tried(p, params, rows)

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

    def _tried(self, p: Any, params: Any, rows: Any) -> tuple[Start, ParamInfo]:
        """A point as a start on trial, and as NumPyro's kernels take it."""
        value, grad = jax.value_and_grad(
            lambda free: -self.posterior.point(params, rows, free).log_density
        )(p.free)
        ok = jnp.isfinite(value) & (sum(p.outside.values(), jnp.zeros(())) == 0)
        for leaf in jax.tree.leaves(grad):
            ok &= jnp.isfinite(leaf).all()
        return Start(p.free, ok, p.site_log_prob, p.outside), ParamInfo(p.free, value, grad)

    def go_on(
        self, layout: Layout, key: Any, params: Any, rows: Any, free: Any, learned: Any, chains: Any
    ) -> tuple[Start, Any]:
        """`begin` where others ended, with the step sizes and mass matrices that they had."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, chains)

        def one(key: Any, free: Any, learned: Any) -> tuple[Start, Any]:
            start, info = self._tried(self.posterior.point(params, rows, free), params, rows)
            kernel = self._kernel(params, rows, (layout, learned))
            k = jax.random.fold_in(key, NUM_STARTS)
            return start, kernel.init(k, self.method.num_warmup, info)

        return jax.vmap(one, out_axes=(0, _AXES))(keys, free, learned)

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
    sampler, device = _Sampler(posterior, method), posterior.bound.backend.device
    # How chains start is no part of how they move: only `begin` is compiled for it. Of how many
    # draws there are `length` is.
    others = ("init_strategy", "num_samples", "thinning")
    options = {k: v for k, v in vars(method).items() if k not in others} | {"": sampler.length}
    name = token and (token, method.algorithm, tuple(sorted(options.items())))
    strategy = method.init_strategy if isinstance(method.init_strategy, str) else "init_to_uniform"
    chunk = Compiled(sampler.chunk, device, name and (name, "chunk"))
    numbers, warm = pieces.numbers(method.num_chains), pieces.warm
    if warm is None:
        begin = Compiled(
            functools.partial(sampler.begin, strategy), device, name and (name, "begin", strategy)
        )
        start, state = begin(key, params, rows, given, jnp.asarray(numbers))
    else:
        layout = Layout({n: v.shape[1:] for n, v in warm.free.items()}, method.dense_mass)
        go_on = Compiled(functools.partial(sampler.go_on, layout), device, name and (name, "go on"))
        asarray = posterior.bound.backend.asarray
        free, learned = jax.tree.map(asarray, (warm.free, warm.learned))
        start, state = go_on(key, params, rows, free, learned, jnp.asarray(numbers))
    posterior.check_start(jax.tree.map(np.asarray, start), warm is not None)
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
    shapes = {n: v.shape[2:] for n, v in found["free"].items()}
    adapted = jax.tree.map(np.asarray, state.adapt_state._replace(rng_key=None))
    learned = {
        "step_size": adapted.step_size,
        **_ours(Layout(shapes, method.dense_mass), adapted.inverse_mass_matrix),
    }
    return Chains(found["free"], found["stats"], method.num_warmup, learned)


def _names(layout: Layout) -> list[tuple[str, ...]]:
    """Of the sites of each part of a mass matrix in blocks, by which NumPyro has it."""
    taken = [n for block in layout.blocks for n in block]
    rest = tuple(n for n in layout.names if n not in taken)
    return [*layout.blocks, *([rest] if rest else [])]


def _theirs(layout: Layout, learned: Mapping[str, Any], dense_mass: Any) -> Any:
    """One chain's inverse mass matrix, in the form of `WarmStart`, as NumPyro takes it."""
    parts = layout.metric_parts(learned)
    if isinstance(dense_mass, bool):
        return parts[0]
    return dict(zip(_names(layout), parts, strict=True))


def _ours(layout: Layout, theirs: Any) -> dict[str, np.ndarray]:
    """The same the other way, of all chains."""
    parts = [theirs[n] for n in _names(layout)] if isinstance(theirs, dict) else [theirs]
    return layout.metric(parts)


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
