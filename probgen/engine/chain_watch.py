"""Chains looked at while they grow: are they long enough, and what a bar shows of them.

R-hat is rank-normalised and split, the effective sample size that of the bulk, the Monte Carlo
error that of the mean; all are ArviZ's, of every number of every latent on the real line. A look is
taken after each piece of draws, some twenty in a run, so that where to stop depends on draws alone.

Source: Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, arXiv:1903.08008.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from probgen.errors import AlgorithmError
from probgen.language.declared import declaration, require
from probgen.language.kinds import Many, Positive, between
from probgen.trees import tree_leaves

SHOWN = 32  # numbers that a bar looks at, evenly spread over all
FEWEST = 20  # draws a chain before anything is shown


@declaration
class Until:
    """When chains are long enough.

        pg.infer(model, data, NUTS(num_samples=10_000), until=Until(rhat=1.01, ess=400), seed=0)

    `num_samples` of the sampler is then the most. After each of some twenty pieces of draws all
    latents are looked at; chains end with the first piece after which each of these holds. Looks
    are many, and the first good one ends the run, so the last R-hat and ESS are a little better
    than they are of other chains of that length; ask for more where that matters.

    Args:
        rhat: every R-hat is below it; None asks for none, as of one chain.
        ess: every bulk effective sample size is at least this, over all chains.
        mcse: the Monte Carlo error of every mean is at most this share of its standard deviation.
        min_draws: draws of each chain before the first look.

    Raises:
        DeclarationError: nothing is asked for, or a value is out of range.

    Source: Vehtari et al. 2021, arXiv:1903.08008 (R-hat below 1.01, 100 effective draws a chain).
    """

    rhat: Annotated[float, between(1.0, 2.0)] | None = 1.01
    ess: Positive | None = 400.0
    mcse: Positive | None = None
    min_draws: Many = dataclasses.field(default=100, kw_only=True)

    def __post_init__(self) -> None:
        asked = any(v is not None for v in (self.rhat, self.ess, self.mcse))
        require(asked, self, "something to reach", "rhat", "ess", "mcse")

    def require_chains(self, num_chains: int) -> None:
        """Refuses R-hat of one chain.

        Raises:
            AlgorithmError: so.
        """
        if self.rhat is not None and num_chains < 2:
            raise AlgorithmError(
                f"infer: got until=Until(rhat={self.rhat:g}) for one chain, expected at least two, "
                "since R-hat compares chains; give num_chains=4, or Until(rhat=None)."
            )

    def lacks(self, draws: np.ndarray) -> str:
        """What one number's draws [chain, draw] are short of, in words; "" where nothing."""
        if not (np.ptp(draws, axis=1) > 0).all():
            return "a chain has not moved"
        found = measured(draws)
        if self.rhat is not None and not found["rhat"] < self.rhat:
            return f"R-hat is {found['rhat']:.3f}, asked for below {self.rhat:g}"
        if self.ess is not None and not found["ess"] >= self.ess:
            return f"ESS is {found['ess']:.0f}, asked for {self.ess:g}"
        if self.mcse is not None and not 1 / math.sqrt(found["ess_mean"]) <= self.mcse:
            error = 1 / math.sqrt(found["ess_mean"])
            return f"the error of the mean is {error:.2g} sd, asked for {self.mcse:g}"
        return ""


def measured(draws: np.ndarray) -> dict[str, float]:
    """R-hat, bulk ESS, and that of the mean, sd / its root the error of that, of [chain, draw]."""
    from arviz_stats.base import array_stats

    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        rhat = float(array_stats.rhat(draws, method="rank")) if len(draws) > 1 else math.nan
        each = {m: float(array_stats.ess(draws, method=m)) for m in ("bulk", "mean")}
    return {"rhat": rhat, "ess": each["bulk"], "ess_mean": each["mean"]}


def lacking(until: Until, free: Mapping[str, np.ndarray]) -> str:
    """What draws [chain, draw, ...] by site are short of, in words; "" where nothing."""
    return Watch(until).short_of([{"free": {n: v.swapaxes(0, 1) for n, v in free.items()}}])


class Watch:
    """Looks at the pieces of a run as they come.

    Args:
        until: when to stop; None never does.
    """

    def __init__(self, until: Until | None = None):
        self.until = until
        self._failed = 0  # the number that was short at the last look is looked at first
        self._looks: dict[int, str] = {}

    def short_of(self, parts: Sequence[Mapping[str, Any]]) -> str:
        """What the draws of these pieces, [draw, chain, ...] each, lack; "" where they suffice."""
        if self.until is None:
            return "no rule"
        index = len(parts)
        if index not in self._looks:
            self._looks[index] = self._look(parts)
        return self._looks[index]

    def _look(self, parts: Sequence[Mapping[str, Any]]) -> str:
        assert self.until is not None
        draws = _numbers(parts)
        if draws.shape[1] < max(self.until.min_draws, 4):
            return f"{draws.shape[1]} draws a chain, at least {self.until.min_draws}"
        count = draws.shape[2]
        for k in range(count):
            at = (self._failed + k) % count
            if lack := self.until.lacks(draws[..., at]):
                self._failed = at
                return lack
        return ""

    def words(self, parts: Sequence[Mapping[str, Any]]) -> str:
        """For a bar: the largest R-hat and the smallest ESS, of at most `SHOWN` numbers."""
        draws = _numbers(parts)
        if draws.shape[1] < FEWEST:
            return ""
        some = np.unique(np.linspace(0, draws.shape[2] - 1, SHOWN).astype(int))
        moving = [i for i in some if (np.ptp(draws[..., i], axis=1) > 0).all()]
        found = [measured(draws[..., i]) for i in moving]
        if not found:
            return "chains have not moved"
        ess = f"ESS {min(f['ess'] for f in found):.0f}"
        return ess if len(draws) < 2 else f"R-hat {max(f['rhat'] for f in found):.3f}, {ess}"


def _numbers(parts: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """[chain, draw, numbers] of all latents, by their names' order; pieces of warm-up are empty."""
    flat = []
    for part in parts:
        leaves = [np.asarray(v, float) for v in tree_leaves(part["free"])] if part else []
        if leaves:
            lead = leaves[0].shape[:2]
            flat.append(np.concatenate([v.reshape(*lead, -1) for v in leaves], axis=-1))
    return np.concatenate(flat).swapaxes(0, 1) if flat else np.zeros((1, 0, 0))
