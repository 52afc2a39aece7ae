"""The figure of the study: what is known, met; and what chains and an encoder make of digits."""

from __future__ import annotations

from typing import Any

import numpy as np

import probgen as pg
from probgen.evaluation.figures import COLOURS
from probgen.views.axes import dress, name_axes
from studies.latent_em.decoder import Decoder
from studies.latent_em.study import Factors, Mixture, data


def six_panels(
    factors: Factors, mixtures: list[Mixture], ways: dict[str, Decoder], seed: int
) -> Any:
    """Eigenvalues of the factor model; likelihoods that never fall; pictures of both decoders."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 5.0), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.0, 1.0))
    left, right = top.subplots(1, 2)
    _eigenvalues(left, factors)
    _curves(right, mixtures)
    few = pg.data.binarize(data(seed)[1])[:10, :, :, 0]
    chains, vae = ways["chains"], ways["vae"]
    panels = bottom.subplots(1, 2)
    rows = {"data": few, "by chains": chains.back[:10, :, :, 0], "by a VAE": vae.back[:10, :, :, 0]}
    _pictures(panels[0], rows, "held-out digits and their E[x | z]")
    rows = {"by chains": chains.means[:20, :, :, 0], "by a VAE": vae.means[:20, :, :, 0]}
    rows = {f"{n}{' ' * i}": x[10 * i : 10 * i + 10] for n, x in rows.items() for i in (0, 1)}
    _pictures(panels[1], rows, "means at draws of the prior")
    return figure


def _eigenvalues(axes: Any, found: Factors) -> None:
    dress(axes)
    ours, best = found.eigenvalues[:, :20]
    at = np.arange(1, len(best) + 1)
    axes.plot(at, best, "-", color=COLOURS["muted"], linewidth=1.4, label="closed form (PPCA)")
    axes.plot(at, ours, "o", color=COLOURS["blue"], markersize=4, label="EM, a chain a datum")
    axes.set_yscale("log")
    axes.set_xticks([1, 5, 8, 10, 15, 20])
    axes.legend(frameon=False, fontsize=8.5)
    name_axes(axes, "number", "eigenvalues of the covariance")


def _curves(axes: Any, found: list[Mixture]) -> None:
    dress(axes)
    hues = ("blue", "orange", "green")
    for run, hue in zip(found, hues, strict=False):
        steps = np.arange(len(run.curve))
        axes.plot(steps, run.curve, color=COLOURS[hue], linewidth=1.6)
        axes.plot(len(steps), run.theirs, "o", color=COLOURS[hue], markersize=6, mfc="none")
    axes.plot([], [], color=COLOURS["muted"], label="EM(Enumerate()), three starts")
    axes.plot([], [], "o", color=COLOURS["muted"], mfc="none", label="scikit-learn, same start")
    axes.set_ylim(bottom=float(min(np.quantile(r.curve, 0.05) for r in found)))
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")
    name_axes(axes, "step", "log p(x), nats: it never falls")


def _pictures(axes: Any, rows: dict[str, np.ndarray], title: str) -> None:
    """Rows of pictures [10, 8, 8] under each other, named at the left."""
    tall = [
        np.concatenate([np.pad(p, 1, constant_values=0.2) for p in x], 1) for x in rows.values()
    ]
    axes.imshow(1.0 - np.concatenate(tall), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_yticks([10 * i + 4.5 for i in range(len(rows))], [n.rstrip() for n in rows])
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=8.5, colors=COLOURS["muted"])
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(title, fontsize=10, color=COLOURS["ink"], loc="left")
