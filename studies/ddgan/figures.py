"""The figure of the study: the chain step by step, other chains of as many steps, and digits."""

from __future__ import annotations

from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.fitted import Fitted
from probgen.evaluation.figures import COLOURS
from studies.ddgan import digits
from studies.ddgan.study import CENTRES, Run, data, guesses, on
from studies.ebm.figures import grid

EDGE = 2.2
NUM_SHOWN = 2000


def whole(chains: list[Run], pictures: digits.Run | None, backend: str | Backend) -> Any:
    """`chains[0]` is the one with a latent, shown along its steps; then samples of the others."""
    from matplotlib.figure import Figure

    count = 2 if pictures is None else 3
    figure = Figure(figsize=(9.2, 2.2 * count), layout="constrained")
    rows = figure.subfigures(count, 1)
    steps = along(chains[0].fitted, backend)
    for axes, (name, x) in zip(rows[0].subplots(1, 5), steps.items(), strict=False):
        _cloud(axes, x, name)
    shown = {"data": data(NUM_SHOWN, 0)}
    shown |= {r.name: r.samples[:NUM_SHOWN] for r in chains}
    shown["$G(x_1, z, 0)$, one $x_1$"] = guesses(chains[0].fitted, 0, 1000, on(backend))
    panels = rows[1].subplots(1, len(shown))
    for axes, (name, x) in zip(panels, shown.items(), strict=True):
        _cloud(axes, x, name)
    panels[-1].plot(*CENTRES[[12, 13]].mean(0), "x", color=COLOURS["orange"])
    if pictures is not None:
        few = 2 * pictures.samples[:64, :, :, 0] - 1
        grid(rows[2].subplots(), few.reshape(4, 16, 8, 8), "digits drawn")
    return figure


def along(fitted: Fitted, backend: str | Backend) -> dict[str, np.ndarray]:
    """x_T ... x_1 and x of one draw, [2000, 2] each, by its name."""
    b = on(backend)
    bound, params = fitted.bind(b)
    sites = bound.trace(params, {}, key=b.key(0), batch_size=NUM_SHOWN, condition=False)
    names = [f"x_{t}" for t in range(4, 0, -1)] + ["x"]
    titles = [f"$x_{t}$" for t in range(4, 0, -1)] + ["$x_0$"]
    return {title: b.to_numpy(sites[n].value) for n, title in zip(names, titles, strict=True)}


def _cloud(axes: Any, x: np.ndarray, title: str) -> None:
    axes.scatter(*x.T, s=1.2, color=COLOURS["blue"], linewidths=0)
    axes.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), xticks=[], yticks=[], aspect="equal")
    axes.set_title(title, fontsize=9, color=COLOURS["ink"])
