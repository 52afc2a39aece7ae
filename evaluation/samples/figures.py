"""Two figures of sample quality: shares of modes against the truth, and how far each measure is.

Each gives a matplotlib `Figure` of the house's manner; see `probgen.evaluation.figures`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from probgen.errors import AlgorithmError
from probgen.evaluation.figures import COLOURS, canvas, name_axes
from probgen.evaluation.samples.modes import ModeCount
from probgen.evaluation.samples.quality import SampleQuality
from probgen.language.declared import checked


@checked
def mode_figure(modes: ModeCount, *, what: str = "mode") -> Any:
    """Share of each mode among the good samples, with 95 % intervals, and the truth's."""
    total = int(modes.counts.sum())
    shares, places = modes.counts / max(total, 1), np.arange(len(modes.counts))
    low, high = modes.intervals().T
    figure, axes = canvas()
    axes.bar(places, 100 * shares, color=COLOURS["blue"], width=0.72, label=f"samples, n {total:,}")
    axes.errorbar(
        places, 100 * shares, 100 * np.array([shares - low, high - shares]).clip(0),
        fmt="none", ecolor=COLOURS["ink"], elinewidth=1.1, capsize=2.5, label="95 % interval",
    )  # fmt: skip
    axes.hlines(
        100 * modes.truth, places - 0.45, places + 0.45,
        color=COLOURS["orange"], linewidth=2.2, label="truth",
    )  # fmt: skip
    if len(places) <= 20:
        axes.set_xticks(places, modes.names)
    axes.grid(False, axis="x")
    axes.set_ylim(0, 100 * 1.35 * max(high.max(), modes.truth.max()))
    axes.legend(frameon=False, fontsize=8.5, ncols=3, loc="upper center", handlelength=1.3,
                columnspacing=1.2, labelcolor=COLOURS["ink"])  # fmt: skip
    name_axes(axes, what, "Share of the good samples, %")
    return figure


@checked
def quality_figure(quality: SampleQuality) -> Any:
    """Each measure less its value for equal laws, in standard errors: 0 is a perfect model.

    The band is +-2. Measures without a value for equal laws are left out. The axis is linear to 5
    and logarithmic beyond, so that a hundred standard errors do not hide two.

    Raises:
        AlgorithmError: no measure has one.
    """
    rows = [
        (each.name, (each.value - each.expected) / each.standard_error)
        for each in quality.estimates
        if each.expected is not None and each.standard_error > 0
    ]
    if not rows:
        raise AlgorithmError(
            "quality_figure: got no measure with an error and a value for equal laws, expected at "
            "least one; use the record of sample_quality."
        )
    names, z = zip(*rows, strict=True)
    places = np.arange(len(rows))[::-1]
    figure, axes = canvas((5.6, 0.9 + 0.27 * len(rows)))
    axes.axvspan(-2, 2, color=COLOURS["line"], alpha=0.6, linewidth=0)
    axes.axvline(0, color=COLOURS["muted"], linewidth=1)
    far = np.abs(z) > 2
    for chosen, colour, marker, label in (
        (~far, "blue", "o", "within 2"), (far, "orange", "D", "beyond 2"),
    ):  # fmt: skip
        if chosen.any():
            axes.plot(np.array(z)[chosen], places[chosen], marker, color=COLOURS[colour],
                      markersize=5.5, label=label)  # fmt: skip
    axes.set_xscale("symlog", linthresh=5, linscale=1.2)
    reach = max(12.0, 1.25 * float(np.abs(z).max()))
    axes.set_xlim(-reach, reach)
    marks = (2, 5, 10, 20, 50) if reach < 60 else (5, 10, 30, 100, 1000, 10_000)
    ticks = [t for m in (*(-m for m in marks[::-1]), 0, *marks) if abs(t := m) <= reach]
    axes.set_xticks(ticks, [f"{t:g}".replace("-", "\N{MINUS SIGN}") for t in ticks])
    axes.minorticks_off()
    axes.set_yticks(places, names)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.grid(False, axis="y")
    name_axes(axes, "value less that for equal laws, in standard errors", "How far from equal laws")
    return figure
