"""Verbs that run at once in threads of one process give, to the bit, what they give alone.

Pyro and NumPyro keep one stack of handlers for all threads, torch one default generator: each job
here traces programs, and some draw from that generator (Gamma, Poisson) while others compile.
"""

import threading

import numpy as np
import pytest

import probgen as pg
from probgen import backends, dist, nets
from probgen.backends import turns
from probgen.inference import ELBO, HMC, IWAE, SVI
from probgen.models import VAE

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 2, (48, 4)).astype("float32")
COUNTS = rng.poisson(3.0, 30).astype("float32")

VAE_OF_BITS = VAE(
    latent=dist.Normal(0, 1).expand([2]).to_event(1),
    decoder=nets.MLP((8,), out=(4,)),
    likelihood=dist.Bernoulli,
    encoder=nets.MLP((8,), out=2, heads=("loc", "log_scale")),
)


@pg.model
def rate():
    level = pg.sample("level", dist.Gamma(2.0, 1.0))
    with pg.data_plate():
        pg.sample("x", dist.Poisson(level))


@pg.model
def counts():
    with pg.data_plate():
        z = pg.sample("z", dist.Gamma(2.0, 1.0))
        pg.sample("x", dist.Poisson(z))


@counts.with_guide
def guided_counts(x):
    with pg.data_plate():
        pg.sample("z", dist.Gamma(x + 2.0, 2.0))


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for name in sorted(tree) for leaf in leaves(tree[name])]
    return [np.asarray(tree)]


def jobs_on(name, guided):
    """Each verb as a function without arguments that gives a list of arrays."""

    def fit():
        out = pg.fit(
            VAE_OF_BITS, IMAGES, SVI(ELBO()), num_steps=20, batch_size=16, seed=1, backend=name,
            progress_bar=False,
        )  # fmt: skip
        return leaves(out.params)

    def evaluate():
        table = pg.evaluate(guided, COUNTS, [IWAE(4)], seed=3, chunk_size=10, progress_bar=False)
        return [table[IWAE(4).name]["estimate"]]

    def infer():
        method = HMC(num_warmup=8, num_samples=8, num_chains=1, num_steps=2, engine="probgen")
        draws = pg.infer(rate, COUNTS, method, seed=4, backend=name, progress_bar=False)
        return [draws.posterior["level"].values]

    def generate():
        return leaves(pg.generate(guided, 20, seed=6))

    return [fit, evaluate, infer, generate]


@pytest.fixture(scope="module")
def jobs(backend_name):
    # Nothing to learn, but a Fitted is what the other verbs take.
    guided = pg.Fitted(guided_counts, {}, info={"backend": backend_name}, shapes={"x": ()})
    return jobs_on(backend_name, guided)


def at_once(functions):
    """Their results, each in a thread of its own, all started at one moment."""
    barrier, results = threading.Barrier(len(functions)), [None] * len(functions)

    def go(i):
        barrier.wait()
        try:
            results[i] = functions[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=go, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def same(found, expected):
    return len(found) == len(expected) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(map(np.asarray, found), map(np.asarray, expected), strict=True)
    )


def check_once(jobs, alone):
    again = [0, 2]  # two fits, two chains: the same job twice at once
    several = [*range(len(jobs)), *again]
    for i, found in zip(several, at_once([jobs[i] for i in several]), strict=True):
        assert same(found, alone[i]), jobs[i].__name__


def test_what_runs_at_once_gives_what_it_gives_alone(jobs):
    check_once(jobs, [job() for job in jobs])


@pytest.mark.slow
def test_what_runs_at_once_gives_what_it_gives_alone_many_times(jobs):
    alone = [job() for job in jobs]
    for _ in range(20):
        check_once(jobs, alone)


def test_a_compiled_function_waits_for_nobody(backend_name):
    """A turn is held to trace and to draw from the default generator, not while compiled code runs
    on noise from keys: such a call ends while another thread holds the turn."""
    b = backends.load(backend_name)
    fn = b.compile(lambda key: b.ops.sum(b.normal(key, (8, 8))), num_calls=10)
    expected = float(fn(b.key(0)))
    turn = {"torch": turns.pyro_turn, "jax": turns.numpyro_turn}[backend_name]
    found = []
    thread = threading.Thread(target=lambda: found.append(float(fn(b.key(0)))), daemon=True)
    with turn:
        thread.start()
        thread.join(timeout=1200)
    assert found == [expected]


def test_a_callers_random_state_is_as_it_was(backend_name, jobs):
    """torch's default generator is put back whatever ran beside it."""
    if backend_name != "torch":
        pytest.skip("JAX has no default generator")
    import torch

    torch.manual_seed(7)
    before = torch.get_rng_state()
    at_once([jobs[1], jobs[2], jobs[3]] * 2)
    assert torch.equal(before, torch.get_rng_state())
