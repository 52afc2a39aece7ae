"""Resultant (AVOID): a bound with the prior that the data have, and a term for their complexity.

    PHP(x) = E_q(z|x)[log p(x | z) + log qhat(z) - log q(z | x)],   qhat fitted to reference latents
    C(x)   = |E_ref PHP| C0(x) / E_ref C0
    C0(x)  = n(x) / n_ref  below n_ref,   (2 n_ref - n(x)) / n_ref  from n_ref on

with n(x) the number of singular values that hold most of an image, n_ref its mean over the
reference. The score is -(PHP + C), nats, larger is stranger: images simpler or more intricate than
the reference lose the bonus C, whatever their bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.guide_draws import draw_guide, guide_at_means
from probgen.engine.measure import (
    EvaluationContext,
    Function,
    Rows,
    Values,
    changed_settings,
    short_mark,
)
from probgen.errors import AlgorithmError, DataError
from probgen.inference.ood.codecs import as_images
from probgen.inference.ood.other_models import observed_site
from probgen.inference.ood.reference import ReferenceData, over, set_reference
from probgen.language.declared import declaration
from probgen.language.identity import identity
from probgen.language.kinds import CountOrZero, Many, Width, having, within
from probgen.language.run import DATA_PLATE

Array = Any
Density = Annotated[
    Any,
    having("an object with score_samples(z), such as a fitted GaussianMixture", "score_samples"),
]
_SAID = ("num_particles", "density", "num_components", "latents", "complexity")  # in the name


@declaration
class Resultant:
    """-(PHP(x) + C(x)): the bound under the aggregate posterior plus the complexity term.

    In nats, larger is stranger. Assumes that a prior that the data do not fill is what makes
    strange data likely, and that strange data are simpler or more intricate than the reference in
    the sense of n(x).

    Fails: where the strange data have the reference's rank, C says nothing; E_ref PHP weighs C by
    the size of the log-likelihood, so with many pixels C alone decides. The formula that we have
    is second-hand and multiplies by E_ref PHP itself, which is negative for probabilities and
    would reward strangeness; its magnitude is taken here. Below n_ref C0 is recalled, not re-read.

    Args:
        reference: data to fit qhat, n_ref and the two means to: training data, or held-out ones.
        num_particles: draws of q(z | x) per datum.
        density: of qhat: "mixture" (Gaussian, full covariances), "kde" (Scott's rule, latents
            scaled to unit spread), or an object with `score_samples(z [m, d]) -> [m]` nats.
        num_components: of the mixture.
        latents: "draws" fits qhat to one draw of q(z | x) for each reference datum; "means" to
            E[z | x], which leaves the guide's own spread out, so that a collapsed latent, with all
            means at one point, gives a qhat without width and a score without meaning.
        kept_energy: n(x) singular values hold this share of an image's sum of squares.
        image_shape: (h, w) or (h, w, c), for flat data.
        complexity: False leaves C out, so that the estimate is -PHP.
        seed: of the mixture's start.

    Gives per datum: `estimate`; `standard_error` where there are two particles or more;
    `post_hoc_elbo` PHP, `elbo` with the model's own prior, `complexity` C, `rank` n(x).

    Raises: DeclarationError: settings. When bound: AlgorithmError: no guide, global or discrete
        latents. DataError: a reference too small, or without any structure. ShapeError: no images.

    Source: Li et al. 2024, arXiv:2409.03801.
    """

    reference: ReferenceData
    num_particles: Many = 10
    density: Literal["mixture", "kde"] | Density = "mixture"
    num_components: Width = 10
    latents: Literal["draws", "means"] = "draws"
    kept_energy: Annotated[float, within(0, 1, "(]")] = 0.99
    image_shape: tuple[Width, ...] | None = None
    complexity: bool = True
    seed: CountOrZero = 0

    unit = "nats"
    larger_is_stranger = True

    def __post_init__(self) -> None:
        set_reference(self)

    @property
    def name(self) -> str:
        kind = self.density
        if not isinstance(kind, str):  # with its fit, of which its own text says nothing
            kind = f"{type(kind).__name__} {short_mark(identity(kind, 'density'))}"
        many = f" {self.num_components}" if kind == "mixture" else ""
        bare = [] if self.complexity else ["PHP alone"]
        more = changed_settings(self, shown=_SAID)
        said = [f"{kind}{many} of {self.latents}", str(self.num_particles), *bare, *more]
        return f"Resultant({', '.join(said)})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """Fits qhat and the calibration to the reference, then scores chunk by chunk."""
        draws = _Draws(self.num_particles)
        device = context.function(draws)
        site = observed_site(context.bound, self.name)
        known = over(context, draws, self.reference, who=self.name)
        log_density = self._fit(known)
        typical = self._post_hoc(known, log_density)[0].mean()
        calibrate = (
            self._calibration(self.reference.rows(context, self.name)[site], typical)
            if self.complexity
            else None
        )

        def measure(rows: Rows, ids: np.ndarray) -> Values:
            found = device(rows, ids)
            php, error = self._post_hoc(found, log_density)
            values = {"estimate": -php, "post_hoc_elbo": php, "elbo": found["estimate"]}
            if calibrate is not None:
                bonus, rank = calibrate(rows[site])
                values |= {"estimate": -(php + bonus), "complexity": bonus, "rank": rank}
            return values if error is None else values | {"standard_error": error}

        return measure

    def _fit(self, known: Values) -> Callable[[np.ndarray], np.ndarray]:
        """log qhat of latents [m, d], nats."""
        if not isinstance(self.density, str):
            return self.density.score_samples
        z = np.asarray(known["z"][:, 0] if self.latents == "draws" else known["means"], np.float64)
        need = self.num_components + 1 if self.density == "mixture" else 2
        if len(z) < need:
            raise DataError(
                f"{self.name}: got {len(z)} reference data, expected at least {need}; give more, "
                "or a smaller num_components."
            )
        if self.density == "mixture":
            from sklearn.mixture import GaussianMixture

            mixture = GaussianMixture(self.num_components, max_iter=500, random_state=self.seed)
            return mixture.fit(z).score_samples
        from sklearn.neighbors import KernelDensity

        spread = z.std(0)
        if not (spread > 0).all():
            raise DataError(
                f"{self.name}: latents {np.flatnonzero(spread <= 0).tolist()} are the same for all "
                'reference data, expected some spread for a "kde"; use latents="draws".'
            )
        kde = KernelDensity(bandwidth="scott").fit(z / spread)
        return lambda x: kde.score_samples(x / spread) - np.log(spread).sum()

    def _post_hoc(
        self, found: Values, log_density: Callable
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """(PHP [n], its standard error) from draws."""
        z = np.asarray(found["z"], np.float64)
        n, k, d = z.shape
        log_q_hat = np.asarray(log_density(z.reshape(n * k, d))).reshape(n, k)
        log_w = np.asarray(found["rest"], np.float64) + log_q_hat
        error = log_w.std(1, ddof=1) / math.sqrt(k) if k > 1 else None
        return log_w.mean(1), error

    def _calibration(
        self, x: np.ndarray, typical: float
    ) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """x -> (C, n), scaled by the reference."""
        ranks = self._ranks(x)
        usual = float(ranks.mean())
        if usual == 0.0:
            raise DataError(
                f"{self.name}: all reference images are zero, expected some with content, since "
                "their rank is the yardstick; say complexity=False to do without."
            )

        def raw(n: np.ndarray) -> np.ndarray:
            return np.where(n < usual, n, 2.0 * usual - n) / usual

        mean = float(raw(ranks).mean())
        if mean <= 0.0:
            raise DataError(
                f"{self.name}: the reference's ranks scatter so widely that their mean C0 is "
                f"{mean:.3g}, expected a positive one; say complexity=False to do without."
            )

        def bonus(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            n = self._ranks(x)
            return abs(typical) * raw(n) / mean, n

        return bonus

    def _ranks(self, x: np.ndarray) -> np.ndarray:
        return svd_rank(as_images(np.asarray(x), self.image_shape, self.name), self.kept_energy)


def svd_rank(images: np.ndarray, kept_energy: float) -> np.ndarray:
    """[n] how many singular values hold a share of an image's sum of squares; 0 for a black one.

    Args:
        images: [n, h, w, c]; channels are decomposed apart and their counts added.
        kept_energy: the share, in (0, 1].
    """
    x = np.moveaxis(np.asarray(images, np.float64), -1, 1)
    squares = np.linalg.svd(x, compute_uv=False) ** 2
    total = squares.sum(-1, keepdims=True)
    # What is left out after i values, against what may be; a ten-billionth of it is rounding.
    left = total - np.cumsum(squares, axis=-1)
    needed = (left > (1.0 - kept_energy + 1e-10) * total).sum(-1) + 1
    return np.where(total[..., 0] > 0, needed, 0).sum(-1).astype(np.float64)


@declaration
class _Draws:
    """Draws of the guide and what a bound needs of them, without the prior of z."""

    num_particles: Many

    unit = "nats"
    larger_is_stranger = False

    @property
    def name(self) -> str:
        return f"guide draws({self.num_particles})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        bound = context.bound
        bound.require_guide("Resultant")
        for name in bound.latents:
            site = bound.structure.sites[name]
            if site.plates != (DATA_PLATE,) or site.is_discrete:
                raise AlgorithmError(
                    f"Resultant: latent {name!r} of {bound.model.name!r} has the plates "
                    f"{list(site.plates)} and {'discrete' if site.is_discrete else 'real'} values, "
                    "expected real latents in the data plate alone, to fit a density to."
                )
        b, k, order = bound.backend, self.num_particles, bound.latents

        def flat(values: Mapping[str, Array], lead: int) -> Array:
            return b.ops.concatenate(
                [b.ops.reshape(values[n], (*values[n].shape[:lead], -1)) for n in order], axis=-1
            )

        def measure(params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
            draws = draw_guide(bound, params, batch, key, num_particles=k)
            sites = bound.trace(params, batch, draws.latents, num_particles=k)
            log_prior = sum(sites[n].log_prob for n in order)
            seen = [s.log_prob for n, s in sites.items() if n not in draws.latents]
            rest = sum(v for v in seen if v is not None) - draws.log_q
            means = guide_means(bound, params, batch, key)
            return {
                "estimate": b.ops.mean(rest + log_prior, axis=0),
                "rest": b.ops.transpose(rest),
                "z": b.ops.transpose(flat(draws.latents, 2), (1, 0, 2)),
                "means": flat(means, 1),
            }

        return context.device(measure, self.name)


def guide_means(bound: Bound, params: Mapping, batch: Mapping, key: Any) -> dict[str, Array]:
    """Each latent's mean under the guide, given the means of those that the guide draws before."""
    b = bound.backend
    return guide_at_means(bound, params, batch, key, lambda name, site: b.mean(site.fn))
