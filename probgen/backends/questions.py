"""What algorithms ask of distributions, as both backends answer it; see `protocol.Backend`.

An adapter brings what its library says in its own words: the file `distributions` of its folder.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from probgen.language import densities

Array = Any


class DistributionQuestions:
    """The part of a backend that answers them.

    Attributes:
        ops: the adapter's array functions.
        laws: its `distributions`: normal_base, noise_map, is_inside, has_moving_support.
    """

    ops: ModuleType
    laws: ModuleType

    def mean(self, fn: Any) -> Array:
        return fn.mean

    def gaussian(self, fn: Any) -> tuple[Array, Array] | None:
        base = self.laws.normal_base(fn)
        if base is None:
            return None
        shape = (*fn.batch_shape, *fn.event_shape)
        return self.ops.broadcast_to(base.loc, shape), self.ops.broadcast_to(base.scale, shape)

    def gaussian_kl(self, q: Any, p: Any) -> Array | None:
        """KL(q || p) of independent Gaussians, [*batch], nats; None for anything else.

        The libraries' takes log (q.scale / p.scale)^2, which is a number for a scale below 0.
        """
        ops, ndim = self.ops, len(q.event_shape)
        a, c = self.laws.normal_base(q), self.laws.normal_base(p)
        if a is None or c is None or len(p.event_shape) != ndim:
            return None
        ratio, distance = a.scale / c.scale, (a.loc - c.loc) / c.scale
        logs = ops.log(a.scale) - ops.log(c.scale)
        each = 0.5 * (ratio * ratio + distance * distance - 1.0) - logs
        shapes = ((*x.batch_shape, *x.event_shape) for x in (q, p))
        each = ops.broadcast_to(each, np.broadcast_shapes(*shapes))
        return ops.sum(each, axis=tuple(range(-ndim, 0))) if ndim else each

    def in_support(self, fn: Any, value: Array) -> Array | None:
        return self.laws.is_inside(fn, value)

    def has_moving_support(self, fn: Any) -> bool:
        return self.laws.has_moving_support(fn)

    def support_name(self, fn: Any) -> str:
        return str(fn.support)

    def is_discrete(self, fn: Any) -> bool:
        return bool(fn.support.is_discrete)

    def edges(self, fn: Any) -> tuple[float, ...]:
        while not hasattr(fn, "density") and hasattr(fn, "base_dist"):
            fn = fn.base_dist
        return densities.TABLE[fn.density].edges if hasattr(fn, "density") else ()

    def is_reparametrised(self, fn: Any) -> bool:
        return self.noise_shape(fn) is not None or bool(fn.has_rsample)

    def noise_shape(self, fn: Any) -> tuple[int, ...] | None:
        found = self.laws.noise_map(fn)
        return None if found is None else found.shape
