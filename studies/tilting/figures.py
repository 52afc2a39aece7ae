"""The figures of the studies: densities, chains after so many steps, and curves over training."""

from __future__ import annotations

from typing import Any

import numpy as np

import probgen as pg
from probgen.evaluation.figures import COLOURS, dress, name_axes, smooth
from studies.ebm.figures import grid
from studies.tilting import digits
from studies.tilting.study import Settings, energies, mala, mixture

STEPS = (1, 5, 30, 100, 300, 1000)  # after which chains are shown
EDGE = 1.9


def plane(found: dict[str, Any], settings: Settings, seed: int, backend: str) -> Any:
    """Data, base, energy and chains of one `run`; chains along the way; curves over training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 6.4), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(1.25, 1.0, 1.05))
    sets = {
        "data": mixture().sample(2000, seed=1), "base": found["draws"][:2000], "energy": None,
        "tilted, 30 steps": found["ends"][:2000],
    }  # fmt: skip
    for axes, (title, x) in zip(top.subplots(1, 4), sets.items(), strict=True):
        _cloud(axes, x, title)
        if x is None:
            _levels(axes, found["fitted"], backend)
    for axes, k in zip(middle.subplots(1, len(STEPS)), STEPS, strict=True):
        x = pg.generate(found["fitted"], 1000, method=mala(settings, k), seed=seed,
                        backend=backend, chunk_size=1000)["x"]  # fmt: skip
        _cloud(axes, x, f"{k:,} step" + ("s" if k > 1 else ""))
    _training(bottom.subplots(1, 3), found["fitted"])
    return figure


def pictures(found: dict[str, Any], settings: digits.Settings, seed: int, backend: str) -> Any:
    """Digits held out, of the VAE and of the tilt; ten chains along the way; training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.1, 1.0))
    *sets, chains = top.subplots(1, 4, width_ratios=(1, 1, 1, 1.2))
    shown = {"digits held out": "held out", "VAE": "draws", "tilted VAE": "ends"}
    for axes, (title, name) in zip(sets, shown.items(), strict=True):
        grid(axes, seen(found[name][:48]).reshape(6, 8, 8, 8), title)
    along = np.stack([
        digits.draw(found["fitted"], settings, k, 10, seed, backend) for k in STEPS
    ])  # fmt: skip
    grid(chains, seen(along)[..., 0], "from ten starts, after steps", names=STEPS)
    _training(bottom.subplots(1, 3), found["fitted"])
    return figure


def seen(x: np.ndarray) -> np.ndarray:
    """Pixels as `grid` wants them, in [-1, 1]."""
    return 2.0 * np.clip(x, 0.0, 1.0) - 1.0


def _cloud(axes: Any, x: np.ndarray | None, title: str) -> None:
    if x is not None:
        axes.plot(*x.T, ".", color=COLOURS["blue"], markersize=1.2, alpha=0.5)
    axes.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), xticks=[], yticks=[], aspect="equal")
    axes.set_title(title, fontsize=9.5, color=COLOURS["ink"])
    axes.grid(False)


def _levels(axes: Any, fitted: pg.Fitted, backend: str) -> None:
    side = np.linspace(-EDGE, EDGE, 200, dtype=np.float32)
    points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    values = energies(fitted, points, backend).reshape(200, 200)
    low, high = np.quantile(values, [0.0, 0.8])
    extent = (-EDGE, EDGE) * 2
    axes.imshow(values, origin="lower", extent=extent, vmin=low, vmax=high, cmap="Blues_r")


def _training(panels: Any, fitted: pg.Fitted) -> None:
    """Energies of data and of draws, their gap, and the gain on held-out data, over updates."""
    first, second, third = panels
    for axes in panels:
        dress(axes)
    history = fitted.history
    data, draws = history["energy_data"], history["energy_samples"]
    window = max(1, len(data) // 100)
    for values, name, hue in ((data, "data", "blue"), (draws, "draws", "orange")):
        first.plot(*smooth(values, window), color=COLOURS[hue], linewidth=1.4, label=name)
    first.legend(frameon=False, fontsize=8)
    second.plot(*smooth(draws - data, window), color=COLOURS["blue"], linewidth=1.4)
    third.plot(history.validation_steps, history.validation["gain"], color=COLOURS["blue"],
               linewidth=1.4)  # fmt: skip
    titles = ("mean energy (nats)", "gap, draws - data (nats)", "gain, held-out data (nats)")
    for axes, title in zip(panels, titles, strict=True):
        name_axes(axes, "update", title)
