"""Pyro's side of `probgen.interop`: our sites under its handlers, its programs under our run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyro
import pyro.distributions as pyro_dist
import torch
from pyro.poutine.messenger import Messenger
from torch.distributions import biject_to

from probgen.backends.native_parts import (
    SCALE,
    SIZE,
    NativeParam,
    ScaledPlate,
    no_start,
    sample_statement,
    statement,
)
from probgen.backends.torch.lowering import Lowering
from probgen.errors import BackendError, ShapeError
from probgen.language.run import DATA_PLATE, Run

__all__ = ["Lowering", "NativeLowering", "apart", "hiding", "param", "run_native"]


def param(name: str, value: torch.Tensor) -> torch.Tensor:
    """Registers a leaf with Pyro."""
    return pyro.param(name, value)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Runs inside do not reach the handlers outside."""
    with pyro.poutine.block(), torch.no_grad():
        yield


def hiding(names: list[str]) -> Any:
    """A handler that hides those sites from what stands outside."""
    return pyro.poutine.block(hide=names) if names else contextlib.nullcontext()


class NativeLowering(Lowering):
    """The hands of a run whose draws are the business of Pyro's handlers."""

    def __init__(self, backend: Any, values: Mapping[str, Any], scale: float | None):
        super().__init__(backend.device, values, None, None)
        self.scale = scale

    def sample(self, name: str, fn: Any, obs: Any) -> Any:
        return pyro.sample(name, fn, obs=self.values.get(name, obs))

    def plate(self, name: str, size: int, dim: int) -> Any:
        made = pyro.plate(name, size, dim=dim)
        if name != DATA_PLATE or self.scale is None:
            return made
        return ScaledPlate(made, pyro.poutine.scale(scale=self.scale))


class Adapter(Messenger):
    """Gives a native program's statements our run's values, and tells the run of them."""

    def __init__(self, run: Run, data_plate: str, takes_params: bool):
        super().__init__()
        self.run, self.data_plate, self.takes_params = run, data_plate, takes_params

    def _pyro_param(self, msg: Any) -> None:
        if not self.takes_params:
            return
        name = self.run.full_name(msg["name"])
        if "$$$" in name:
            raise BackendError(
                f"pyro.module({name.split('$$$')[0]!r}, ...): keeps its parameters in the module, "
                "expected them as arguments of a pure function; write the program as the forward "
                "of a pyro.nn.PyroModule that has the net as an attribute, and give that to "
                "from_pyro."
            )
        constraint = msg["kwargs"].get("constraint", torch.distributions.constraints.real)
        if name not in self.run.params:
            self._initialise(name, constraint, msg["args"])
        self.run.nets.setdefault(name, NativeParam(no_start))
        free = self.run.params[name]
        is_real = constraint is torch.distributions.constraints.real
        msg["value"] = free if is_real else biject_to(constraint)(free)
        msg["done"] = True

    def _initialise(self, name: str, constraint: Any, args: tuple) -> None:
        if self.run.initialise is None or len(args) < 2:
            raise BackendError(
                f"param {name!r}: has no value and no initial one, expected pyro.param(name, "
                "tensor) where it is first met."
            )

        def start(seed: int) -> Any:
            value = args[1]() if callable(args[1]) else args[1]
            return biject_to(constraint).inv(value.detach()).detach().cpu().numpy()

        self.run.params[name] = self.run.initialise(name, NativeParam(start), [])

    def _pyro_sample(self, msg: Any) -> None:
        if type(msg["fn"]).__name__ == "_Subsample":
            if msg["value"] is None:
                size = msg["fn"].subsample_size or msg["fn"].size
                msg["value"] = torch.arange(size)
            return
        run, lower = self.run, self.run.lower
        name = msg["name"] = run.full_name(msg["name"])
        frames = tuple(self._frame(f, name) for f in msg["cond_indep_stack"])
        msg["cond_indep_stack"] = frames
        self._check_scale(msg, frames)
        if msg["mask"] is not None:
            msg["fn"], msg["mask"] = msg["fn"].mask(msg["mask"]), None
        for frame in frames:
            run.plates[frame.name] = (frame.dim, frame)
        kind = _kind(msg)
        if kind == "sample":
            fixed = msg["is_observed"]
            msg["value"] = lower.value_of(name, msg["fn"], msg["value"])
            msg["is_observed"] = True  # to Pyro: its handlers outside have nothing left to decide
            run.sites[name] = sample_statement(_name(msg["fn"]), msg["fn"], frames, fixed)
        else:
            run.sites[name] = statement(kind, frames)
        run.seen[name] = "the native program"
        if kind != "factor":
            run.values[name] = msg["value"]

    def _frame(self, frame: Any, site: str) -> Any:
        if frame.dim is None:
            raise BackendError(
                f"plate {frame.name!r} around site {site!r}: is sequential (a for loop), expected "
                "`with pyro.plate(...)`, whose sites are vectorised."
            )
        if frame.name != self.data_plate:
            return frame
        if self.run.batch_size not in (None, frame.size):
            raise ShapeError(SIZE.format(self.data_plate, frame.size, self.run.batch_size))
        return frame._replace(name=DATA_PLATE)

    def _check_scale(self, msg: Any, frames: tuple) -> None:
        native = math.prod((f.full_size or f.size) / f.size for f in frames)
        if not math.isclose(float(msg["scale"] or 1.0), native, rel_tol=1e-5):
            raise BackendError(SCALE.format(msg["name"], "poutine.scale"))


def _kind(msg: Any) -> str:
    if msg["infer"].get("_deterministic"):
        return "deterministic"
    base = msg["fn"]
    while hasattr(base, "base_dist") and not isinstance(base, pyro_dist.Unit):
        base = base.base_dist
    return "factor" if isinstance(base, pyro_dist.Unit) else "sample"


def _name(fn: Any) -> str:
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return type(fn).__name__


def run_native(fn: Callable, run: Run, inputs: Mapping[str, Any], data_plate: str) -> Any:
    """Runs a Pyro program as a part of one of our runs."""
    if not isinstance(fn, torch.nn.Module):
        with Adapter(run, data_plate, takes_params=True):
            return fn(**inputs)
    found = {}
    for name, value in fn.named_parameters():
        full = run.full_name(name)
        if full not in run.params and run.initialise is not None:

            def start(seed: int, value: torch.Tensor = value) -> Any:
                return value.detach().cpu().numpy()

            run.params[full] = run.initialise(full, NativeParam(start), [])
        run.nets.setdefault(full, NativeParam(no_start))
        found[name] = run.params[full]
    # The module's own parameters stand aside, and so does Pyro's global store.
    apart = pyro.get_param_store().scope()
    with apart, Adapter(run, data_plate, takes_params=False):
        return torch.func.functional_call(fn, found, (), dict(inputs))
