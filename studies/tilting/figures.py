"""The figure of a study: data, draws of the base, its energy, draws of the tilt."""

from __future__ import annotations

from typing import Any

import numpy as np

from probgen.evaluation.figures import COLOURS
from studies.tilting.study import energies, mixture


def four_panels(found: dict[str, Any], backend: str, *, num_points: int = 3000) -> Any:
    """Data, base, energy and chains of one `run`, side by side."""
    from matplotlib.figure import Figure

    data = mixture().sample(num_points, seed=1)
    figure = Figure(figsize=(9.2, 2.5), layout="constrained")
    places = figure.subplots(1, 4, sharex=True, sharey=True)
    axis = np.linspace(-1.9, 1.9, 200, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    values = energies(found["fitted"], grid, backend).reshape(200, 200)
    low, high = np.quantile(values, [0.0, 0.8])
    sets = {"data": data, "base": found["draws"], "energy": None, "tilted, 30 steps": found["ends"]}
    for axes, (title, x) in zip(places, sets.items(), strict=True):
        if x is None:
            axes.imshow(
                values, origin="lower", extent=(-1.9, 1.9) * 2, vmin=low, vmax=high, cmap="Blues_r"
            )
        else:
            axes.plot(*x[:num_points].T, ".", color=COLOURS["blue"], markersize=1.2, alpha=0.5)
        axes.set(xlim=(-1.9, 1.9), ylim=(-1.9, 1.9), xticks=[], yticks=[], aspect="equal")
        axes.set_title(title, fontsize=9.5, color=COLOURS["ink"])
        axes.grid(False)
    return figure
