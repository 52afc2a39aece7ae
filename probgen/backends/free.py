"""Runs of a program whose latents are given on the real line: what both backends' have in common.

    z = T(u),    log q(u) = log p(z) + log |det dT/du|

The bijection is that of the support where the run stands, so it may depend on another latent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from probgen.backends.lowering import per_datum
from probgen.backends.series import Series

Array = Any


class FreeHands:
    """A part of each `FreeLowering`, before its backend's `Lowering`.

    Attributes:
        names: of the latents; free: their places on the real line; log_det: their log Jacobians.
    """

    broadcast_plates: ClassVar[Callable]
    run: Any
    names: tuple[str, ...]
    free: dict[str, Any]
    log_det: dict[str, Any]

    def value_of(self, name: str, fn: Any, obs: Any) -> Any:
        if name not in self.names:
            return super().value_of(name, fn, obs)  # type: ignore[misc]
        transform = self.onto_support(name, fn)
        if name not in self.free:
            self.free[name] = self._start(name, fn, transform)
        value, log_det = self._moved(transform, self.free[name], fn)
        self._keep(name, log_det)
        return value

    def series(self, name: str, fn: Any, length: int, is_fixed: bool) -> Series:
        """Positions have the time in front; the bijection is that of each moment's support."""
        if name not in self.names:
            return super().series(name, fn, length, is_fixed)  # type: ignore[misc]
        if name not in self.free:
            self.free[name] = self._start(name, fn, self.onto_support(name, fn), (length,))
        return Series(
            self.free[name], lambda law, u: self._moved(self.onto_support(name, law), u, law)
        )

    def sample_series(
        self, name: str, series: Series, value: Any, kept: dict[str, Any], length: int
    ) -> Any:
        if name in self.names:
            self._keep(name, self.summed(kept["more"], series.first))
        return super().sample_series(name, series, value, kept, length)  # type: ignore[misc]

    def _moved(self, transform: Any, u: Any, fn: Any) -> tuple[Any, Any]:
        """(value, [*batch] log |det|) of a position on the real line."""
        value = transform(u)
        log_det = transform.log_abs_det_jacobian(u, value)
        event = log_det.ndim - len(self.batch_of(fn))  # some leave axes of the event unsummed
        return value, log_det.sum(tuple(range(-event, 0))) if event else log_det

    def _keep(self, name: str, log_det: Any) -> None:
        self.log_det[name] = per_datum(name, log_det, self.run.active, self.broadcast_plates)

    # ---- of each library

    onto_support: Callable
    batch_of: Callable
    summed: Callable

    def _start(self, name: str, fn: Any, transform: Any, lead: tuple = ()) -> Array:
        raise NotImplementedError  # abstract: both backends define it
