"""From a datum to the noise that DDIM makes it of: its deterministic steps taken upwards.

From a level x_s = a' x_0 + s' eps up to the next one, a and s, with x_0 and eps what the net says
of x_s:

    x_t = a x_0 + s eps

DDIM's step down asks the net at (x_t, t), and x_t is not known on the way up: what is asked is
(x_s, t) or (x_s, s), so that the round trip is exact only as the steps grow in number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from probgen.engine.bound import Bound
from probgen.inference.sample.ancestral import DDIM, leap_columns
from probgen.inference.sample.noise_levels import Spacing
from probgen.inference.sample.reverse import (
    Columns,
    recursion,
    require_denoiser,
    runner,
    start_site,
)
from probgen.inference.sample.start_codes import PIVOTS
from probgen.language.declared import declaration, require
from probgen.language.kinds import CountOrZero, Many, Positive

Array = Any


@declaration
class DDIMInverse:
    """Codes of data under a `Diffusion`: `codes = fitted.encode(x, method=DDIMInverse(50))`.

        again = pg.generate(fitted, len(x), method=DDIM(50), start=codes, seed=0)

    Args:
        num_steps, spacing, steps_offset, set_alpha_to_one, lands: as of the `DDIM` that it inverts.
        time: at which noise level the net is asked on the way from one to the next: "target", the
            one that is led to, the convention of diffusers' `DDIMInverseScheduler` and of
            null-text inversion; "current", the one where the datum is, which is asked at the
            chain's first step where it has no noise yet.
        guidance_scale: w of classifier-free guidance; above 1 the way back is far from exact
            (Mokady et al.).
        clip_sample_range: as of `DDIM`; clipping is not undone.

    Gives (by encode): the site where the reverse chain starts, "x_T" with T its number of steps,
    [n, *shape].

    Raises (by encode): AlgorithmError: the model is no diffusion, or has fewer steps; a net that
    predicts x_0 is asked for the noise of data that have none (set_alpha_to_one=False is the way).

    Sources: Song, Meng & Ermon 2021, arXiv:2010.02502, section 4.3; Mokady et al. 2022,
    arXiv:2211.09794.
    """

    num_steps: Many = 50
    time: Literal["target", "current"] = "target"
    guidance_scale: float = 1.0
    spacing: Spacing = "trailing"
    steps_offset: CountOrZero = dataclasses.field(default=0, kw_only=True)
    set_alpha_to_one: bool = dataclasses.field(default=True, kw_only=True)
    clip_sample_range: Positive | None = dataclasses.field(default=None, kw_only=True)
    lands: Literal["next", "stride"] = dataclasses.field(default="next", kw_only=True)

    def columns(self, model: Any) -> Columns:
        """The table, float64, from the datum up."""
        down = DDIM(
            self.num_steps, spacing=self.spacing, steps_offset=self.steps_offset,
            set_alpha_to_one=self.set_alpha_to_one, lands=self.lands,
        )  # fmt: skip
        to, at = (levels.at(slice(None, None, -1)) for levels in down.leaps(model))
        asked = to.time if self.time == "target" else np.maximum(np.nan_to_num(at.time), 0.0)
        at = at._replace(time=asked)
        zero = 0.0 * to.noise
        return leap_columns(self, model, at, to.signal, to.noise, zero, zero)

    def codes_of(self, bound: Bound) -> Callable:
        """(params, batch) -> {"x_T": [n, *shape]} of a batch with "x" and the inputs.

        Raises:
            AlgorithmError: the model is no diffusion, or `columns` refuses it.
        """
        bound = require_denoiser(bound, "DDIMInverse")
        model, b = bound.model, bound.backend
        step = recursion(bound, self.guidance_scale, self.clip_sample_range)
        run = runner(bound, step, self.columns(model))

        def codes(params: Mapping, batch: Mapping) -> dict[str, Array]:
            x = batch["x"]
            return {start_site(model): run(params, batch, x, b.key(0), x.shape[0])}

        return codes


@declaration
class PivotalInversion:
    """`DDIMInverse` whose way is kept: `fitted.encode(x, method=PivotalInversion(DDIM(50)))`.

    Args:
        sampler: the `DDIM` whose levels are visited; on the way up its guidance is off and its
            clipping not undone.
        time: as of `DDIMInverse`.

    Gives (by encode): "x_T" [n, *shape] as of `DDIMInverse`, and "pivots" [n, num_steps + 1,
    *shape], what each step up led to, the data first. They are what `ReferenceGuided` is led by and
    `NullTextInversion` leads back to.

    Raises (by encode): AlgorithmError: as `DDIMInverse`.

    Source: Mokady et al. 2022, arXiv:2211.09794, section 3.1.
    """

    sampler: DDIM = dataclasses.field(default_factory=lambda: DDIM(50))
    time: Literal["target", "current"] = "target"

    def __post_init__(self) -> None:
        require(self.sampler.eta == 0.0, self, "DDIM without noise, eta=0", "sampler")

    def codes_of(self, bound: Bound) -> Callable:
        """(params, batch) -> codes, of a batch with "x" and the inputs.

        Raises:
            AlgorithmError: as `DDIMInverse.codes_of`.
        """
        bound = require_denoiser(bound, "PivotalInversion")
        model, b, sampler = bound.model, bound.backend, self.sampler
        inverse = DDIMInverse(
            sampler.num_steps, self.time, spacing=sampler.spacing,
            steps_offset=sampler.steps_offset, set_alpha_to_one=sampler.set_alpha_to_one,
            lands=sampler.lands,
        )  # fmt: skip
        run = runner(bound, recursion(bound, 1.0, None), inverse.columns(model), keep=True)

        def codes(params: Mapping, batch: Mapping) -> dict[str, Array]:
            x = batch["x"]
            last, path = run(params, batch, x, b.key(0), x.shape[0])
            way = b.ops.concatenate([x[None], path])
            return {start_site(model): last, PIVOTS: swapped(b.ops, way)}

        return codes


def swapped(ops: Any, x: Array) -> Array:
    """The first two axes in each other's place."""
    return ops.transpose(x, [1, 0, *range(2, x.ndim)])
