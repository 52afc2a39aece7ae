"""Ways of `pg.generate` that follow a model's own order, and no chain that climbs its density.

    Ancestral    site by site as the program says; of a diffusion its T steps by one loop
    DDIM         a diffusion's steps in leaps, with its noise scaled by eta, none at eta = 0

With alpha_bar_t the share of a datum's variance left at t, x_0 and eps what the net says at (x_t,
t), and s the next step that is visited, below t (at the end alpha_bar_s = 1, so x = x_0):

    sigma^2 = eta^2 (1 - alpha_bar_s) / (1 - alpha_bar_t) (1 - alpha_bar_t / alpha_bar_s)
    x_s = sqrt(alpha_bar_s) x_0 + sqrt(1 - alpha_bar_s - sigma^2) eps + sigma xi,    xi ~ N(0, I)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.bound import Bound
from probgen.engine.target import Kernel, Target
from probgen.errors import AlgorithmError
from probgen.language import ops
from probgen.language.capabilities import Denoises
from probgen.language.declared import declaration
from probgen.language.kinds import Many, Share

Array = Any


class _OneDraw:
    """What the two are as a `Sampler`: one independent draw a sample, for `pg.generate` alone."""

    num_chains = 1
    num_warmup = 0
    num_draws = 1
    thinning = 1

    def kernel(self, backend: Backend, target: Target, num_calls: int | None = None) -> Kernel:
        """Refused: it follows a model, and climbs no density.

        Raises:
            AlgorithmError: always.
        """
        raise AlgorithmError(
            f"{type(self).__name__}: got a target to move chains on (pg.infer and learners), "
            "expected a sampler such as Langevin(1e-2); this one is for pg.generate."
        )

    def cure(self) -> str:
        """What to do where draws are NaN or infinite."""
        return "look at the parameters for NaN, and at the scales of the model's distributions"


@declaration
class Ancestral(_OneDraw):
    """Site by site as the program says, what `pg.generate` does without a method."""

    is_ancestral = True

    def note(self, stats: Mapping[str, np.ndarray] | None = None) -> str:
        """What the draws target."""
        return "ancestral"


@declaration
class DDIM(_OneDraw):
    """A `Diffusion`'s draws in fewer steps: `pg.generate(fitted, 100, method=DDIM(50))`.

    Args:
        num_steps: how many of the T steps are visited: the last one, T - 1, and down from there in
            equal leaps ("trailing", so that the first is at the noise that the draws start from).
        eta: how much of the chain's noise is drawn on the way: 0, a deterministic map of x_T, a
            solver of the network's ODE; 1, the chain's own where all steps are visited, but for
            the last, which draws none.

    Raises (by generate): AlgorithmError: the model is no diffusion, or has fewer steps.

    Sources: Song, Meng & Ermon 2021, arXiv:2010.02502, equations 12 and 16; Lin et al. 2024,
    arXiv:2305.08891, for which steps are visited.
    """

    num_steps: Many = 50
    eta: Share = 0.0

    def note(self, stats: Mapping[str, np.ndarray] | None = None) -> str:
        """What the draws target."""
        return (
            f"DDIM, {self.num_steps} steps, eta={self.eta:g}: draws of the denoiser's flow in "
            "leaps, not of the model's chain"
        )

    def draws_of(self, bound: Bound) -> Callable:
        """(params, batch, key, num_samples) -> {"x": [num_samples, *shape]} of a diffusion.

        Raises:
            AlgorithmError: the model is no diffusion, or has fewer steps.
        """
        b, model = bound.backend, bound.model
        if not isinstance(model, Denoises):
            raise AlgorithmError(
                f"DDIM: the model {model.name!r} has no denoiser and noise schedule, expected a "
                "Diffusion; what has one as its prior is drawn without a method."
            )
        rows = self._rows(model)
        shape = tuple(model.shape)

        def step(params: Mapping, batch: Mapping, x: Array, row: Mapping, key: Any) -> Array:
            t = ops.reshape(x, (x.shape[0], -1))[:, 0] * 0.0 + row["t"]
            clean = model.clean(x, model.predict(params, x, t, batch), row)
            eps = (x - row["signal"] * clean) / row["noise"]
            drawn = row["sigma"] * b.normal(key, tuple(x.shape))
            return row["to_clean"] * clean + row["to_eps"] * eps + drawn

        one = b.compile(step, num_calls=self.num_steps)

        def run(params: Mapping, batch: Mapping, key: Any, num_samples: int) -> Array:
            k_start, k_steps = b.split(key, 2)
            x = b.normal(k_start, (num_samples, *shape))
            items = ({k: b.asarray(v) for k, v in rows.items()}, b.split(k_steps, self.num_steps))
            return b.scan(lambda x, item: (one(params, batch, x, *item), None), x, items)[0]

        loops: dict[int, Callable] = {}

        def draws(params: Mapping, batch: Mapping, key: Any, num_samples: int) -> dict[str, Array]:
            inputs = bound.program_inputs(batch)
            if num_samples not in loops:
                loops[num_samples] = b.loop(
                    lambda params, batch, key: run(params, batch, key, num_samples)
                )
            return {"x": loops[num_samples](params, dict(inputs), key)}

        return draws

    def _rows(self, model: Any) -> dict[str, np.ndarray]:
        """Constants of each step that is visited, the noisiest first, [num_steps] each."""
        table = model.table()
        total = len(table["signal"])
        if self.num_steps > total:
            raise AlgorithmError(
                f"DDIM: got num_steps={self.num_steps} for {model.name!r}, whose chain has {total} "
                "steps, expected no more than those; lower num_steps."
            )
        times = (
            np.round(np.arange(1, self.num_steps + 1) * (total / self.num_steps)).astype(int) - 1
        )
        bar = table["signal"][times] ** 2
        after = np.concatenate([[1.0], bar[:-1]])
        sigma = self.eta * np.sqrt((1 - after) / (1 - bar) * (1 - bar / after))
        found = {
            "t": times.astype(np.float64),
            "signal": table["signal"][times],
            "noise": table["noise"][times],
            "to_clean": np.sqrt(after),
            "to_eps": np.sqrt(np.maximum(1 - after - sigma**2, 0.0)),
            "sigma": sigma,
        }
        return {k: v[::-1].copy() for k, v in found.items()}
