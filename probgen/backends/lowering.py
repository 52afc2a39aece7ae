"""What the two lowerings share: how a declaration becomes a library's distribution, and a trace
node a `Site`. No framework here: a backend's own file brings the classes and array functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from probgen.backends.protocol import Site
from probgen.dist import Deferred
from probgen.errors import (
    AlgorithmError,
    BackendError,
    DeclarationError,
    MissingSeed,
    NotByRow,
    ShapeError,
)
from probgen.program import DATA_PLATE, NOT_NORMAL, PARTICLES, Run

# Arguments that shape a distribution and are not parameters of it.
STRUCTURE = frozenset({"dim", "total_count", "event_dim", "num_levels", "low", "high"})


class BaseLowering:
    """The hands of one run: values that are given, a key or noise for those that are drawn.

    A subclass names its library and defines `argument` (a number or array as the library wants
    it) and `draw` (a value from the key, for a distribution that is no function of noise).
    """

    library: ClassVar[str]
    own: ClassVar[Mapping[str, Any]] = {}
    renamed: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    classes: ClassVar[Any]

    def __init__(self, values: Mapping[str, Any], key: Any, noise: Mapping[str, Any] | None):
        self.values, self.key, self.noise = values, key, noise or {}
        self.run: Run | None = None

    def build(self, deferred: Deferred, site: str) -> Any:
        """The library's distribution for a declaration.

        Raises:
            BackendError: the library has none of that name.
            DeclarationError: its arguments do not make one.
        """
        renamed = self.renamed.get(deferred.name, {})
        kwargs = {
            renamed.get(k, k): self.build(v, site)
            if isinstance(v, Deferred)
            else self.argument(k, v)
            for k, v in deferred.arguments
        }
        try:
            built = self._class(deferred.name)(**kwargs)
            for method, args in deferred.calls:
                built = getattr(built, method)(*args)
        except (RuntimeError, ValueError, TypeError) as error:
            raise DeclarationError(
                f"site {site!r}: {deferred!r} cannot be built by {self.library}: {error}"
            ) from error
        # Data are checked once, by `probgen.support`; a check of values cannot be traced.
        built._validate_args = False
        return built

    def _class(self, name: str) -> Any:
        found = self.own.get(name, getattr(self.classes, name, None))
        if found is None:
            other = {"Pyro": ("NumPyro", "jax"), "NumPyro": ("Pyro", "torch")}[self.library]
            raise BackendError(
                f"dist.{name}: {self.library} has no such distribution, only {other[0]} does; run "
                f'this model with backend="{other[1]}", or declare it with a distribution that '
                "both have."
            )
        return found

    def argument(self, name: str, value: Any) -> Any:
        """An argument as the library wants it."""
        raise NotImplementedError  # abstract: both lowerings define it

    def needed_noise(self, name: str, fn: Any, transform: Callable | None) -> Any:
        """Noise that was given for a site, or None when a key must draw it.

        Raises:
            MissingSeed: there is neither noise nor a key.
            AlgorithmError: noise for a site that is no function of it.
        """
        eps = self.noise.get(name)
        if self.key is None and eps is None:
            raise MissingSeed(
                f"site {name!r} must be drawn, and there is no seed; give a value for it or a seed."
            )
        if transform is None and eps is not None:
            raise AlgorithmError(NOT_NORMAL.format(name=name, kind=type(fn).__name__))
        return eps

    def data_axis(self, name: str, fn: Any, transform: Callable | None, ndim: int) -> int:
        """Where the data lie among a draw's `ndim` axes, for row keys.

        Raises:
            NotByRow: the site is no function of noise, or stands outside the data plate.
        """
        plate = self.run.active.get(DATA_PLATE)  # type: ignore[union-attr]
        if transform is None or plate is None:
            raise NotByRow(
                f"site {name!r}: got one key a datum, expected a local site that is a function of "
                f"normal noise, not {type(fn).__name__}; take the data one by one."
            )
        return ndim - len(fn.event_shape) + plate[0]

    def _plates(self) -> tuple[int, ...]:
        return axis_sizes(dict(self.run.active.values()))  # type: ignore[union-attr]


def axis_sizes(sizes: Mapping[int, int]) -> tuple[int, ...]:
    """{axis from the right: size} as a shape, with 1 where no plate lies."""
    depth = max((-axis for axis in sizes), default=0)
    return tuple(sizes.get(-i, 1) for i in range(depth, 0, -1))


def per_datum(
    name: str, value: Any, plates: Mapping[str, tuple[int, int]], broadcast: Callable
) -> Any:
    """A site's log density (or log Jacobian), [*plates], with its inner plates summed.

    Args:
        name: the site's.
        value: the log density.
        plates: name -> (axis from the right, size) of those that the site stands in.
        broadcast: see `as_site`.

    Raises:
        ShapeError: an axis is left over that is no plate's.
    """
    keep = {dim for plate, (dim, _) in plates.items() if plate in (PARTICLES, DATA_PLATE)}
    value = broadcast(value, axis_sizes(dict(plates.values())))
    inner = tuple(axis for axis in range(-value.ndim, 0) if axis not in keep)
    if inner:
        value = value.sum(inner)
    if value.ndim != len(keep):
        raise ShapeError(
            f"site {name!r}: got a log-probability of shape {tuple(value.shape)}, expected "
            f"{len(keep)} axes, of the data and the particles; check its plates and its to_event."
        )
    return value


def plain_log_prob(fn: Any, value: Any) -> Any:
    """The library's own."""
    return fn.log_prob(value)


def as_site(
    name: str,
    node: Mapping[str, Any],
    run: Run,
    broadcast: Callable,
    log_prob_of: Callable = plain_log_prob,
) -> Site:
    """A node of Pyro's or NumPyro's trace as a site: inner plates summed, data and particles kept.

    `broadcast(log_prob, plates)` stretches a log-probability over the open plates' axes.

    Raises:
        ShapeError: an axis is left over that is no plate's.
    """
    kind = run.sites[name]["kind"]
    frames = node["cond_indep_stack"]
    is_local = any(f.name == DATA_PLATE for f in frames)
    if kind == "deterministic":
        return Site(node["value"], None, is_local, None, kind)
    plates = {f.name: (f.dim, f.size) for f in frames}
    log_prob = per_datum(name, log_prob_of(node["fn"], node["value"]), plates, broadcast)
    return Site(node["value"], log_prob, is_local, None if kind == "factor" else node["fn"], kind)
