"""The figure of the study: codes and draws of each prior, and what the decoder makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from probgen.evaluation.figures import COLOURS
from probgen.views.axes import dress, name_axes
from studies.latent_diffusion.study import Prior

SHOWN = ("normal", "flow", "energy", "diffusion")


def four_priors(found: dict[str, Prior]) -> Any:
    """Two directions of z, those in which codes are least like a normal law; and pictures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    top, bottom = figure.subplots(2, 4)
    codes = found["normal"].codes
    axes_of = _strangest(codes)
    for axes, way in zip(top, SHOWN, strict=True):
        dress(axes)
        for z, hue, label in (
            (codes, "muted", "codes of held-out digits"), (found[way].prior_draws, "blue", "draws"),
        ):  # fmt: skip
            at = z[: len(codes)] @ axes_of
            axes.plot(*at.T, ".", color=COLOURS[hue], markersize=2.5, alpha=0.6, label=label)
        axes.set_xlim(-4, 4)
        axes.set_ylim(-4, 4)
        name_axes(axes, "u'z", "v'z" if way == SHOWN[0] else "")
    top[0].legend(frameon=False, fontsize=7, loc="lower left", markerscale=3)
    for axes, way in zip(bottom, SHOWN, strict=True):
        x = np.pad(found[way].means[:30, :, :, 0], ((0, 0), (1, 1), (1, 1)), constant_values=0.2)
        tall = np.concatenate([np.concatenate(list(x[6 * i : 6 * i + 6]), 1) for i in range(5)])
        axes.imshow(1.0 - tall, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(
            f"{way}: E[x | z] at draws", fontsize=8.5, color=COLOURS["muted"], loc="left"
        )
    return figure


def _strangest(codes: np.ndarray) -> np.ndarray:
    """[d, 2] the two principal directions in which these are flattest, of least kurtosis."""
    off = codes - codes.mean(0)
    _, vectors = np.linalg.eigh(np.cov(off.T))
    along = off @ vectors
    kurtosis = (along**4).mean(0) / (along**2).mean(0) ** 2
    return vectors[:, np.argsort(kurtosis)[:2]]
