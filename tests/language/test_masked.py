"""A mask is honoured or refused, never dropped: the value that stands for "missing" is no datum."""

import numpy as np
import pytest

import probgen as pg
from probgen import dist
from probgen.errors import DataError
from probgen.inference import ELBO, SVI, Langevin

FILL = -999.0
VALUES = np.linspace(1, 3, 8).astype("f")
Y = np.ma.masked_equal(np.r_[VALUES, np.full(8, FILL)].astype("f"), FILL)
METHOD = Langevin(0.05, num_steps=400, num_warmup=100, num_chains=1)
SHORT = Langevin(0.01, num_steps=2, num_warmup=0, num_chains=1)


@pg.model
def mean_of_all():
    mu = pg.sample("mu", dist.Normal(0, 100))
    with pg.data_plate():
        pg.sample("y", dist.Normal(mu, 1.0))


@pg.model
def mean_of_observed(is_observed):
    mu = pg.sample("mu", dist.Normal(0, 100))
    with pg.data_plate():
        pg.sample("y", dist.Normal(mu, 1.0).mask(is_observed))


@pg.model
def with_obs(y):
    with pg.data_plate():
        pg.sample("z", dist.Normal(0, 1))
        pg.sample("y", dist.Normal(0, 1.0), obs=y)


def run(model, data, backend, method=METHOD, **options):
    options = {"seed": 0, "backend": backend, "progress_bar": False, **options}
    return pg.infer(model, data, method, **options)


def test_a_masked_array_is_refused_wherever_it_comes_in(backend_name):
    guided = mean_of_all.with_guide(lambda: pg.sample("mu", dist.Normal(0, 1)))
    options = dict(num_steps=1, seed=0, backend=backend_name, progress_bar=False)
    for call in (
        lambda: run(mean_of_all, {"y": Y}, backend_name),
        lambda: run(with_obs, None, backend_name, inputs={"y": Y}),
        lambda: pg.fit(guided, {"y": Y}, SVI(ELBO()), **options),
        lambda: pg.fit(guided, [Y, Y], SVI(ELBO()), **options),
        lambda: dist.Normal(Y, 1.0),
    ):
        with pytest.raises(DataError, match=r"8 of 16 entries masked, .*distribution\.mask"):
            call()


def test_the_way_that_the_message_names_infers_from_what_was_observed(backend):
    """mu | y ~ N(mean(y observed), 1/8) but for a prior of variance 10^4."""
    given = {"y": Y.filled(0.0)}
    tree = run(mean_of_observed, given, backend, inputs={"is_observed": ~np.ma.getmaskarray(Y)})
    draws = tree.posterior["mu"].values
    # A step takes 0.6 of the way along, so that 400 draws are worth 100 independent ones: five
    # standard errors of the mean.
    assert abs(draws.mean() - VALUES.mean()) < 5 * np.sqrt(1 / 8) / np.sqrt(100)


def test_a_mask_that_hides_nothing_is_no_reason_to_refuse(backend):
    run(mean_of_all, {"y": np.ma.masked_equal(VALUES, FILL)}, backend, SHORT)
