"""The figure of the study: an energy of the plane above, one of digits below."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import probgen as pg
from probgen.evaluation.figures import COLOURS
from probgen.inference import EnergyLogLikelihood, UnnormalizedLogDensity
from probgen.views.axes import dress, name_axes
from studies.ebm import digits
from studies.ebm.study import TRUTH, Run


def both(
    kept: Run, other: Run, cold: Run, pictures: digits.Run, backend: str, *, steps: tuple[int, ...]
) -> Any:
    """Two learned densities, the learned log p on the true one; digits, their chains after so many
    `steps`, and how log p~ of four sets is spread."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 5.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.0, 1.05))
    panels = top.subplots(1, 4, width_ratios=(1, 1, 1, 1.25))
    _densities(panels[:3], kept, other, backend)
    _slopes(panels[3], (kept, cold), backend)
    left, middle, right = bottom.subplots(1, 3, width_ratios=(0.85, 1.1, 1.35))
    grid(
        left, digits.sets(pictures.seed)[1]["held out"][:48].reshape(6, 8, 8, 8), "digits held out"
    )
    grid(middle, _along(pictures, backend, steps), "ten chains, after steps", names=steps)
    _spread(right, pictures)
    return figure


def _densities(panels: Any, kept: Run, other: Run, backend: str) -> None:
    side = np.linspace(-3.2, 3.2, 161)
    points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2).astype(np.float32)
    for axes, run in zip(panels, (None, kept, other), strict=True):
        title = "data" if run is None else f"learned, {run.settings.refresh:.0%} anew"
        axes.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), xticks=[], yticks=[], aspect="equal")
        axes.set_title(title, fontsize=9.5, color=COLOURS["ink"])
        if run is None:
            axes.scatter(*TRUTH.sample(2000, seed=0).T, s=1.2, color=COLOURS["blue"], linewidths=0)
            continue
        of = EnergyLogLikelihood(run.log_z)
        table = pg.evaluate(
            run.fitted, points, [of], seed=0, backend=backend, device="cpu", chunk_size=len(points)
        )
        density = np.exp(table[of.name]["estimate"].values).reshape(len(side), -1)
        axes.pcolormesh(side, side, density, cmap="Blues", vmin=0, rasterized=True)


def _slopes(axes: Any, runs: tuple[Run, ...], backend: str) -> None:
    x = TRUTH.sample(600, seed=9)
    true, raw = TRUTH.log_prob(x), UnnormalizedLogDensity()
    dress(axes)
    for run, hue in zip(runs, ("blue", "orange"), strict=True):
        table = pg.evaluate(run.fitted, x, [raw], seed=0, backend=backend, device="cpu")
        learned = table[raw.name]["estimate"].values
        learned, t = learned - learned.mean(), run.settings.temperature
        axes.plot(true, learned, ".", color=COLOURS[hue], markersize=2, alpha=0.5)
        ends = np.array([true.min(), true.max()])
        line = run.slope * (ends - true.mean())
        axes.plot(ends, line, color=COLOURS[hue], label=f"T = {t:g}: slope {run.slope:.2f}")
    axes.legend(frameon=False, fontsize=8)
    name_axes(axes, "true log p (nats)", "learned log p, centred")


def _along(run: digits.Run, backend: str, steps: tuple[int, ...]) -> np.ndarray:
    """[steps, 10, 8, 8] of the same ten chains."""
    few = dataclasses.replace(run.settings, num_samples=10)
    method = few.sampler(max(steps))
    found = pg.generate(
        run.fitted, 10, method=method, chunk_size=10, seed=3, return_chain=True, backend=backend,
        device="cpu",
    )  # fmt: skip
    chain = found.chain["x"]  # type: ignore[index]
    return np.stack([chain[k - 1] for k in steps])[..., 0]


def grid(axes: Any, rows: np.ndarray, title: str, names: tuple[int, ...] = ()) -> None:
    """Pictures [rows, columns, 8, 8] as the energy sees them, side by side."""
    padded = np.pad(rows, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1.0)
    picture = np.concatenate([np.concatenate(list(r), 1) for r in padded])
    axes.imshow(-picture, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([10 * i + 4.5 for i in range(len(names))], [f"{n:,}" for n in names])
    axes.tick_params(length=0, labelsize=8.5, colors=COLOURS["muted"])
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(title, fontsize=9.5, color=COLOURS["ink"])


def _spread(axes: Any, run: digits.Run) -> None:
    dress(axes)
    top = max(float(x.max()) for x in run.log_p.values())
    low = float(np.quantile(run.log_p["letters"], 0.02))
    edges = np.linspace(low, top, 45)
    hues = {"learned from": "blue", "held out": "orange", "letters": "green", "textures": "plum"}
    for name, hue in hues.items():
        x, filled = run.log_p[name], name == "learned from"
        below = (x < low).mean()
        axes.stairs(
            100 * np.histogram(x, edges)[0] / len(x), edges, fill=filled, color=COLOURS[hue],
            alpha=0.45 if filled else 1.0, linewidth=1.4,
            label=name + (f" ({below:.0%} below)" if below > 0.05 else ""),
        )  # fmt: skip
    axes.set_ylim(top=15)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    name_axes(axes, "log p(x) + constant (nats)", "% of each set")
