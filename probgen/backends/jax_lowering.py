"""A program's words on NumPyro: what a `Run` on JAX calls, and how its trace becomes sites."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
from numpyro.distributions import constraints

from probgen import discretized
from probgen.backends import jax_ops
from probgen.backends.protocol import Site
from probgen.dist import Deferred
from probgen.errors import AlgorithmError, BackendError, DeclarationError, MissingSeed, ShapeError
from probgen.program import DATA_PLATE, NOT_NORMAL, PARTICLES, Run, running

_RENAMED = {
    "LKJ": {"dim": "dimension"},
    "LKJCholesky": {"dim": "dimension"},
}
_STRUCTURE = {"dim", "total_count", "event_dim", "num_levels", "low", "high"}


class _Levels(constraints._SingletonConstraint):
    is_discrete = True

    def __init__(self, low: float, high: float, num_levels: int):
        self.levels = (low, high, num_levels)

    def __new__(cls, *args: Any) -> _Levels:
        return object.__new__(cls)

    def __call__(self, x: Any) -> Any:
        return discretized.is_level(x, *self.levels)


class DiscretizedLogistic(numpyro_dist.Distribution):
    """NumPyro's side of `probgen.discretized`."""

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    pytree_data_fields = ("loc", "scale")
    pytree_aux_fields = ("levels",)

    def __init__(self, loc: Any, scale: Any, low: float, high: float, num_levels: int):
        self.loc, self.scale = jnp.broadcast_arrays(loc, scale)
        self.levels = (float(low), float(high), int(num_levels))
        super().__init__(jnp.shape(self.loc), validate_args=False)

    @property
    def support(self) -> _Levels:
        return _Levels(*self.levels)

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        return discretized.log_prob(value, self.loc, self.scale, *self.levels)

    def sample(self, key: Any, sample_shape: tuple = ()) -> Any:
        shape = tuple(sample_shape) + self.batch_shape
        u = jax.random.uniform(key, shape, minval=1e-7, maxval=1 - 1e-7)
        return discretized.quantile(u, self.loc, self.scale, *self.levels)


def _class(name: str) -> Any:
    if name == "DiscretizedLogistic":
        return DiscretizedLogistic
    found = getattr(numpyro_dist, name, None)
    if found is None:
        raise BackendError(
            f"dist.{name}: NumPyro has no such distribution, only Pyro does; run this model with "
            'backend="torch", or declare it with a distribution that both have.'
        )
    return found


def normal_base(fn: Any) -> Any:
    """The Normal under expansions and events, or None: such a site is loc + scale * noise."""
    while isinstance(fn, numpyro_dist.Independent | numpyro_dist.ExpandedDistribution):
        fn = fn.base_dist
    return fn if type(fn) is numpyro_dist.Normal else None


def noise_transform(fn: Any) -> Callable | None:
    """The map from standard normal noise to the site's value, where it is one of noise."""
    base = normal_base(fn)
    if base is not None:
        return lambda eps: base.loc + base.scale * eps
    if type(fn) is numpyro_dist.MultivariateNormal:
        return lambda eps: fn.loc + (fn.scale_tril @ eps[..., None])[..., 0]
    return None


class Lowering:
    """The hands of one run on JAX: values that are given, a key for those that are drawn."""

    ops = jax_ops

    def __init__(self, values: Mapping[str, Any], key: Any, noise: Mapping[str, Any] | None):
        self.values, self.key, self.noise = values, key, noise or {}
        self.run: Run | None = None

    def build(self, deferred: Deferred, site: str) -> Any:
        """NumPyro's distribution for a declaration."""
        kwargs = {
            _RENAMED.get(deferred.name, {}).get(k, k): self._argument(k, v, site)
            for k, v in deferred.arguments
        }
        try:
            built = _class(deferred.name)(**kwargs)
            for method, args in deferred.calls:
                built = getattr(built, method)(*args)
            built._validate_args = False  # data are checked once, by `probgen.support`
        except (RuntimeError, ValueError, TypeError) as error:
            raise DeclarationError(
                f"site {site!r}: {deferred!r} cannot be built by NumPyro: {error}"
            ) from error
        return built

    def _argument(self, name: str, value: Any, site: str) -> Any:
        if isinstance(value, Deferred):
            return self.build(value, site)
        if name in _STRUCTURE or isinstance(value, bool | str):
            return value
        if isinstance(value, int):
            return float(value)
        if isinstance(value, list | np.ndarray):
            out = np.asarray(value)
            return jnp.asarray(out, dtype=jnp.result_type(float))
        return value

    def sample(self, name: str, fn: Any, obs: Any) -> Any:
        value = self.values.get(name, obs)
        if value is None:
            value = self._draw(name, fn)
        return numpyro.sample(name, fn, obs=value)

    def _draw(self, name: str, fn: Any) -> Any:
        eps = self.noise.get(name)
        if self.key is None and eps is None:
            raise MissingSeed(
                f"site {name!r} must be drawn, and there is no seed; give a value for it or a seed."
            )
        batch = jnp.broadcast_shapes(self._plates(), fn.batch_shape)
        transform = noise_transform(fn)
        if transform is None and eps is not None:
            raise AlgorithmError(NOT_NORMAL.format(name=name, kind=type(fn).__name__))
        if eps is not None:
            return transform(eps)  # type: ignore[misc]
        key = jax.random.fold_in(self.key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
        if transform is None:
            draw = fn.expand(batch).sample(key)
            # A mixture's draw has a derivative, but not that of the expectation.
            return draw if fn.has_rsample else jax.lax.stop_gradient(draw)
        return transform(jax.random.normal(key, (*batch, *fn.event_shape)))

    def _plates(self) -> tuple[int, ...]:
        dims = dict(self.run.active.values())  # type: ignore[union-attr]
        return tuple(dims.get(-i, 1) for i in range(max((-d for d in dims), default=0), 0, -1))

    def factor(self, name: str, value: Any) -> None:
        numpyro.factor(name, jnp.asarray(value))

    def deterministic(self, name: str, value: Any) -> Any:
        return numpyro.deterministic(name, value)

    def plate(self, name: str, size: int, dim: int) -> Any:
        return numpyro.plate(name, size, dim=dim)


def run_program(
    program: Callable,
    params: dict,
    lower: Lowering,
    inputs: Mapping[str, Any],
    batch_size: int | None,
    particles: tuple[int, int] | None,
    initialise: Callable | None = None,
) -> tuple[Run, dict[str, Site]]:
    """Runs a program under NumPyro's trace and turns the trace into sites."""
    run = Run(lower, params, batch_size, initialise, particles)
    lower.run = run
    with numpyro.validation_enabled(False):
        with numpyro.handlers.trace() as trace, running(run):
            program(**inputs)
        sites = {}
        for name, node in trace.items():
            if node["type"] in ("sample", "deterministic"):
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
    depth = max((-f.dim for f in frames), default=0)
    sizes = {f.dim: f.size for f in frames}
    plates = tuple(sizes.get(-i, 1) for i in range(depth, 0, -1))
    log_prob = jnp.broadcast_to(log_prob, jnp.broadcast_shapes(log_prob.shape, plates))
    inner = tuple(a for a in range(-log_prob.ndim, 0) if a not in {f.dim for f in keep})
    log_prob = log_prob.sum(inner) if inner else log_prob
    if log_prob.ndim != len(keep):
        raise ShapeError(f"site {name!r}: log-probability of shape {tuple(log_prob.shape)}.")
    return Site(node["value"], log_prob, is_local, None if kind == "factor" else node["fn"], kind)
