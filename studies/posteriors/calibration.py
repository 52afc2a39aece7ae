"""Simulation-based calibration of our own NUTS and HMC: models, ranks and their figure.

    theta ~ p(theta),   y ~ p(y | theta),   L thinned draws of the posterior given y

Then the rank of each scalar of theta, of log p(y | theta) and of log p(theta, y) among its draws is
uniform on 0 .. L. All models together are one test: the level is shared among them, and within each
among its quantities and two tests of uniformity (Holm, Bonferroni; see `evaluation/calibration`).

Source: Talts et al. 2018, arXiv:1804.06788.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

import probgen as pg
from probgen import dist, ops
from probgen.evaluation.calibration import SBC, sbc
from probgen.evaluation.calibration.uniformity import ecdf_difference, envelope
from probgen.inference import HMC, NUTS
from probgen.views.axes import dress, name_axes
from probgen.views.palette import COLOURS

LEVEL = 0.01  # chance that right chains are rejected anywhere, over all models and backends
NUM_SIMULATIONS, NUM_DRAWS, NUM_WARMUP = 384, 99, 150
SCALE = np.array([15, 10, 16, 11, 9, 11, 10, 18], np.float32)
X = np.random.default_rng(13).normal(size=(30, 3)).astype(np.float32)


@pg.model
def groups(scale: Any) -> None:
    """Eight schools: a hierarchical normal, not centred."""
    mu = pg.sample("mu", dist.Normal(0.0, 5.0))
    tau = pg.sample("tau", dist.HalfNormal(5.0))
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0.0, 1.0))
        pg.sample("y", dist.Normal(mu + tau * z, scale))


@pg.model
def doses(x: Any) -> None:
    """A logistic regression."""
    weights = pg.sample("weights", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pg.data_plate():
        pg.sample("y", dist.Bernoulli(logits=x @ weights))


@pg.model
def counts() -> None:
    """Supports with ends: the half-line, an interval, a simplex."""
    rate = pg.sample("rate", dist.Gamma(2.0, 0.5))
    chance = pg.sample("chance", dist.Beta(0.7, 1.5))
    shares = pg.sample("shares", dist.Dirichlet(np.array([2.0, 1.0, 1.5], np.float32)))
    with pg.data_plate():
        pg.sample("events", dist.Poisson(rate))
        pg.sample("heads", dist.Binomial(3, probs=chance))
        pg.sample("face", dist.Categorical(probs=shares))


@pg.model
def correlated() -> None:
    """Scales and a correlation matrix."""
    scale = pg.sample("scale", dist.LogNormal(0.0, 0.5).expand([3]).to_event(1))
    factor = pg.sample("factor", dist.LKJCholesky(3, 2.0))
    tril = ops.expand_dims(scale, 1) * factor
    with pg.data_plate():
        pg.sample("y", dist.MultivariateNormal(ops.zeros_like(scale), scale_tril=tril))


class Case(NamedTuple):
    """A model, its data and its sampler; `certain` are scalars that no draw can move."""

    model: Any
    observed: tuple[str, ...]
    num_data: int
    method: Any
    inputs: Mapping[str, np.ndarray] | None = None
    certain: tuple[str, ...] = ()
    thinning: int = 4


OURS = {"engine": "probgen", "num_warmup": NUM_WARMUP, "num_chains": 1}
ENDS = tuple(f"factor[{i}, {j}]" for i, j in ((0, 0), (0, 1), (0, 2), (1, 2)))
CASES = {
    "groups": Case(groups, ("y",), 8, NUTS(**OURS), {"scale": SCALE}),
    "groups, HMC": Case(
        groups, ("y",), 8, HMC(**OURS, trajectory_length=2.0), {"scale": SCALE}, thinning=8
    ),
    "doses": Case(doses, ("y",), 30, NUTS(**OURS), {"x": X}),
    "counts": Case(counts, ("events", "heads", "face"), 5, NUTS(**OURS)),
    "correlated": Case(correlated, ("y",), 10, NUTS(**OURS), certain=ENDS),
}  # fmt: skip


def calibrated(name: str, backend: Any, *, num_simulations: int = NUM_SIMULATIONS) -> SBC:
    """Ranks of one case; its level is its share of `LEVEL` among all cases on two backends."""
    case = CASES[name]
    return sbc(
        case.model, case.method, observed=case.observed, num_data=case.num_data,
        inputs=case.inputs, num_simulations=num_simulations, num_draws=NUM_DRAWS,
        thinning=case.thinning, alpha=LEVEL / (2 * len(CASES)), seed=13, backend=backend,
        progress_bar=False,
    )  # fmt: skip


def figure(results: Mapping[tuple[str, str], SBC]) -> Any:
    """A panel a case: each quantity's distribution function of ranks minus the uniform one, of one
    backend above and of the other below, with the band of right methods."""
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(name for name, _ in results))
    backends = list(dict.fromkeys(backend for _, backend in results))
    drawn = Figure(figsize=(2.5 * len(cases), 2.3 * len(backends) + 0.3), layout="constrained")
    grid = drawn.subplots(len(backends), len(cases), squeeze=False, sharex=True, sharey=True)
    for row, backend in zip(grid, backends, strict=True):
        below = "rank / draws" if backend == backends[-1] else ""
        for axes, name in zip(row, cases, strict=True):
            dress(axes)
            if (name, backend) in results:
                _panel(axes, results[name, backend], CASES[name].certain)
            name_axes(axes, below, f"{name} on {backend}")
        row[0].set_ylabel("ECDF - uniform", fontsize=9.5, color=COLOURS["muted"])
    return drawn


def _panel(axes: Any, result: SBC, certain: tuple[str, ...]) -> None:
    band = envelope(result.num_simulations, result.num_draws, seed=result.seed)
    x = np.concatenate([[0.0], band.points, [1.0]])
    axes.fill_between(
        x, _pad(band.lower - band.points), _pad(band.upper - band.points), step="mid",
        color=COLOURS["line"],
    )  # fmt: skip
    for j, name in enumerate(result.names):
        if name not in certain:
            y = _pad(ecdf_difference(result.ranks[:, j], result.num_draws, band))
            shade = "orange" if result.adjusted[j] <= result.alpha else "blue"
            axes.step(x, y, where="mid", linewidth=0.9, alpha=0.7, color=COLOURS[shade])
    axes.set_xlim(0, 1)


def _pad(v: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], v, [0.0]])
