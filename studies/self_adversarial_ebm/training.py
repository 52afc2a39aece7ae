"""How the energies of this study are trained, on the plane and on digits alike.

x' = x - eta grad E(x) + sigma xi,  K times from z ~ N(0, s^2 I): fresh chains, nothing else
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np

import probgen as pg
from probgen import dist, nets
from probgen.backends.protocol import Backend
from probgen.engine.fitted import Fitted
from probgen.engine.target import Sampler
from probgen.inference import (
    ELBO,
    SVI,
    EnergyMagnitude,
    GradientFlow,
    Langevin,
    MaximumLikelihood,
)
from probgen.language.declared import declaration
from probgen.language.kinds import Count, Many, NonNegative, OpenShare, Positive, Width
from probgen.models import GradientFlowGenerator


@declaration
class Training:
    """Sizes of a fit; a study's settings add those of its data and its judges.

    Args:
        hidden: of the energy, an MLP with silu.
        spread: standard deviation of the starts.
        step_size, num_steps: eta and K.
        num_updates, batch_size, learning_rate, ema_decay: of the fit, Adam with half a cosine.
        penalty: alpha of alpha (mean E(x)^2 + mean E(x')^2).
        start: weights before the fit: "normal", of variance 1 / in with biases of 0, the net's own;
            or "uniform", all within 1 / sqrt(in), as PyTorch's linear layers have them.
    """

    hidden: tuple[Width, ...] = (64, 64)
    spread: Positive = 2.0
    step_size: Positive = 0.05
    num_steps: Many = 20
    num_updates: Count = 2000
    batch_size: Count = 256
    learning_rate: Positive = 1e-3
    ema_decay: OpenShare = 0.995
    penalty: NonNegative = 1e-3
    start: Literal["normal", "uniform"] = "normal"

    size: ClassVar[int] = 2
    measured: ClassVar[dict[str, Any]] = {}  # how log q is computed, beyond the map's defaults

    @property
    def generator(self) -> GradientFlowGenerator:
        """The map as a density; its `gibbs` is what is trained."""
        start = dist.Normal(0.0, self.spread).expand([self.size]).to_event(1)
        energy = nets.MLPEnergy(self.hidden)
        return GradientFlowGenerator(energy, start, self.step_size, self.num_steps, **self.measured)

    def sampler(self, noise: float, num_steps: int | None = None) -> Sampler:
        """So many steps of eta with that noise."""
        n = num_steps or self.num_steps
        return Langevin(self.step_size, n, noise) if noise else GradientFlow(self.step_size, n)

    @property
    def full_noise(self) -> float:
        """sqrt(2 eta), at which a chain's law is the density's."""
        return math.sqrt(2.0 * self.step_size)


def learn(settings: Training, x: np.ndarray, noise: float, seed: int, backend: Backend) -> Fitted:
    """The nominal law after all updates, its moving average; chains have that noise."""
    penalties = (EnergyMagnitude(settings.penalty),) if settings.penalty else ()
    learner = MaximumLikelihood(
        settings.sampler(noise), optimizer=_adam(settings), regularizers=penalties, guard=None
    )
    return _fit(settings, settings.generator.gibbs, x, learner, seed, backend)


def learn_by_likelihood(settings: Training, x: np.ndarray, seed: int, backend: Backend) -> Fitted:
    """The nominal law of an energy whose map was fitted by its own log q, a flow like others."""
    found = _fit(settings, settings.generator, x, SVI(ELBO(), _adam(settings)), seed, backend)
    return Fitted(settings.generator.gibbs, found.params, shapes=found.shapes)


def _adam(settings: Training) -> pg.Adam:
    rate = pg.CosineDecay(settings.learning_rate, settings.num_updates)
    return pg.Adam(rate, b1=0.5, b2=0.9)


def _fit(
    settings: Training, model: Any, x: np.ndarray, learner: Any, seed: int, b: Backend
) -> Fitted:
    return pg.fit(
        model, x, learner, num_steps=settings.num_updates, batch_size=settings.batch_size,
        ema_decay=settings.ema_decay, seed=seed, backend=b, progress_bar=False,
        init={"energy": uniform(settings, seed)} if settings.start == "uniform" else None,
    )  # fmt: skip


def uniform(settings: Training, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Weights and biases of the energy, uniform within 1 / sqrt(in) of each layer."""
    rng = np.random.default_rng(100 + seed)
    sizes = (settings.size, *settings.hidden, 1)
    names = [*(f"layer{i}" for i in range(len(settings.hidden))), "out"]
    return {
        name: {
            part: rng.uniform(-1, 1, shape).astype("float32") / math.sqrt(n)
            for part, shape in (("weight", (n, out)), ("bias", (out,)))
        }
        for name, n, out in zip(names, sizes[:-1], sizes[1:], strict=True)
    }


def energies(fitted: Fitted, x: np.ndarray, b: Backend) -> np.ndarray:
    """[n] E of data."""
    params = b.tree_map(b.asarray, dict(fitted.params))["energy"]
    return b.to_numpy(fitted.model.energy.apply(params, b.asarray(x)))  # type: ignore[attr-defined]
