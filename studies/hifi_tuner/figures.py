"""The figures of the study: what each way draws, and where the subject's rows look."""

from __future__ import annotations

from typing import Any

import numpy as np

from probgen.backends import load
from probgen.engine.fitted import Fitted
from probgen.evaluation.figures import COLOURS
from studies.hifi_tuner.guiding import Led, tokens
from studies.hifi_tuner.study import Judged, sources


def ways(found: dict[str, Judged], each: int) -> Any:
    """Sources and masks above; below a row a way: pictures of four scenes, and of none named."""
    from matplotlib.figure import Figure

    given, count = sources(), 4
    figure = Figure(figsize=(8.4, 0.5 + 0.62 * (len(found) + 2)), layout="constrained")
    rows = figure.subplots(len(found) + 2, 1)
    _strip(rows[0], given["x"], "five sources")
    _strip(rows[1], np.repeat(2 * given["mask"] - 1, 3, -1), "their masks")
    for axes, (name, judged) in zip(rows[2:], found.items(), strict=True):
        of_scenes = judged.pictures.reshape(4, each, 8, 8, 3)[:, :3].reshape(12, 8, 8, 3)
        _strip(axes, np.concatenate([of_scenes, judged.free[:count]]), name)
    return figure


def pictures_of(rows: dict[str, np.ndarray]) -> Any:
    """A row of pictures [n, h, w, 3] under each name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 0.78 * len(rows)), layout="constrained")
    for axes, (name, x) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        _strip(axes, x, name)
    return figure


def guided(led: dict[str, Led], edited: dict[str, Any]) -> Any:
    """Above draws led by a reference, below squares that became the subject."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    rows = figure.subplots(3 + len(led), 1)
    first = next(iter(led.values()))
    _strip(rows[0], first.placed, "reference, placed")
    for axes, (name, one) in zip(rows[1:], led.items(), strict=False):
        _strip(axes, one.pictures, name)
    shown = np.arange(16) * (len(edited["sources"]) // 16)
    _strip(rows[-2], edited["sources"][shown], "squares")
    _strip(rows[-1], edited["pictures"][shown], "replaced")
    return figure


def attention(model: Fitted, caption: str, backend: str) -> Any:
    """Maps of the subject's rows, mean over heads and layers, at three steps of one picture."""
    from matplotlib.figure import Figure

    diffusion: Any = model.model
    total, n = diffusion.schedule.num_train_timesteps, diffusion.condition.num_tokens
    b, at = load(backend, "cpu"), [total - 1, total // 2, 2]
    params, x = b.tree_map(b.asarray, dict(model.params)), sources()["x"][:1]
    table, eps = diffusion.table(), np.random.default_rng(0).standard_normal(x.shape)
    figure = Figure(figsize=(6.3, 2.1 + 0.7), layout="constrained")
    panels = figure.subplots(len(at), 1 + n)
    batch = {k: b.asarray(v) for k, v in tokens(model, [caption]).items()}
    for row, t in zip(panels, at, strict=True):
        x_t = (table["signal"][t] * x + table["noise"][t] * eps).astype(np.float32)
        time = b.asarray(np.full(1, t, np.float32))
        _, maps = diffusion.predict_with_maps(params, b.asarray(x_t), time, batch)
        mean = np.mean([b.to_numpy(m)[0].mean(0) for m in maps.values()], axis=0)
        side = int(np.sqrt(len(mean)))
        _picture(row[0], x_t[0])
        row[0].set_ylabel(f"{t} left", fontsize=8, color=COLOURS["muted"])
        for i, axes in enumerate(row[1:]):
            weights = mean[:, -n + i].reshape(side, side)
            axes.imshow(weights, cmap="Blues", vmin=0, vmax=max(0.2, float(mean[:, -n:].max())))
            axes.set_axis_off()
            if t == at[0]:
                axes.set_title(f"row {i + 1}", fontsize=8, color=COLOURS["muted"])
    return figure


def _strip(axes: Any, pictures: np.ndarray, name: str) -> None:
    """Pictures [n, h, w, 3] in [-1, 1] side by side."""
    tiles = np.pad(pictures, [(0, 0), (0, 0), (0, 1), (0, 0)], constant_values=1.0)
    _picture(axes, np.concatenate(list(tiles), axis=1))
    axes.set_title(name, fontsize=8, color=COLOURS["muted"], loc="left", pad=2)


def _picture(axes: Any, x: np.ndarray) -> None:
    axes.imshow(np.clip(0.5 + 0.5 * x, 0, 1), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
