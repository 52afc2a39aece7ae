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
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.trace_messenger import TraceMessenger
from torch.distributions import constraints

from probgen import discretized
from probgen.backends import keys, torch_ops, torch_random
from probgen.backends.protocol import Site
from probgen.dist import Deferred
from probgen.errors import AlgorithmError, BackendError, DeclarationError, MissingSeed, ShapeError
from probgen.program import DATA_PLATE, NOT_NORMAL, PARTICLES, Run, running

_RENAMED = {
    "MixtureSameFamily": {"mixing_distribution": "mixture_distribution"},
}
_INTEGERS = {"dim", "total_count", "event_dim", "num_levels", "low", "high"}


class _Levels(constraints.Constraint):
    is_discrete = True
    event_dim = 0

    def __init__(self, low: float, high: float, num_levels: int):
        self.low, self.high, self.num_levels = low, high, num_levels
        super().__init__()

    def check(self, value: torch.Tensor) -> torch.Tensor:
        return discretized.is_level(value, self.low, self.high, self.num_levels)


class DiscretizedLogistic(TorchDistribution):
    """Pyro's side of `probgen.discretized`."""

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    has_rsample = False

    def __init__(self, loc: Any, scale: Any, low: float, high: float, num_levels: int):
        self.loc, self.scale = torch.broadcast_tensors(torch.as_tensor(loc), torch.as_tensor(scale))
        self.levels = (float(low), float(high), int(num_levels))
        super().__init__(self.loc.shape, validate_args=False)

    @property
    def support(self) -> _Levels:
        return _Levels(*self.levels)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogistic:
        shape = torch.Size(batch_shape)
        return DiscretizedLogistic(self.loc.expand(shape), self.scale.expand(shape), *self.levels)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return discretized.log_prob(value, self.loc, self.scale, *self.levels)

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        shape = torch.Size(sample_shape) + self.loc.shape
        u = torch.rand(shape, device=self.loc.device).clamp(1e-7, 1 - 1e-7)
        with torch.no_grad():
            return discretized.quantile(u, self.loc, self.scale, *self.levels)


class LKJ(pyro_dist.LKJ):
    """Pyro's, whose own `expand` asks the wrong class for it (pyro 1.9)."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> LKJ:
        return LKJ(self.dim, self.concentration.expand(torch.Size(batch_shape)))


_OWN = {"DiscretizedLogistic": DiscretizedLogistic, "LKJ": LKJ}


def _class(name: str) -> Any:
    found = _OWN.get(name, getattr(pyro_dist, name, None))
    if found is None:
        raise BackendError(
            f"dist.{name}: Pyro has no such distribution, only NumPyro does; run this model with "
            'backend="jax", or declare it with a distribution that both have.'
        )
    return found


def normal_base(fn: Any) -> Any:
    """The Normal under expansions and events, or None: such a site is loc + scale * noise."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn if type(fn) is pyro_dist.Normal else None


def noise_transform(fn: Any) -> Callable | None:
    """The map from standard normal noise to the site's value, where it is one of noise."""
    base = normal_base(fn)
    if base is not None:
        return lambda eps: base.loc + base.scale * eps
    if type(fn) is pyro_dist.MultivariateNormal:
        return lambda eps: fn.loc + (fn._unbroadcasted_scale_tril @ eps[..., None])[..., 0]
    return None


class Lowering:
    """The hands of one run on torch: values that are given, a key for those that are drawn."""

    ops = torch_ops

    def __init__(
        self,
        device: str,
        values: Mapping[str, Any],
        key: keys.Key | None,
        noise: Mapping[str, Any] | None,
    ):
        self.device, self.values, self.key, self.noise = device, values, key, noise or {}
        self.run: Run | None = None

    def build(self, deferred: Deferred, site: str) -> Any:
        """Pyro's distribution for a declaration."""
        kwargs = {
            _RENAMED.get(deferred.name, {}).get(k, k): self._argument(k, v, site)
            for k, v in deferred.arguments
        }
        try:
            built = _class(deferred.name)(**kwargs)
            for method, args in deferred.calls:
                built = getattr(built, method)(*args)
            # For whoever asks it for a log_prob later: a check of values cannot be traced.
            built._validate_args = False
        except (RuntimeError, ValueError, TypeError) as error:
            raise DeclarationError(
                f"site {site!r}: {deferred!r} cannot be built by Pyro: {error}"
            ) from error
        return built

    def _argument(self, name: str, value: Any, site: str) -> Any:
        if isinstance(value, Deferred):
            return self.build(value, site)
        if isinstance(value, bool | str) or (isinstance(value, int) and name in _INTEGERS):
            return value
        if isinstance(value, int | float | np.ndarray | list | np.generic):
            if isinstance(value, float) and name in ("low", "high"):
                return value
            out = torch.as_tensor(value, device=self.device)
            keep = name in _INTEGERS and not out.is_floating_point()
            return out if keep else out.to(torch.get_default_dtype())
        return value

    def sample(self, name: str, fn: Any, obs: Any) -> Any:
        value = self.values.get(name, obs)
        if value is None:
            value = self._draw(name, fn)
        return pyro.sample(name, fn, obs=value)

    def _draw(self, name: str, fn: Any) -> Any:
        eps = self.noise.get(name)
        if self.key is None and eps is None:
            raise MissingSeed(
                f"site {name!r} must be drawn, and there is no seed; give a value for it or a seed."
            )
        batch = torch.broadcast_shapes(self._plates(), fn.batch_shape)
        transform = noise_transform(fn)
        if transform is None:
            if eps is not None:
                raise AlgorithmError(NOT_NORMAL.format(name=name, kind=type(fn).__name__))
            fn = fn.expand(batch)
            return fn.rsample() if fn.has_rsample and torch.is_grad_enabled() else fn.sample()
        if eps is None:
            key = keys.fold_in(self.key, zlib.crc32(name.encode()))  # type: ignore[arg-type]
            eps = torch_random.noise("normal", key, (*batch, *fn.event_shape), self.device)
        return transform(eps)

    def _plates(self) -> tuple[int, ...]:
        dims = dict(self.run.active.values())  # type: ignore[union-attr]
        return tuple(dims.get(-i, 1) for i in range(max((-d for d in dims), default=0), 0, -1))

    def factor(self, name: str, value: Any) -> None:
        value = torch.as_tensor(value, device=self.device)
        pyro.sample(name, pyro_dist.Unit(value, validate_args=False), obs=value.new_empty((0,)))

    def deterministic(self, name: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            value = torch.as_tensor(value, device=self.device)
        return pyro.deterministic(name, value)

    def plate(self, name: str, size: int, dim: int) -> Any:
        return pyro.plate(name, size, dim=dim)


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
    lower.run = run
    messenger = TraceMessenger()
    seed = None if lower.key is None else lower.key.seed
    draws: Any = contextlib.nullcontext()
    if seed is not None and torch_random.planner.get() is None:
        draws = torch_random.seeded(keys.mix(seed, 0x5EED), lower.device)
    with pyro.validation_enabled(False):
        with draws, messenger, running(run):
            program(**inputs)
        sites = {}
        # log_prob validates too, and its check of a value cannot be traced.
        for name, node in messenger.trace.nodes.items():
            if node["type"] != "sample" or type(node["fn"]).__name__ == "_Subsample":
                continue
            sites[name] = _site(name, node, run)
    return run, sites


def _site(name: str, node: dict, run: Run) -> Site:
    kind = run.sites[name]["kind"]
    frames = node["cond_indep_stack"]
    is_local = any(f.name == DATA_PLATE for f in frames)
    if kind == "deterministic":
        return Site(node["value"], None, is_local, None, kind)
    log_prob = node["fn"].log_prob(node["value"])
    keep = [f for f in frames if f.name in (PARTICLES, DATA_PLATE)]
    log_prob = torch.broadcast_to(
        log_prob, torch.broadcast_shapes(log_prob.shape, _frame_shape(frames))
    )
    axes = [i - log_prob.ndim for i in range(log_prob.ndim)]
    inner = [a for a in axes if a not in {f.dim for f in keep}]
    if inner:
        log_prob = log_prob.sum(inner)
    if log_prob.ndim != len(keep):
        raise ShapeError(f"site {name!r}: log-probability of shape {tuple(log_prob.shape)}.")
    return Site(node["value"], log_prob, is_local, None if kind == "factor" else node["fn"], kind)


def _frame_shape(frames: Any) -> tuple[int, ...]:
    depth = max((-f.dim for f in frames), default=0)
    sizes = {f.dim: f.size for f in frames}
    return tuple(sizes.get(-i, 1) for i in range(depth, 0, -1))
