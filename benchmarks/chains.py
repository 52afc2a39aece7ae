"""HMC and MALA of `pg.infer` on JAX against BlackJAX's, compiled once: effective draws a second.

A logistic regression of 1,000 x 20; 32 chains, the first 300 transitions dropped, the step size and
the number of leapfrogs given and nothing learned, so that both sides run one algorithm; the peer is
`blackjax.hmc` or `blackjax.mala` under vmap in one jitted scan, on a log density written by hand.
The rate is the smallest bulk effective sample size over coordinates per second of the whole call;
each has its own seed. Without BlackJAX there is no row: `pip install blackjax`.
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
    """How both sides move, and how many transitions are kept of a chain."""

    method: str
    step_size: float
    draws: int
    num_leapfrog: int = 0


POSTERIOR = "logistic 1000 x 20"
CASES = (Case("HMC", 0.05, 1000, 8), Case("MALA", 0.0015, 3000))


def declared(case: Case, setting: Setting, warmup: int, draws: int, chains: int) -> Callable:
    """(seed) -> draws of the declaration."""
    model, arrays = POSTERIORS[POSTERIOR]
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


def log_density() -> Callable:
    """Of the weights, up to a constant."""
    import jax.numpy as jnp
    from jax.nn import softplus

    given = {k: jnp.asarray(v) for k, v in POSTERIORS[POSTERIOR][1].items()}

    def density(w: Any) -> Any:
        logits = given["covariates"] @ w
        return (given["y"] * logits - softplus(logits)).sum() - 0.5 * (w * w).sum()

    return density


def by_blackjax(case: Case, warmup: int, draws: int, chains: int) -> Callable:
    """(seed) -> draws of BlackJAX's kernel, all chains in one compiled loop."""
    import blackjax
    import jax
    import jax.numpy as jnp

    density = log_density()
    if case.method == "HMC":
        kernel = blackjax.hmc(density, case.step_size, jnp.ones(20), case.num_leapfrog)
    else:
        kernel = blackjax.mala(density, case.step_size)

    @jax.jit
    @jax.vmap
    def run(key: Any) -> Any:
        start, key = jax.random.split(key)
        w = jax.random.uniform(start, (20,), minval=-2.0, maxval=2.0)

        def step(state: Any, key: Any) -> tuple[Any, Any]:
            state, _ = kernel.step(key, state)
            return state, state.position

        keys = jax.random.split(key, warmup + draws)
        state, _ = jax.lax.scan(step, kernel.init(w), keys[:warmup])
        return jax.lax.scan(step, state, keys[warmup:])[1]

    def draw(seed: int) -> Draws:
        return {"weights": np.asarray(run(jax.random.split(jax.random.key(seed), chains)))}

    return draw


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    """Each method; at least the peer's rate."""
    clock = time.process_time if setting.clock_name == "cpu" else time.perf_counter
    for case in CASES:
        lengths = (20, 50, 8) if setting.tiny else (300, case.draws, 32)
        row = f"{case.method}, {POSTERIOR}, JAX"
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
