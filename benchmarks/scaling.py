"""What a leapfrog of our own chains costs as data and chains grow: at most in proportion to either.

HMC of `pg.infer` on a logistic regression with 20 weights: of N and 4 N data, by 4, 16 and 64
chains. A side's rate is in data, times chains, times leapfrogs, a second, so that the ratio of two
rates is 1 where cost grows in proportion; cost grows with the exponent 1 - log(ratio) / log(4).
All sides do the same work, by fewer transitions where a leapfrog is dearer, so that what a call
costs anyhow is in each alike. A transition has as many leapfrogs as JAX computes at a time.
"""

import functools
import time
from collections.abc import Callable, Iterator

import numpy as np
from harness import Agreement, Contest, Setting, Side, Target, Timed
from posteriors import logistic_regression

import probgen as pg
from probgen import backends
from probgen.inference import HMC

LEAPFROGS, DIM = 32, 20
SMALL, TIMES = 2000, 4  # data of the small side, and how many times as many are large
CHAINS = (4, 16, 64)
MOST = 2  # transitions of the largest side
LEAST = 0.85  # of the small side's rate: exponents of 1.12 at most


class Block:
    """One size of the work; `sizes` are (data, chains)."""

    def __init__(
        self, backend: str, sizes: tuple[int, int], transitions: int, clock: Callable[[], float],
        device: str,
    ):  # fmt: skip
        num_data, self.chains = sizes
        rng = np.random.default_rng(0)
        x = rng.normal(size=(num_data, DIM)).astype(np.float32)
        y = (rng.random(num_data) < 1 / (1 + np.exp(-x.sum(1) / 4))).astype(np.float32)
        self.data, self.inputs, self.transitions = {"y": y}, {"covariates": x}, transitions
        self.b, self.clock, self.seed = backends.load(backend, device), clock, 0
        self.work = float(num_data * self.chains * LEAPFROGS)
        self.told = np.zeros(0)

    def __call__(self) -> Timed:
        method = HMC(
            engine="probgen", num_warmup=0, num_samples=self.transitions, num_chains=self.chains,
            num_steps=LEAPFROGS, step_size=1e-3, adapt_step_size=False, adapt_mass_matrix=False,
        )  # fmt: skip
        self.seed += 1
        start = self.clock()
        tree = pg.infer(
            logistic_regression, self.data, method, inputs=self.inputs, backend=self.b,
            seed=self.seed, progress_bar=False,
        )  # fmt: skip
        seconds = self.clock() - start
        self.told = tree["sample_stats"]["acceptance_rate"].values
        return Timed(self.transitions * self.work, seconds)


def accepted(*blocks: Block) -> Agreement:
    """Paths so short in time keep their energy, whatever the size of the work."""
    return Agreement("1 - acceptance", max(1.0 - float(b.told.mean()) for b in blocks), 0.2)


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    clock = time.process_time if setting.clock_name == "cpu" else time.perf_counter
    small, chains = (50, (2, 8)) if setting.tiny else (SMALL, CHAINS)
    sizes = [(n, c) for n in (small, TIMES * small) for c in chains]
    most = max(n * c for n, c in sizes)
    for backend in ("JAX", "torch"):
        row = f"a leapfrog, data and chains, {backend}"
        if only not in row or not backends.available()[backend.lower()]:
            continue
        blocks = {
            f"{n} data, {c} chains": Block(
                backend.lower(), (n, c), MOST * most // (n * c), clock, setting.device
            )
            for n, c in sizes
        }
        names = list(blocks)
        pairs = [(names[len(chains) + i], names[i]) for i in range(len(chains))]
        pairs += list(zip(names[1 : len(chains)], names, strict=False))
        targets = [
            Target(a, b, LEAST, functools.partial(accepted, blocks[a], blocks[b]))
            for a, b in pairs
        ]  # fmt: skip
        yield Contest(
            row, "data x chains x leapfrogs", {n: Side(b) for n, b in blocks.items()}, targets
        )
