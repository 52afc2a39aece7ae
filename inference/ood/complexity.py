"""Input complexity: how much longer a model's code of an image is than a general compressor's.

    S(x) = -log2 p(x) - min over codecs bits(x),   both terms in bits, larger is stranger

With the codec as a universal model this is a likelihood ratio: the easier an image is to compress,
the likelier it must be under the model to pass as ordinary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.measure import (
    AnyMeasure,
    EvaluationContext,
    Function,
    Rows,
    Values,
    changed_settings,
)
from probgen.errors import AlgorithmError, DataError, DeclarationError
from probgen.inference.likelihood.importance import IWAE
from probgen.inference.likelihood.interval import bound_warning
from probgen.inference.ood.codecs import Levels, as_images, check_codecs, code_bits
from probgen.inference.ood.dose import functions_of
from probgen.inference.ood.other_models import observed_site
from probgen.inference.ood.ratio import level_indices
from probgen.language.declared import declaration
from probgen.language.kinds import Width
from probgen.language.model import family_of

NATS = math.log(2.0)  # nats in a bit


@declaration
class InputComplexity:
    """-log2 p(x) less the code length of x by the best of some codecs.

    In bits, larger is stranger. Assumes that p(x) is a probability on the levels that the codec is
    given: a density is refused, unless the data are dequantised and `dequantized` says so; then
    -log2 p + D log2 L stands for -log2 P, an upper bound on average. The codec's header counts in,
    the same for all images of a shape, so compare scores of one shape and one set of codecs.

    Fails: on a VAE an independent implementation saw AUROC near 0 for CIFAR-10 against SVHN and
    MNIST, cause unknown, so look at both terms, which are given. Images at the data's own
    complexity are ranked by the likelihood alone. Published code subtracts bits from nats: see
    `as_published_code`.

    Args:
        likelihood: a measure of log p(x) in nats, larger is likelier.
        codecs: of `codecs.available_codecs()`; the shortest code counts.
        num_levels: levels of the data; None takes the model's own (Bernoulli 2, Categorical and
            DiscretizedLogistic what they declare), and another number than the model's is refused.
        image_shape: (h, w) or (h, w, c), for data that are flat.
        dequantized: the data are (level + u) / num_levels with u in [0, 1), the model a density.
        as_published_code: NLL in nats less bits, as the likelihood regret code has it.

    Gives per datum: `estimate`; `standard_error` and `upper_bound` where the likelihood has an
    error and a bound; both terms, `nll_bits` and `bits`; `codec`, the place of the winner among
    `codecs`.

    Raises: UnknownName: a codec that is not there. When bound: AlgorithmError: levels that the
        model does not have, a density, a measure of another unit. DataError: data that are not on
        the levels. ShapeError: data that are no images.

    Source: Serrà et al. 2020, arXiv:1909.11480.
    """

    likelihood: AnyMeasure = dataclasses.field(default_factory=IWAE)
    codecs: str | Sequence[str] = ("png", "webp")
    num_levels: Levels | None = None
    image_shape: tuple[Width, ...] | None = None
    dequantized: bool = False
    as_published_code: bool = False

    larger_is_stranger = True

    def __post_init__(self) -> None:
        codecs = (self.codecs,) if isinstance(self.codecs, str) else tuple(self.codecs)
        object.__setattr__(self, "codecs", codecs)
        check_codecs("InputComplexity", codecs)
        unit = getattr(self.likelihood, "unit", None)
        if unit != "nats" or getattr(self.likelihood, "larger_is_stranger", True):
            raise DeclarationError(
                f"InputComplexity: got {self.likelihood!r} in {unit}, expected a measure of "
                "log p(x) in nats, larger is likelier, such as IWAE(num_particles=1000)."
            )

    @property
    def unit(self) -> str:
        """Bits, unless the terms are mixed."""
        return "nats - bits" if self.as_published_code else "bits"

    @property
    def name(self) -> str:
        mixed = ["as published code"] if self.as_published_code else []
        more = changed_settings(self, shown=("likelihood", "codecs", "as_published_code"))
        said = [self.likelihood.name, "+".join(self.codecs), *mixed, *more]
        return f"InputComplexity({', '.join(said)})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """The likelihood from the device and the code lengths from the host."""
        bound = context.bound
        site = observed_site(bound, self.name)
        num_levels = self._levels(bound, site)
        (likelihood,) = functions_of((self.likelihood,), context, self.name)
        offset = math.log(num_levels) if self.dequantized else 0.0

        def measure(rows: Rows, ids: np.ndarray) -> Values:
            x = np.asarray(rows[site])
            images = as_images(self._on_levels(x, num_levels), self.image_shape, self.name)
            found = likelihood(rows, ids)
            most = offset * images[0].size
            nll = most - np.asarray(found["estimate"], np.float64)
            per_codec = np.stack([code_bits(images, c, num_levels) for c in self.codecs])
            bits = per_codec.min(0)
            scale = 1.0 if self.as_published_code else NATS
            values = {
                "estimate": nll / scale - bits,
                "nll_bits": nll / NATS,
                "bits": bits,
                "codec": per_codec.argmin(0),
            }
            if "standard_error" in found:
                values["standard_error"] = found["standard_error"] / scale
            if "lower_bound" in found:
                values["upper_bound"] = (most - found["lower_bound"]) / scale - bits
            return values | {n: found[n] for n in ("khat",) if n in found}

        return measure

    def settle(self, values: Values) -> Values:
        """As the likelihood does."""
        return self.likelihood.settle(values) if hasattr(self.likelihood, "settle") else values

    def warnings(self, values: Values) -> list[str]:
        """Says that the units are mixed, where they are; and what the likelihood says."""
        said = bound_warning(values, "upper") if "upper_bound" in values else []
        if not self.as_published_code:
            return said
        return [
            *said,
            "nats less bits, as published code computes it: the likelihood counts only ln 2 = "
            "0.69 of what it should; for comparison with published numbers alone.",
        ]

    def _on_levels(self, x: np.ndarray, num_levels: int) -> np.ndarray:
        if not self.dequantized:
            return level_indices(x, num_levels, self.name)
        if x.size and not (x.min() >= 0.0 and x.max() < 1.0):
            raise DataError(
                f"{self.name}: got values from {x.min():g} to {x.max():g}, expected dequantised "
                "data in [0, 1), as probgen.data.dequantize gives them; leave dequantized=True out "
                "for data on levels."
            )
        return np.floor(np.asarray(x, np.float64) * num_levels).astype(np.int64)

    def _levels(self, bound: Bound, site: str) -> int:
        """The number of levels, held against the model."""
        found = bound.structure.sites[site]
        if found.is_discrete == self.dequantized:
            kind = "probabilities on levels" if found.is_discrete else "a density"
            cure = (
                "leave dequantized=True out"
                if found.is_discrete
                else "dequantise them (probgen.data.dequantize) and say dequantized=True with "
                "num_levels, or use a likelihood on levels, such as DiscretizedLogistic"
            )
            raise AlgorithmError(
                f"{self.name}: got the model {bound.model.name!r}, whose site {site!r} has {kind}, "
                f"and dequantized={self.dequantized}, expected a probability to compare with the "
                f"length of a code; {cure}."
            )
        own = declared_levels(bound, site)
        if self.num_levels is None and own is None:
            raise AlgorithmError(
                f"{self.name}: the model {bound.model.name!r} does not tell how many levels its "
                "data have, expected num_levels=... (2 for binary images, 256 for bytes)."
            )
        if self.num_levels is not None and own is not None and self.num_levels != own:
            raise AlgorithmError(
                f"{self.name}: got num_levels={self.num_levels}, expected the {own} of "
                f"{bound.model.name!r}, since a code at another depth is another image's; leave "
                "num_levels out."
            )
        return self.num_levels if self.num_levels is not None else own  # type: ignore[return-value]


def declared_levels(bound: Bound, site: str) -> int | None:
    """How many levels a site's values have, as far as the declaration tells."""
    if bound.structure.sites[site].distribution.startswith("dist.Bernoulli("):
        return 2
    likelihood: AnyMeasure = getattr(family_of(bound.model), "likelihood", None)
    told = getattr(likelihood, "num_levels", None) or getattr(likelihood, "num_classes", None)
    return told if isinstance(told, int) else None
