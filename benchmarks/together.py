"""Five scores in one call of `pg.evaluate` against the slowest of them alone.

A VAE of 784-400-20 units and 256 images: the log-likelihood by IWAE(K), minus it as a score,
ELBO(K), reconstruction error and KL term, whole calls, compiled before. Both sides are ours; alone
each costs about what the slowest does, since each has to go through encoder and decoder K times.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from harness import Agreement, Contest, Setting, Side, Target
from regret import fitted, scored

import probgen as pg
from probgen import backends
from probgen.inference import ELBO, IWAE
from probgen.inference.ood import KLTerm, NegativeLogLikelihood, ReconstructionError

ROWS, PARTICLES = 256, 100
AT_LEAST = 0.667  # of the rate of each alone: at most 1.5 times the slowest


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    for backend in ("jax", "torch"):
        name = f"five scores, {backend}"
        if only in name and backends.available()[backend]:
            yield contest(name, backends.load(backend, setting.device), setting)


def contest(name: str, b: Any, setting: Setting) -> Contest:
    fit = fitted("mlp", setting.tiny)
    count = 8 if setting.tiny else ROWS
    k = 10 if setting.tiny else PARTICLES
    x = np.resize(scored(min(count, 100)), (count, 28, 28, 1))
    measures = [
        IWAE(k), NegativeLogLikelihood(k), ELBO(k), ReconstructionError(k), KLTerm(k),
    ]  # fmt: skip

    def run(chosen: list) -> Any:
        return pg.evaluate(fit, x, chosen, seed=0, backend=b, progress_bar=False)

    together, alone = "all five", {m.name: [m] for m in measures}
    sides = {n: Side(partial(quietly, run, chosen), count) for n, chosen in alone.items()}
    return Contest(
        name, "images", {together: Side(partial(quietly, run, measures), count), **sides},
        [Target(together, n, AT_LEAST, partial(same, run, measures, n)) for n in alone],
    )  # fmt: skip


def quietly(run: Callable, chosen: list) -> None:
    run(chosen)


def same(run: Callable, measures: list, name: str) -> Agreement:
    """Whether the other four change a number."""
    (alone,) = (m for m in measures if m.name == name)
    both = [run(chosen)[name]["estimate"].values for chosen in (measures, [alone])]
    return Agreement("difference", float(np.abs(both[0] - both[1]).max()), 0.0)
