"""Null-text inversion: codes from which a guided sampler leads back to its data.

DDIM's way up with guidance off gives the pivots x*_0 = x, ..., x*_T. On the way down, t = T ... 1,
the null text phi_t is learned so that the guided leap ends at the pivot,

    min over phi_t of mean_k (x*_{t-1} - F_t(x_t, c, phi_t))_k^2,

from phi_{t+1}, and first from the model's own; x_{t-1} = F_t(x_t, c, phi_t) is where the next leap
begins: what one leap leaves, the next sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from probgen.engine.bound import Bound
from probgen.inference.sample.ancestral import DDIM
from probgen.inference.sample.inversion import PivotalInversion, swapped
from probgen.inference.sample.null_steps import TOWARDS, each_loss, null_steps
from probgen.inference.sample.reverse import require_denoiser, start_site
from probgen.inference.sample.start_codes import (
    MAPS,
    NULL,
    PIVOTS,
    RESIDUAL,
    require_maps,
    require_null,
)
from probgen.language.capabilities import embedded
from probgen.language.declared import declaration, require
from probgen.language.kinds import Many, NonNegative, Positive

Array = Any


@declaration
class NullTextInversion:
    """Codes that a guided sampler leads back to the data, as `DDIMInverse`'s without guidance.

        ddim = DDIM(50, guidance_scale=4.0)
        codes = fitted.encode(x, {"condition": y}, method=NullTextInversion(ddim))
        again = pg.generate(fitted, len(x), method=ddim, start=codes, inputs=..., seed=0)

    Args:
        sampler: `DDIM` without noise, with the guidance and the steps that are to be used.
        time: of the way up, as of `DDIMInverse`.
        inner_steps: at most so many of Adam's on the null text of a step.
        learning_rate, learning_rate_decay: r and d of the rate r (1 - d i) at the i-th step down.
        keeps_maps: whether the codes have the maps of the condition too, "maps/LAYER" [n,
            num_steps, heads, pixels, m] by layer, as the leaps used them: what `AttentionControl`
            puts into other draws.
        tolerance, tolerance_growth: e and g: a datum whose mean squared distance is below e + g i
            at the i-th step down is left as it is.

    Gives (by encode): "x_T", [n, *shape], as of `DDIMInverse`; "null" [n, num_steps, m, d], the
    null text of each step, the noisiest first; "residual" [n, num_steps], the mean squared
    distance to the pivot that each step ends with. A datum's codes do not depend on its neighbours.

    A datum is left before the update at which the public code still takes one; 10 inner steps and
    these rates are its own.

    Raises (by encode): AlgorithmError: those of `DDIMInverse`; the model has no null text,
    or no maps to keep.

    Source: Mokady et al. 2022, arXiv:2211.09794, section 3.2 and algorithm 1; numbers as in its
    public code.
    """

    sampler: DDIM = dataclasses.field(default_factory=lambda: DDIM(50, guidance_scale=7.5))
    time: Literal["target", "current"] = "target"
    inner_steps: Many = dataclasses.field(default=10, kw_only=True)
    learning_rate: Positive = dataclasses.field(default=1e-2, kw_only=True)
    learning_rate_decay: NonNegative = dataclasses.field(default=0.01, kw_only=True)
    tolerance: NonNegative = dataclasses.field(default=1e-5, kw_only=True)
    tolerance_growth: NonNegative = dataclasses.field(default=2e-5, kw_only=True)
    keeps_maps: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        require_guided(self)
        last = 1.0 - self.learning_rate_decay * (self.sampler.num_steps - 1)
        require(
            last > 0, self, "a decay that leaves a rate above 0 at the sampler's last step, below "
            f"{1.0 / max(self.sampler.num_steps - 1, 1):.3g}", "learning_rate_decay",
        )  # fmt: skip

    def codes_of(self, bound: Bound) -> Callable:
        """(params, batch) -> codes of a batch with "x" and the inputs.

        Raises:
            AlgorithmError: as `DDIMInverse.codes_of`.
        """
        bound = require_denoiser(bound, "NullTextInversion")
        up = PivotalInversion(self.sampler, self.time).codes_of(bound)
        down, site = self._down(bound), start_site(bound.model)

        def codes(params: Mapping, batch: Mapping) -> dict[str, Array]:
            found = up(params, batch)
            inputs = dict(bound.program_inputs(batch))
            null, residual, maps = down(params, inputs, found[PIVOTS])
            by_layer = {MAPS + layer: each for layer, each in maps.items()}
            return {site: found[site], NULL: null, RESIDUAL: residual, **by_layer}

        return codes

    def _down(self, bound: Bound) -> Callable:
        """(params, inputs, pivots [n, num_steps + 1, *shape]) -> (null texts, residuals, maps)."""
        b, ops = bound.backend, bound.backend.ops
        model: Any = bound.model
        if self.keeps_maps:
            require_maps(model, "NullTextInversion")
        steps = null_steps(bound, self.sampler, self.inner_steps, self.keeps_maps)
        table = {k: b.asarray(v) for k, v in self.sampler.columns(model).items()}
        count = np.arange(self.sampler.num_steps)
        aims = {
            "rate": b.asarray(self.learning_rate * (1.0 - self.learning_rate_decay * count)),
            "tolerance": b.asarray(self.tolerance + self.tolerance_growth * count),
        }

        def run(params: Mapping, inputs: Mapping, pivots: Array, table: Any, aims: Any) -> Any:
            way = ops.flip(swapped(ops, pivots), axis=0)  # x*_T ... x*_0
            inputs = embedded(model, params, inputs, way[0])
            require_null(model, inputs, "NullTextInversion")
            null = ops.broadcast_to(inputs[NULL], tuple(inputs["context"].shape))

            def step(carry: tuple, item: tuple) -> tuple[tuple, tuple]:
                x, null = carry
                row, target, aim = item
                aim = {**aim, "target": target}
                towards, maps = steps.towards(params, inputs, x, row)
                here = {**inputs, TOWARDS: towards}
                null = steps.learn(params, here, x, row, null, aim)
                x = steps.leap(params, {**here, NULL: null}, x, row)
                return (x, null), (null, each_loss(ops, aim, x), maps)

            _, found = b.scan(step, (way[0], null), (table, way[1:], aims))
            return b.tree_map(lambda v: swapped(ops, v), found)

        run = b.compile(run, over="steps")
        return lambda params, inputs, pivots: run(params, inputs, pivots, table, aims)


def require_guided(owner: Any) -> None:
    """A declaration whose `sampler` is deterministic, and asks for a null text.

    Raises:
        DeclarationError: it is not, or does not.
    """
    sampler = owner.sampler
    require(sampler.eta == 0.0, owner, "DDIM without noise, eta=0", "sampler")
    require(
        sampler.guidance_scale != 1.0, owner,
        "a guidance_scale other than 1, at which no null text is asked for", "sampler",
    )  # fmt: skip
