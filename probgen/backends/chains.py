"""What native samplers are given and give back: a log density, starts and chains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from probgen.trees import tree_map

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


def find_start(posterior: LogDensity, attempt: Callable[[int], Start]) -> dict[str, np.ndarray]:
    """Starting points, tried until each chain has a good one; `attempt(i)` makes the i-th try."""
    best = attempt(0)
    for i in range(1, NUM_STARTS):
        if best.ok.all():
            break
        good = best.ok
        best = tree_map(
            lambda a, c, g=good: np.where(g.reshape(-1, *[1] * (a.ndim - 1)), a, c),
            best,
            attempt(i),
        )
    posterior.check_start(best)
    return best.free
