"""A guide's latents: drawn, or each at its mean. Whoever draws the guide asks here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from probgen.backends.protocol import Key, Site
from probgen.engine.bound import Bound
from probgen.errors import AlgorithmError

Array = Any


class GuideDraws(NamedTuple):
    """What one run of a guide drew.

    Attributes:
        latents: values of the model's latents by name, in the guide's order.
        sites: all sample sites of the guide by name, with their distributions and log q.
    """

    latents: dict[str, Array]
    sites: dict[str, Site]

    @property
    def log_q(self) -> Array:
        """Sum of the log densities of the latents, [*particles, batch] where all are local."""
        return sum(self.sites[n].log_prob for n in self.latents)


def draw_guide(
    bound: Bound, params: Mapping, batch: Mapping[str, Array], key: Key, **options: Any
) -> GuideDraws:
    """The latents from the guide.

    Args:
        options: as of `Bound.trace_guide`: `num_particles` and the like.

    Raises:
        AlgorithmError: there is no guide, or it leaves a latent site of the model out.
    """
    guide = bound.trace_guide(params, batch, key=key, **options)
    drawn = {n: s for n, s in guide.items() if s.kind == "sample"}
    missing = [n for n in bound.latents if n not in drawn]
    if missing:
        raise AlgorithmError(
            f"guide of {bound.model.name!r}: does not draw {missing}, expected every latent site "
            f"of the model, {list(bound.latents)}; add pg.sample({missing[0]!r}, ...) to it, or "
            f"give data for {missing[0]!r}."
        )
    return GuideDraws({n: s.value for n, s in drawn.items() if n in bound.latents}, drawn)


def guide_order(bound: Bound) -> list[str]:
    """The model's latents in the order in which the guide draws them."""
    sites = bound.guide_structure.sites  # type: ignore[union-attr]
    return [n for n, s in sites.items() if s.kind == "sample" and n in bound.latents]


def guide_at_means(
    bound: Bound,
    params: Mapping,
    batch: Mapping[str, Array],
    key: Key,
    mean: Callable[[str, Site], Array],
) -> dict[str, Array]:
    """Each latent at its mean under the guide, given the means of those that it draws before.

    Args:
        key: of draws whose place the means take; it changes nothing.
        mean: of a site, by its name; a latent without one is refused there.
    """
    known: dict[str, Array] = {}
    for name in guide_order(bound):
        known[name] = mean(name, bound.trace_guide(params, batch, key=key, latents=known)[name])
    return known
