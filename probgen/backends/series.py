"""What a site of `pg.scan` is to a lowering and to a library; written once for both.

    log p(z) = sum_t log p(z_t | what came before)

A site's value has to be there before the loop runs, or be made in it of something that is: data,
noise, a position on the real line. `Series` says which. The density is added up in the loop, where
the laws of all moments are known, so that a `SeriesLaw` knows it at the value of its own run and
nowhere else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

from probgen.errors import AlgorithmError
from probgen.language import ops
from probgen.language.noise import NoiseMap
from probgen.language.run import DATA_PLATE, PARTICLES
from probgen.language.series import moved

Array = Any


@dataclasses.dataclass
class Series:
    """How the values of one site of a loop come about.

    Attributes:
        xs: what they are made of, arrays [T, ...] or a tree of them; None where nothing is needed.
        value: (law of the moment, x_t) -> (z_t, what else is kept of the moment).
        whole: [*plates, T, *event] where the values were given.
        is_fixed: the step itself gives them (`obs=`).
        first: the law of the first moment.
    """

    xs: Any
    value: Callable[[Any, Any], tuple[Array, Any]] | None = None
    whole: Any = None
    is_fixed: bool = False
    first: Any = None


class SeriesHands:
    """What a lowering does for sites of a loop; a part of `BaseLowering`."""

    series_class: ClassVar[Any]
    values: Any
    run: Any

    def series(self, name: str, fn: Any, length: int, is_fixed: bool) -> Series:
        """How a site's values come about; `fn` is its law at the first moment.

        Raises:
            MissingSeed, NotByRow, AlgorithmError: as for a site outside of loops.
        """
        given = self.values.get(name)
        if given is not None:
            return self.given_series(given, fn)
        if is_fixed:
            return Series(None, is_fixed=True)
        found = self.noise_map_of(fn)
        batch = self.batch_of(fn)
        if found is None:
            return self.drawn_series(name, fn, length, batch)
        whole = NoiseMap((length, *found.shape), found.value)
        eps = moved(self.normal(name, fn, whole, batch), -1 - len(found.shape), 0)
        return Series(eps, lambda law, e: (self.noise_map_of(law).value(e), None))

    def given_series(self, value: Array, fn: Any) -> Series:
        """Of values [*plates, T, *event]."""
        in_time = moved(value, -1 - len(fn.event_shape), 0)
        return Series(in_time, lambda law, z: (z, None), whole=value)

    def in_time(self, value: Array, fn: Any, lead: tuple) -> Array:
        """[*plates, T, *event] with the time in front; outside of loops (`lead` ()) as it is."""
        return moved(value, -1 - len(fn.event_shape), 0) if lead else value

    def sample_series(
        self, name: str, series: Series, value: Array, kept: dict[str, Any], length: int
    ) -> Array:
        """The site as one variable of the program, [*plates, T, *event]."""
        log_prob = self.summed(kept["log_prob"], series.first)
        return self.declare_series(name, series.first, value, log_prob, kept["inside"], length)

    def summed(self, in_time: Array, fn: Any) -> Array:
        """[T, *batch] -> [*plates], summed over time."""
        total = ops.sum(in_time, axis=0)
        return ops.broadcast_to(total, self.batch_of(fn))

    def declare_series(
        self, name: str, fn: Any, value: Array, log_prob: Array, inside: Any, length: int
    ) -> Array:
        """A `SeriesLaw` handed to the library's own primitive."""
        shape = self.batch_of(fn)
        if inside is not None:
            inside = ops.broadcast_to(ops.all(inside, axis=0), shape)
        whole = ops.broadcast_to(value, (*shape, length, *fn.event_shape))
        value = value if tuple(value.shape) == tuple(whole.shape) else whole
        law = self.series_class(fn, length, shape, value, log_prob, inside)
        return self.observe(name, law, value)

    def by_moment(self, kept: dict[str, Any], fn: Any, length: int) -> Array:
        """[T, *particles, *data] log density of each moment, -inf outside of the support.

        Args:
            fn: the law of the first moment; None: a factor.
        """
        batch = self._plates() if fn is None else self.batch_of(fn)

        def whole(x: Array) -> Array:
            lead = (length, *(1,) * (1 + len(batch) - x.ndim), *x.shape[1:])
            return ops.broadcast_to(ops.reshape(x, lead), (length, *batch))

        out, inside = whole(kept["log_prob"]), kept.get("inside")
        if inside is not None:
            out = ops.where(whole(inside), out, -math.inf)
        active = self.run.active
        keep = {dim for n, (dim, _) in active.items() if n in (PARTICLES, DATA_PLATE)}
        inner = tuple(i for i in range(1, out.ndim) if i - out.ndim not in keep)
        return ops.sum(out, axis=inner) if inner else out

    def moving_inside(self, fn: Any, value: Array) -> Array | None:
        """[*batch] whether a value lies in a support whose ends are computed; None for others."""
        return self.is_inside(fn, value) if self.has_moving_support(fn) else None

    # ---- of each library

    def _plates(self) -> tuple[int, ...]:
        raise NotImplementedError  # abstract: the lowering defines it

    def noise_map_of(self, fn: Any) -> Any:
        raise NotImplementedError  # abstract: both lowerings define it

    def batch_of(self, fn: Any) -> tuple[int, ...]:
        raise NotImplementedError  # abstract: both lowerings define it

    def normal(self, name: str, fn: Any, found: NoiseMap, batch: tuple[int, ...]) -> Array:
        raise NotImplementedError  # abstract: both lowerings define it

    def drawn_series(self, name: str, fn: Any, length: int, batch: tuple[int, ...]) -> Series:
        raise NotImplementedError  # abstract: both lowerings define it

    def observe(self, name: str, fn: Any, value: Array) -> Array:
        raise NotImplementedError  # abstract: both lowerings define it

    def is_inside(self, fn: Any, value: Array) -> Array | None:
        raise NotImplementedError  # abstract: both lowerings define it

    def has_moving_support(self, fn: Any) -> bool:
        raise NotImplementedError  # abstract: both lowerings define it


class SeriesOf:
    """What a library's class of a series is; the law of the first moment says of what kind."""

    first: Any
    length: int
    given: tuple

    def known(self, value: Array) -> Array:
        """[*batch] the density at the value of its run.

        Raises:
            AlgorithmError: asked at another value, of whose past nothing is known.
        """
        if value is not self.given[0]:
            raise AlgorithmError(
                "pg.scan: the density of a series was asked at another value than that of its run, "
                "expected that one, since each moment's law follows from the past; run the program "
                "at the other value."
            )
        return self.given[1]

    def holds(self, value: Array) -> Array | None:
        """[*batch] whether all moments lie in the support; None where its ends are computed and
        the value is another than that of the run."""
        inside = self.given[2]
        if inside is not None:
            return inside if value is self.given[0] else None
        found = self.inside_first(value)
        return None if found is None else ops.all(found, axis=-1)

    def inside_first(self, value: Array) -> Array | None:
        raise NotImplementedError  # abstract: both classes define it

    def noise_map(self, of_first: NoiseMap | None) -> NoiseMap | None:
        """Says of how much noise it is a function; the function is the loop."""
        return None if of_first is None else NoiseMap((self.length, *of_first.shape), self._refuse)

    def _refuse(self, *_: Any) -> Any:
        raise AlgorithmError(NO_LAW)

    @property
    def mean(self) -> Any:
        raise NotImplementedError(NO_LAW)

    @property
    def variance(self) -> Any:
        raise NotImplementedError(NO_LAW)


NO_LAW = (
    "pg.scan: a series was asked for a draw or a mean outside of its loop, expected the program to "
    "be run; generate draws series, and infer their posteriors."
)
