"""Programs whose latents lie on the real line, and where chains of them start."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from probgen.backends.free import FreeHands
from probgen.backends.jax.lowering import Lowering, broadcast_plates, run_program
from probgen.backends.protocol import Site


class FreeLowering(FreeHands, Lowering):
    """Runs a program whose latents are given on the real line, and keeps the log Jacobians."""

    broadcast_plates = staticmethod(broadcast_plates)

    def __init__(
        self, values: Mapping[str, Any], key: Any, names: tuple[str, ...],
        free: Mapping[str, Any], given: Mapping[str, Any], strategy: str,
    ):  # fmt: skip
        super().__init__(values, key, None)
        self.names, self.free, self.given, self.strategy = names, dict(free), given, strategy
        self.log_det: dict[str, Any] = {}

    def _start(self, name: str, fn: Any, transform: Any, lead: tuple = ()) -> Any:
        shape = (*lead, *self.batch_of(fn), *fn.event_shape)
        if name in self.given:
            return transform.inv(jnp.broadcast_to(self.in_time(self.given[name], fn, lead), shape))
        if self.strategy == "init_to_feasible":
            return jnp.zeros(transform.inverse_shape(shape))
        if self.strategy == "init_to_uniform":
            key = jax.random.fold_in(self.key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
            return jax.random.uniform(key, transform.inverse_shape(shape), minval=-2.0, maxval=2.0)
        if self.strategy == "init_to_mean":
            try:
                return transform.inv(jnp.broadcast_to(fn.mean, shape))
            except NotImplementedError:
                pass  # no closed form: the median stands in, as in NumPyro
        outer = self.key

        def draw(i: Any) -> Any:
            self.key = jax.random.fold_in(outer, i)
            return transform.inv(jnp.broadcast_to(self._draw(name, fn), shape))

        draws = jax.vmap(draw)(jnp.arange(1 if self.strategy == "init_to_sample" else 15))
        self.key = outer
        return jnp.median(draws, axis=0)


def unconstrained(
    program: Callable, params: Mapping, *, names: tuple[str, ...], free: Mapping[str, Any],
    given: Mapping[str, Any], strategy: str, values: Mapping[str, Any], inputs: Mapping[str, Any],
    key: Any, batch_size: int | None,
) -> tuple[dict[str, Site], dict[str, Any], dict[str, Any]]:  # fmt: skip
    """(sites, latents on the real line, log |det| of each one's bijection, as a log_prob)."""
    lower = FreeLowering(values, key, names, free, given, strategy)
    _, sites = run_program(program, dict(params), lower, inputs, batch_size, None)
    return sites, lower.free, lower.log_det
