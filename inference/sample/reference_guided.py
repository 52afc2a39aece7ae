"""Guidance by a reference: a masked part of each draw is led along the way of a given picture.

The pivots x*_0, ..., x*_T of the reference come from `PivotalInversion` with its own condition. Of
a sampler's T leaps, counted down to 1, those from `start` to `stop` are led, by a null text phi_h
of their own that acts inside the mask M alone:

    at start, first     phi_h = phi,   x_t = M x*_t + (1 - M) x_t
    at each             phi_h <- J steps of Adam on mean_M (x*_{t-1} - F_t(x_t, c, phi_h))^2
                        x_{t-1} = M F_t(x_t, c, phi_h) + (1 - M) F_t(x_t, c, phi)

Source: Wang et al. 2023, arXiv:2312.00079, section 3.3, algorithm 2 and equation 10.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.target import OF_SAMPLER
from probgen.errors import ShapeError
from probgen.inference.sample.ancestral import DDIM
from probgen.inference.sample.inversion import swapped
from probgen.inference.sample.null_steps import TOWARDS, null_steps
from probgen.inference.sample.null_text import require_guided
from probgen.inference.sample.reverse import Columns, Reverse
from probgen.inference.sample.start_codes import NULL, require_null
from probgen.language.declared import declaration, require
from probgen.language.kinds import CountOrZero, Many, Positive

Array = Any
LED = "led_null"  # in the carry: phi_h
NOW, NEXT = "reference", "reference_next"  # among the inputs of a call: x*_t and x*_{t-1}
MASK = "mask"


@declaration(eq=False)
class ReferenceGuided(Reverse):
    """Draws whose masked part is led along the way of a reference.

        ddim = DDIM(50, guidance_scale=4.0)
        way = fitted.encode(placed[None], {"condition": said}, method=PivotalInversion(ddim))
        led = ReferenceGuided(ddim, way["pivots"][0], mask)
        draws = pg.generate(fitted, 8, method=led, inputs={"condition": wanted}, seed=0)

    With the seed, or the `start`, of a draw by the sampler alone it begins from the same noise.

    Args:
        sampler: `DDIM` without noise, with guidance.
        reference: pivots of one reference, [num_steps + 1, *shape], the data first, or of one for
            each sample, [num_samples, num_steps + 1, *shape].
        mask: 1 (or True) where a draw is led, of one datum's shape or one that broadcasts to it,
            such as [h, w, 1]; or one for each sample.
        start, stop: the first and the last step that are led, counted down from the sampler's
            number of steps to 1. Earlier steps still move what the mask is about; after later ones
            nothing is left to blend the part with what is around it.
        inner_steps: J, at each step; 0 leaves the sampler as it is, and so does a window
            without steps, stop above start.
        learning_rate: of Adam, which starts afresh at each step.

    Raises (by generate): AlgorithmError: those of the sampler; the model has no null text.
    ShapeError: pivots or masks of another shape, pivots of another number of steps, or not one for
    each sample.

    Source: Wang et al. 2023, arXiv:2312.00079, section 3.3, whose numbers the defaults are.
    """

    sampler: DDIM
    reference: np.ndarray
    mask: np.ndarray
    start: Many = 40
    stop: Many = 10
    inner_steps: CountOrZero = 10
    learning_rate: Positive = dataclasses.field(default=1e-2, kw_only=True)

    of_priors = False  # the mask is of data, not of a latent

    def __post_init__(self) -> None:
        require_guided(self)
        mask = np.asarray(self.mask)
        require(np.isin(mask, (0, 1)).all(), self, "0 and 1, or False and True", "mask")
        require(mask.any(), self, "a mask that is not empty", "mask")
        steps = self.sampler.num_steps
        require(
            self.start <= steps, self, f"at most {steps}, the number of steps of the sampler",
            "start",
        )  # fmt: skip

    @property
    def leads(self) -> bool:
        """Whether any step is led."""
        return self.inner_steps > 0 and self.stop <= self.start

    @property
    def is_one_piece(self) -> bool:  # type: ignore[override]
        return not self.leads

    def note(self, stats: Mapping[str, np.ndarray] | None = None) -> str:
        """What the draws target."""
        led = (
            f"led by a reference inside a mask at steps {self.start} to {self.stop}, "
            f"{self.inner_steps} inner steps each: no law that is known"
            if self.leads
            else "not led"
        )
        return f"{self.sampler.note(stats)}; {led}"

    def columns(self, model: Any) -> Columns:
        """The sampler's table; "led" 1 at the steps that are led, "placed" at the first of them."""
        columns = self.sampler.columns(model)
        if not self.leads:
            return columns
        t = np.arange(self.sampler.num_steps, 0, -1)
        led = (self.stop <= t) & (t <= self.start)
        return {**columns, "led": led.astype(float), "placed": (t == self.start).astype(float)}

    def sample_rows(self, model: Any, num_samples: int) -> dict[str, np.ndarray]:
        """Pivots and masks of which there is one for each sample.

        Raises:
            ShapeError: another shape, or number.
        """
        shape = tuple(model.shape)
        wanted = {NOW: (self.sampler.num_steps + 1, *shape), MASK: shape}
        own = {n: self._has_rows(n, num_samples, want, model) for n, want in wanted.items()}
        return {OF_SAMPLER + n: np.asarray(getattr(self, n), float) for n in own if own[n]}

    def _has_rows(self, name: str, num_samples: int, want: tuple[int, ...], model: Any) -> bool:
        """Whether there is one for each sample; refuses what is neither that nor one for all."""
        found = np.shape(getattr(self, name))
        event = found[len(found) - len(want) :] if len(found) > len(want) else found
        fits = _broadcasts(event, want) if name == MASK else event == want
        if fits and len(found) == len(want):
            return False
        if fits and len(found) == len(want) + 1 and found[0] == num_samples:
            return True
        raise ShapeError(
            f"ReferenceGuided: got {name} of shape {list(found)}, expected {list(want)} of "
            f"{model.name!r} in {self.sampler.num_steps} steps, or [{num_samples}, ...], one for "
            "each sample" + (
                "; an axis may be 1." if name == MASK
                else "; PivotalInversion with the same sampler gives it."
            )
        )  # fmt: skip

    def beside(self, bound: Bound, batch: Mapping) -> dict[str, Array]:
        """The mask, of all samples or one for each."""
        return {MASK: self._of(bound, batch, MASK, self.mask)} if self.leads else {}

    def along(self, bound: Bound, batch: Mapping) -> dict[str, Array]:
        """Null texts of the start, and the pivots that each step begins and ends at."""
        found = super().along(bound, batch)
        if not self.leads:
            return found
        ops, pivots = bound.backend.ops, self._of(bound, batch, NOW, self.reference)
        way = ops.flip(swapped(ops, pivots), axis=0)  # x*_T ... x*_0
        return {**found, NOW: way[:-1], NEXT: way[1:]}

    def _of(self, bound: Bound, batch: Mapping, name: str, shared: np.ndarray) -> Array:
        """One for each sample of the batch, or with a first axis of 1 that of all."""
        rows = batch.get(OF_SAMPLER + name)
        return bound.backend.asarray(np.asarray(shared, float)[None]) if rows is None else rows

    def carried(self, bound: Bound, inputs: Mapping, x: Array) -> dict[str, Array]:
        """phi_h."""
        if not self.leads:
            return {}
        require_null(bound.model, inputs, "ReferenceGuided")
        return {LED: bound.backend.ops.broadcast_to(inputs[NULL], tuple(inputs["context"].shape))}

    def step(self, bound: Bound) -> Callable:
        """The sampler's leap, led where its row says so."""
        b, ops = bound.backend, bound.backend.ops
        plain = self.sampler.step(bound)
        if not self.leads:
            return plain
        plain = b.compile(plain, num_calls=self.sampler.num_steps)
        steps = null_steps(bound, self.sampler, self.inner_steps)

        def step(params: Mapping, inputs: Mapping, carry: Mapping, row: Mapping, key: Any) -> dict:
            mask = carry[MASK]
            null = ops.broadcast_to(inputs[NULL], tuple(inputs["context"].shape))
            own = {k: v for k, v in inputs.items() if k not in (NOW, NEXT)}

            def led(x: Array, led_null: Array) -> tuple[Array, Array]:
                is_first = row["placed"] > 0
                x = ops.where(is_first & (mask > 0), inputs[NOW], x)
                led_null = ops.where(is_first, null, led_null)
                around = plain(params, own, {"x": x}, row, key)["x"]
                here = {**own, TOWARDS: steps.towards(params, own, x, row)[0]}
                aim = {
                    "target": inputs[NEXT], "weight": mask,
                    "rate": ops.asarray_like(self.learning_rate, x),
                    "tolerance": ops.asarray_like(0.0, x),
                }  # fmt: skip
                led_null = steps.learn(params, here, x, row, led_null, aim)
                inside = steps.leap(params, {**here, NULL: led_null}, x, row)
                return ops.where(mask > 0, inside, around), led_null

            def alone(x: Array, led_null: Array) -> tuple[Array, Array]:
                return plain(params, own, {"x": x}, row, key)["x"], led_null

            x, led_null = b.cond(row["led"] > 0, led, alone, carry["x"], carry[LED])
            return {"x": x, LED: led_null}

        return step


def _broadcasts(found: tuple[int, ...], want: tuple[int, ...]) -> bool:
    """Whether a mask of this shape is of data of that one."""
    return len(found) == len(want) and all(f in (1, w) for f, w in zip(found, want, strict=True))
