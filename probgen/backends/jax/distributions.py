"""Distributions on NumPyro: those that we bring, and how each is a function of noise.

What the declarations of `probgen.language.dist` become; runs and their draws are in `lowering.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as numpyro_dist
from numpyro.distributions import constraints

from probgen.backends.laws import (
    composed,
    elementwise,
    gaussian_map,
    in_support,
    low_rank_factor,
    noise_maps,
    own_classes,
)
from probgen.backends.series import SeriesOf
from probgen.backends.written import Law, Written
from probgen.language import densities, discretized, truncated
from probgen.language.constraints import Constraint, constraint
from probgen.language.noise import NoiseMap


class _Levels(constraints._SingletonConstraint):
    is_discrete = True

    def __init__(self, low: float, high: float, num_levels: int):
        self.levels = (low, high, num_levels)

    def __new__(cls, *args: Any) -> _Levels:
        return object.__new__(cls)

    def __call__(self, x: Any) -> Any:
        return discretized.is_level(x, *self.levels)


class DiscretizedLogistic(numpyro_dist.Distribution):
    """NumPyro's side of `probgen.language.discretized`."""

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


class TruncatedNormal(numpyro_dist.Distribution):
    """NumPyro's side of `language.truncated`: NumPyro's own draws leave the bounds far out."""

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    pytree_data_fields = ("loc", "scale", "low", "high")
    reparametrized_params: ClassVar = ["loc", "scale", "low", "high"]
    density = "TruncatedNormal"

    def __init__(self, loc: Any, scale: Any, low: Any = None, high: Any = None):
        self.low, self.high = low, high
        shapes = [jnp.shape(x) for x in (loc, scale, low, high) if x is not None]
        shape = jnp.broadcast_shapes(*shapes)
        self.loc, self.scale = (jnp.broadcast_to(x, shape) for x in (loc, scale))
        super().__init__(shape, validate_args=False)

    def arguments(self) -> tuple:
        """Those of the density, infinite bounds for None."""
        low = -jnp.inf if self.low is None else self.low
        return self.loc, self.scale, low, jnp.inf if self.high is None else self.high

    @property
    def support(self) -> Any:
        if self.low is None:
            return constraints.real if self.high is None else constraints.less_than(self.high)
        if self.high is None:
            return constraints.greater_than(self.low)
        return constraints.interval(self.low, self.high)

    @property
    def mean(self) -> Any:
        """loc + scale^2 (p(low) - p(high))."""
        _, _, low, high = self.arguments()
        at = [jnp.where(jnp.isinf(x), 0.0, jnp.exp(self.log_prob(x))) for x in (low, high)]
        return self.loc + self.scale**2 * (at[0] - at[1])

    def log_prob(self, value: Any, *intermediates: Any) -> Any:
        return densities.log_prob(self.density, jnp.asarray(value), self.arguments())

    def holds(self, value: Any) -> Any:
        return densities.inside(self.density, value, self.arguments())

    def sample(self, key: Any, sample_shape: tuple = ()) -> Any:
        shape = tuple(sample_shape) + self.batch_shape
        return truncated.quantile(
            jax.random.uniform(key, shape), *map(jnp.asarray, self.arguments())
        )


_WRAPPERS = (
    numpyro_dist.Independent, numpyro_dist.ExpandedDistribution, numpyro_dist.MaskedDistribution,
)  # fmt: skip
BERNOULLI = (numpyro_dist.BernoulliLogits, numpyro_dist.BernoulliProbs)


def under(fn: Any) -> Any:
    """The distribution under expansions and events."""
    while isinstance(fn, numpyro_dist.Independent | numpyro_dist.ExpandedDistribution):
        fn = fn.base_dist
    return fn


def normal_base(fn: Any) -> Any:
    """The Normal under expansions and events, or None: such a site is loc + scale * noise."""
    fn = under(fn)
    return fn if type(fn) is numpyro_dist.Normal else None


def noise_map(fn: Any) -> NoiseMap | None:
    """A distribution as a function of standard normal noise, where it is one."""
    if isinstance(fn, _WRAPPERS):
        inner, count = noise_map(fn.base_dist), getattr(fn, "reinterpreted_batch_ndims", 0)
        if inner is None or not count:
            return inner
        return NoiseMap((*fn.base_dist.batch_shape[-count:], *inner.shape), inner.value)
    if type(fn) in NOISE_MAPS:
        return elementwise(fn, NOISE_MAPS[type(fn)])
    width = fn.event_shape[-1] if len(fn.event_shape) else 0
    if type(fn) is numpyro_dist.MultivariateNormal:
        return gaussian_map(fn, lambda: fn.scale_tril, width)
    if type(fn) is numpyro_dist.LowRankMultivariateNormal:
        w, diagonal = fn.cov_factor, fn.cov_diag
        return gaussian_map(fn, lambda: low_rank_factor(w, diagonal), w.shape[-1] + width)
    if isinstance(fn, SeriesLaw):
        return fn.noise_map(noise_map(fn.first))
    if isinstance(fn, WrittenLaw):
        return fn.noise_map(None if fn.inner is None else noise_map(fn.inner))
    if isinstance(fn, numpyro_dist.TransformedDistribution):
        inner = noise_map(fn.base_dist)
        same = inner is not None and fn.event_shape == fn.base_dist.event_shape
        return composed(inner, fn.transforms) if same else None
    return None


class WrittenLaw(Written, numpyro_dist.Distribution):
    """NumPyro's side of `probgen.backends.written`."""

    arg_constraints: ClassVar[dict] = {}
    pytree_data_fields = ("inner",)
    pytree_aux_fields = ("law",)

    def __init__(self, law: Law, inner: Any):
        self.law, self.inner = law, inner
        batch_shape = () if inner is None else inner.batch_shape
        super().__init__(batch_shape, tuple(law.event_shape), validate_args=False)

    @property
    def has_rsample(self) -> bool:
        return self.inner is None or self.inner.has_rsample

    @property
    def support(self) -> Any:
        return library_constraint(self.law.support, len(self.law.event_shape))

    def sample(self, key: Any, sample_shape: tuple = ()) -> Any:
        lead = tuple(sample_shape)
        return self.drawn(
            lambda base: base.sample(key, lead),
            lambda shape: jax.random.normal(key, (*lead, *self.batch_shape, *shape)),
        )


def library_constraint(support: Constraint, event_ndim: int) -> Any:
    """A support as NumPyro's constraint, over events of so many axes."""
    found = getattr(constraints, support.word)
    if support.bounds:
        found = found(*support.bounds)
    more = event_ndim - support.event_ndim
    return constraints.independent(found, more) if more else found


class SeriesLaw(SeriesOf, numpyro_dist.Distribution):
    """NumPyro's side of `probgen.backends.series`."""

    arg_constraints: ClassVar[dict] = {}
    pytree_data_fields = ("first", "given")
    pytree_aux_fields = ("length",)

    def __init__(self, first: Any, length: int, batch: Any, value: Any, log_prob: Any, inside: Any):
        self.first, self.length, self.given = first, length, (value, log_prob, inside)
        super().__init__(tuple(batch), (length, *first.event_shape), validate_args=False)

    @property
    def has_rsample(self) -> bool:
        return bool(self.first.has_rsample)

    @property
    def support(self) -> Any:
        return constraints.independent(self.first.support, 1)

    def expand(self, batch_shape: Any) -> SeriesLaw:
        if tuple(batch_shape) != tuple(self.batch_shape):
            self._refuse()
        return self

    def inside_first(self, value: Any) -> Any:
        return is_inside(self.first, value)

    def log_prob(self, value: Any, *intermediates: Any) -> Any:
        return self.known(value)

    def sample(self, key: Any, sample_shape: tuple = ()) -> Any:
        return self._refuse()


def is_inside(fn: Any, value: Any) -> Any:
    """[*batch] whether a value lies in the support; None when it cannot be told."""

    def theirs() -> Any:
        if isinstance(value, jax.core.Tracer) or not _is_numpyros(fn.support):
            return fn.support(value)
        # Tests of operators alone: numpy answers at once where JAX compiles each.
        return jnp.asarray(fn.support(np.asarray(value)))

    return in_support(fn, value, _WRAPPERS, theirs)


def _is_numpyros(support: Any) -> bool:
    inner = getattr(support, "base_constraint", None)
    return type(support).__module__ == constraints.__name__ and (
        inner is None or _is_numpyros(inner)
    )


def has_moving_support(fn: Any) -> bool:
    """Whether the support's bounds are computed in this run, perhaps from latents."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(fn.support))


_jitted, _jitted_inside = (
    jax.jit(fn, static_argnums=0, inline=True) for fn in (densities.log_prob, densities.inside)
)
_NUMBERS = (jax.Array, np.ndarray, np.number, float, int)  # as NumPyro keeps what it was given


def _density(key: str, value: Any, arguments: tuple, otherwise: Callable) -> Any:
    """`densities.log_prob`, whose some hundred operations are traced once for each shape."""
    known = densities.TABLE[key].log_prob is not None
    if known and all(isinstance(x, _NUMBERS) for x in (value, *arguments)):
        return _jitted(key, value, arguments)
    return densities.log_prob(key, value, arguments, otherwise)


def _inside(key: str, value: Any, arguments: tuple) -> Any:
    """`densities.inside`, outside a trace one program and not one for each operation. Arguments
    that were traced once, of which a support has no need, are not touched."""
    given = (value, *arguments)
    is_free = not any(isinstance(x, jax.core.Tracer) for x in given)
    if is_free and all(isinstance(x, _NUMBERS) for x in given):
        return _jitted_inside(key, value, arguments)
    return densities.inside(key, value, arguments)


OWN: dict[str, Any] = {
    **own_classes(lambda family: getattr(numpyro_dist, family, None), _density, _inside),
    "DiscretizedLogistic": DiscretizedLogistic,
    "TruncatedNormal": TruncatedNormal,
}


def _classes(family: str) -> list:
    found = [getattr(numpyro_dist, family, None), OWN.get(family)]
    return [cls for cls in found if isinstance(cls, type)]


NOISE_MAPS = noise_maps(_classes)


def bijection(support: Any, event_shape: tuple[int, ...]) -> tuple:
    """NumPyro's map onto a support: (forward, inverse_and_log_det, event shape)."""
    kind = constraint(support)
    ndim = max(len(event_shape), kind.event_ndim)
    transform = numpyro_dist.biject_to(library_constraint(kind, ndim))

    def inverse(y: Any) -> tuple[Any, Any]:
        x = transform.inv(y)
        log_det = transform.log_abs_det_jacobian(x, y)
        more = log_det.ndim - (x.ndim - len(event_shape))  # some leave axes unsummed
        return x, -(log_det.sum(tuple(range(-more, 0))) if more else log_det)

    return transform, inverse, tuple(transform.forward_shape(event_shape))


def unexpanded(fn: Any) -> Any:
    """A multivariate Gaussian expanded by plates as one of that batch shape, as torch has it."""
    base: Any = getattr(fn, "base_dist", None)
    is_expanded = isinstance(fn, numpyro_dist.ExpandedDistribution)
    if not (is_expanded and type(base) is numpyro_dist.MultivariateNormal):
        return fn
    loc = jnp.broadcast_to(base.loc, (*fn.batch_shape, *base.event_shape))
    tril = jnp.broadcast_to(base.scale_tril, (*loc.shape, loc.shape[-1]))
    return numpyro_dist.MultivariateNormal(loc, scale_tril=tril)


def like_multivariate(p: Any, q: Any) -> Any:
    """A diagonal Gaussian as a multivariate one where the other side is one."""
    base = normal_base(p)
    if type(q) is numpyro_dist.MultivariateNormal and base is not None and len(p.event_shape) == 1:
        shape = (*p.batch_shape, *p.event_shape)
        scale = jnp.broadcast_to(base.scale, shape)
        tril = scale[..., None] * jnp.eye(shape[-1])
        return numpyro_dist.MultivariateNormal(jnp.broadcast_to(base.loc, shape), scale_tril=tril)
    return p
