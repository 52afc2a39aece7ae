"""Distributions on Pyro: those that we bring, and how each is a function of noise.

What the declarations of `probgen.language.dist` become; runs and their draws are in `lowering.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as pyro_dist
import pyro.distributions.constraints as pyro_constraints
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.transforms import biject_to
from torch.distributions import constraints
from torch.distributions.transforms import IndependentTransform

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
from probgen.backends.torch.correlation import CorrCholesky
from probgen.backends.written import Law, Written
from probgen.language import densities, discretized, matrices
from probgen.language.constraints import Constraint, constraint
from probgen.language.noise import NoiseMap


class _Levels(constraints.Constraint):
    is_discrete = True
    event_dim = 0

    def __init__(self, low: float, high: float, num_levels: int):
        self.low, self.high, self.num_levels = low, high, num_levels
        super().__init__()

    def check(self, value: torch.Tensor) -> torch.Tensor:
        return discretized.is_level(value, self.low, self.high, self.num_levels)


class DiscretizedLogistic(TorchDistribution):
    """Pyro's side of `probgen.language.discretized`."""

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


def normal_base(fn: Any) -> Any:
    """The Normal under expansions and events, or None: such a site is loc + scale * noise."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn if type(fn) is pyro_dist.Normal else None


_WRAPPERS = (torch.distributions.Independent, pyro_dist.MaskedDistribution)


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
    if type(fn) is pyro_dist.MultivariateNormal:
        return gaussian_map(fn, lambda: fn._unbroadcasted_scale_tril, width)
    if type(fn) is pyro_dist.LowRankMultivariateNormal:
        w, diagonal = fn._unbroadcasted_cov_factor, fn._unbroadcasted_cov_diag
        return gaussian_map(fn, lambda: low_rank_factor(w, diagonal), w.shape[-1] + width)
    if isinstance(fn, SeriesLaw):
        return fn.noise_map(noise_map(fn.first))
    if isinstance(fn, WrittenLaw):
        return fn.noise_map(None if fn.inner is None else noise_map(fn.inner))
    if isinstance(fn, torch.distributions.TransformedDistribution):
        inner = noise_map(fn.base_dist)
        same = inner is not None and fn.event_shape == fn.base_dist.event_shape
        return composed(inner, fn.transforms) if same else None
    return None


class WrittenLaw(Written, TorchDistribution):
    """Pyro's side of `probgen.backends.written`."""

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, law: Law, inner: Any, batch_shape: Any = None):
        self.law, self.inner = law, inner
        if batch_shape is None:
            batch_shape = () if inner is None else inner.batch_shape
        super().__init__(torch.Size(batch_shape), torch.Size(law.event_shape), validate_args=False)

    @property
    def has_rsample(self) -> bool:
        return self.inner is None or self.inner.has_rsample

    @property
    def support(self) -> Any:
        return library_constraint(self.law.support, len(self.law.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> WrittenLaw:
        shape = torch.Size(batch_shape)
        return WrittenLaw(self.law, None if self.inner is None else self.inner.expand(shape), shape)

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        lead = torch.Size(sample_shape)
        return self.drawn(
            lambda base: base.rsample(lead) if base.has_rsample else base.sample(lead),
            lambda shape: torch.randn(*lead, *self.batch_shape, *shape),
        )

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)


def library_constraint(support: Constraint, event_ndim: int) -> Any:
    """A support as torch's constraint, over events of so many axes."""
    found = getattr(constraints, support.word, None) or getattr(pyro_constraints, support.word)
    if support.bounds:
        found = found(*support.bounds)
    more = event_ndim - support.event_ndim
    return constraints.independent(found, more) if more else found


class SeriesLaw(SeriesOf, TorchDistribution):
    """Pyro's side of `probgen.backends.series`."""

    arg_constraints: ClassVar[dict] = {}

    def __init__(self, first: Any, length: int, batch: Any, value: Any, log_prob: Any, inside: Any):
        self.first, self.length, self.given = first, length, (value, log_prob, inside)
        event = torch.Size((length, *first.event_shape))
        super().__init__(torch.Size(batch), event, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        return bool(self.first.has_rsample)

    @property
    def support(self) -> Any:
        return constraints.independent(self.first.support, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SeriesLaw:
        if tuple(batch_shape) != tuple(self.batch_shape):
            self._refuse()
        return self

    def inside_first(self, value: Any) -> Any:
        return is_inside(self.first, value)

    def log_prob(self, value: Any) -> Any:
        return self.known(value)

    def sample(self, sample_shape: Any = ()) -> Any:
        return self._refuse()

    rsample = sample


def is_inside(fn: Any, value: Any) -> Any:
    """[*batch] whether a value lies in the support; None when it cannot be told."""
    return in_support(fn, value, _WRAPPERS, lambda: fn.support.check(value))


def has_moving_support(fn: Any) -> bool:
    """Whether the support's bounds are computed in this run, perhaps from latents."""
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return any(isinstance(v, torch.Tensor) for v in vars(support).values())


def _owned() -> dict[str, type]:
    return own_classes(lambda key: getattr(pyro_dist, densities.family(key), None))


OWN: dict[str, Any] = {**_owned(), "DiscretizedLogistic": DiscretizedLogistic, "LKJ": LKJ}


def _classes(family: str) -> list:
    return [getattr(pyro_dist, family, None), OWN.get(family)]


NOISE_MAPS = noise_maps(_classes)


def onto(support: Any) -> Any:
    """The map from the real line onto a constraint, Pyro's or, of what it has none for or none that
    a graph takes, ours."""
    base, depth = support, 0
    while isinstance(base, constraints.independent):
        depth += base.reinterpreted_batch_ndims
        base = base.base_constraint
    if base is constraints.corr_cholesky:
        return IndependentTransform(CorrCholesky(), depth) if depth else CorrCholesky()
    for word in matrices.WORDS:
        if base is getattr(constraints, word):
            return matrices.OntoMatrix(word)
    return biject_to(support)


def bijection(support: Any, event_shape: tuple[int, ...]) -> tuple:
    """torch's map onto a support: (forward, inverse_and_log_det, event shape)."""
    kind = constraint(support)
    transform = onto(library_constraint(kind, max(len(event_shape), kind.event_ndim)))

    def inverse(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = transform.inv(y)
        log_det = transform.log_abs_det_jacobian(x, y)
        more = log_det.ndim - (x.ndim - len(event_shape))  # some leave axes unsummed
        return x, -(log_det.sum(tuple(range(-more, 0))) if more else log_det)

    return transform, inverse, tuple(transform.forward_shape(torch.Size(event_shape)))


def like_multivariate(p: Any, q: Any) -> Any:
    """A diagonal Gaussian as a multivariate one where the other side is one."""
    base = normal_base(p)
    if type(q) is pyro_dist.MultivariateNormal and base is not None and len(p.event_shape) == 1:
        loc = base.loc.expand((*p.batch_shape, *p.event_shape))
        scale = base.scale.expand((*p.batch_shape, *p.event_shape))
        return pyro_dist.MultivariateNormal(loc, scale_tril=torch.diag_embed(scale))
    return p
