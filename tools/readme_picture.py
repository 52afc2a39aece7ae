"""Draws docs/images/demo.png, the README's picture, from a demo's folder.

    python tools/readme_picture.py [runs/demo]

Digits that the model draws, held-out digits over their reconstructions, and the learning curve, all
from the saved model and the report's JSON file.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np

import probgen as pg
from probgen.evaluation import figures
from probgen.evaluation.demo import digits as demo

TARGET = Path(__file__).resolve().parent.parent / "docs" / "images" / "demo.png"


def tiles(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of pictures [n, 28, 28, 1] as one picture, ink dark."""
    return 1.0 - np.concatenate([np.concatenate(list(row[..., 0]), axis=1) for row in rows])


def main(folder: Path) -> None:
    """Writes the picture."""
    fitted = pg.Fitted.from_pretrained(folder / "model")
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    seed, curve = found["info"]["seed"], found["sections"]["learning-curves"]
    _, held_out = demo.digits(demo.Settings(**found["settings"]), seed)
    backend = fitted.resolve("auto")
    drawn = demo.pictures(fitted, held_out, 0, seed=seed, backend=backend)
    samples, digits, again = (drawn[k] for k in ("samples", "originals", "reconstructions"))

    figure, axes = figures.canvas((9.2, 2.9))
    axes.remove()
    grid = figure.add_gridspec(2, 2, width_ratios=[1.12, 1], height_ratios=[2, 1])
    for cell, rows, title in (
        (grid[0, 0], [samples[i : i + 15] for i in (0, 15, 30, 45)], "drawn from the model"),
        (grid[1, 0], [digits[:15], again[:15]], "held-out digits, and their reconstructions"),
    ):
        part = figure.add_subplot(cell)
        part.imshow(tiles(rows), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        part.set_axis_off()
        part.set_title(title, fontsize=10, loc="left", color=figures.COLOURS["ink"])
    part = figure.add_subplot(grid[:, 1])
    figures.dress(part)
    steps, y = np.asarray(curve["steps"]), np.asarray(curve["training_elbo"])
    x = (np.arange(len(y)) + 0.5) * steps[-1] / len(y)
    part.plot(x, y, color=figures.COLOURS["blue"], label="training")
    part.plot(steps, curve["held_out_elbo"], "o-", ms=4, color=figures.COLOURS["orange"],
              label="held out")  # fmt: skip
    part.set_ylim(bottom=min(curve["held_out_elbo"]) - 5)
    figures.name_axes(part, "step", "ELBO, nats per digit")
    part.legend(frameon=False, loc="lower right")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150, facecolor="white")
    from PIL import Image

    TARGET.parent.mkdir(parents=True, exist_ok=True)
    Image.open(out).convert("RGB").quantize(64).save(TARGET, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
