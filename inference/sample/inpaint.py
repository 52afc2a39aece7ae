"""Completing a datum of which some numbers are known, by a diffusion that was not told so.

After each leap of a sampler, to the level a', s', the known numbers are replaced by noised ones,

    x'_known = a' values + s' xi,

so that the next leap sees them. This is approximate: a leap's unknown numbers were drawn with the
known ones of the level above, noised on their own, and not with what they are. Going back up and
down again brings the two together (RePaint), with rho = a / a':

    x_t = rho x' + sqrt(s^2 - rho^2 s'^2) xi
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.target import OF_SAMPLER
from probgen.errors import DataError, ShapeError
from probgen.inference.sample.ancestral import DDIM, Ancestral
from probgen.inference.sample.reverse import Columns, Reverse
from probgen.inference.sample.within_prior import innermost
from probgen.language.declared import declaration, require
from probgen.language.kinds import Many, Rule

Array = Any


def _is_numbers(v: Any) -> bool:
    """An array of numbers, NaN among them, as its fields of finite numbers are elsewhere."""
    if not isinstance(v, list | tuple) and not hasattr(type(v), "__array__"):
        return False
    try:
        array = np.asarray(v)
    except (ValueError, TypeError, RuntimeError):  # rows of unequal length, gradients
        return False
    return array.dtype.kind in "biuf" and array.size > 0


@declaration(eq=False)
class Inpaint(Reverse):
    """Completions of a datum, or of one for each sample: `pg.generate(fitted, 9,
    method=Inpaint(Ancestral(), mask, x))`.

    Args:
        sampler: `Ancestral` or `DDIM`, with its own steps and guidance.
        mask: 1 (or True) where a number is known, 0 where it is to be drawn; of one datum's shape,
            or [num_samples, *shape]. Of what has a diffusion as its latent's prior: of the latent.
        values: the datum, or one for each sample; what it has where the mask is 0, NaN say, is not
            looked at.
        num_resamples: how often each leap but the last is taken, each time but the first from its
            own end, noised again. 1 is replacement alone, exact only where known and unknown
            numbers are independent; 10 is RePaint's. The net is called so many times as often.

    Known numbers are the given ones, exactly, in each draw. The unknown ones' mean tends to that
    given the known ones as resamples grow; their spread becomes too small, the more so the fewer
    the steps, since each leap takes the net's x_0 for the datum itself.

    Raises (by generate): AlgorithmError: those of the sampler. ShapeError: mask or values of
    another shape than the model's data, or of another number of rows. DataError: a known number is
    NaN or infinite.

    Source: Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1, with jumps of one step.
    """

    sampler: Ancestral | DDIM
    mask: np.ndarray
    values: Annotated[Any, Rule("an array of numbers", _is_numbers, alone=True)]
    num_resamples: Many = 1

    def __post_init__(self) -> None:
        is_mask = np.isin(np.asarray(self.mask), (0, 1)).all()
        require(is_mask, self, "0 and 1, or False and True: 1 where a number is known", "mask")

    def note(self, stats: Mapping[str, np.ndarray] | None = None) -> str:
        """What the draws target."""
        known = int(np.sum(self.mask))
        how = "replaced" if self.num_resamples == 1 else f"resampled {self.num_resamples} times"
        return (
            f"inpainting, {known} of {np.size(self.mask)} numbers known and {how}: near the law "
            f"given them, not of it; {self.sampler.note(stats)}"
        )

    def columns(self, model: Any) -> Columns:
        """The sampler's table with each row but the last taken `num_resamples` times."""
        columns = self.sampler.columns(model)
        now, then = self.sampler.leaps(model)
        keep = now.signal / then.signal
        between = now.noise**2 - (keep * then.noise) ** 2
        more = {
            "known_signal": then.signal, "known_noise": then.noise,
            "back": keep, "back_std": np.sqrt(np.maximum(between, 0.0)),
        }  # fmt: skip
        more["known_signal"][-1], more["known_noise"][-1] = 1.0, 0.0
        times = np.full(len(keep), self.num_resamples)
        times[-1] = 1
        columns = {k: np.repeat(v, times) for k, v in {**columns, **more}.items()}
        ends = np.cumsum(times) - 1  # where a leap is taken for the last time: on, not back
        columns["back"][ends], columns["back_std"][ends] = 1.0, 0.0
        return columns

    def beside(self, bound: Bound, batch: Mapping) -> dict[str, Array]:
        """Mask and values: those of the samples at hand, or, on the device, those of all."""
        rows = {n: batch[OF_SAMPLER + n] for n in ("mask", "values") if OF_SAMPLER + n in batch}
        shared = self._known(bound.model, None)
        return rows or {k: bound.backend.asarray(v, "float32") for k, v in shared.items()}

    def sample_rows(self, model: Any, num_samples: int) -> dict[str, np.ndarray]:
        """Mask and values, a row for each sample, where one of them has rows."""
        found = self._known(innermost(model)[0], num_samples)
        return {OF_SAMPLER + k: v for k, v in found.items()}

    def _known(self, model: Any, num: int | None) -> dict[str, np.ndarray]:
        """ "mask" and "values", 0 where they are not known: [*shape] without `num`, [num, *shape]
        with it; nothing where they are of the other kind.

        Raises:
            ShapeError: they are not of one datum's shape, nor of that of `num` data.
            DataError: a known number is NaN or infinite.
        """
        shape = getattr(model, "shape", None)
        if shape is None:
            return {}  # of another family: the sampler says so
        given = {n: np.asarray(getattr(self, n)) for n in ("mask", "values")}
        has_rows = any(v.ndim > len(shape) for v in given.values())
        for name, value in given.items():
            fits = value.shape == shape or (has_rows and value.shape[1:] == shape)
            if not fits or (num is not None and value.shape != shape and len(value) != num):
                raise ShapeError(
                    f"Inpaint: got {name} of shape {list(value.shape)}, expected {list(shape)}, "
                    f"that of one datum of {model.name!r}, channels and all, or one row of it for "
                    f"each sample{'' if num is None else f', {num} of them'}."
                )
        if has_rows != (num is not None):
            return {}
        mask = given["mask"].astype(bool)
        known = np.where(mask, given["values"], 0.0)
        if not np.isfinite(known).all():
            raise DataError(
                f"Inpaint: got values with {int(np.sum(~np.isfinite(known)))} numbers that are NaN "
                "or infinite where the mask is 1, expected finite ones where they are known; set "
                "the mask to 0 there, to draw them."
            )
        mask = np.broadcast_to(mask, known.shape)
        return {"mask": mask.astype("float32"), "values": known.astype("float32")}

    def step(self, bound: Bound) -> Callable:
        """A leap, the known numbers in place, and the way back."""
        b = bound.backend
        leap, goes_back = self.sampler.step(bound), self.num_resamples > 1

        def step(params: Mapping, inputs: Mapping, carry: Mapping, row: Mapping, key: Any) -> dict:
            k_leap, k_known, k_back = b.split(key, 3)
            x = leap(params, inputs, carry, row, k_leap)["x"]
            shape, mask = tuple(x.shape), carry["mask"]
            known = row["known_signal"] * carry["values"]
            known = known + row["known_noise"] * b.normal(k_known, shape)
            x = mask * known + (1.0 - mask) * x
            if goes_back:
                x = row["back"] * x + row["back_std"] * b.normal(k_back, shape)
            return {"x": x}

        return step
