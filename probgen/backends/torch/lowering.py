"""A program's words on Pyro: what a `Run` on torch calls, and how its trace becomes sites."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pyro
import pyro.distributions as pyro_dist
import torch
from pyro.poutine.trace_messenger import TraceMessenger
from torch.overrides import TorchFunctionMode

from probgen.backends import constants, keys
from probgen.backends.lowering import (
    STRUCTURE,
    BaseLowering,
    NumpyMet,
    as_site,
    declarations,
    held_inputs,
    numpy_in_words,
)
from probgen.backends.protocol import Site
from probgen.backends.series import Series
from probgen.backends.torch import ops as torch_ops
from probgen.backends.torch import random
from probgen.backends.torch.distributions import (
    OWN,
    SeriesLaw,
    WrittenLaw,
    bijection,
    has_moving_support,
    is_inside,
    noise_map,
    onto,
)
from probgen.backends.torch.split import spread
from probgen.backends.turns import pyro_turn
from probgen.backends.written import stand_in
from probgen.errors import AlgorithmError
from probgen.language import domains
from probgen.language.run import DATA_PLATE, NO_BIJECTION, Run, running


class Lowering(BaseLowering):
    """The hands of one run on torch."""

    ops = torch_ops
    library = "Pyro"
    framework = "torch"
    classes = pyro_dist
    written_class = WrittenLaw
    series_class = SeriesLaw
    bijection = staticmethod(bijection)
    own = OWN
    renamed: ClassVar = {
        "MixtureSameFamily": {"mixing_distribution": "mixture_distribution"},
    }

    def __init__(
        self,
        device: str,
        values: Mapping[str, Any],
        key: keys.Key | None,
        noise: Mapping[str, Any] | None,
    ):
        super().__init__(values, key, noise)
        self.device = device

    def argument(self, name: str, value: Any) -> Any:
        """Numbers and arrays as tensors on the device; what shapes the distribution as it is."""
        if isinstance(value, bool | str) or (isinstance(value, int) and name in STRUCTURE):
            return value
        if isinstance(value, int | float | np.ndarray | list | np.generic):
            if isinstance(value, float) and name in ("low", "high"):
                return value
            out = torch.as_tensor(value, device=self.device)
            keep = name in STRUCTURE and not out.is_floating_point()
            return out if keep else out.to(torch.get_default_dtype())
        return value

    def sample(self, name: str, fn: Any, obs: Any) -> Any:
        return pyro.sample(name, fn, obs=self.value_of(name, fn, obs))

    def onto_support(self, name: str, fn: Any) -> Any:
        """Pyro's bijection from the real line onto a distribution's support.

        Raises:
            AlgorithmError: there is none.
        """
        try:
            return onto(fn.support)
        except NotImplementedError as error:
            raise AlgorithmError(NO_BIJECTION.format(name=name, support=fn.support)) from error

    def value_of(self, name: str, fn: Any, obs: Any) -> Any:
        """A site's value: the one that is given, else its own `obs`, else a draw."""
        value = self.values.get(name, obs)
        return self._draw(name, fn) if value is None else value

    def _draw(self, name: str, fn: Any) -> Any:
        found, batch = noise_map(fn), self.batch_of(fn)
        if found is not None:
            return found.value(self.normal(name, fn, found, batch))
        self.needed_noise(name, fn, None)
        if self.undrawn(fn):
            return stand_in(fn, torch.zeros((), device=self.device), batch)
        self._refuse_rows(name, fn)
        return _drawn(fn, batch)

    def _refuse_rows(self, name: str, fn: Any) -> None:
        if isinstance(self.key.seed, tuple):
            self.data_axis(name, fn, None, 0)

    def normal(self, name: str, fn: Any, found: Any, batch: tuple[int, ...]) -> Any:
        """The noise of a site, [*batch, *found.shape]: as it is given, else from the key."""
        eps = self.needed_noise(name, fn, found)
        if eps is not None:
            return eps
        by_row = isinstance(self.key.seed, tuple) and not random.in_vmap()
        shape = [*batch, *found.shape]
        axis = self.data_axis(name, fn, found, len(shape)) if by_row else 0
        key = keys.fold_in(self.key, zlib.crc32(name.encode()))
        if axis:
            shape.insert(0, shape.pop(axis))
        eps = random.noise("normal", key, tuple(shape), self.device)
        place = self.run.active.get(DATA_PLATE)  # type: ignore[union-attr]
        if place is not None and not by_row:
            return spread(eps, len(batch) + place[0])
        return eps.movedim(0, axis) if axis else eps

    def drawn_series(self, name: str, fn: Any, length: int, batch: tuple[int, ...]) -> Series:
        self.needed_noise(name, fn, None)
        if self.undrawn(fn):
            zero = torch.zeros((), device=self.device)
            return self.given_series(stand_in(fn, zero, (*batch, length)), fn)
        self._refuse_rows(name, fn)
        return Series(None, lambda law, _: (_drawn(law, self.batch_of(law)), None))

    def batch_of(self, fn: Any) -> tuple[int, ...]:
        return tuple(torch.broadcast_shapes(self._plates(), fn.batch_shape))

    def noise_map_of(self, fn: Any) -> Any:
        return noise_map(fn)

    def observe(self, name: str, fn: Any, value: Any) -> Any:
        return pyro.sample(name, fn, obs=value)

    def is_inside(self, fn: Any, value: Any) -> Any:
        return is_inside(fn, value)

    def has_moving_support(self, fn: Any) -> bool:
        return has_moving_support(fn)

    def factor(self, name: str, value: Any) -> None:
        value = torch.as_tensor(value, device=self.device)
        pyro.sample(name, pyro_dist.Unit(value, validate_args=False), obs=value.new_empty((0,)))

    def deterministic(self, name: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            value = torch.as_tensor(value, device=self.device)
        return pyro.deterministic(name, value)

    def plate(self, name: str, size: int, dim: int) -> Any:
        return pyro.plate(name, size, dim=dim)


def _drawn(fn: Any, batch: tuple[int, ...]) -> torch.Tensor:
    """A draw of what is no function of noise."""
    fn = fn.expand(batch)
    return fn.rsample() if fn.has_rsample and torch.is_grad_enabled() else fn.sample()


class Constant(constants.Constant):
    """A numpy array that a program closes over, on torch."""

    def to_backend(self) -> torch.Tensor:
        out = torch.as_tensor(self.view(np.ndarray))
        return out.to(torch.get_default_dtype()) if out.is_floating_point() else out

    @staticmethod
    def is_value(x: Any) -> bool:
        return isinstance(x, torch.Tensor)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """numpy's, unless a tensor is among them, which then computes (`__torch_function__`)."""
        if any(map(self.is_value, inputs)):
            return NotImplemented
        plain = [x.view(np.ndarray) if isinstance(x, Constant) else x for x in inputs]
        return getattr(ufunc, method)(*plain, **options)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def taken(x: Any) -> Any:
            if isinstance(x, list | tuple) and any(isinstance(e, Constant) for e in x):
                return type(x)(map(taken, x))
            return x.to_backend() if isinstance(x, Constant) else x

        device = next((x.device for x in args if isinstance(x, torch.Tensor)), None)
        new = [taken(x) if device is None else _moved(taken(x), device) for x in args]
        return func(*new, **{k: taken(v) for k, v in (kwargs or {}).items()})


def _moved(x: Any, device: torch.device) -> Any:
    return x.to(device) if isinstance(x, torch.Tensor) and x.device != device else x


_AS_NUMBERS = (
    torch.Tensor.__array__, torch.Tensor.numpy, torch.Tensor.__index__, torch.Tensor.tolist,
)  # fmt: skip


class NoNumpy(TorchFunctionMode):
    """Refuses a tensor that is asked for as numpy's numbers: a trace would keep them for good."""

    is_off = False

    def aside(self, fn: Callable) -> Callable:
        """A function that may use numpy: it draws starting values, and is no part of a run."""

        def call(*args: Any) -> Any:
            self.is_off = True
            try:
                return fn(*args)
            finally:
                self.is_off = False

        return call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _AS_NUMBERS and not self.is_off:
            raise NumpyMet("a tensor of the run, as a numpy array")
        return func(*args, **(kwargs or {}))


def run_program(
    program: Callable,
    params: dict,
    lower: Lowering,
    inputs: Mapping[str, Any],
    batch_size: int | None,
    particles: tuple[int, int] | None,
    initialise: Callable | None = None,
) -> tuple[Run, dict[str, Site]]:
    """Runs a program under Pyro's trace and turns the trace into sites."""
    run = Run(lower, params, batch_size, initialise, particles)
    lower.run, lower.held = run, held_inputs(inputs)
    messenger = TraceMessenger()
    seed = None if lower.key is None else lower.key.seed
    draws: Any = contextlib.nullcontext()
    if isinstance(seed, int) and random.planner.get() is None:
        draws = random.seeded(keys.mix(seed, 0x5EED), lower.device)
    with pyro_turn, pyro.validation_enabled(False):
        with draws, messenger, running(run), constants.constants_of(program, Constant):
            program(**inputs)
        sites = {}
        # log_prob validates too, and its check of a value cannot be traced.
        for name, node in messenger.trace.nodes.items():
            if node["type"] != "sample" or type(node["fn"]).__name__ == "_Subsample":
                continue
            sites[name] = as_site(name, node, run, broadcast_plates)
    return run, sites


def probe_program(
    program: Callable, params: dict, lower: Lowering, inputs: Mapping[str, Any],
    batch_size: int | None, initialise: Callable | None,
) -> tuple[Run, dict[str, Site]]:  # fmt: skip
    """`run_program` for what it shows: refuses constants outside their domains, and numpy."""
    lower.checks = True
    with torch.no_grad(), numpy_in_words(), NoNumpy() as mode:
        make = mode.aside(initialise) if initialise else None
        return run_program(program, params, lower, inputs, batch_size, None, make)


def broadcast_plates(log_prob: torch.Tensor, plates: tuple[int, ...]) -> torch.Tensor:
    """A log density stretched over the open plates' axes."""
    return torch.broadcast_to(log_prob, torch.broadcast_shapes(log_prob.shape, plates))


def read_arguments(
    device: str, program: Callable, params: Mapping, *, values: Mapping[str, Any],
    inputs: Mapping[str, Any], key: keys.Key, batch_size: int | None,
) -> tuple[dict[str, Any], Callable, dict[str, Any]]:  # fmt: skip
    """One run: (declarations by site, what reads an argument as numpy, values)."""
    lower = Lowering(device, values, key, None)
    with torch.no_grad(), contextlib.suppress(RuntimeError):
        # A sampler that refuses a NaN ends the run; what was declared before it is there.
        run_program(program, dict(params), lower, inputs, batch_size, None)
    run: Any = lower.run

    def read(x: Any) -> np.ndarray | None:
        is_array = isinstance(x, torch.Tensor)
        return x.detach().cpu().numpy() if is_array else domains.constant(x)

    return declarations(run), read, run.values
