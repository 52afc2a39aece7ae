"""What native samplers are given and give back: a log density, starts and chains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
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

    def check_start(self, start: Start, is_warm: bool = False) -> None:
        """Refuses starting points of which one is not good."""


class Chains(NamedTuple):
    """What a sampler returns, numpy.

    Attributes:
        free: draws on the real line, [chain, draw, ...] by site name.
        stats: [chain, draw] by ArviZ's names for them.
        num_warmup: transitions before the first draw.
        learned: what moves each chain at its end, see `WarmStart`; empty where nothing is learned.
    """

    free: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    num_warmup: int
    learned: Mapping[str, np.ndarray] = MappingProxyType({})


class WarmStart(NamedTuple):
    """Where chains go on from, numpy, with the chains in front.

    Attributes:
        free: positions on the real line, [chain, ...] by site name.
        learned: "step_size" [chain] and the inverse mass matrix M^-1 in the order of `Layout`:
            "inv_metric" [chain, d], its diagonal, and "inv_metric_block_0"... [chain, n, n] of its
            dense blocks. One of low rank is S (I + U diag(g) U')^2 S with S^2 in "inv_metric", U in
            "inv_metric_directions" [chain, d, k] and g in "inv_metric_gains" [chain, k]. Empty
            where positions are all there is.
        blocks: the names of sites in each dense block.
        transitions: how many each chain has made until there.
    """

    free: dict[str, np.ndarray]
    learned: dict[str, np.ndarray]
    blocks: tuple[tuple[str, ...], ...]
    transitions: int

    @property
    def num_chains(self) -> int:
        """How many chains there are."""
        return len(next(iter(self.free.values())))

    @property
    def rank(self) -> int:
        """Of a mass matrix of low rank; 0 of any other."""
        return (
            self.learned["inv_metric_gains"].shape[1] if "inv_metric_gains" in self.learned else 0
        )

    def of(self, numbers: range) -> WarmStart:
        """That of some of the chains."""
        rows = slice(numbers.start, numbers.stop)
        return self._replace(
            free={n: v[rows] for n, v in self.free.items()},
            learned={n: v[rows] for n, v in self.learned.items()},
        )


class Start(NamedTuple):
    """A starting point for each chain, on trial; every leaf has the chains in front.

    `ok`: log density and gradient are finite and all data lie in their support.
    """

    free: dict[str, np.ndarray]
    ok: np.ndarray
    site_log_prob: dict[str, np.ndarray]
    outside: dict[str, np.ndarray]


def find_start(
    posterior: LogDensity, attempt: Callable[[int], Start], is_warm: bool = False
) -> dict[str, np.ndarray]:
    """Starting points, tried until each chain has a good one; `attempt(i)` makes the i-th try, of
    which a warm start has one."""
    best = attempt(0)
    for i in range(1, 1 if is_warm else NUM_STARTS):
        if best.ok.all():
            break
        good = best.ok
        best = tree_map(
            lambda a, c, g=good: np.where(g.reshape(-1, *[1] * (a.ndim - 1)), a, c),
            best,
            attempt(i),
        )
    posterior.check_start(best, is_warm)
    return best.free
