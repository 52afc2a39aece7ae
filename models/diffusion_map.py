"""A diffusion as a function of normal noise: its DDIM steps as one map, a prior for chains to move.

    x = F(x_T, eps_1 ... eps_{n-1}),      x_T, eps_i ~ N(0, I)

A diffusion's own program has a site for each of its T steps, whose scales differ by orders of
magnitude; chains on them hardly move. In noise every direction has scale 1 under the prior, and
what data say bends it only as far as they say something: posterior sampling with a diffusion prior
is then HMC, NUTS or Langevin on x_T, exact for the law of F. With eta = 0 that law is the
deterministic flow's, of as few numbers as a datum has; with eta = 1 and all T steps it is the
chain's (of "fixed_small" variances), but for its last step, which draws nothing.

Source: Song, Meng & Ermon 2021, arXiv:2010.02502, equations 12 and 16.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

import probgen as pg
from probgen import dist, ops
from probgen.engine.fitted import Fitted
from probgen.errors import DeclarationError
from probgen.language.declared import declaration
from probgen.language.kinds import Many, Share
from probgen.language.model import Model, family_of
from probgen.models.diffusion import Diffusion, times_like

Array = Any


@declaration
class DiffusionMap(Model):
    """A `Diffusion`'s draws by `DDIM(num_steps, eta)`, as a prior whose latents are the noise.

        prior = DiffusionMap(fitted, num_steps=20)
        problem = InverseProblem(prior, lambda x: dist.Normal(x @ A, 0.1).to_event(1))
        draws = pg.infer(problem, {"y": y}, NUTS(500, 500), seed=0)     # "x" of p(x | y)

    Args:
        diffusion: a declaration, or what `pg.fit` gave, whose network is then held.
        num_steps: how many of the T steps are visited, T - 1 and down from there in equal leaps.
        eta: 0, a deterministic map of x_T; 1, the chain's own noise, a site more.

    Sites: "x_T" with T in figures; "noise" [num_steps - 1, *shape] where eta is above 0; "x",
    computed from them: it has no density of its own, and cannot be observed. Nets: the diffusion's;
    its condition is an input here too.

    Raises: DeclarationError: more steps than the schedule has.
    """

    diffusion: Diffusion | Fitted
    num_steps: Many = 20
    eta: Share = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.model, Diffusion):
            raise DeclarationError(
                f"DiffusionMap: got {self.model.name!r}, expected a Diffusion, or a fitted one; "
                "other models are priors as they are."
            )
        total = self.model.schedule.num_train_timesteps
        if self.num_steps > total:
            raise DeclarationError(
                f"DiffusionMap: got num_steps={self.num_steps} for a chain of {total} steps, "
                "expected no more than those; lower num_steps."
            )

    @property
    def model(self) -> Any:
        """The diffusion's declaration."""
        given = self.diffusion.model if isinstance(self.diffusion, Fitted) else self.diffusion
        return family_of(given)

    def fitted_params(self) -> dict:
        own = dict(self.diffusion.params) if isinstance(self.diffusion, Fitted) else {}
        return {**self.model.fitted_params(), **own}

    def frozen(self) -> frozenset[str]:
        own = frozenset(self.diffusion.params) if isinstance(self.diffusion, Fitted) else ()
        return self.model.frozen() | frozenset(own)

    def check_rows(self, rows: Mapping[str, Any]) -> None:
        self.model.check_rows({k: v for k, v in rows.items() if k != "x"})

    def rows(self) -> dict[str, np.ndarray]:
        """Constants of each step that is visited, the noisiest first, [num_steps] float64 each."""
        table = self.model.table()
        leap = len(table["signal"]) / self.num_steps
        times = np.round(np.arange(1, self.num_steps + 1) * leap).astype(int) - 1
        bar = table["signal"][times] ** 2
        after = np.concatenate([[1.0], bar[:-1]])
        sigma = self.eta * np.sqrt((1 - after) / (1 - bar) * (1 - bar / after))
        found = {
            "t": times.astype(np.float64), "signal": table["signal"][times],
            "noise": table["noise"][times], "to_clean": np.sqrt(after),
            "to_eps": np.sqrt(np.maximum(1 - after - sigma**2, 0.0)), "sigma": sigma,
        }  # fmt: skip
        return {k: v[::-1].copy() for k, v in found.items()}

    @property
    def program(self) -> Any:
        model: Any = self.model
        shape = model.shape

        def program(**inputs: Any) -> None:
            unit = dist.Normal(0.0, 1.0)
            with pg.data_plate():
                x = pg.sample(
                    f"x_{model.schedule.num_train_timesteps}",
                    unit.expand(shape).to_event(len(shape)),
                )
                noise = None
                if self.eta and self.num_steps > 1:
                    whole = (self.num_steps - 1, *shape)
                    noise = pg.sample("noise", unit.expand(whole).to_event(len(whole)))
                context = model.context_of(inputs.get("condition"), x)
                net = pg.net("denoiser", model.denoiser)
                pg.deterministic("x", self._mapped(lambda x, t: net(x, t, *context), x, noise))

        program.__signature__ = inspect.signature(model.program)  # type: ignore[attr-defined]
        return program

    def _mapped(self, net: Any, x: Array, noise: Array | None) -> Array:
        model: Any = self.model
        rank, rows = len(model.shape), self.rows()
        last = {k: float(v[-1]) for k, v in rows.items()}

        def step(x: Array, row: Any, eps: Array | None = None) -> Array:
            clean = model.clean(x, net(x, times_like(x, row["t"], model.shape)), row)
            out = (
                row["to_clean"] * clean + row["to_eps"] * (x - row["signal"] * clean) / row["noise"]
            )
            return out if eps is None else out + row["sigma"] * eps

        if self.num_steps == 1:
            return step(x, last)
        columns = {k: ops.asarray_like(v[:-1], x) for k, v in rows.items()}
        if noise is None:
            return step(ops.scan(lambda x, row: (step(x, row), None), x, columns)[0], last)
        axes = list(range(noise.ndim))
        place = noise.ndim - rank - 1  # of the steps, after those of chains and data
        moved = ops.transpose(noise, [place, *axes[:place], *axes[place + 1 :]])
        x, _ = ops.scan(lambda x, item: (step(x, *item), None), x, (columns, moved))
        return step(x, last)

    def formula(self) -> str:
        noise = r"x_T, \epsilon" if self.eta else "x_T"
        return rf"x = F_\theta({noise}),\qquad {noise} \sim \mathcal{{N}}(0, I)"
