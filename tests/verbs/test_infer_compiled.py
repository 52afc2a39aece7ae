"""JAX: a sampler that is kept is never stale (`test_compiled_once.py` has the other verbs)."""

import numpy as np
import pytest

import probgen as pg
from probgen import dist
from probgen.inference import HMC

pytest.importorskip("jax")
pytest.importorskip("numpyro")

QUICK = HMC(num_warmup=100, num_samples=100, num_chains=2, num_steps=4)  # to compile, that is


def test_what_a_program_closes_over_is_never_stale():
    """A number; an array in place, so that neither program nor array is another object. Where no
    backend is named it is JAX."""
    scales, where = {"prior": 1.0}, np.zeros(5, np.float32)

    @pg.model
    def program():
        pg.sample("w", dist.Normal(where, scales["prior"]).to_event(1))

    def draws():
        found = pg.infer(program, None, QUICK, seed=0, progress_bar=False)
        assert found.attrs["backend"] == "jax"
        return found.posterior.w.values

    first = draws()
    where[3] = 50.0
    moved = draws().mean((0, 1)) - first.mean((0, 1))
    assert abs(moved[3] - 50.0) < 1.0 and abs(moved[:3]).max() < 1.0
    scales["prior"] = 100.0
    assert draws().std() > 20 * first.std()
