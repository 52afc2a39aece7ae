"""What native samplers are given and give back: a log density, starts and chains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

NUM_STARTS = 100  # starting points tried per chain; NumPyro and Pyro try as many


class LogDensity(Protocol):
    """What a sampler walks on; see `probgen.engine.posterior.Posterior`, which it is."""

    @property
    def bound(self) -> Any:
        """The model on its backend."""

    def point(
        self, params: Mapping, rows: Mapping[str, Any], free: Mapping[str, Any] | None = None, *,
        key: Any = None, given: Mapping[str, Any] | None = None, strategy: str = "init_to_uniform",
    ) -> Any:  # fmt: skip
        """Log density and all sites at `free`."""

    def check_start(self, start: Start) -> None:
        """Refuses starting points of which one is not good."""


class Chains(NamedTuple):
    """What a sampler returns, numpy.

    Attributes:
        free: draws on the real line, [chain, draw, ...] by site name.
        stats: [chain, draw] by ArviZ's names for them.
        num_warmup: transitions before the first draw.
    """

    free: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    num_warmup: int


class Start(NamedTuple):
    """A starting point for each chain, on trial; every leaf has the chains in front.

    `ok`: log density and gradient are finite and all data lie in their support.
    """

    free: dict[str, np.ndarray]
    ok: np.ndarray
    site_log_prob: dict[str, np.ndarray]
    outside: dict[str, np.ndarray]
