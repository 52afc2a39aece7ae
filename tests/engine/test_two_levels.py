"""Data of two plates, one within the other: rows, and in each a value for every group."""

import numpy as np
import pytest
from scipy import stats

import probgen as pg
from probgen import dist
from probgen.engine.bind import bind
from probgen.engine.posterior import Posterior
from probgen.errors import AlgorithmError, ShapeError
from probgen.inference import ELBO, HMC, SVI

RNG = np.random.default_rng(0)
SHORT = HMC(num_warmup=100, num_samples=150, num_chains=1, num_steps=2, engine="probgen")


@pg.model
def two_levels():
    mu = pg.sample("mu", dist.Normal(0, 1).expand([3]).to_event(1))
    with pg.data_plate():
        pg.sample("y", dist.Normal(mu, 1.0).to_event(1))
        with pg.plate("group", 4):
            pg.sample("k", dist.Poisson(2.0))


ROWS = RNG.normal(size=(7, 3)).astype(np.float32)
COUNTS = RNG.poisson(2.0, size=(4, 7))


def test_two_levels_of_observations(b):
    """y [data, 3] and k [group, data]: the density of mu is that of y, and k adds a constant."""
    at, found = np.float32([[0.0, 0.0, 0.0], [0.5, -1.0, 2.0]]), []
    for data in ({"y": ROWS, "k": COUNTS}, {"k": COUNTS, "y": ROWS}):
        bound, params = bind(two_levels, b, data=data, whole=True)
        assert bound.num_rows == 7 and bound.latents == ("mu",)
        rows = {n: b.asarray(v) for n, v in data.items()}
        look = Posterior(bound, 7).point
        look = b.compile(look) if b.name == "jax" else look
        points = [look(params, rows, {"mu": b.asarray(mu)}) for mu in at]
        found.append([float(b.to_numpy(p.log_density)) for p in points])
    want = [
        stats.norm.logpdf(mu).sum() + stats.norm.logpdf(ROWS, mu).sum()
        + stats.poisson.logpmf(COUNTS, 2.0).sum()
        for mu in at
    ]  # fmt: skip
    np.testing.assert_allclose(found, [want, want], rtol=1e-5)
    with pytest.raises(ShapeError, match=r"'k'.*expected \(4, 7\)"):
        pg.infer(two_levels, {"y": ROWS, "k": COUNTS.T}, SHORT, seed=0, backend=b)
    with pytest.raises(AlgorithmError, match="inside the plates"):
        guided = two_levels.with_guide(
            lambda: pg.sample("mu", dist.Normal(0, 1).expand([3]).to_event(1))
        )
        pg.fit(guided, {"y": ROWS, "k": COUNTS.T}, SVI(ELBO()), num_steps=1, seed=0, backend=b)


@pytest.mark.repeated("test_two_levels_of_observations")
def test_a_chain_finds_the_posterior_of_two_levels(b):
    """mu | y is N(sum y / 8, I / 8), and k adds nothing."""
    data = {"k": COUNTS, "y": ROWS}
    draws = pg.infer(two_levels, data, SHORT, seed=0, backend=b, progress_bar=False)
    mean = draws.posterior["mu"].values.mean((0, 1))
    np.testing.assert_allclose(mean, ROWS.sum(0) / 8, atol=0.2)  # 6 standard errors of 120 draws
    assert draws.observed_data["k"].dims == ("group", "data")
