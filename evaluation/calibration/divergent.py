"""Where did transitions diverge? Which scalars tell divergent draws from the others, and a picture.

With F and F_d the distribution functions of a scalar over draws without and with divergence,

    D = sup |F - F_d|                                    the two-sample Kolmogorov-Smirnov distance

Scalars with the largest D bound the region of curvature that the step size does not follow (the
neck of a funnel: a small scale). A draw that is flagged is where its transition ended, near that
region and not in it, and draws of a chain depend on each other: D ranks scalars, it is no test.

Source: Betancourt 2016, arXiv:1604.00695, section 3 (divergences); Gabry, Simpson, Vehtari,
Betancourt & Gelman 2019, doi:10.1111/rssa.12378 (looking at them).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy.stats import ks_2samp

from probgen.errors import DataError
from probgen.evaluation.calibration.study import scalars
from probgen.language.declared import checked
from probgen.language.kinds import TwoOrMore
from probgen.views.axes import dress
from probgen.views.palette import COLOURS

NAMED = 3  # scalars that the sentence names
MANY_FOLD = 50.0  # a positive scalar that spreads over more is shown by its logarithm
FAINT = 2000  # draws without divergence that a panel shows


@dataclasses.dataclass(frozen=True, repr=False)
class Divergences:
    """What divergent draws have in common. Prints as sentences.

    Attributes:
        names: scalars, those that tell divergent draws best first.
        distances: [scalars] D, in [0, 1].
        medians: [scalars, 2] over draws without and with divergence.
        draws: {scalar: [all draws]}.
        diverging: [all draws] which ones.
    """

    names: tuple[str, ...]
    distances: np.ndarray
    medians: np.ndarray
    draws: dict[str, np.ndarray]
    diverging: np.ndarray

    def __repr__(self) -> str:
        count, total = int(self.diverging.sum()), len(self.diverging)
        if not count:
            return f"None of {total} transitions diverged."
        rows = zip(self.names[:NAMED], self.distances, self.medians, strict=False)
        said = [f"{n} (median {at:.3g} there, {rest:.3g} elsewhere; D {d:.2f})"
                for n, d, (rest, at) in rows]  # fmt: skip
        return (
            f"{count} of {total} transitions diverged. What tells them from the others: "
            f"{', '.join(said)}. Raise target_accept_prob, or write these sites in another way "
            "(a scale times a standard normal for a funnel)."
        )

    @checked
    def plot(self, num_names: TwoOrMore = 3) -> Any:
        """A panel for every two of the scalars that tell most, divergent draws in front."""
        from matplotlib.figure import Figure

        names = self.names[:num_names]
        size = max(len(names) - 1, 1)
        figure = Figure(figsize=(2.9 * size + 0.6, 2.7 * size + 0.5), layout="constrained")
        grid = figure.subplots(size, size, squeeze=False)
        rest = np.flatnonzero(~self.diverging)
        rest = rest[:: max(1, len(rest) // FAINT)]
        for i in range(size):
            for j in range(size):
                axes = grid[i, j]
                axes.set_visible(j <= i and len(names) > 1)
                self._panel(axes, names[j], names[min(i + 1, len(names) - 1)], rest)
        figure.legend(
            *grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2,
            frameon=False, fontsize=9.5, labelcolor=COLOURS["ink"],
        )  # fmt: skip
        return figure

    def _panel(self, axes: Any, x: str, y: str, rest: np.ndarray) -> None:
        dress(axes)
        at = np.flatnonzero(self.diverging)
        for index, hue, label, size in (
            (rest, "line", "other draws", 5), (at, "orange", "divergent", 14)
        ):  # fmt: skip
            axes.scatter(
                self.draws[x][index], self.draws[y][index], s=size, color=COLOURS[hue],
                label=label, linewidths=0,
            )  # fmt: skip
        for name, scale in ((x, axes.set_xscale), (y, axes.set_yscale)):
            low, high = self.draws[name].min(), self.draws[name].max()
            scale("log" if low > 0 and high > MANY_FOLD * low else "linear")
        axes.set_xlabel(x, fontsize=9.5, color=COLOURS["muted"])
        axes.set_ylabel(y, fontsize=9.5, color=COLOURS["muted"])


@checked
def divergences(draws: Any) -> Divergences:
    """Which scalars tell divergent draws of `NUTS` or `HMC` from the others.

        print(pg.divergences(draws)); pg.divergences(draws).plot()

    Args:
        draws: what `pg.infer` returns.

    Raises:
        DataError: draws that do not record divergences.
    """
    groups = getattr(draws, "children", {})
    stats = draws["sample_stats"] if "sample_stats" in groups else {}
    if "diverging" not in stats:
        raise DataError(
            f"divergences: got {type(draws).__name__} without sample_stats.diverging, expected "
            "what pg.infer returns of NUTS, HMC or Langevin."
        )
    bad = np.asarray(stats["diverging"]).astype(bool).ravel()
    values = {n: v.values for n, v in draws["posterior"].data_vars.items()}
    flat = {n: np.asarray(v, float).ravel() for n, v in scalars(values, 2).items()}
    if bad.all() or not bad.any():
        nothing = np.zeros(len(flat))
        medians = np.array([[np.median(v)] * 2 for v in flat.values()])
        return Divergences(tuple(flat), nothing, medians, flat, bad)
    distance = np.array([ks_2samp(v[~bad], v[bad]).statistic for v in flat.values()])
    medians = np.array([[np.median(v[~bad]), np.median(v[bad])] for v in flat.values()])
    order = np.argsort(-distance, kind="stable")
    names = tuple(np.array(list(flat))[order].tolist())
    return Divergences(names, distance[order], medians[order], flat, bad)
