"""Is a variational posterior centred where it should be? Symmetry of its calibration histogram.

A variational fit is nearly always too narrow, so plain SBC rejects it and says little. What matters
for its point estimates is the bias: p_i = P(draw < truth_i) should be symmetric about 1/2 even
where it is not uniform. Mass above 1/2: the draws lie too low; below: too high.

Yao et al. test symmetry by a two-sample Kolmogorov-Smirnov test of p against 1 - p. That test takes
the two as independent, while one is the mirror image of the other, so its p-value is too small (its
5 % level rejects a right method about a tenth of the time). The same statistic's law is therefore
found here by mirroring each p_i at random, which is exact for any symmetric law.

Source: Yao, Vehtari, Simpson & Gelman 2018, arXiv:1802.02538, section 3.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from scipy import stats

from probgen.errors import DataError, ShapeError
from probgen.evaluation.calibration.ranked import SBC
from probgen.evaluation.detection.intervals import holm
from probgen.language.declared import checked
from probgen.language.kinds import Many, OpenShare
from probgen.language.seeds import check_seed

NUM_MIRRORED = 4000


@dataclasses.dataclass(frozen=True)
class Symmetry:
    """Of one quantity's probabilities.

    Attributes:
        statistic: the largest distance between the distribution functions of p and 1 - p.
        p_value: of that statistic, by mirroring at random.
        p_value_ks: as the paper has it, of the two-sample test; too small, see above.
        bias, bias_error: mean of p - 1/2 and its standard error; positive: draws lie too low.
        spread, spread_error: 12 times the mean of (p - 1/2)^2 and its standard error; 1 for a
            calibrated posterior, above for one that is too narrow, at most 3.
    """

    statistic: float
    p_value: float
    p_value_ks: float
    bias: float
    bias_error: float
    spread: float
    spread_error: float


@checked
def symmetry(
    probabilities: np.ndarray, *, num_mirrored: Many = NUM_MIRRORED, seed: int = 0
) -> Symmetry:
    """Tests whether probabilities [N] are symmetric about 1/2.

    Raises:
        ShapeError: not one axis, or fewer than 20.
        DataError: a number outside [0, 1], or NaN.
    """
    p, seed = np.asarray(probabilities, np.float64), check_seed(seed, "symmetry")
    if p.ndim != 1 or len(p) < 20:
        raise ShapeError(
            f"symmetry: got probabilities of shape {p.shape}, expected [N] with N at least 20; run "
            "more simulations."
        )
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError(
            f"symmetry: got probabilities from {p.min()} to {p.max()}, expected numbers in [0, 1]; "
            "give P(draw < truth) of each simulation."
        )
    # Rounded, so that p and its mirror image meet exactly where they are equal.
    d = np.round(p - 0.5, 12)
    size, order = np.abs(d), np.argsort(np.abs(d), kind="stable")
    last = np.append(np.diff(size[order]) > 0, True)

    def largest(signs: np.ndarray) -> np.ndarray:
        """sup_x |F_p(x) - F_{1-p}(x)|, for signs [..., N] of the departures sorted by size.

        At x = 1/2 - a the difference is #{d <= -a} - #{d >= a} over N, a sum of signs from the
        largest departure inwards; at 1/2 + a it is the same again.
        """
        total = signs.sum(axis=-1, keepdims=True)
        outer = total - np.cumsum(signs, axis=-1)  # sum of the signs beyond each position
        found = np.abs(outer[..., last]).max(axis=-1, initial=0)
        return np.maximum(found, np.abs(total[..., 0])) / len(p)

    signs = np.sign(d[order])
    seen = float(largest(signs))
    rng = np.random.default_rng(seed)
    mirrored = rng.choice([-1.0, 1.0], size=(num_mirrored, len(p))) * np.abs(signs)
    beaten = int((largest(mirrored) >= seen - 1e-12).sum())
    squares = 12 * d**2
    root = math.sqrt(len(p))
    return Symmetry(
        seen,
        (beaten + 1) / (num_mirrored + 1),
        float(stats.ks_2samp(d, -d).pvalue),
        float(d.mean()),
        float(d.std(ddof=1) / root),
        float(squares.mean()),
        float(squares.std(ddof=1) / root),
    )


@dataclasses.dataclass(frozen=True, repr=False)
class VSBC:
    """Symmetry of every quantity's calibration. Prints as a table.

    Attributes:
        names: of the quantities.
        probabilities: [N, quantities].
        results: one `Symmetry` a quantity.
        alpha: chance of calling a right method biased, over all quantities.
    """

    names: tuple[str, ...]
    probabilities: np.ndarray
    results: tuple[Symmetry, ...]
    alpha: float

    @property
    def adjusted(self) -> np.ndarray:
        """[quantities] p-values corrected by Holm."""
        return holm([r.p_value for r in self.results])

    @property
    def biased(self) -> tuple[str, ...]:
        """Names of the quantities whose draws are off centre."""
        return tuple(n for n, p in zip(self.names, self.adjusted, strict=True) if p <= self.alpha)

    def __repr__(self) -> str:
        width = max(len("quantity"), *(len(n) for n in self.names))
        lines = [f"{'quantity':{width}}  {'bias of p':>16}  {'Holm p':>7}  {'spread':>13}"]
        for name, r, p in zip(self.names, self.results, self.adjusted, strict=True):
            words = ""
            if p <= self.alpha:
                words = f"  draws lie too {'low' if r.bias > 0 else 'high'}"
            elif abs(r.spread - 1) > 3 * r.spread_error:  # a bias spreads p about 1/2 by itself
                words = f"  draws are too {'narrow' if r.spread > 1 else 'wide'}"
            lines.append(
                f"{name:{width}}  {r.bias:+8.4f} ± {r.bias_error:.3f}  {p:7.4f}  "
                f"{r.spread:6.3f} ± {r.spread_error:.2f}{words}"
            )
        return "\n".join(lines)

    def plot(self, names: tuple[str, ...] | None = None) -> Any:
        """Figure of the histograms of the probabilities and their mirror images."""
        from probgen.evaluation.calibration.figures import symmetry_figure

        return symmetry_figure(self, names)


@checked
def vsbc(result: SBC, *, alpha: OpenShare = 0.01, seed: int = 0) -> VSBC:
    """Symmetry of the probabilities behind calibration ranks.

    Args:
        result: of `sbc` with `Guide()` or a function that fits; p = (rank + 1/2) / (L + 1). The
            log likelihood and log joint are left out: they are not what a fit estimates.
        alpha: chance of calling a right method biased.
        seed: of the mirroring.

    Raises:
        DeclarationError: not an `SBC` (for bare probabilities use `symmetry`), or alpha outside
            (0, 1).
    """
    from probgen.evaluation.calibration.study import LOG_JOINT, LOG_LIKELIHOOD

    keep = [j for j, n in enumerate(result.names) if n not in (LOG_JOINT, LOG_LIKELIHOOD)]
    p = (result.ranks[:, keep] + 0.5) / (result.num_draws + 1)
    found = tuple(symmetry(p[:, j], seed=seed) for j in range(p.shape[1]))
    return VSBC(tuple(result.names[j] for j in keep), p, found, alpha)
