"""Second and later runs of NUTS at the same shapes, against `MCMC.run` of NumPyro and Pyro as used.

A run is 500 transitions of warm-up and 1,000 draws of 4 vectorised chains; its rate is the smallest
bulk effective sample size over coordinates, per second of everything that the call does. Each run
has its own seed. NumPyro compiles in every `run()` without a progress bar; we do not. Of Pyro a run
is one chain of 150 and 200 transitions, since it takes as long as a dozen of ours. On JAX our own
kernel stands beside NumPyro's too, both through `pg.infer`, by 4 chains and by 64.
"""

import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from arviz_stats.base import array_stats
from harness import Agreement, Contest, Setting, Side, Target, Timed
from numpyro.infer import MCMC
from numpyro.infer import NUTS as NumPyroNUTS
from posteriors import POSTERIORS, split
from twins import twin

import probgen as pg
from probgen import backends
from probgen.inference import NUTS

Draws = dict[str, np.ndarray]  # [chain, draw, ...]


NAMES = ("eight schools", "logistic 1000 x 20")
KERNELS = (*((name, 4) for name in POSTERIORS), ("eight schools", 64))  # posterior, chains


def ess(values: np.ndarray) -> np.ndarray:
    """Bulk effective sample size of each coordinate, [chain, draw, ...] -> [...]."""
    flat = values.reshape(*values.shape[:2], -1)
    each = [array_stats.ess(flat[..., i], method="bulk") for i in range(flat.shape[-1])]
    return np.array(each).reshape(values.shape[2:])


class Sampler:
    """`draw(seed)` once a block; keeps the last draws."""

    def __init__(self, draw: Callable[[int], Draws], clock: Callable[[], float]):
        self.draw, self.clock, self.seed = draw, clock, 0
        self.last: Draws = {}

    def block(self) -> Timed:
        self.seed += 1
        start = self.clock()
        self.last = self.draw(self.seed)
        seconds = self.clock() - start
        return Timed(min(float(ess(v).min()) for v in self.last.values()), seconds)


def declared(
    name: str,
    setting: Setting,
    lengths: dict[str, int],
    backend: str = "jax",
    engine: str | None = None,
) -> Callable[[int], Draws]:
    model, arrays = POSTERIORS[name]
    data, inputs = split(arrays)
    b = backends.load(backend, setting.device)

    def draw(seed: int) -> Draws:
        tree = pg.infer(
            model,
            data,
            NUTS(**lengths, engine=engine),
            inputs=inputs,
            backend=b,
            seed=seed,
            progress_bar=False,
        )
        return {n: np.asarray(v.values) for n, v in tree["posterior"].data_vars.items()}

    return draw


def as_used(name: str, setting: Setting, lengths: dict[str, int]) -> Callable[[int], Draws]:
    arrays = POSTERIORS[name][1]
    kernel = NumPyroNUTS(twin("numpyro", name))
    mcmc = MCMC(kernel, chain_method="vectorized", progress_bar=False, **lengths)

    def draw(seed: int) -> Draws:
        mcmc.run(jax.random.key(seed), **arrays)
        return {n: np.asarray(v) for n, v in mcmc.get_samples(group_by_chain=True).items()}

    return draw


def pyro_as_used(name: str, lengths: dict[str, int]) -> Callable[[int], Draws]:
    import pyro
    import torch

    arrays = {k: torch.from_numpy(v) for k, v in POSTERIORS[name][1].items()}
    sizes = {"num_samples": lengths["num_samples"], "warmup_steps": lengths["num_warmup"]}

    def draw(seed: int) -> Draws:
        pyro.set_rng_seed(seed)
        mcmc = pyro.infer.MCMC(pyro.infer.NUTS(twin("pyro", name)), disable_progbar=True, **sizes)
        mcmc.run(**arrays)
        return {n: v.numpy() for n, v in mcmc.get_samples(group_by_chain=True).items()}

    return draw


def same_posterior(ours: Sampler, peer: Sampler) -> Agreement:
    """Largest difference of posterior means, in Monte Carlo standard errors."""
    worst = 0.0
    for name, a in ours.last.items():
        b = peer.last[name]
        error = np.hypot(*(v.std((0, 1)) / np.sqrt(ess(v)) for v in (a, b)))
        worst = max(worst, float(np.max(np.abs(a.mean((0, 1)) - b.mean((0, 1))) / error)))
    return Agreement("posterior means, s.e.", worst, 5.0)


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    clock = time.process_time if setting.clock_name == "cpu" else time.perf_counter
    lengths = {"num_warmup": 500, "num_samples": 1000, "num_chains": 4}
    if setting.tiny:
        lengths = {"num_warmup": 100, "num_samples": 100, "num_chains": 2}
    for name in NAMES:
        row = f"NUTS, later runs, {name}, JAX"
        if only not in row:
            continue
        ours = Sampler(declared(name, setting, lengths), clock)
        peer = Sampler(as_used(name, setting, lengths), clock)
        sides = {"probgen": Side(ours.block), "NumPyro MCMC.run": Side(peer.block)}
        target = Target(
            "probgen", "NumPyro MCMC.run", 10.0, lambda a=ours, b=peer: same_posterior(a, b)
        )
        yield Contest(row, "effective draws", sides, [target])
    for name, num_chains in KERNELS:
        row = f"NUTS, two kernels, {name}, {num_chains} chains, JAX"
        if only not in row:
            continue
        sizes = lengths if setting.tiny else {**lengths, "num_chains": num_chains}
        ours, peer = (
            Sampler(declared(name, setting, sizes, engine=engine), clock)
            for engine in ("probgen", "numpyro")
        )
        sides = {"our kernel": Side(ours.block), "NumPyro's kernel": Side(peer.block)}
        target = Target(
            "our kernel", "NumPyro's kernel", None, lambda a=ours, b=peer: same_posterior(a, b)
        )
        yield Contest(row, "effective draws", sides, [target])
    for name in NAMES:
        row = f"NUTS, later runs, {name}, torch"
        if only not in row:
            continue
        shorter = {"num_warmup": 150, "num_samples": 200}
        ours = Sampler(declared(name, setting, lengths, "torch"), clock)
        other = Sampler(declared(name, setting, lengths), clock)
        peer = Sampler(pyro_as_used(name, lengths if setting.tiny else shorter), clock)
        sides = {
            "probgen": Side(ours.block), "Pyro MCMC.run": Side(peer.block),
            "probgen on JAX": Side(other.block),
        }  # fmt: skip
        targets = [
            Target("probgen", to, share, lambda a=ours, b=by: same_posterior(a, b))
            for to, share, by in (("Pyro MCMC.run", 25.0, peer), ("probgen on JAX", 0.5, other))
        ]
        yield Contest(row, "effective draws", sides, targets)
