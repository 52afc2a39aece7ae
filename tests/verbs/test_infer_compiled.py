"""JAX: other data of the same shapes compile nothing, and what is kept is never stale."""

import numpy as np
import pytest

import probgen as pg
from probgen import dist
from probgen.inference import HMC, NUTS

jax = pytest.importorskip("jax")
pytest.importorskip("numpyro")

METHOD = NUTS(num_warmup=30, num_samples=50, num_chains=2)
QUICK = HMC(num_warmup=100, num_samples=100, num_chains=2, num_steps=4)  # to compile, that is
COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """Counts what XLA compiles while it is open."""

    def __enter__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._heard)

    def _heard(self, event, duration, **_):
        self.count += event == COMPILED


def make(prior_scale=1.0):
    @pg.model
    def regression(covariates):
        w = pg.sample("w", dist.Normal(0, prior_scale).expand([3]).to_event(1))
        noise = pg.sample("noise", dist.HalfNormal(1.0))
        with pg.data_plate():
            mean = pg.deterministic("mean", covariates @ w)
            pg.sample("y", dist.Normal(mean, noise))

    return regression


def infer(model, seed, num_data=20, **options):
    rng = np.random.default_rng(seed)
    c, y = rng.normal(size=(num_data, 3)), rng.normal(size=num_data)
    return pg.infer(
        model, {"y": y}, METHOD, inputs={"covariates": c}, seed=0, backend="jax",
        log_likelihood=True, progress_bar=False, **options,
    )  # fmt: skip


def test_a_second_run_compiles_nothing():
    model = make()
    with Compilations() as first:
        one = infer(model, seed=0)
    with Compilations() as second:
        two = infer(model, seed=1)
        infer(make(), seed=2)  # the same declaration, made anew
    assert first.count > 0 and second.count == 0
    assert (one.posterior.w != two.posterior.w).any()
    with Compilations() as other_shapes:
        infer(model, seed=1, num_data=21)
    assert other_shapes.count > 0


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
