"""How large the demo is, and what it found."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from probgen.engine.fitted import Fitted
from probgen.evaluation.page import GatheredTables
from probgen.language.declared import declaration
from probgen.language.kinds import Count, Many, Positive, TwoOrMore, Width


@declaration
class Settings:
    """How large the demo is; `quick()` is for a look and for tests."""

    num_epochs: Count = 50
    num_train: Count = 4500
    num_held_out: Count = 500
    num_particles: Many = 1000
    latent_dim: Width = 16
    batch_size: Count = 128
    learning_rate: Positive = 2e-3
    elbo_particles: Many = 16
    num_strangers: TwoOrMore = 150
    score_particles: Many = 100
    background_epochs: Count = 10
    num_search_steps: Count = 300
    net: Literal["mlp", "conv"] = "mlp"

    @classmethod
    def quick(cls, net: Literal["mlp", "conv"] = "mlp") -> Settings:
        """Seconds of work: fewer data, epochs and particles; its numbers are worse."""
        return cls(
            num_epochs=8, num_train=1500, num_held_out=200, num_particles=100, num_strangers=60,
            score_particles=50, background_epochs=4, num_search_steps=100, net=net,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Results:
    """What the demo found; images are [n, 28, 28, 1], probabilities of ink or pixels in {0, 1}.

    elbo, log_p: (mean over the held-out digits, standard error), nats per datum.
    log_p_each: [n] the estimate of each held-out digit; order: their indices, likeliest first.
    effective: [n] effective particles of each estimate; num_bare: of how many the k-hats say that
        it is a lower bound alone.
    units: latent units, the largest KL first; kl_units, active: [d] in the units' own order.
    traversals: [units, steps, 28, 28, 1]; steps: the values along an axis, in standard deviations.
    strangers: measures of held-out digits and of sets that are no digits.
    """

    settings: Settings
    fitted: Fitted
    elbo: tuple[float, float]
    train_elbo: tuple[float, float]
    log_p: tuple[float, float]
    log_p_each: np.ndarray
    effective: np.ndarray
    num_bare: int
    kl_units: np.ndarray
    active: np.ndarray
    samples: np.ndarray
    originals: np.ndarray
    reconstructions: np.ndarray
    traversals: np.ndarray
    steps: np.ndarray
    held_out: np.ndarray
    strangers: GatheredTables
    seconds: dict[str, float]
    cpu_seconds: float

    @property
    def units(self) -> np.ndarray:
        return np.argsort(-self.kl_units)

    @property
    def order(self) -> np.ndarray:
        return np.argsort(-self.log_p_each)
