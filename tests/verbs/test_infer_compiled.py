"""JAX: a sampler that is kept is never stale (`test_compiled_once.py` has the other verbs)."""

import numpy as np
import pytest

import probgen as pg
from probgen import dist
from probgen.inference import HMC

pytest.importorskip("jax")
pytest.importorskip("numpyro")

QUICK = HMC(num_warmup=100, num_samples=100, num_chains=2, num_steps=4)  # to compile, that is


def test_a_number_that_a_program_closes_over_is_never_stale():
    scales = {"prior": 1.0}

    @pg.model
    def program():
        pg.sample("w", dist.Normal(0.0, scales["prior"]))

    def spread():
        draws = pg.infer(program, None, QUICK, seed=0, backend="jax", progress_bar=False)
        return float(draws.posterior.w.std())

    narrow = spread()
    scales["prior"] = 100.0
    assert spread() > 20 * narrow


def test_an_array_that_a_program_closes_over_is_never_stale():
    """In place, so that neither the program nor the array is another object."""
    where = np.zeros(5, np.float32)

    @pg.model
    def program():
        pg.sample("w", dist.Normal(where, 0.1).to_event(1))

    def mean():
        draws = pg.infer(program, None, QUICK, seed=0, backend="jax", progress_bar=False)
        return draws.posterior.w.values.mean((0, 1))

    before = mean()
    where[3] = 50.0
    after = mean()
    assert abs(before[3]) < 1.0 and abs(after[3] - 50.0) < 1.0
