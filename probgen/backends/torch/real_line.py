"""Programs whose latents lie on the real line, and where chains of them start."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from probgen.backends import keys
from probgen.backends.free import FreeHands
from probgen.backends.protocol import Site
from probgen.backends.torch import random
from probgen.backends.torch.lowering import Lowering, broadcast_plates, run_program


class FreeLowering(FreeHands, Lowering):
    """Runs a program whose latents are given on the real line, and keeps the log Jacobians."""

    broadcast_plates = staticmethod(broadcast_plates)

    def __init__(
        self, device: str, values: Mapping[str, Any], key: Any, names: tuple[str, ...],
        free: Mapping[str, Any], given: Mapping[str, Any], strategy: str,
    ):  # fmt: skip
        super().__init__(device, values, key, None)
        self.names, self.free, self.given, self.strategy = names, dict(free), given, strategy
        self.log_det: dict[str, Any] = {}

    def _start(self, name: str, fn: Any, transform: Any, lead: tuple = ()) -> torch.Tensor:
        shape = torch.Size((*lead, *self.batch_of(fn), *fn.event_shape))
        if name in self.given:
            return transform.inv(self.in_time(self.given[name], fn, lead).expand(shape))
        if self.strategy == "init_to_feasible":
            return torch.zeros(transform.inverse_shape(shape), device=self.device)
        if self.strategy == "init_to_uniform":
            key = keys.fold_in(self.key, zlib.crc32(name.encode()))
            free_shape = tuple(transform.inverse_shape(shape))
            return 4.0 * random.noise("uniform", key, free_shape, self.device) - 2.0
        if self.strategy == "init_to_mean":
            try:
                return transform.inv(fn.mean.expand(shape))
            except NotImplementedError:
                pass  # no closed form: the median stands in, as in Pyro
        first, draws = self.key, []
        for i in range(1 if self.strategy == "init_to_sample" else 15):
            self.key = keys.fold_in(first, i)
            draws.append(transform.inv(self._draw(name, fn).expand(shape)))
        self.key = first
        return torch.stack(draws).median(0).values


def unconstrained(
    device: str, program: Callable, params: Mapping, *, names: tuple[str, ...],
    free: Mapping[str, Any], given: Mapping[str, Any], strategy: str, values: Mapping[str, Any],
    inputs: Mapping[str, Any], key: Any, batch_size: int | None,
) -> tuple[dict[str, Site], dict[str, Any], dict[str, Any]]:  # fmt: skip
    """(sites, latents on the real line, log |det| of each one's bijection, as a log_prob)."""
    lower = FreeLowering(device, values, key, names, free, given, strategy)
    _, sites = run_program(program, dict(params), lower, inputs, batch_size, None)
    return sites, lower.free, lower.log_det
