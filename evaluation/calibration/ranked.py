"""What ranks of simulated truths say: two tests of uniformity, corrected, and a verdict in words.

No simulation here: see `sbc`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from scipy.stats import norm

from probgen.errors import ShapeError
from probgen.evaluation.calibration.uniformity import chi_square, ecdf_test, envelope
from probgen.evaluation.detection.intervals import holm
from probgen.language.declared import argument
from probgen.language.kinds import OpenShare

CORRELATED = 0.1  # mean lag-1 autocorrelation above which a rejection may be the chains' fault


@dataclasses.dataclass(frozen=True, repr=False)
class SBC:
    """Ranks of simulated truths, and what they say. Prints as a table.

    Attributes:
        names: of the quantities.
        ranks: [N, quantities] in 0 .. num_draws.
        num_draws: L.
        chi_square, ecdf: [quantities] p-values of the two tests of uniformity.
        thinning: every how many transitions a draw was kept.
        autocorrelation: [quantities] of successive kept draws, mean over simulations; correlated
            draws make ranks pile up at both ends although the method is right. NaN where no chain
            moves.
        alpha: chance of rejecting a right method, over all quantities and both tests together.
        seed: of the simulations.
        still: [quantities] share of the simulations in which a chain never moves.
    """

    names: tuple[str, ...]
    ranks: np.ndarray
    num_draws: int
    chi_square: np.ndarray
    ecdf: np.ndarray
    thinning: int
    autocorrelation: np.ndarray
    alpha: float
    seed: int
    still: np.ndarray

    @classmethod
    def from_ranks(
        cls,
        names: tuple[str, ...],
        values: np.ndarray,
        num_draws: int,
        *,
        thinning: int = 1,
        autocorrelation: np.ndarray | None = None,
        still: np.ndarray | None = None,
        alpha: float = 0.01,
        seed: int = 0,
    ) -> SBC:
        """Tests ranks [N, quantities] that were made elsewhere.

        Args:
            names, values: of the quantities, and their ranks.
            num_draws, thinning, autocorrelation, still, alpha, seed: as in the result; what is not
                known of the draws is NaN there.

        Raises:
            ShapeError: not two axes, other names than quantities, or fewer than 20 simulations.
            AlgorithmError: ranks outside 0 .. num_draws, DeclarationError: alpha outside (0, 1).
        """
        values = np.asarray(values)
        if values.ndim != 2 or values.shape[1] != len(names) or not len(names):
            raise ShapeError(
                f"SBC: got ranks {values.shape} for {len(names)} quantities, expected "
                "[simulations, quantities]."
            )
        alpha = argument("SBC", OpenShare, alpha=alpha)
        band = envelope(max(len(values), 1), num_draws, seed=seed)
        columns = list(values.T)
        return cls(
            tuple(names), values, num_draws,
            np.array([chi_square(c, num_draws) for c in columns]),
            np.array([ecdf_test(c, num_draws, band) for c in columns]),
            thinning,
            np.full(len(names), np.nan) if autocorrelation is None else autocorrelation,
            alpha, seed,
            np.full(len(names), np.nan) if still is None else still,
        )  # fmt: skip

    @property
    def num_simulations(self) -> int:
        return len(self.ranks)

    @property
    def p_values(self) -> np.ndarray:
        """[quantities] of both tests together: twice the smaller one (Bonferroni)."""
        return np.minimum(1.0, 2.0 * np.minimum(self.chi_square, self.ecdf))

    @property
    def adjusted(self) -> np.ndarray:
        """[quantities] p-values corrected by Holm for the number of quantities."""
        return holm(self.p_values)

    @property
    def accepted(self) -> bool:
        """No quantity's ranks differ from uniform ones, at `alpha` over all."""
        return bool((self.adjusted > self.alpha).all())

    @property
    def rejected(self) -> tuple[str, ...]:
        """Names of the quantities whose ranks are not uniform."""
        flags = self.adjusted <= self.alpha
        return tuple(n for n, flag in zip(self.names, flags, strict=True) if flag)

    def shape(self, name: str) -> str:
        """How a quantity's ranks depart from uniform ones, in words."""
        scores = norm.ppf((np.arange(self.num_draws + 1) + 0.5) / (self.num_draws + 1))
        # Normal scores: draws of c times the sd, shifted by d sd, have mean -d / c and sd 1 / c.
        z = scores[self.ranks[:, self.names.index(name)].astype(np.int64)]
        centre = z.mean() * math.sqrt(len(z)) / max(z.std(), 1e-300)
        spread = (z.var() / np.mean(scores**2) - 1) / math.sqrt(2 / len(z))
        words = []
        if abs(centre) > 3:
            words.append(f"draws lie too {'low' if centre > 0 else 'high'}")
        if abs(spread) > 3:
            words.append(f"draws are too {'narrow' if spread > 0 else 'wide'}")
        return " and ".join(words) or "neither shifted nor too wide or narrow"

    def verdict(self) -> str:
        """What the ranks allow to be said, in a sentence or two."""
        size = f"{self.num_simulations} simulations, {self.num_draws} draws each"
        if self.accepted:
            return (
                f"No departure from the posterior was found at level {self.alpha:g} ({size}; "
                f"smallest corrected p-value {self.adjusted.min():.3g}).{self._stillness()}"
            )
        told = "; ".join(f"{n}: {self.shape(n)}" for n in self.rejected)
        text = f"The draws are not the posterior's, at level {self.alpha:g} ({size}): {told}."
        if np.nanmax(np.append(self.autocorrelation, -1.0)) > CORRELATED:
            text += (
                f" But successive draws are correlated ({np.nanmax(self.autocorrelation):.2f}), "
                "which alone makes ranks pile up at the ends: thin further."
            )
        return text + self._stillness()

    def _stillness(self) -> str:
        """Where chains never move, in words; "" where they all do."""
        share = np.nan_to_num(self.still)
        worst = [i for i in np.argsort(-share, kind="stable")[:3] if share[i] > 0]
        if not worst:
            return ""
        told = ", ".join(f"{self.names[i]} in {share[i]:.1%}" for i in worst)
        more = int((share > 0).sum()) - len(worst)
        return (
            f" Some chains never move ({told} of the simulations{f', and {more} more' * (more > 0)}"
            "): the sampler rejects everything there, or the quantity is no random one."
        )

    def to_pandas(self) -> Any:
        """One row a quantity."""
        import pandas as pd

        return pd.DataFrame(
            {
                "chi_square": self.chi_square, "ecdf": self.ecdf, "adjusted": self.adjusted,
                "rejected": self.adjusted <= self.alpha, "autocorrelation": self.autocorrelation,
                "still": self.still,
            },
            index=pd.Index(self.names, name="quantity"),
        )  # fmt: skip

    def __repr__(self) -> str:
        width = max(len("quantity"), *(len(n) for n in self.names))
        lines = [f"{'quantity':{width}}  {'chi-square p':>12}  {'ECDF p':>8}  {'Holm p':>8}"]
        order = np.argsort(self.adjusted, kind="stable")
        for i in order[:30]:
            mark = "  rejected" if self.adjusted[i] <= self.alpha else ""
            lines.append(
                f"{self.names[i]:{width}}  {self.chi_square[i]:12.4f}  {self.ecdf[i]:8.4f}  "
                f"{self.adjusted[i]:8.4f}{mark}"
            )
        if len(order) > 30:
            lines.append(f"... and {len(order) - 30} more with larger p-values")
        return "\n".join([*lines, self.verdict()])

    def plot(self, names: tuple[str, ...] | None = None) -> Any:
        """Figure of the ranks' distribution function minus the uniform one, with its band."""
        from probgen.evaluation.calibration.figures import ecdf_figure

        return ecdf_figure(self, names)
