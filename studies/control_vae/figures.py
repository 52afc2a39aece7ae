"""The page's figure: rate and distortion with their slopes, and the KL on its way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from studies.control_vae.study import controlled, moving_mean, run


def curve_and_settling(backend_name: str, curve: Sequence[float]) -> Any:
    """The rate-distortion curve of fits at these set points, 10,000 steps each, with the weights as
    slopes; and the mean KL of 100 steps for set points in and out of reach."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    runs = [run(backend_name, controlled(c), 10_000) for c in curve]
    k = np.array([r.train["kl"] for r in runs])
    distortion = -np.array([r.train["log_prob"] for r in runs])
    left.plot(k, distortion, "o", color="black", label="fits at C = 3, 5, ..., 13")
    for r, x, y in zip(runs, k, distortion, strict=True):
        ends = np.array([-1.0, 1.0])
        left.plot(x + ends, y - r.beta * ends, color="tab:red", lw=1.5)
    left.plot([], [], color="tab:red", label="slope $-\\beta$ of the controller")
    left.set(xlabel="rate K (nats)", ylabel="distortion R (nats)", title="Rate and distortion")
    left.legend(frameon=False)
    for c in (4, 10, 16):
        means = moving_mean(run(backend_name, controlled(c)).history["kl"])[:4000]
        (line,) = right.plot(np.arange(len(means)) + 100, means, lw=1)
        right.axhline(c, color=line.get_color(), ls=":", lw=1)
    means = moving_mean(run(backend_name, controlled(10, beta_min=1.0)).history["kl"])[:4000]
    steps = np.arange(len(means)) + 100
    right.plot(steps, means, color="gray", lw=1, label=r"C = 10, $\beta\geq1$: out of reach")
    right.set(xlabel="step", ylabel="KL, mean of 100 steps (nats)", title="Set points 4, 10, 16")
    right.legend(frameon=False, loc="lower right")
    return figure
