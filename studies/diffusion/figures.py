"""The figures of the study: samples along the steps, and larger pictures by their class."""

from __future__ import annotations

from typing import Any

import numpy as np

import probgen as pg
from probgen.backends import load
from probgen.evaluation.figures import COLOURS
from studies.diffusion.pictures import NUM_TRAIN, Run
from studies.diffusion.pictures import sets as picture_sets
from studies.diffusion.study import TRUTH, sets

STOPS = (1.0, 0.5, 0.2, 0.1, 0.03, 0.0)  # shares of the steps that are left


def along(fitted: pg.Fitted, count: int, backend: str) -> tuple[np.ndarray, list[int]]:
    """([stops, count, dim], steps left): one chain of the model, seen at some of its steps."""
    b = load(backend, "cpu")
    params = fitted.bind(b)[1]
    model: Any = fitted.model
    total = model.schedule.num_train_timesteps
    rows = {k: v.astype(np.float32) for k, v in model.table().items()}
    seen, left = [], [round(share * total) for share in STOPS]

    def step(x: Any, item: Any) -> tuple[Any, Any]:
        row, t, key = item
        times = x[:, 0] * 0.0 + t
        loc = model.posterior_mean(x, model.predict(params, x, times, {}), row)
        x = loc + row["std"] * b.normal(key, tuple(x.shape))
        return x, x

    def chain(key: Any) -> Any:
        keys = b.split(key, total + 1)
        start = b.normal(keys[0], (count, *model.shape))
        columns = {k: b.asarray(v[::-1].copy()) for k, v in rows.items()}
        times = b.asarray(np.arange(total)[::-1].astype(np.float32))
        return start, b.scan(step, start, (columns, times, keys[1:]))[1]

    start, path = (b.to_numpy(v) for v in b.compile(chain, over="steps")(b.key(0)))
    for stop in left:
        seen.append(start if stop == total else path[total - stop - 1])
    return np.stack(seen), left


def whole(gaussians: pg.Fitted, digits: pg.Fitted, backend: str) -> Any:
    """Above 25 Gaussians, below digits: from noise to samples, and data beside them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    panels = figure.subplots(2, len(STOPS) + 1)
    path, left = along(gaussians, 1500, backend)
    for axes, x, stop in zip(panels[0], path, left, strict=False):
        _cloud(axes, x, f"{stop:,} steps left" if stop else "samples")
    _cloud(panels[0, -1], TRUTH.sample(1500, seed=9), "data")
    path, _ = along(digits, 16, backend)
    for axes, x in zip(panels[1], [*path, sets("digits", 0, 300)[1][:16]], strict=True):
        tiles = np.pad(x.reshape(4, 4, 8, 8), [(0, 0), (0, 0), (0, 1), (0, 1)], constant_values=-1)
        image = np.clip(tiles.transpose(0, 2, 1, 3).reshape(36, 36), -1, 1)
        axes.imshow(-image, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_axis_off()
    return figure


def _cloud(axes: Any, x: np.ndarray, title: str) -> None:
    axes.scatter(*x.T, s=1.0, color=COLOURS["blue"], linewidths=0)
    axes.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[], aspect="equal")
    axes.set_title(title, fontsize=8.5, color=COLOURS["ink"])
    for side in axes.spines.values():
        side.set_color(COLOURS["muted"])


def pictures(found: list[Run]) -> Any:
    """Data beside samples in 50 calls, a column a class, of each set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 2.2 * len(found)), layout="constrained")
    panels = np.atleast_2d(figure.subplots(len(found), 2))
    for (left, right), run in zip(panels, found, strict=True):
        held_out = picture_sets(run.data, run.seed)[1]
        _columns(left, held_out.x, held_out.labels, f"{run.data}: pictures held out")
        _columns(right, run.x, run.asked, f"drawn by their class, {NUM_TRAIN[run.data]:,} seen")
    return figure


def _columns(axes: Any, x: np.ndarray, labels: np.ndarray, title: str, rows: int = 4) -> None:
    """The first pictures of each class under each other."""
    edge = 1.0 if x.shape[-1] == 3 else -0.7  # a grey picture is shown dark on light
    tiles = [
        np.concatenate([np.pad(p, ((0, 1), (0, 1), (0, 0)), constant_values=edge) for p in
                        x[labels == c][:rows]])
        for c in range(10)
    ]  # fmt: skip
    image = (np.concatenate(tiles, 1) + 1.0) / 2.0
    image = 1.0 - image[..., 0] if image.shape[-1] == 1 else image
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, fontsize=8.5, color=COLOURS["ink"], loc="left")
