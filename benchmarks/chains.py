"""HMC and MALA of `pg.infer` on JAX against BlackJAX's, compiled once: effective draws a second.

64 chains of 200 + 1,000 transitions, the step size and the number of leapfrogs given and nothing
learned, so that both sides run one algorithm; the peer is `blackjax.hmc` or `blackjax.mala` under
vmap in one jitted scan, on a log density that is written by hand. The rate is the smallest bulk
effective sample size over coordinates per second of the whole call; each has its own seed.
Without BlackJAX there is no row: `pip install blackjax`.
"""

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from harness import Contest, Setting, Side, Target
from nuts import Draws, Sampler, same_posterior
from posteriors import POSTERIORS, split

import probgen as pg
from probgen import backends
from probgen.inference import HMC, Langevin


class Case(NamedTuple):
    """A posterior, and how both sides move on it."""

    posterior: str
    method: str
    step_size: float
    num_leapfrog: int = 0


CASES = (
    Case("eight schools", "HMC", 0.25, 8),
    Case("logistic 1000 x 20", "HMC", 0.05, 8),
    Case("eight schools", "MALA", 0.1),
    Case("logistic 1000 x 20", "MALA", 0.003),
)


def declared(case: Case, setting: Setting, warmup: int, draws: int, chains: int) -> Callable:
    """(seed) -> draws of the declaration."""
    model, arrays = POSTERIORS[case.posterior]
    data, inputs = split(arrays)
    b = backends.load("jax", setting.device)
    if case.method == "HMC":
        method: Any = HMC(
            step_size=case.step_size, num_steps=case.num_leapfrog, num_warmup=warmup,
            num_samples=draws, num_chains=chains, adapt_step_size=False, adapt_mass_matrix=False,
        )  # fmt: skip
    else:
        method = Langevin(
            case.step_size, draws, metropolis=True, num_warmup=warmup, num_chains=chains
        )

    def draw(seed: int) -> Draws:
        tree = pg.infer(
            model, data, method, inputs=inputs, backend=b, seed=seed, progress_bar=False
        )
        return {n: np.asarray(v.values) for n, v in tree["posterior"].data_vars.items()}

    return draw


def log_density(name: str) -> tuple[Callable, dict[str, tuple[int, ...]]]:
    """(log density of latents on the real line, their shapes), by hand up to constants."""
    import jax.numpy as jnp
    from jax.nn import softplus

    given = {k: jnp.asarray(v) for k, v in POSTERIORS[name][1].items()}
    if name == "logistic 1000 x 20":

        def logistic(z: Any) -> Any:
            logits = given["covariates"] @ z["weights"]
            return (given["y"] * logits - softplus(logits)).sum() - 0.5 * (z["weights"] ** 2).sum()

        return logistic, {"weights": (20,)}

    def schools(z: Any) -> Any:
        tau = jnp.exp(z["tau"])
        prior = -0.5 * (z["mu"] / 5) ** 2 - jnp.log1p((tau / 5) ** 2) + z["tau"]
        gap = (given["y"] - z["mu"] - tau * z["theta"]) / given["scale"]
        return prior - 0.5 * (z["theta"] ** 2).sum() - 0.5 * (gap**2).sum()

    return schools, {"mu": (), "tau": (), "theta": (8,)}


def by_blackjax(case: Case, warmup: int, draws: int, chains: int) -> Callable:
    """(seed) -> draws of BlackJAX's kernel, all chains in one compiled loop."""
    import blackjax
    import jax
    import jax.numpy as jnp

    density, shapes = log_density(case.posterior)
    if case.method == "HMC":
        size = sum(int(np.prod(s)) for s in shapes.values())
        kernel = blackjax.hmc(density, case.step_size, jnp.ones(size), case.num_leapfrog)
    else:
        kernel = blackjax.mala(density, case.step_size)

    @jax.jit
    @jax.vmap
    def run(key: Any) -> Any:
        key, *starts = jax.random.split(key, 1 + len(shapes))
        z = {
            n: jax.random.uniform(k, shape, minval=-2.0, maxval=2.0)
            for k, (n, shape) in zip(starts, shapes.items(), strict=True)
        }

        def step(state: Any, key: Any) -> tuple[Any, Any]:
            state, _ = kernel.step(key, state)
            return state, state.position

        keys = jax.random.split(key, warmup + draws)
        state, _ = jax.lax.scan(step, kernel.init(z), keys[:warmup])
        z = jax.lax.scan(step, state, keys[warmup:])[1]
        return {n: jnp.exp(v) if n == "tau" else v for n, v in z.items()}

    def draw(seed: int) -> Draws:
        found = run(jax.random.split(jax.random.key(seed), chains))
        return {n: np.asarray(v) for n, v in found.items()}

    return draw


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    """Each method on each posterior; at least the peer's rate."""
    clock = time.process_time if setting.clock_name == "cpu" else time.perf_counter
    lengths = (20, 50, 8) if setting.tiny else (200, 1000, 64)
    for case in CASES:
        row = f"{case.method}, {case.posterior}, JAX"
        if only not in row or not backends.available()["jax"]:
            continue
        if importlib.util.find_spec("blackjax") is None:
            print(f"{row}: left out; pip install blackjax", file=sys.stderr)
            continue
        ours = Sampler(declared(case, setting, *lengths), clock)
        peer = Sampler(by_blackjax(case, *lengths), clock)
        sides = {"probgen": Side(ours.block), "BlackJAX": Side(peer.block)}
        target = Target("probgen", "BlackJAX", 1.0, lambda a=ours, b=peer: same_posterior(a, b))
        yield Contest(row, "effective draws", sides, [target])
