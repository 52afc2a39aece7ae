"""Error reduction: how much better a VAE restores an image than the lossy version it was given.

    ER(x) = bits(x - lossy(x)) - bits(x - restored(x))
    score = -(ER + weight (L(x) - L(lossy(x))))   where ER >= 0,   -ER elsewhere,   bits

L is a PNG's length: what the corruption took away. bits(r) is the ideal length of a residual under
a Gaussian of its own mean square, (D / 2) log2(mean r^2 + 1/12) up to a constant, r in levels (1/12
is the variance within one level). The VAE's guide is given lossy(x), its likelihood x.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.measure import EvaluationContext, Function, Rows, Values, changed_settings
from probgen.errors import AlgorithmError, DataError, DeclarationError, ShapeError
from probgen.inference.ood.codecs import Levels, as_images, check_codecs, code_bits
from probgen.inference.ood.complexity import declared_levels
from probgen.inference.ood.other_models import observed_site
from probgen.inference.ood.ratio import level_indices
from probgen.inference.ood.resultant import guide_means
from probgen.language.capabilities import HasMean
from probgen.language.declared import declaration
from probgen.language.kinds import Text, Width
from probgen.language.model import Model, arguments, capability, family_of

Array = Any


@declaration
class Restorer(Model):
    """A model whose guide looks at a lossy version of the data, given as the input "lossy".

    `Restorer(VAE(...))` is fitted to {"x": images, "lossy": lossy(images)} like any other model,
    and is what `ErrorReduction` evaluates. Sites and nets are those of the base.
    """

    base: Model

    def __post_init__(self) -> None:
        if getattr(self.base, "guide", None) is None or capability(self.base, HasMean) is None:
            raise DeclarationError(
                f"Restorer: got {self.base!r}, expected a model with a guide and a mean, such as a "
                "VAE."
            )

    @property
    def program(self) -> Callable:
        return self.base.program

    @property
    def guide(self) -> Any:  # type: ignore[override]
        inner: Any = self.base.guide

        def guide(lossy: Array) -> None:
            inner(x=lossy)

        return guide

    @property
    def likelihood(self) -> Any:
        """That of the base."""
        return getattr(family_of(self.base), "likelihood", None)

    @property
    def is_normalized(self) -> bool:  # type: ignore[override]
        return self.base.is_normalized

    def fitted_params(self) -> dict:
        return self.base.fitted_params()

    def frozen(self) -> frozenset[str]:
        return self.base.frozen()

    def formula(self) -> str | None:
        return self.base.formula()

    def mean(self, bound: Bound, params: Any, z: Array) -> Array:
        """E[x | z], as the base has it."""
        return capability(self.base, HasMean).mean(bound, params, z)


def downsampled(images: np.ndarray, factor: int = 4) -> np.ndarray:
    """Images at 1 / factor of their size and back, by taking each block's first pixel.

    Args:
        images: [n, h, w, c], or any [n, h, w, ...]; levels stay levels.
        factor: divides height and width.

    Raises:
        ShapeError: no images, or a size that is no multiple.
    """
    x = np.asarray(images)
    if x.ndim < 3 or factor < 1 or x.shape[1] % factor or x.shape[2] % factor:
        raise ShapeError(
            f"downsampled: got images of shape {x.shape} and factor={factor}, expected [n, height, "
            "width, ...] with height and width multiples of the factor."
        )
    small = x[:, ::factor, ::factor]
    return np.repeat(np.repeat(small, factor, axis=1), factor, axis=2)


@declaration
class ErrorReduction:
    """-(error reduction + weight times the bits that the corruption took).

    In bits, larger is stranger. Assumes that only a model of such data can put back what the
    corruption took away. The data are {"x": images, "lossy": lossy(images)}, for a `Restorer`, with
    the corruption of its training.

    Orientation: the authors' published code takes the ordinary set as the positive class of
    ER + (L - L_lossy), added only where ER >= 0, hence the minus here; a second-hand account has
    the complexity subtracted. That code's first error is not one of the lossy image but nearly a
    constant (it marks every level that occurs anywhere as likely everywhere), and it adds nats to
    bits; the commensurable residual lengths here are ours. So look at a validation pair before
    believing the sign (digits of 8 x 8 pixels against noise, constants and shifted digits agreed
    with it, AUROC 0.98 to 1): a negative `complexity_weight` turns that term, and
    `error_reduction` is given apart.

    Fails: an image that loses nothing (constant, black) has nothing to reduce, and its score says
    so: near zero.

    Args:
        complexity_weight: of the bits taken; 1 in the published code.
        codecs: for L, the shortest counts; PNG in the published code.
        num_levels: of the data; None takes the model's own.
        image_shape: (h, w) or (h, w, c), for flat data.
        lossy: the input's name.

    Gives per datum: `estimate`, in bits and without noise, since z is the guide's mean;
    `error_reduction`; `bits`, `bits_lossy`; `mse_lossy` and `mse_restored`, in squared levels.

    Raises (when bound): AlgorithmError: a model without a guide, or without a mean of x, or whose
        guide does not take the lossy input; levels that are not told. DataError: values that are
        not levels. ShapeError: no images.

    Source: Zeng & Liu 2023, arXiv:2309.02084.
    """

    complexity_weight: float = 1.0
    codecs: str | Sequence[str] = ("png",)
    num_levels: Levels | None = None
    image_shape: tuple[Width, ...] | None = None
    lossy: Text = "lossy"

    unit = "bits"
    larger_is_stranger = True

    def __post_init__(self) -> None:
        codecs = (self.codecs,) if isinstance(self.codecs, str) else tuple(self.codecs)
        object.__setattr__(self, "codecs", codecs)
        check_codecs("ErrorReduction", codecs)

    @property
    def name(self) -> str:
        weight: Any = f"{self.complexity_weight:g}"
        weight = weight if float(weight) == self.complexity_weight else self.complexity_weight
        more = changed_settings(self, shown=("complexity_weight", "codecs"))
        said = [f"{weight} {'+'.join(self.codecs)}", *more]
        return f"ErrorReduction({', '.join(said)})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """Restores on the device; residuals and code lengths on the host."""
        bound = context.bound
        site = observed_site(bound, self.name)
        num_levels = self.num_levels or declared_levels(bound, site)
        if num_levels is None:
            raise AlgorithmError(
                f"{self.name}: the model {bound.model.name!r} does not tell how many levels its "
                "data have, expected num_levels=... (2 for binary images, 256 for bytes)."
            )
        restored = context.function(_Restored(site, self.lossy))

        def measure(rows: Rows, ids: np.ndarray) -> Values:
            x, rough = np.asarray(rows[site]), np.asarray(rows[self.lossy])
            if rough.shape != x.shape:
                raise DataError(
                    f"{self.name}: got {self.lossy!r} of shape {rough.shape}, expected that of the "
                    f"data, {x.shape}; bring the lossy images back to full size."
                )
            levels = as_images(level_indices(x, num_levels, self.name), self.image_shape, self.name)
            coarse = level_indices(rough, num_levels, f"{self.name}, {self.lossy!r}")
            coarse = coarse.reshape(levels.shape)
            scale = 1.0 if x.dtype.kind in "iub" else num_levels - 1.0
            mean = np.asarray(restored(rows, ids)["mean"], np.float64).reshape(levels.shape) * scale
            before = ((levels - coarse) ** 2).mean((1, 2, 3))
            after = ((levels - mean) ** 2).mean((1, 2, 3))
            reduction = 0.5 * levels[0].size * np.log2((before + 1 / 12) / (after + 1 / 12))
            bits, bits_lossy = (
                np.min([code_bits(a, c, num_levels) for c in self.codecs], axis=0)
                for a in (levels, coarse)
            )
            taken = self.complexity_weight * (bits - bits_lossy)
            return {
                "estimate": -np.where(reduction >= 0, reduction + taken, reduction),
                "error_reduction": reduction,
                "bits": bits,
                "bits_lossy": bits_lossy,
                "mse_lossy": before,
                "mse_restored": after,
            }

        return measure


@declaration
class _Restored:
    """E[x | z] at the guide's mean of z."""

    site: str
    lossy: str

    unit = ""
    larger_is_stranger = False

    @property
    def name(self) -> str:
        return f"restored {self.site}"

    def bind_measure(self, context: EvaluationContext) -> Function:
        bound = context.bound
        guide = bound.require_guide("ErrorReduction")
        model = capability(bound.model, HasMean)
        if self.lossy not in arguments(guide) or self.site in arguments(guide):
            raise AlgorithmError(
                f"ErrorReduction: the guide of {bound.model.name!r} does not take {self.lossy!r}, "
                "expected one that sees the lossy image and not the original; wrap the model, "
                "Restorer(vae), and fit it to {'x': images, 'lossy': lossy images}."
            )
        if model is None or "z" not in bound.latents:
            raise AlgorithmError(
                f"ErrorReduction: the model {bound.model.name!r} has no mean of x given z, "
                "expected a Restorer of a VAE."
            )

        def measure(params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
            z = guide_means(bound, params, batch, key)["z"]
            return {"mean": model.mean(bound, params, z)}

        return context.device(measure, self.name)
