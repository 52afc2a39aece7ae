"""Distributions of either library with what is ours: densities and supports in its classes, and
functions of noise. No framework here: a library's classes and functions are arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from probgen.language import densities, noise, ops
from probgen.language.noise import NoiseMap


def noise_maps(find: Callable[[str], Any]) -> dict[type, noise.FromNoise]:
    """Every class that a library, or we, have of `noise.TABLE`, with its function of noise."""
    return {cls: entry for k, entry in noise.TABLE.items() for cls in find(k) if cls is not None}


def elementwise(fn: Any, entry: noise.FromNoise) -> NoiseMap:
    """A distribution of `noise.TABLE` as a function of noise."""
    given = fn.arguments() if hasattr(fn, "arguments") else [getattr(fn, n) for n in entry.names]
    return NoiseMap(tuple(fn.event_shape), lambda eps: entry.value(eps, *given))


def gaussian_map(fn: Any, factor: Callable[[], Any], width: int) -> NoiseMap:
    """loc + L eps, `factor()` being L [..., d, width]: a Gaussian of covariance L L^T."""

    def value(eps: Any) -> Any:
        return fn.loc + ops.matmul(factor(), eps[..., None])[..., 0]

    return NoiseMap((width,), value)


def low_rank_factor(w: Any, diagonal: Any) -> Any:
    """[..., d, r + d] with L L^T = W W^T + diag(diagonal)."""
    root = ops.sqrt(diagonal)[..., None] * ops.eye_like(diagonal.shape[-1], diagonal)
    lead = (0.0 * root[..., :1] + 0.0 * w[..., :1]).shape[:-1]
    parts = [ops.broadcast_to(x, (*lead, x.shape[-1])) for x in (w, root)]
    return ops.concatenate(parts, axis=-1)


def composed(inner: NoiseMap | None, transforms: Any) -> NoiseMap | None:
    """A library's transforms, one after another, of a function of noise."""
    if inner is None:
        return None

    def value(eps: Any) -> Any:
        x = inner.value(eps)
        for transform in transforms:
            x = transform(x)
        return x

    return NoiseMap(inner.shape, value)


def owned(
    base: type, family: str, density: Callable = densities.log_prob,
    inside: Callable = densities.inside,
) -> type:  # fmt: skip
    """A library's class with our density and support (`probgen.language.densities`, or what calls
    it); its draws stay its own."""
    names = densities.TABLE[family].names
    theirs = base.log_prob  # type: ignore[attr-defined]

    law = density

    class Own(base):
        density = family

        def log_prob(self, value: Any, *intermediates: Any) -> Any:
            given = tuple(getattr(self, n) for n in names)
            return law(family, value, given, lambda x: theirs(self, x))

        def holds(self, value: Any) -> Any:
            return inside(family, value, tuple(getattr(self, n) for n in names))

    Own.__name__ = Own.__qualname__ = base.__name__
    return Own


def own_classes(
    find: Callable[[str], Any], density: Callable = densities.log_prob,
    inside: Callable = densities.inside,
) -> dict[str, type]:  # fmt: skip
    """Every class that a library has of `densities.TABLE`, with our density in it; see `owned`."""
    found = {family: find(family) for family in densities.TABLE}
    return {k: owned(v, k, density, inside) for k, v in found.items() if isinstance(v, type)}


def in_support(fn: Any, value: Any, wrappers: Any, theirs: Callable[[], Any]) -> Any:
    """[*batch] whether a value lies in the support of a distribution under `wrappers`: by our
    rule where there is one, else by the library's, `theirs`; None when it cannot be told."""
    ndim, base = 0, fn
    while isinstance(base, wrappers):
        ndim += getattr(base, "reinterpreted_batch_ndims", 0)
        base = base.base_dist
    ok = base.holds(value) if hasattr(base, "holds") else None
    if ok is not None:
        return ops.all(ok, axis=tuple(range(-ndim, 0))) if ndim else ok
    try:
        return theirs()
    except NotImplementedError:
        return None
