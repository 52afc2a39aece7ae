"""NumPyro's side of `probgen.interop`: our sites under its handlers, its programs under our run."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
from numpyro.distributions import biject_to, constraints
from numpyro.primitives import Messenger

from probgen.backends.jax.lowering import Lowering
from probgen.backends.native_parts import (
    SCALE,
    SIZE,
    NativeParam,
    ScaledPlate,
    no_start,
    sample_statement,
    statement,
)
from probgen.errors import BackendError, ShapeError
from probgen.language.run import DATA_PLATE, Run

__all__ = ["Lowering", "NativeLowering", "apart", "hiding", "param", "run_native"]


def param(name: str, value: jax.Array) -> jax.Array:
    """Registers a leaf with NumPyro."""
    return numpyro.param(name, value)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Runs inside do not reach the handlers outside, nor a trace of JAX that is going on."""
    with numpyro.handlers.block(), jax.ensure_compile_time_eval():
        yield


def hiding(names: list[str]) -> Any:
    """A handler that hides those sites from what stands outside."""
    return numpyro.handlers.block(hide=names) if names else contextlib.nullcontext()


class NativeLowering(Lowering):
    """The hands of a run whose draws are the business of NumPyro's handlers."""

    def __init__(self, backend: Any, values: Mapping[str, Any], scale: Any):
        super().__init__(values, None, None)
        self.scale = scale

    def sample(self, name: str, fn: Any, obs: Any) -> Any:
        return numpyro.sample(name, fn, obs=self.values.get(name, obs))

    def plate(self, name: str, size: int, dim: int) -> Any:
        made = numpyro.plate(name, size, dim=dim)
        if name != DATA_PLATE or self.scale is None:
            return made
        return ScaledPlate(made, numpyro.handlers.scale(scale=self.scale))


class Adapter(Messenger):
    """Gives a native program's statements our run's values, and tells the run of them."""

    def __init__(self, run: Run, data_plate: str, again: Callable):
        super().__init__()
        self.run, self.data_plate, self.again = run, data_plate, again
        self.scales: dict[str, float] = {}
        self.keys = 0

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "param":
            self._param(msg)
        elif msg["type"] == "sample":
            self._sample(msg)
        elif msg["type"] == "deterministic":
            msg["name"] = self.run.full_name(msg["name"])
            frames = self._frames(msg)
            self.run.sites[msg["name"]] = statement("deterministic", frames)
            self.run.values[msg["name"]] = msg["value"]
        elif msg["type"] == "plate":
            size, subsample = msg["args"]
            self.scales[msg["name"]] = size / (subsample or size)
            if msg["value"] is None:
                msg["value"] = jnp.arange(subsample or size)
        elif msg["type"] == "prng_key" and msg["kwargs"]["rng_key"] is None:
            self.keys += 1
            msg["value"] = jax.random.fold_in(self._key(), self.keys)
        elif msg["type"] == "control_flow":
            raise BackendError(
                f"{msg['name'] or 'scan'}: NumPyro's scan and cond cannot be taken in, expected "
                "plain statements; write the loop in Python."
            )

    def _key(self) -> Any:
        if self.run.lower.key is None:
            raise BackendError("the native program asks for a random key, and there is no seed.")
        return self.run.lower.key

    def _param(self, msg: Any) -> None:
        run, name = self.run, self.run.full_name(msg["name"])
        constraint = msg["kwargs"].get("constraint", constraints.real)
        if name not in run.params:
            if msg["args"] == (None,):
                return  # a module that asks whether it has parameters
            if run.initialise is None:
                raise BackendError(
                    f"param {name!r}: has no value, expected one of {sorted(run.params)}."
                )
            own = msg["name"]

            def start(seed: int) -> Any:
                value = self.again(own, seed)
                with apart():
                    is_real = constraint is constraints.real
                    return jax.tree.map(
                        np.asarray, value if is_real else biject_to(constraint).inv(value)
                    )

            run.params[name] = run.initialise(name, NativeParam(start), [])
        run.nets.setdefault(name, NativeParam(no_start))
        free = run.params[name]
        msg["value"] = free if constraint is constraints.real else biject_to(constraint)(free)

    def _sample(self, msg: Any) -> None:
        run, lower = self.run, self.run.lower
        name = msg["name"] = run.full_name(msg["name"])
        frames = self._frames(msg)
        self._check_scale(msg, frames)
        for frame in frames:
            run.plates[frame.name] = (frame.dim, frame)
        run.seen[name] = "the native program"
        if isinstance(_base(msg["fn"]), numpyro_dist.Unit):
            run.sites[name] = statement("factor", frames)
            return
        fixed = msg["is_observed"]
        msg["value"] = lower.value_of(name, msg["fn"], msg["value"])
        run.values[name] = msg["value"]
        run.sites[name] = sample_statement(_name(msg["fn"]), msg["fn"], frames, fixed)

    def _frames(self, msg: Any) -> list:
        frames = msg["cond_indep_stack"]
        for i, frame in enumerate(frames):
            if frame.name == self.data_plate:
                if self.run.batch_size not in (None, frame.size):
                    raise ShapeError(SIZE.format(self.data_plate, frame.size, self.run.batch_size))
                self.scales[DATA_PLATE] = self.scales.get(self.data_plate, 1.0)
                frames[i] = frame._replace(name=DATA_PLATE)
        return list(frames)

    def _check_scale(self, msg: Any, frames: list) -> None:
        native = math.prod(self.scales.get(f.name, 1.0) for f in frames)
        scale = msg["scale"]
        if scale is not None and not math.isclose(_number(scale), native, rel_tol=1e-5):
            raise BackendError(SCALE.format(msg["name"], "handlers.scale"))


def _number(scale: Any) -> float:
    return math.nan if isinstance(scale, jax.core.Tracer) else float(scale)


def _base(fn: Any) -> Any:
    wrappers = numpyro_dist.Independent | numpyro_dist.ExpandedDistribution
    wrappers = wrappers | numpyro_dist.MaskedDistribution
    while isinstance(fn, wrappers):
        fn = fn.base_dist
    return fn


def _name(fn: Any) -> str:
    """ "Bernoulli" for BernoulliLogits: the name that the program wrote."""
    return type(_base(fn)).__name__.removesuffix("Logits").removesuffix("Probs")


def run_native(fn: Callable, run: Run, inputs: Mapping[str, Any], data_plate: str) -> Any:
    """Runs a NumPyro program as a part of one of our runs."""

    def again(name: str, seed: int) -> Any:
        """The initial value of a param: by a run of its own, since the present one is abstract."""
        number = (zlib.crc32(name.encode()) ^ seed) & 0x7FFFFFFF
        with apart(), numpyro.handlers.trace() as trace, numpyro.handlers.seed(rng_seed=number):
            fn(**inputs)
        return trace[name]["value"]

    with Adapter(run, data_plate, again):
        return fn(**inputs)
